// What the chosen models are, in plain words.

import { make, note, page } from "./dom.js";
import { bytes, count, listed } from "./format.js";
import { precisionName } from "./models.js";

const LABELS = 16; // shown; the others on demand
const THIN = "\u202f"; // keeps a number and its sign on one line
const PRECISIONS = {
  fp32: "32-bit floating point, as trained",
  fp16: "16-bit floating point",
  int8: "mostly 8-bit whole numbers",
};

export function showCard(models, all) {
  page("model-title").textContent = models[0].name;
  page("about").textContent = about(models);
  page("labels").replaceChildren(...labels(models[0].labels));
  page("card").replaceChildren(table(models));
  note(page("warnings"), warnings(all));
}

/** Whether the models' answers are like those to their validation images; nothing where a card does not know. */
export function showDrift(models) {
  const known = models.filter((m) => m.drift);
  const texts = known.map(({ drift: { text }, ...m }) =>
    known.length > 1 ? `${precisionName(m)}: ${text}.` : `${text[0].toUpperCase()}${text.slice(1)}.`,
  );
  page("drift").className = known.some((m) => m.drift.differs) ? "problem" : "soft";
  note(page("drift"), texts.join(" "));
}

function about(models) {
  const [{ model, params, labels: names, input_size: size, dataset }] = models;
  return (
    `Tells ${count(names.length)} kinds of images apart, by their centre square at ${size} x ${size} pixels. ` +
    `A “${model}” network of ${count(params)} parameters, trained on ${dataset}. ${right(models)}`
  );
}

function right(models) {
  const measured = models.filter((m) => m.accuracy);
  if (!measured.length) return "Its accuracy was not measured.";
  const same = new Set(measured.map(({ accuracy: a }) => [a.top1, a.n, ...a.ci95].join())).size === 1;
  const parts = (same ? measured.slice(0, 1) : measured).map((m) => {
    const either = same && measured.length > 1;
    const where = models.length === 1 ? "" : either ? " in either precision" : ` in ${precisionName(m)}`;
    return `${m.accuracy.top1.toFixed(1)}${THIN}%${where} (95${THIN}% interval ${interval(m.accuracy, 1)})`;
  });
  const { n } = measured[0].accuracy;
  return `Of ${count(n)} images that it never saw, its first answer was right for ${listed(parts)}.`;
}

function labels(names) {
  const shown = names.slice(0, LABELS).map((name) => make("li", "", name));
  if (names.length <= LABELS) return shown;
  const more = make("button", "small", `and ${count(names.length - LABELS)} more`);
  more.type = "button";
  const item = make("li", "more", more);
  more.addEventListener("click", () => {
    item.replaceWith(...names.slice(LABELS).map((name) => make("li", "", name)));
  });
  return [...shown, item];
}

const ROWS = [
  ["Precision", (m) => PRECISIONS[m.precision] ?? m.precision],
  ["First answer right", (m) => m.accuracy && `${m.accuracy.top1.toFixed(2)} %`],
  ["95 % interval", (m) => m.accuracy && interval(m.accuracy, 2)],
  ["Right among five", (m) => m.accuracy && `${m.accuracy.top5.toFixed(2)} %`],
  ["Measured on", (m) => m.accuracy && `${count(m.accuracy.n)} ${m.accuracy.split} images`],
  ["Against fp32", (m) => m.accuracy?.against_fp32 && difference(m.accuracy.against_fp32)],
  ["Engine", (m) => m.engine],
  ["Threads", (m) => String(m.threads)],
  ["Note", (m) => m.note],
  ["File", (m) => m.file],
  ["Size", (m) => bytes(m.size_bytes)],
  ["Parameters", (m) => count(m.params)],
  ["Work an image", (m) => (m.macs ? `${(m.macs / 1e6).toFixed(1)} million multiply-adds` : "not counted")],
  ["Made for", (m) => (m.precision === "int8" ? m.target : "")],
  ["Loaded in", (m) => `${Math.round(m.load_ms)} ms`],
  ["Swapped", (m) => (m.swaps ? `${count(m.swaps)} times, as its file changed` : "")],
  ["SHA-256", (m) => m.sha256],
];

function interval({ ci95 }, places) {
  return `${ci95.map((p) => p.toFixed(places)).join(" to ")}${THIN}%`;
}

function difference({ points, margin95, n }) {
  const sign = points >= 0 ? "+" : "−";
  return `${sign}${Math.abs(points).toFixed(2)} ± ${margin95.toFixed(2)} points on ${count(n)} images`;
}

function table(models) {
  const rows = ROWS.map(([name, value]) => [name, models.map((m) => value(m) || "")]);
  const body = rows.filter(([, values]) => values.some(Boolean)).map(([name, values]) => {
    const head = make("th", "", name);
    head.scope = "row";
    const same = values.length > 1 && values.every((v) => v === values[0]);
    const className = name === "SHA-256" ? "hash" : "";
    const cells = (same ? values.slice(0, 1) : values).map((v) => make("td", className, v || "–"));
    if (same) cells[0].colSpan = values.length;
    return make("tr", "", head, ...cells);
  });
  const heads = ["", ...models.map((m) => `${precisionName(m)}: ${m.name}, version ${m.version}`)].map((text) => {
    const cell = make(text ? "th" : "td", "", text);
    if (text) cell.scope = "col";
    return cell;
  });
  return make("table", "card", make("thead", "", make("tr", "", ...heads)), make("tbody", "", ...body));
}

/** What the server says of files that it did not take. */
function warnings(all) {
  return all
    .filter((m) => m.problem || m.state !== "READY")
    .map((m) => {
      const what = m.state === "READY" ? "its changed file is not used, the former is" : "is not loaded";
      return `${m.name}, version ${m.version}, ${what}${m.problem ? `: ${m.problem}` : ""}`;
    })
    .join("\n");
}
