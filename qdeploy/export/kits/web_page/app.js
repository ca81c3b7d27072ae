// The page: images in, answers out. Texts from files and cards are only ever set as text, never as markup.

import { decodeFile, grabFrame } from "./decode.js";
import { Latency, milliseconds, PHASES } from "./latency.js";
import { Model, readKit } from "./model.js";
import { drawUpright, modelPixels } from "./resize.js";

const TOP = 5;
const KEPT_RESULTS = 60;
const THUMBNAIL = 240;
const RUNS = 200;
const DRAW_EVERY_MS = 250; // of the time panel: drawing is not to cost what it measures

const page = (id) => document.getElementById(id);
let kit;
let model;
let latency = new Latency();
let drawn = 0;
let files = Promise.resolve();
let waiting = 0;
let stream;

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children); // strings become text
  return element;
}

function say(text, kind = "") {
  page("state").textContent = text;
  page("state").className = `state ${kind}`;
}

/** Take a picture through preprocessing and model; `decode` is what it took to get it. */
async function classified(picture, decode) {
  const { card } = model;
  const begin = performance.now();
  const pixels = modelPixels(picture, card.preprocessing);
  const preprocess = performance.now() - begin;
  const { probabilities, ms, score, unknown } = await model.classify(pixels);
  const times = { decode, preprocess, infer: ms };
  latency.add(times);
  drawLatency();
  return { pixels, times, score, unknown, answers: ranked(probabilities, card.labels) };
}

function ranked(probabilities, labels) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  return order.slice(0, TOP).map((i) => ({ label: labels[i], probability: probabilities[i] }));
}

function bars(answers) {
  return answers.map(({ label, probability }) => {
    const filled = make("span");
    filled.style.width = `${100 * probability}%`;
    const name = make("span", "label", label);
    name.title = label;
    return make("li", "", name, make("span", "percent", `${(100 * probability).toFixed(1)} %`), make("span", "track", filled));
  });
}

/** What is said above the bars of an image that the model does not know. */
function verdict(unknown, score) {
  return unknown ? [make("li", "unknown", `unknown (score ${score.toFixed(2)}); would be:`)] : [];
}

/** The centre square, and in its corner the very pixels that the model gets. */
function thumbnail(picture, pixels, size) {
  const [large, seen] = [make("canvas"), make("canvas", "seen")];
  large.width = large.height = THUMBNAIL;
  seen.width = seen.height = size;
  const side = Math.min(picture.width, picture.height);
  const pen = large.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.imageSmoothingEnabled = side > THUMBNAIL;
  drawUpright(pen, picture, (picture.width - side) / 2, (picture.height - side) / 2, THUMBNAIL / side);
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) image.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  seen.getContext("2d").putImageData(image, 0, 0);
  seen.title = `What the model sees: ${size} x ${size} pixels`;
  return make("div", "picture", large, seen);
}

function show(result) {
  page("results").prepend(result);
  while (page("results").children.length > KEPT_RESULTS) page("results").lastChild.remove();
}

async function answerFile(file) {
  const name = file.name || "pasted image";
  try {
    const begin = performance.now();
    const picture = await decodeFile(file, kit.limits);
    const { pixels, times, answers, score, unknown } = await classified(picture, performance.now() - begin);
    const words = PHASES.map((phase) => `${phase} ${milliseconds(times[phase])} ms`).join(", ");
    const list = make("ol", "bars", ...verdict(unknown, score), ...bars(answers));
    const small = thumbnail(picture, pixels, model.card.preprocessing.size);
    show(make("article", "card result", make("h3", "", name), small, list, make("p", "note", words)));
    picture.bitmap.close();
  } catch (error) {
    show(make("article", "card result failed", make("p", "", `${name} ${error.message}`)));
  }
}

/** Answer files one after the other: many photos at once would not fit into a phone's memory. */
function take(list) {
  for (const file of list) {
    waiting++;
    files = files.then(async () => {
      page("queue").textContent = waiting > 1 ? `${waiting} images to go` : "";
      await answerFile(file);
      waiting--;
      if (!waiting) page("queue").textContent = "";
      await new Promise((resolve) => setTimeout(resolve)); // let the browser draw
    });
  }
}

function drawLatency(now = performance.now()) {
  if (now - drawn < DRAW_EVERY_MS) {
    clearTimeout(drawLatency.later);
    drawLatency.later = setTimeout(() => drawLatency(Infinity), DRAW_EVERY_MS);
    return;
  }
  drawn = performance.now();
  page("speed").replaceChildren(...PHASES.map(latencyRow));
  const last = latency.summary("infer");
  page("speed-note").textContent = last
    ? `In ms, over the last ${last.count} runs, on one thread. Browsers round their clocks to 0.1 or 1 ms.`
    : "Nothing measured yet.";
}

function latencyRow(phase) {
  const found = latency.summary(phase);
  const histogram = make("div", "histogram");
  if (found) {
    const highest = Math.max(...found.bars);
    histogram.title = `0 to ${milliseconds(found.end)} ms`;
    for (const share of found.bars) {
      const bar = make("span");
      bar.style.height = `${(100 * share) / highest}%`;
      histogram.append(bar);
    }
  }
  const head = make("th", "", phase);
  head.scope = "row";
  const numbers = ["p50", "p90"].map((name) => make("td", "", found ? milliseconds(found[name]) : "-"));
  return make("tr", "", head, make("td", "", histogram), ...numbers);
}

