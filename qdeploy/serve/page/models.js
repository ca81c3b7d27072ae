// Which models are loaded, and what one can choose: one of them, or an fp32 and an INT8 version side by side.

/** The choices that a report's models allow, pairs first. */
export function choicesOf(models) {
  const ready = models.filter((m) => m.state === "READY");
  const pairs = ready
    .filter((m) => m.precision === "int8")
    .map((int8) => [ready.find((m) => m.precision === "fp32" && comparable(m, int8)), int8])
    .filter(([fp32]) => fp32);
  return [
    ...pairs.map((pair) => choice(pair, pairs.length > 1 ? both(pair, ready) : "fp32 and INT8, side by side")),
    ...ready.map((m) => choice([m], titled(m, ready))),
  ];
}

/** The choice to begin with: a pair if there is one, else what the server takes where a request names no model. */
export function firstChoice(choices) {
  const first = choices[0];
  if (!first || first.models.length === 2) return first;
  const same = choices.filter((c) => c.models[0].name === first.models[0].name);
  return same.reduce((a, b) => (Number(b.models[0].version) > Number(a.models[0].version) ? b : a));
}

export function precisionName(model) {
  return model.precision === "int8" ? "INT8" : model.precision;
}

function choice(models, title) {
  return { models, title, key: models.map((m) => `${m.name}/${m.version}/${m.sha256}`).join("+") };
}

function comparable(a, b) {
  return a.input_size === b.input_size && a.model === b.model && String(a.labels) === String(b.labels);
}

function both([fp32, int8], ready) {
  return `${titled(fp32, ready)} beside ${titled(int8, ready)}`;
}

function titled(model, ready) {
  const version = ready.filter((m) => m.name === model.name).length > 1 ? `, version ${model.version}` : "";
  const precision = model.name.toLowerCase().includes(model.precision) ? "" : `, ${precisionName(model)}`;
  return `${model.name}${version}${precision}`;
}
