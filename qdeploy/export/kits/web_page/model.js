// A model of the kit: fetched, checked, opened with ONNX Runtime, and asked for the answers that its card stores.

import { modelPixels } from "./resize.js";
import { sha256 } from "./sha256.js";

const RUNTIME = "./onnxruntime-web.js";
const WASM = "onnxruntime-web.wasm.gz";

let runtime; // a promise: WebAssembly is fetched and compiled once

/** Fetch one of the kit's files; an Error says which one is missing. */
async function fetched(name) {
  const answer = await fetch(name, { cache: "no-cache" }).catch(() => undefined);
  if (!answer?.ok) throw new Error(`${name} cannot be fetched${answer ? ` (HTTP ${answer.status})` : ""}`);
  return answer;
}

export async function readKit() {
  return (await fetched("kit.json")).json();
}

const bytesOf = async (answer) => new Uint8Array(await answer.arrayBuffer());

async function inflated(bytes, format) {
  return bytesOf(new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream(format))));
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

async function openRuntime() {
  const [ort, packed] = await Promise.all([import(RUNTIME), fetched(WASM).then(bytesOf)]);
  // some servers announce a .gz file as compressed, and the browser has unpacked it already
  ort.env.wasm.wasmBinary = packed[0] === 0x1f ? await inflated(packed, "gzip") : packed;
  ort.env.wasm.numThreads = 1; // more need headers (COOP, COEP) that plain hosts do not send
  ort.env.logLevel = "error";
  return ort;
}

/** Return the signal-to-noise ratio of logits against those stored, in decibels. */
function decibels(stored, found) {
  let [signal, noise] = [0, 0];
  stored.forEach((value, i) => {
    signal += value * value;
    noise += (value - found[i]) ** 2;
  });
  return noise === 0 ? Infinity : 10 * Math.log10(Math.max(signal, 1e-30) / noise);
}

/** Tell whether a canvas gives back what was drawn: some browsers alter it, against fingerprinting. */
async function givenBack(pixels, rules) {
  const image = new ImageData(rules.size, rules.size);
  for (let i = 0; i < image.data.length; i++) image.data[i] = i % 4 === 3 ? 255 : pixels[(i >> 2) * 3 + (i % 4)];
  const picture = { bitmap: await createImageBitmap(image), orientation: 1, width: rules.size, height: rules.size };
  return modelPixels(picture, rules).every((value, i) => value === pixels[i]);
}

export const best = (values) => values.reduce((top, value, i) => (value > values[top] ? i : top), 0);

/** The score, and whether it is below the card's threshold; nothing of a model that answers all images. */
export function judged({ logits, probabilities }, confidence) {
  if (!Number.isFinite(confidence?.threshold)) return {};
  const score = Math.max(...logits) - confidence.temperature * Math.log(Math.max(...probabilities, 1e-38));
  return { score, unknown: score < confidence.threshold };
}

export class Model {
  /** Open one of the kit's models; an Error says why it is not used. */
  static async open(entry) {
    const [card, bytes] = await Promise.all([
      fetched(entry.card).then((answer) => answer.json()),
      fetched(entry.file).then(bytesOf),
    ]);
    if (sha256(bytes) !== entry.sha256) {
      throw new Error(`${entry.file} is damaged: its checksum is not the one in kit.json. Copy the kit again`);
    }
    runtime ??= openRuntime();
    runtime.catch(() => (runtime = undefined)); // another try may find the network back
    const ort = await runtime;
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    const model = new Model(ort, session, card, entry);
    model.selfTest = await model.checked();
    return model;
  }

  constructor(ort, session, card, entry) {
    Object.assign(this, { ort, session, card, entry, last: Promise.resolve() });
  }

  /** Return logits and probabilities of one image of the model's size, and the milliseconds they took. */
  classify(pixels) {
    const run = async () => {
      const size = this.card.preprocessing.size;
      const image = new this.ort.Tensor("uint8", new Uint8Array(pixels.buffer), [1, size, size, 3]);
      const begin = performance.now();
      const { logits, probabilities } = await this.session.run({ image });
      if (!probabilities.data.every(Number.isFinite)) {
        throw new Error("the model's answer to this image is not finite");
      }
      const answer = { logits: logits.data, probabilities: probabilities.data, ms: performance.now() - begin };
      return { ...answer, ...judged(answer, this.card.confidence) };
    };
    this.last = this.last.then(run, run); // a session runs one image at a time
    return this.last;
  }

  /** Give the card's images to the model: the stored answers must come back. */
  async checked() {
    const { shape, images_zlib_base64, logits_float32_base64, min_sqnr_db } = this.card.goldens;
    const [count, size] = shape;
    const pixels = await inflated(fromBase64(images_zlib_base64), "deflate");
    const stored = new Float32Array(fromBase64(logits_float32_base64).buffer);
    const classes = this.card.labels.length;
    const found = new Float32Array(stored.length);
    let [same, exact] = [true, true];
    for (let i = 0; i < count; i++) {
      const image = pixels.slice(i * size * size * 3, (i + 1) * size * size * 3);
      const { logits } = await this.classify(image);
      exact &&= await givenBack(image, this.card.preprocessing);
      found.set(logits, i * classes);
      same &&= best(logits) === best(stored.subarray(i * classes, (i + 1) * classes));
    }
    const db = decibels(stored, found);
    if (!(same && db >= min_sqnr_db)) {
      throw new Error(
        `${this.entry.file} gives other answers here than where it was made (${db.toFixed(1)} dB of agreement, at least ` +
          `${min_sqnr_db} needed${same ? "" : ", another class"}). This browser is not to be trusted with it`,
      );
    }
    return { count, db, least: min_sqnr_db, exact };
  }

  close() {
    return this.last.then(() => this.session.release());
  }
}
