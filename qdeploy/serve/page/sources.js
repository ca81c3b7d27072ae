// Where images come from: chosen, dropped anywhere on the page, pasted.

import { page, say } from "./dom.js";

export function listenForFiles(take) {
  const input = page("files");
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // to choose the same file again is a change, too
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // else the browser leaves the page for the image
    page("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) page("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    page("drop").classList.remove("over");
    give([...event.dataTransfer.files], "What was dropped is not a file.", take);
  });
  document.addEventListener("paste", (event) => {
    if (event.target instanceof HTMLInputElement && event.target.type !== "file") return;
    give([...event.clipboardData.files], "The clipboard holds no image.", take);
  });
}

function give(files, otherwise, take) {
  if (page("main").hidden) return;
  if (files.length) take(files);
  else say(otherwise);
}