async function measure() {
  page("measure").disabled = true;
  const size = model.card.preprocessing.size;
  const pixels = new Uint8ClampedArray(size * size * 3).fill(128);
  for (let i = 0; i < RUNS; i++) {
    latency.add({ infer: (await model.classify(pixels)).ms });
    if (i % 20 === 19) {
      drawLatency();
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
  drawLatency(Infinity);
  page("measure").disabled = false;
}

async function startCamera() {
  page("camera").disabled = true;
  page("camera-note").hidden = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    page("video").srcObject = stream;
    await page("video").play();
  } catch (error) {
    stopCamera();
    noteCamera(`The camera cannot be used: ${error.message}.`);
    return;
  }
  page("live").hidden = false;
  page("stop").focus();
  await watchCamera(stream);
}

/** Answer frames as fast as they come, until the camera is stopped. */
async function watchCamera(mine) {
  const video = page("video");
  const ends = [];
  try {
    while (stream === mine && mine.active) {
      await nextFrame(video);
      const begin = performance.now();
      const picture = await grabFrame(video);
      const { answers, score, unknown } = await classified(picture, performance.now() - begin);
      picture.bitmap.close();
      page("live-answer").replaceChildren(...verdict(unknown, score), ...bars(answers));
      ends.push(performance.now());
      if (ends.length > 31) ends.shift();
      const rate = (1000 * (ends.length - 1)) / (ends.at(-1) - ends[0]);
      page("rate").textContent = ends.length > 5 ? `${rate.toFixed(1)} images a second` : "";
    }
  } catch (error) {
    noteCamera(`The camera was stopped: ${error.message}.`);
  }
  if (stream === mine) stopCamera();
}

function nextFrame(video) {
  return new Promise((resolve) => {
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(resolve);
    else requestAnimationFrame(resolve);
    setTimeout(resolve, 1000); // a camera that was unplugged sends none
  });
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = undefined;
  page("live").hidden = true;
  page("camera").disabled = false;
}

function noteCamera(text) {
  page("camera-note").textContent = text;
  page("camera-note").hidden = false;
}

const thousands = (number) => number.toLocaleString("en");

/** The card in plain words. */
function describe({ card, entry }) {
  const { accuracy, preprocessing, origin } = card;
  const rows = {
    Model: `${card.model.name}, ${thousands(card.model.params)} parameters`,
    File: `${card.precision.toUpperCase()}, ${thousands(Math.round(entry.size_bytes / 1000))} kB`,
    Accuracy: accuracy
      ? `${accuracy.top1.toFixed(1)} % of ${thousands(accuracy.n)} ${accuracy.split} images right ` +
        `(95 % interval ${accuracy.ci95.map((p) => p.toFixed(1)).join(" to ")})`
      : "not measured",
    "Trained on": `${origin.dataset.name}, ${origin.created.slice(0, 10)}`,
    Sees: `the centre square, ${preprocessing.size} x ${preprocessing.size} pixels`,
    Runtime: `ONNX Runtime Web ${kit.runtime}, WebAssembly`,
  };
  page("about").replaceChildren(...Object.entries(rows).flatMap(([k, v]) => [make("dt", "", k), make("dd", "", v)]));
  page("labels-title").textContent = `${card.labels.length} classes`;
  page("labels").textContent = card.labels.join(", ");
  page("name").textContent = card.name;
  document.title = card.name;
}

/** Open a model and put it in the place of the present one; a bad one leaves that as it is. */
async function use(entry) {
  say(`Loading ${entry.file}...`);
  const next = await Model.open(entry);
  const before = model;
  model = next;
  await before?.close(); // what it has begun it ends
  latency = new Latency();
  drawLatency(Infinity);
  describe(model);
  const { count, db, least, exact } = model.selfTest;
  const agreement = db === Infinity ? "exactly" : `with ${db.toFixed(1)} dB of agreement; ${least} are needed`;
  const passed = `Ready. Self-test passed: ${count} stored images give the stored answers, ${agreement}.`;
  if (exact) say(passed, "good");
  else say(`${passed} But this browser alters the pixels that pages read, against tracking: answers may differ.`, "warn");
}

function listen() {
  page("files").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // choosing the same file again is a change, too
  });
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // else the browser leaves the page for the image
      page("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") take(event.dataTransfer.files);
    });
  }
  document.addEventListener("dragleave", () => page("drop").classList.remove("over"));
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  page("camera").addEventListener("click", startCamera);
  page("stop").addEventListener("click", stopCamera);
  page("measure").addEventListener("click", measure);
  page("models").addEventListener("change", async (event) => {
    const before = model.entry.file;
    await use(kit.models[event.target.selectedIndex]).catch((error) => {
      say(`${error.message}.`, "bad");
      event.target.value = before;
    });
  });
  if (!navigator.mediaDevices) {
    page("camera").disabled = true;
    noteCamera("Browsers give the camera only to pages on https:// or http://localhost.");
  }
}

async function start() {
  page("late").remove();
  try {
    kit = await readKit();
    const chosen = kit.models.find((entry) => entry.file === kit.recommended);
    page("models").append(...kit.models.map((entry) => make("option", "", entry.file)));
    page("models").value = chosen.file;
    page("choice").hidden = kit.models.length < 2;
    await use(chosen);
    listen();
    page("main").hidden = false;
  } catch (error) {
    say(`${error.message}.`, "bad");
  }
}

start();
