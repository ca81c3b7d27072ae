"use strict";
/* Labels images by keyboard. What is chosen is kept in this browser until it is downloaded, and after. */
const data = JSON.parse(document.getElementById("data").textContent);
const NONE = null; /* none of the labels */
const KEYS = [..."123456789", ..."abcdefghijklmnopqrstuvwxyz"];
const WHY = {
  unknown: "the model called it unknown", uncertain: "the model was not sure", random: "kept by chance",
};
const STORE = `qdeploy-review-${data.id}`;
const known = new Set(data.images.map((image) => image.sha256));
let at = 0;
let chosen = new Map();
let past = []; /* what undo takes back: [index, sha256, what was chosen before] */

const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
};

const restore = () => {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    chosen = new Map(kept.filter(([sha256]) => known.has(sha256)));
  } catch { /* no storage here, or something else in it */ }
  const open = data.images.findIndex((image) => !chosen.has(image.sha256));
  at = open < 0 ? data.images.length : open;
};

const keep = () => {
  try { localStorage.setItem(STORE, JSON.stringify([...chosen])); } catch { /* nothing is lost but a reload */ }
};

const here = () => data.images[at];

const choose = (label) => {
  if (!here()) return;
  const { sha256 } = here();
  past.push([at, sha256, chosen.has(sha256) ? [chosen.get(sha256)] : []]);
  chosen.set(sha256, label);
  keep();
  at += 1;
  show();
};

const skip = () => {
  if (!here()) return;
  past.push([at, null, []]);
  at += 1;
  show();
};

const undo = () => {
  const step = past.pop();
  if (step) {
    const [index, sha256, before] = step;
    if (sha256 !== null && before.length) chosen.set(sha256, before[0]);
    else if (sha256 !== null) chosen.delete(sha256);
    at = index;
    keep();
  } else if (at > 0) {
    at -= 1; /* what was labelled before a reload can be seen again, and changed */
  }
  show();
};

const download = () => {
  const rows = data.images.filter((image) => chosen.has(image.sha256))
    .map(({ image, sha256 }) => ({ image, sha256, label: chosen.get(sha256) }));
  const text = JSON.stringify({ schema: 1, labelled: rows }, null, 1) + "\n";
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "labels.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

const find = make("input", {
  id: "find", type: "search", placeholder: "/ finds a label", "aria-label": "Find a label",
  oninput: () => show(), onkeydown: (event) => {
    if (event.key === "Enter") {
      const [first] = matching();
      if (first !== undefined) { leaveFind(); choose(first); }
    } else if (event.key === "Escape") { leaveFind(); show(); } else return;
    event.preventDefault();
  },
});

const leaveFind = () => { find.value = ""; find.blur(); };

const matching = () => {
  const word = find.value.trim().toLowerCase();
  return data.labels.filter((label) => label.toLowerCase().includes(word));
};

const area = document.getElementById("review");
const counted = make("span", { id: "count", role: "status" });
const filled = make("span");
const card = make("figure", { id: "card" });
const labels = make("div", { id: "labels" });
const undoButton = make("button", { id: "undo", type: "button", onclick: undo }, make("kbd", {}, "\u2190"), " undo");
const saveButton = make("button", { id: "save", type: "button", class: "main", onclick: download }, "Download labels.json");
const acting = make("div", { id: "acting" });
area.append(
  make("div", { id: "bar" }, counted, make("div", { class: "track" }, filled), undoButton, saveButton),
  card,
  make("div", {}, find, labels, acting, make("p", { class: "small" },
    "Keys: the one beside a label chooses it. Enter: the model's answer. Minus: none of these. Space or \u2192: skip. "
    + "\u2190 or Backspace: undo. Slash: find a label. Ctrl+S: download. Labels stay in this browser until you download them.")),
);

const labelButton = (label) => {
  const key = KEYS[data.labels.indexOf(label)];
  const mine = here() && chosen.has(here().sha256) && chosen.get(here().sha256) === label;
  const kind = [here()?.guess === label && "guess", mine && "chosen"].filter(Boolean).join(" ");
  return make("button", { type: "button", class: kind || false, onclick: () => choose(label), disabled: !here() },
    ...(key ? [make("kbd", {}, key)] : []), make("span", {}, label));
};

const describe = (image) => {
  const parts = [WHY[image.why]];
  if (image.guess) parts.push(`its answer: ${image.guess}, ${(100 * image.probability).toFixed(1)} %`);
  if (image.time) parts.push(image.time.slice(0, 16).replace("T", " "));
  return parts.filter(Boolean).join(" \u00b7 ") || image.image;
};

const show = () => {
  const image = here();
  const count = chosen.size;
  counted.textContent = image ? `${at + 1} of ${data.images.length}, ${count} labelled`
    : `all ${data.images.length} seen, ${count} labelled`;
  filled.style.width = `${data.images.length ? (100 * count) / data.images.length : 0}%`;
  undoButton.disabled = !past.length && at === 0;
  saveButton.disabled = !count;
  labels.replaceChildren(...matching().map(labelButton));
  acting.replaceChildren(
    make("button", { id: "none", type: "button", disabled: !image, onclick: () => choose(NONE) }, make("kbd", {}, "-"), " none of these"), " ",
    make("button", { id: "skip", type: "button", disabled: !image, onclick: skip }, make("kbd", {}, "space"), " skip"));
  if (!image) {
    card.replaceChildren(make("figcaption", {}, count
      ? "Download labels.json, and sort the images with qdeploy review --labels labels.json --out DATA."
      : "Nothing is labelled yet."));
    return;
  }
  const shown = make("img", { src: image.picture, alt: "the image to label" });
  shown.addEventListener("load", () => { shown.className = shown.naturalWidth <= 128 ? "small" : "large"; });
  card.replaceChildren(shown, make("figcaption", {}, describe(image)));
};

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s") {
    event.preventDefault();
    if (chosen.size) download();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === find) return;
  if (event.target.closest?.("button") && (event.key === "Enter" || event.key === " ")) return; /* reached by Tab */
  const label = data.labels[KEYS.indexOf(event.key.toLowerCase())];
  if (event.key === "/") find.focus();
  else if (event.key === " " || event.key === "ArrowRight") skip();
  else if (event.key === "Backspace" || event.key === "ArrowLeft") undo();
  else if (event.key === "-") choose(NONE);
  else if (event.key === "Enter" && data.labels.includes(here()?.guess)) choose(here().guess);
  else if (event.key.length === 1 && label !== undefined) choose(label);
  else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  if (event.detail) event.target.closest("button")?.blur(); /* by the mouse: the keys go on to label */
});

restore();
show();
