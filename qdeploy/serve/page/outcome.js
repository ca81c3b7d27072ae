// One image's answers: of one model, or of two side by side.

import { make, facts } from "./dom.js";
import { ms, percent } from "./format.js";
import { lookView } from "./look.js";
import { precisionName } from "./models.js";
import { Away, predict, Refused } from "./server.js";

const FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM and AVIF";
const PLAIN = {
  "unsupported-format": `This is not an image that the server can read; it reads ${FORMATS}.`,
  "unsupported-mode": "The server cannot read this kind of image.",
  "too-large": "This file is too large.",
  "too-many-pixels": "This image has too many pixels.",
  empty: "This file is empty.",
  damaged: "This image is damaged.",
  "out-of-memory": "The server has not enough memory for this image now.",
  truncated: "This image is cut off: its end is missing.",
  busy: "The server is busy.",
  deadline: "The server took too long.",
  draining: "The server is stopping.",
  "not-ready": "This model is not loaded.",
  "unknown-model": "This model is not served any more.",
  "unknown-version": "This version is not served any more.",
};

/** Ask each model of a choice, one after the other, so that they do not slow each other down. */
export async function classify(data, models, reversed = false) {
  const outcomes = new Map();
  for (const model of reversed ? [...models].reverse() : models) {
    outcomes.set(model, { model, ...(await predict(data, model)) });
  }
  return models.map((model) => outcomes.get(model));
}

/** The elements that show the answers; of a file that is kept, with a button that shows where the models look. */
export function outcomeView(outcomes, file) {
  const look = file ? [lookView(file, outcomes.map(({ model }) => model))] : [];
  if (outcomes.length === 1) return [column(outcomes[0], false), ...look];
  return [agreement(outcomes), make("div", "columns", ...outcomes.map((outcome) => column(outcome, true))), ...look];
}

export const best = (outcome) => outcome.answer.predictions[0];

export function agree(outcomes) {
  return outcomes.every((o) => best(o).index === best(outcomes[0]).index);
}

/** The elements that tell why there is no answer. */
export function problemView(error) {
  const plain = error instanceof Refused ? PLAIN[error.reason] ?? "The server refused it." : error.message;
  const words = [make("p", "problem", plain)];
  if (error instanceof Refused) words.push(make("p", "soft detail", error.message));
  return words;
}

/** Whether another attempt may succeed. */
export function passing(error) {
  return error instanceof Away || (error instanceof Refused && [401, 503, 504].includes(error.status));
}

function column({ model, answer, roundTrip }, named) {
  const times = answer.latency_ms;
  const line = facts([
    ["waiting", `${ms(times.queue)} ms`],
    ["decoding", `${ms(times.decode)} ms`],
    ["inference", `${ms(times.infer)} ms`],
    ["round trip", `${ms(roundTrip)} ms`],
  ]);
  const list = make("ol", "bars", ...answer.predictions.map(bar));
  const unknown = `Unknown (score ${answer.score?.toFixed(2)}); it would be:`;
  const parts = [...(answer.unknown ? [make("p", "not-known", unknown)] : []), list, make("dl", "times", ...line)];
  return make("div", `column ${model.precision}`, ...(named ? [make("h4", "", precisionName(model))] : []), ...parts);
}

function bar({ label, probability }) {
  const filled = make("span");
  filled.style.width = `${100 * probability}%`;
  const name = make("span", "label", label);
  name.title = label;
  return make("li", "", name, make("span", "percent", percent(probability)), make("span", "track", filled));
}

function agreement(outcomes) {
  if (!agree(outcomes)) {
    return make("p", "verdict differ", `They differ: ${outcomes.map((o) => best(o).label).join(" and ")}`);
  }
  const [a, b] = outcomes.map((o) => best(o).probability);
  const points = Math.abs(100 * (a - b));
  const apart = points < 0.05 ? "less than 0.1" : points.toFixed(1);
  return make("p", "verdict", `Same answer; probabilities ${apart} points apart`);
}
