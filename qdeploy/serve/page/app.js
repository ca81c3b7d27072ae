// The page of `qdeploy serve`: images in, answers and figures out. This file ties the parts together.

import { Answers } from "./answers.js";
import { Camera } from "./camera.js";
import { showCard, showDrift } from "./card.js";
import { make, note, page } from "./dom.js";
import { choicesOf, firstChoice } from "./models.js";
import { Panel } from "./panel.js";
import { Away, hasToken, Refused, report, setToken } from "./server.js";
import { listenForFiles } from "./sources.js";

const EVERY_MS = 2000;
const AWAY_EVERY_MS = 1500;

let choices = [];
let choice;
let shown = ""; // what of the models is on the page
let timer;
let asking = false;
let away = false;

const panel = new Panel();
const answers = new Answers(() => chosen(), noticed);
const camera = new Camera(() => chosen(), (files) => answers.add(files), noticed);

function chosen() {
  if (!choice) throw new Error("No model is loaded.");
  return choice.models;
}

/** Ask for the report, show it, and ask again later; not while nobody looks. */
async function look() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  let wait = EVERY_MS;
  try {
    show(await report());
  } catch (error) {
    wait = unanswered(error);
  }
  asking = false;
  if (wait) timer = setTimeout(look, wait);
}

function show(found) {
  page("token-form").hidden = true;
  page("main").hidden = false;
  page("links").hidden = hasToken(); // a link sends no token
  if (found.server.ready) state("good", "serving");
  else state("wait", "not ready: starting, stopping, or a model is not loaded");
  showModels(found.models);
  panel.show(found);
  if (away) answers.retry();
  away = false;
}

/** Say why there is no report; returns after how many milliseconds to ask again, 0 for not at all. */
function unanswered(error) {
  if (error instanceof Refused && error.status === 401) {
    askForToken();
    return 0;
  }
  away = true;
  state("bad", error instanceof Away ? "the server does not answer" : error.message);
  if (!(error instanceof Away || error instanceof Refused)) console.error(error); // a defect of this page
  return AWAY_EVERY_MS;
}

/** A request for an answer failed: see whether the server is still there. */
function noticed(error) {
  if (error instanceof Away || (error instanceof Refused && error.status === 401)) {
    away = true;
    look();
  }
}

function state(kind, text) {
  page("state").className = `state ${kind}`;
  if (page("state-text").textContent !== text) page("state-text").textContent = text;
}

function showModels(models) {
  const before = choice?.key;
  choices = choicesOf(models);
  const same = choices.find((c) => c.key === before) ?? choices.find((c) => c.title === choice?.title);
  choice = same ?? firstChoice(choices);
  showDrift(choice?.models ?? []);
  const now = JSON.stringify([choices, models.map((m) => [m.state, m.problem])], (name, value) =>
    name === "images" || name === "drift" ? undefined : value,
  );
  if (now === shown) return;
  shown = now;
  if (choices.map((c) => c.key).join() !== [...page("choice").options].map((o) => o.value).join()) {
    page("choice").replaceChildren(...choices.map(option));
  }
  page("choice-label").hidden = choices.length < 2;
  if (choice) page("choice").value = choice.key;
  describe(models);
  if (before && choice && choice.key !== before) answers.again(); // its file was swapped, or the model is gone
}

function option({ key, title }) {
  const made = make("option", "", title);
  made.value = key;
  return made;
}

function describe(models) {
  if (choice) showCard(choice.models, models);
  else page("about").textContent = "No model is loaded.";
  document.title = choice ? `${choice.models[0].name} – qdeploy` : "qdeploy";
}

function askForToken() {
  camera.stop();
  state("wait", "locked");
  page("main").hidden = true;
  page("token-form").hidden = false;
  note(page("token-problem"), hasToken() ? "This is not the server's token." : "");
  setToken("");
  away = true;
  page("token").focus();
}

page("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = page("token").value.trim();
  page("token").value = "";
  if (!/^[\x21-\x7e]+( +[\x21-\x7e]+)*$/.test(text)) {
    note(page("token-problem"), "A token has letters, digits and signs of ASCII only.");
    return;
  }
  setToken(text);
  look();
});

page("choice").addEventListener("change", () => {
  choice = choices.find((c) => c.key === page("choice").value);
  shown = "";
  look();
  describe(choice.models);
  answers.again();
});

document.addEventListener("visibilitychange", look);
listenForFiles((files) => answers.add(files));
look();
