// Elements by their ids, and new ones. Texts are only ever set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const page = (id) => document.getElementById(id);

/** Make an HTML element; children that are strings become text. */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Make an SVG element; children that are strings become text. */
export function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Make the terms and descriptions of a list of facts. */
export function facts(pairs) {
  const given = pairs.filter(([, value]) => value);
  return given.map(([term, value]) => make("div", "", make("dt", "", term), make("dd", "", value)));
}

/** Show a text, or hide its element where there is none. */
export function note(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

/** Tell a screen reader. */
export function say(text) {
  page("said").textContent = text;
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
