// The figures of GET /report.

import { drawHistogram, drawMemory } from "./charts.js";
import { facts, make, note, page } from "./dom.js";
import { bytes, count, duration, listed, ms, rate, several } from "./format.js";

const PHASES = [
  ["queue", "Waiting", "Until a core was free"],
  ["decode", "Decoding", "Reading the request, decoding and resizing the image"],
  ["infer", "Inference", "The model itself"],
  ["post", "Answering", "Writing the answer"],
  ["total", "Whole request", "From its last byte on, without the network"],
];
const SHARES = [
  ["python_and_server", "Python and server"],
  ["inference_runtime", "Inference runtime"],
  ["models", "Models"],
  ["buffers", "Buffers of requests"],
];
const STATUSES = {
  400: "unreadable",
  401: "without the token",
  404: "for a model that is not there",
  413: "too large",
  415: "not an image",
  503: "queue full or server stopping",
  504: "too late",
};
const RATE_OVER_MS = 8000;

export class Panel {
  constructor() {
    this.last = undefined;
    this.seen = [];
    for (const radio of document.getElementsByName("stretch")) radio.addEventListener("change", () => this.draw());
    const resized = new ResizeObserver(() => this.draw());
    resized.observe(page("memory"));
  }

  show(report) {
    this.last = report;
    this.count(report.since_start.requests);
    this.draw();
  }

  draw() {
    if (!this.last) return;
    const { memory } = this.last;
    const stretch = this.last[document.querySelector("[name=stretch]:checked").value];
    this.drawTiles(stretch, memory);
    const any = stretch.latency_ms.total.n > 0;
    page("cost").hidden = !any;
    if (any) {
      page("phases").replaceChildren(...PHASES.map((phase) => phaseRow(phase, stretch.latency_ms)));
      drawHistogram(page("histogram"), stretch.histogram_ms, stretch.latency_ms.total);
    }
    note(page("refused"), refusals(stretch));
    drawShares(memory);
    const now = [this.last.server.uptime_s, memory.resident_bytes];
    drawMemory(page("memory"), [...memory.resident_over_time, now], memory.peak_bytes);
    page("growth").textContent = growth(memory.growth_bytes_per_hour);
    page("server").replaceChildren(...facts(serverFacts(this.last)));
  }

  drawTiles(stretch, memory) {
    const { n, p50 } = stretch.latency_ms.total;
    const tiles = [
      ["Requests a second", this.now(), `${rate(stretch.requests_per_s)} on average over ${duration(stretch.seconds)}`],
      ["Time of a request", n ? `${ms(p50)} ms` : "–", n ? `median of ${count(n)}` : "no request yet"],
      ["Memory", bytes(memory.resident_bytes), `peak ${bytes(memory.peak_bytes)}`],
      [
        "CPU time a request",
        stretch.cpu_ms_per_request === null ? "–" : `${ms(stretch.cpu_ms_per_request)} ms`,
        `${(stretch.cpu_cores * 100).toFixed(1)} % of a core busy, this page's asking included`,
      ],
    ];
    page("tiles").replaceChildren(...tiles.map(tile));
  }

  /** Keep the number of requests, to see the present rate. */
  count(requests) {
    const now = performance.now();
    if (this.seen.length && requests < this.seen.at(-1).requests) this.seen = []; // another process answers
    this.seen.push({ now, requests });
    while (this.seen.length > 2 && now - this.seen[0].now > RATE_OVER_MS) this.seen.shift();
  }

  now() {
    const [first, last] = [this.seen[0], this.seen.at(-1)];
    const seconds = (last.now - first.now) / 1000;
    return seconds > 0.5 ? rate((last.requests - first.requests) / seconds) : "–";
  }
}

function tile([name, value, more]) {
  return make("div", "", make("dt", "", name), make("dd", "value", value), make("dd", "soft", more));
}

function phaseRow([key, name, more], latency) {
  const head = make("th", "", name);
  head.scope = "row";
  head.title = more;
  return make("tr", key, head, ...["p50", "p90", "p99"].map((p) => make("td", "", ms(latency[key][p]))));
}

function refusals({ requests, statuses }) {
  const refused = Object.entries(statuses).filter(([status]) => status !== "200");
  if (!requests) return "No request yet. Give it an image.";
  const all = `${several(requests, "request")}, `;
  if (!refused.length) return `${all}none refused.`;
  const sum = refused.reduce((total, [, n]) => total + n, 0);
  const why = refused.map(([s, n]) => (refused.length > 1 ? `${count(n)} × ` : "") + (STATUSES[s] ?? `status ${s}`));
  return `${all}${count(sum)} refused: ${listed(why)}.`;
}

function drawShares(memory) {
  const parts = SHARES.map(([key, name], i) => ({ name, value: memory.share_bytes[key], className: `share-${i + 1}` }));
  const whole = parts.reduce((sum, part) => sum + part.value, 0);
  page("shares").replaceChildren(
    ...parts.map(({ value, className }) => {
      const part = make("span", className);
      part.style.flexGrow = value / whole;
      return part;
    }),
  );
  page("share-list").replaceChildren(
    ...parts.map(({ name, value, className }) => {
      const term = make("dt", "", make("span", `swatch ${className}`), name);
      const share = `${Math.round((100 * value) / whole)} %`;
      return make("div", "", term, make("dd", "", bytes(value)), make("dd", "soft", share));
    }),
  );
}

function growth(perHour) {
  if (perHour === null) return "Growth is known after some minutes.";
  if (Math.abs(perHour) < 1e5) return "It does not grow.";
  return perHour > 0 ? `It grows by ${bytes(perHour)} an hour.` : `It shrinks by ${bytes(-perHour)} an hour.`;
}

function serverFacts({ server, machine }) {
  const { python, onnxruntime } = machine.versions;
  return [
    ["Runs for", duration(server.uptime_s)],
    ["Queue", `${server.queue.waiting} of ${server.queue.capacity} places taken`],
    ["At a time", several(server.lanes, "inference")],
    ["Processes", server.workers > 1 ? `${server.workers}; figures are of all that report` : ""],
    ["Batches", server.max_batch > 1 ? `up to ${server.max_batch} waiting images` : ""],
    ["Processor", `${machine.cpu}, ${several(machine.cores, "core")}`],
    ["CPU flags", machine.flags.join(", ")],
    ["Software", `qdeploy ${server.version}, ONNX Runtime ${onnxruntime}, Python ${python}`],
  ];
}
