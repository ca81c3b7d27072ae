// What is asked of the server, and the three ways in which it can fail.

const ROOT = new URL("..", import.meta.url); // a proxy may serve all of this below a path of its own
const KEY = "qdeploy-token";
const REPORT_TIMEOUT_MS = 6000;
const ANSWER_TIMEOUT_MS = 60000; // a photo over a slow network

/** The server answered that it will not. */
export class Refused extends Error {
  constructor(status, reason, text, retryAfterS) {
    super(text);
    Object.assign(this, { status, reason, retryAfterS });
  }
}

/** The server did not answer. */
export class Away extends Error {}

let token = stored();

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // the browser allows no storage: the token lives as long as the page
  }
}

export function setToken(text) {
  token = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // see above
  }
}

export const hasToken = () => token !== "";

/** Classify an image file's bytes with one served model; returns the answer and the milliseconds that it took. */
export async function predict(data, model) {
  const query = new URLSearchParams({ model: model.name, version: model.version });
  const begin = performance.now();
  const answer = await ask(`predict?${query}`, ANSWER_TIMEOUT_MS, {
    method: "POST",
    body: data,
    headers: { "Content-Type": "application/octet-stream" },
  });
  return { answer, roundTrip: performance.now() - begin };
}

/** Ask where in an image file a served model finds its answer. */
export function explain(data, model) {
  const query = new URLSearchParams({ model: model.name, version: model.version });
  const headers = { "Content-Type": "application/octet-stream" };
  return ask(`explain?${query}`, ANSWER_TIMEOUT_MS, { method: "POST", body: data, headers });
}

export const report = () => ask("report", REPORT_TIMEOUT_MS, {});

async function ask(path, timeout, options) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const signal = AbortSignal.timeout(timeout);
  let response, text;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers, signal, cache: "no-store" });
    text = await response.text();
  } catch {
    throw new Away("The server does not answer.");
  }
  let document = {};
  try {
    document = JSON.parse(text);
  } catch {
    if (response.ok) throw new Refused(response.status, "not-json", "The answer is not this server's.");
  }
  if (response.ok) return document;
  const retry = Number(response.headers.get("Retry-After")) || 1;
  throw new Refused(response.status, document.reason ?? "", document.error ?? `status ${response.status}`, retry);
}
