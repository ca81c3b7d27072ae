// Where the models look, on request: what each position of the image adds to the answer.

import { make } from "./dom.js";
import { precisionName } from "./models.js";
import { explain } from "./server.js";

/** A button that asks for the maps of an image file, and the place where they are shown. */
export function lookView(file, models) {
  const button = make("button", "small", "Where it looks");
  button.type = "button";
  button.name = "look";
  const pictures = make("div", "row");
  const view = make("div", "look", button, pictures);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const data = await file.arrayBuffer();
      const found = [];
      for (const model of models) found.push(...figures(model, await explain(data, model)));
      pictures.replaceChildren(...found);
      button.replaceWith(make("p", "soft", "Red raises the answer, blue lowers it; each picture in full colour."));
    } catch (error) {
      pictures.replaceChildren(make("p", "problem", error.message));
      button.disabled = false;
    }
  });
  return view;
}

function figures(model, { pictures }) {
  return pictures.map(({ caption, png_base64: data }) => {
    const image = make("img");
    image.src = `data:image/png;base64,${data}`;
    image.alt = `${precisionName(model)}: ${caption}`;
    return make("figure", "", image, make("figcaption", "", image.alt));
  });
}
