// The images that were given, one card each with its answers.

import { make, note, page, pause, say } from "./dom.js";
import { listed, median, ms, percent, several } from "./format.js";
import { agree, best, classify, outcomeView, passing, problemView } from "./outcome.js";
import { Away } from "./server.js";

const MOST = 200; // cards that are kept, and files that are taken at a time
const TRIES = 3; // of an image, where the server is busy or away
const LARGE_BYTES = 8e6;
const THUMBNAIL = 176;
const COMPARABLE = 20; // images from which on a ratio of medians means something

const BROKE = "The connection broke while the file was sent. It may be larger than the server takes.";

export class Answers {
  /** Takes a function that returns the models to ask, and one that is told of failures. */
  constructor(chosen, failed) {
    this.chosen = chosen;
    this.failed = failed;
    this.items = [];
    this.waiting = [];
    this.busy = false;
    page("clear").addEventListener("click", () => this.clear());
  }

  /** Classify files and show them above the others, in their order. */
  add(files) {
    const taken = [...files].slice(0, MOST).map(newItem);
    page("list").prepend(...taken.map((item) => item.card));
    this.items.unshift(...taken);
    for (const item of this.items.splice(MOST)) item.card.remove();
    page("answers").hidden = this.items.length === 0;
    this.ask(taken);
    if (files.length > MOST) say(`The first ${MOST} of ${files.length} files were taken.`);
  }

  /** Ask again for all images, as another model was chosen. */
  again() {
    this.waiting = [];
    for (const item of this.items) item.tries = 0;
    this.ask(this.items);
  }

  /** Ask again for the images that failed because the server did not answer or asked for a token. */
  retry() {
    this.ask(this.items.filter((item) => item.error && passing(item.error) && item.tries < TRIES));
  }

  clear() {
    this.items = [];
    this.waiting = [];
    page("list").replaceChildren();
    page("answers").hidden = true;
    page("files").focus();
  }

  async ask(items) {
    for (const item of items) item.card.setAttribute("aria-busy", "true");
    this.waiting.push(...items);
    if (this.busy) return;
    this.busy = true;
    let done = [];
    while (this.waiting.length) {
      const item = this.waiting.shift();
      note(page("progress"), this.waiting.length ? `${several(this.waiting.length + 1, "image")} to go` : "");
      await this.answer(item);
      if (!this.waiting.includes(item)) done.push(item);
    }
    this.busy = false;
    done = done.filter((item) => this.items.includes(item));
    if (done.length) say(spoken(done));
  }

  async answer(item) {
    item.error = item.outcomes = undefined;
    item.tries += 1;
    try {
      const data = await contents(item);
      item.outcomes = await classify(data, this.chosen(), item.number % 2 === 1);
      item.body.replaceChildren(...outcomeView(item.outcomes, item.file));
    } catch (error) {
      item.error = error instanceof Away && item.file.size > LARGE_BYTES ? new Away(BROKE) : error;
      item.body.replaceChildren(...problemView(item.error));
      this.failed(error);
      if (error.status === 503 && item.tries < TRIES) {
        await pause(1000 * error.retryAfterS);
        this.waiting.unshift(item);
        return;
      }
    }
    item.card.classList.toggle("failed", Boolean(item.error));
    item.card.removeAttribute("aria-busy");
    this.summarise();
  }

  summarise() {
    const pairs = this.items.map((item) => item.outcomes).filter((outcomes) => outcomes?.length === 2);
    note(page("summary"), pairs.length > 1 ? summary(pairs) : "");
  }
}

let number = 0;

function newItem(file) {
  const body = make("div", "answer-body");
  const thumbnail = make("canvas", "thumbnail");
  thumbnail.width = thumbnail.height = THUMBNAIL;
  const name = file.name || "pasted image";
  const heading = make("h3", "", name);
  const card = make("article", "panel answer", thumbnail, make("div", "answer-side", heading, body));
  return { file, name, body, card, thumbnail, drawn: false, tries: 0, number: number++ };
}

/** Return a file's bytes; draws its thumbnail the first time. */
async function contents(item) {
  let data;
  try {
    data = await item.file.arrayBuffer();
  } catch {
    throw new Error("The browser cannot read this: it is a folder, or the file was moved.");
  }
  if (!item.drawn) {
    item.drawn = true;
    await drawThumbnail(item).catch(() => item.thumbnail.classList.add("unknown"));
  }
  return data;
}

/** Draw the centre square, which is what the model gets. */
async function drawThumbnail({ file, thumbnail }) {
  const whole = await createImageBitmap(file);
  const side = Math.min(whole.width, whole.height);
  const pen = thumbnail.getContext("2d");
  pen.imageSmoothingEnabled = side > THUMBNAIL / 2; // small ones as the pixels that they are
  pen.imageSmoothingQuality = "high";
  pen.drawImage(whole, (whole.width - side) / 2, (whole.height - side) / 2, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
  whole.close();
}

function spoken(items) {
  if (items.length > 1) {
    const failed = items.filter((item) => item.error).length;
    return `${several(items.length - failed, "image")} classified${failed ? `, ${failed} failed` : ""}.`;
  }
  const [{ name, error, outcomes }] = items;
  if (error) return `${name}: ${problemView(error)[0].textContent}`;
  const { label, probability } = best(outcomes[0]);
  if (outcomes.every((o) => o.answer.unknown)) return `${name}: unknown; it would be ${label}.`;
  if (agree(outcomes)) return `${name}: ${label}, ${percent(probability)}.`;
  return `${name}: the models differ, ${listed(outcomes.map((o) => best(o).label))}.`;
}

function summary(pairs) {
  const same = pairs.filter(agree).length;
  const [fp32, int8] = [0, 1].map((i) => median(pairs.map((outcomes) => outcomes[i].answer.latency_ms.infer)));
  const few = pairs.length < COMPARABLE;
  return (
    `Same answer for ${same} of ${several(pairs.length, "image")}. ` +
    `Median inference ${ms(fp32)} ms in fp32, ${ms(int8)} ms in INT8: ` +
    (few ? `give it ${COMPARABLE} images to see which is faster.` : `${faster(fp32, int8)}.`)
  );
}

function faster(fp32, int8) {
  const times = Math.max(fp32 / int8, int8 / fp32).toFixed(1);
  if (times === "1.0") return "equally fast";
  return `${int8 < fp32 ? "INT8" : "fp32"} is ${times} times as fast`;
}
