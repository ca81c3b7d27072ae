// Two charts as SVG, drawn at the width that they have on the page.

import { draw } from "./dom.js";
import { bytes, count, duration, ms } from "./format.js";

const PER_DOUBLING = 4; // classes of the report's histogram
const LEAST_CLASSES = 16;
const BELOW = 18; // pixels for the numbers below an axis
const ABOVE = 16;

/** Bars of requests over a logarithmic axis of milliseconds, with lines at the percentiles. */
export function drawHistogram(svg, classes, latency) {
  const { width, height } = sized(svg);
  if (!classes.length || !width) return;
  const counts = new Map(classes.map(([edge, n]) => [Math.round(PER_DOUBLING * Math.log2(edge)), n]));
  let [first, last] = [Math.min(...counts.keys()) - 1, Math.max(...counts.keys()) + 1];
  while (last - first + 1 < LEAST_CLASSES) (first + last) % 2 ? last++ : first--;
  const step = width / (last - first + 1);
  const at = (time) => (PER_DOUBLING * Math.log2(time) - first) * step;
  const [top, floor] = [ABOVE, height - BELOW];
  const highest = Math.max(...counts.values());
  const bars = [...counts].map(([i, n]) => {
    const tall = Math.max(1.5, ((floor - top) * n) / highest);
    const range = `${ms(2 ** (i / PER_DOUBLING))} to ${ms(2 ** ((i + 1) / PER_DOUBLING))} ms: ${count(n)}`;
    const [x, wide] = [(i - first) * step + 0.5, Math.max(1, step - 1)];
    return draw("rect", { class: "bar", x, y: floor - tall, width: wide, height: tall }, draw("title", {}, range));
  });
  svg.replaceChildren(...bars, ...axis(first, last, step, floor, width), ...marks(latency, at, floor, width));
  const words = ["p50", "p90", "p99"].map((p) => `${p} ${ms(latency[p])} ms`).join(", ");
  svg.setAttribute("aria-label", `Histogram of ${count(latency.n)} requests: ${words}`);
}

function axis(first, last, step, floor, width) {
  const every = PER_DOUBLING * Math.max(1, Math.ceil((last - first + 1) / PER_DOUBLING / (width / 44)));
  const drawn = [line("axis", 0, floor, width, floor)];
  for (let i = Math.ceil(first / every) * every; i <= last; i += every) {
    const x = (i - first) * step;
    if (x < 8 || x > width - 26) continue;
    const value = 2 ** (i / PER_DOUBLING);
    const places = value >= 1 ? 0 : Math.min(3, -Math.floor(Math.log2(value)));
    drawn.push(line("axis", x, floor, x, floor + 4), label(x, floor + 15, value.toFixed(places), "middle"));
  }
  return [...drawn, label(width, floor + 15, "ms", "end")];
}

function marks(latency, at, floor, width) {
  const [half, most] = [at(latency.p50), at(latency.p99)];
  const near = most - half < 30;
  return [
    [half, "p50", near ? "end" : "middle", near ? half + 4 : half],
    [most, "p99", near ? "start" : "middle", near ? most - 2 : Math.min(most, width - 12)],
  ].flatMap(([x, name, anchor, textAt]) => [line("mark", x, ABOVE - 2, x, floor), label(textAt, 10, name, anchor)]);
}

/** Resident memory over the seconds since the start, from zero on, and its peak as a line. */
export function drawMemory(svg, points, peak) {
  const { width, height } = sized(svg);
  if (points.length < 2 || !width) return;
  const [top, floor] = [4, height - BELOW];
  const [begin, end] = [points[0][0], points.at(-1)[0]];
  const x = (time) => ((time - begin) / Math.max(end - begin, 1)) * width;
  const y = (value) => floor - ((floor - top) * value) / (1.15 * peak);
  const path = points.map(([time, value]) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`).join(" L");
  svg.replaceChildren(
    draw("path", { class: "area", d: `M0,${floor} L${path} L${width},${floor} Z` }),
    draw("path", { class: "line", d: `M${path}` }),
    line("mark", 0, y(peak), width, y(peak)),
    label(4, y(peak) + 14, `peak ${bytes(peak)}`, "start", "inside"),
    line("axis", 0, floor, width, floor),
    label(0, floor + 14, `${duration(end - begin)} ago`, "start"),
    label(width, floor + 14, "now", "end"),
  );
  const words = `${bytes(points[0][1])} at first, ${bytes(points.at(-1)[1])} now, ${bytes(peak)} at most`;
  svg.setAttribute("aria-label", `Memory over ${duration(end - begin)}: ${words}`);
}

function sized(svg) {
  const [width, height] = [svg.clientWidth, Number(svg.getAttribute("height"))];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return { width, height };
}

function line(name, x1, y1, x2, y2) {
  return draw("line", { class: name, x1, y1, x2, y2 });
}

function label(x, y, text, anchor, name = "") {
  return draw("text", { x, y, "text-anchor": anchor, class: name }, text);
}
