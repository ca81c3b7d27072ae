// The camera: a live loop of frames to the server, and pictures taken.

import { make, note, page, pause, say } from "./dom.js";
import { rate } from "./format.js";
import { agree, best, classify, outcomeView, problemView } from "./outcome.js";
import { Refused } from "./server.js";

const SHARPER = 4; // frames are sent this many times as wide as the model's input: the server resizes, by its own rules
const FRAME_QUALITY = 0.9;
const PICTURE_QUALITY = 0.95;
const RATE_OVER_MS = 2000;
const SAY_EVERY_MS = 3000;
const PLAIN = {
  NotAllowedError: "The camera was not allowed. Allow it for this page in the browser's settings and try again.",
  NotFoundError: "No camera was found.",
  OverconstrainedError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
};
const INSECURE =
  "Browsers give the camera only to pages that come over https or from this very machine (http://localhost). " +
  "On a phone, “Choose images” can take a photo all the same.";

export class Camera {
  /** Takes functions that return the models to ask, that take picture files, and that are told of failures. */
  constructor(chosen, take, failed) {
    Object.assign(this, { chosen, take, failed, stream: undefined, paused: false, pictures: 0 });
    page("camera").addEventListener("click", () => this.start());
    page("live-stop").addEventListener("click", () => this.stop());
    page("live-take").addEventListener("click", () => this.takePicture());
    page("live-pause").addEventListener("click", () => this.pause(!this.paused));
    page("device").addEventListener("change", () => this.start({ deviceId: { exact: page("device").value } }));
  }

  async start(which = { facingMode: "environment" }) {
    note(page("camera-note"), "");
    if (!navigator.mediaDevices?.getUserMedia) return note(page("camera-note"), INSECURE);
    this.end();
    page("camera").hidden = true;
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: which });
      page("video").srcObject = this.stream;
      await page("video").play();
    } catch (error) {
      this.stop();
      return note(page("camera-note"), PLAIN[error.name] ?? `The camera cannot be used: ${error.message}`);
    }
    page("live").hidden = false;
    if (document.activeElement !== page("device")) page("live-take").focus();
    this.pause(false);
    await this.listDevices();
    return this.loop(this.stream);
  }

  stop() {
    const focused = page("live").contains(document.activeElement);
    this.end();
    page("live").hidden = true;
    page("camera").hidden = false;
    if (focused) page("camera").focus();
  }

  end() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = undefined;
  }

  pause(paused) {
    this.paused = paused;
    page("live-pause").setAttribute("aria-pressed", paused);
    if (paused) page("video").pause();
    else page("video").play().catch(() => {}); // stopped meanwhile
    page("live-rate").textContent = paused ? "paused" : "";
  }

  async takePicture() {
    const { videoWidth: width, videoHeight: height } = page("video");
    const blob = await jpeg(page("video"), [0, 0, width, height], width, height, PICTURE_QUALITY);
    this.take([new File([blob], `camera ${++this.pictures}.jpg`, { type: "image/jpeg" })]);
  }

  /** Ask for frame after frame, one at a time. */
  async loop(mine) {
    const ends = [];
    const turn = { number: 0, spokenAt: -Infinity, spoken: "" };
    while (this.stream === mine && mine.active) {
      await nextFrame(page("video"));
      if (this.paused || document.hidden) {
        ends.length = 0;
        await pause(200);
        continue;
      }
      const wait = await this.frame(mine, turn);
      if (this.stream !== mine) return;
      if (!this.paused) showRate(ends);
      if (wait) await pause(wait);
    }
    if (this.stream === mine) {
      this.stop();
      note(page("camera-note"), "The camera was unplugged or taken away.");
    }
  }

  /** Ask for one frame; returns how many milliseconds to wait before the next. */
  async frame(mine, turn) {
    try {
      const models = this.chosen();
      const blob = await squareFrame(page("video"), SHARPER * models[0].input_size);
      const outcomes = await classify(blob, models, turn.number++ % 2 === 1);
      if (this.stream !== mine || this.paused) return 0;
      page("live-answer").replaceChildren(...outcomeView(outcomes));
      sayNow(outcomes, turn);
      return 0;
    } catch (error) {
      if (this.stream === mine) page("live-answer").replaceChildren(make("div", "", ...problemView(error)));
      this.failed(error);
      return 1000 * (error instanceof Refused ? error.retryAfterS : 1);
    }
  }

  async listDevices() {
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((d) => d.kind === "videoinput");
    const now = this.stream?.getVideoTracks()[0].getSettings().deviceId;
    const options = cameras.map((camera, i) => {
      const option = make("option", "", camera.label || `camera ${i + 1}`);
      option.value = camera.deviceId;
      return option;
    });
    page("device").replaceChildren(...options);
    page("device").value = now;
    page("device-label").hidden = cameras.length < 2;
  }
}

function nextFrame(video) {
  return new Promise((resolve) => {
    video.requestVideoFrameCallback?.(resolve);
    setTimeout(resolve, video.requestVideoFrameCallback ? 1000 : 30); // a camera that was unplugged sends none
  });
}

/** Encode the centre square, which is all that the model looks at. */
function squareFrame(video, most) {
  const side = Math.min(video.videoWidth, video.videoHeight);
  const square = [(video.videoWidth - side) / 2, (video.videoHeight - side) / 2, side, side];
  const size = Math.min(side, most);
  return jpeg(video, square, size, size, FRAME_QUALITY);
}

/** Encode a rectangle of the video as a JPEG file. */
function jpeg(video, rectangle, width, height, quality) {
  const canvas = make("canvas");
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d", { alpha: false });
  pen.imageSmoothingQuality = "high";
  pen.drawImage(video, ...rectangle, 0, 0, width, height);
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Error("The camera sends no picture.")));
    canvas.toBlob(done, "image/jpeg", quality);
  });
}

function showRate(ends) {
  ends.push(performance.now());
  while (ends.at(-1) - ends[0] > RATE_OVER_MS) ends.shift();
  const seconds = (ends.at(-1) - ends[0]) / 1000;
  page("live-rate").textContent = seconds > 0.3 ? `${rate((ends.length - 1) / seconds)} images a second` : "";
}

/** Tell a screen reader a new answer, but not at every frame. */
function sayNow(outcomes, turn) {
  const words = agree(outcomes) ? best(outcomes[0]).label : outcomes.map((o) => best(o).label).join(" or ");
  if (words === turn.spoken || performance.now() - turn.spokenAt < SAY_EVERY_MS) return;
  Object.assign(turn, { spoken: words, spokenAt: performance.now() });
  say(`Camera: ${words}.`);
}
