"""Explanations as one page that needs no other file: for each image a row a model file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from PIL import Image

from qdeploy.checks.explain.draw import enlarged, png
from qdeploy.checks.explain.pictures import common_scale, pictures
from qdeploy.checks.explain.run import Explanation
from qdeploy.core.html import Markup, page, tag
from qdeploy.core.page_style import STYLE
from qdeploy.core.words import percent

_STYLE = f"""{STYLE}
.row{{display:flex;flex-wrap:wrap;gap:.8rem;margin:.4rem 0 1rem}}
.row figure{{margin:0;width:12.6rem}}.row figure img{{width:100%}}
"""
_LEGEND = (
    "A class map shows what each position adds to the logit of a class: red raises it, blue lowers it; of one image "
    "all files have the same scale. Picked tokens are framed. An attention map is red where a position is attended to "
    "more than if all were alike, blue where less; full colour is twice as much, or none."
)


def html_page(images: Iterable[tuple[str, Sequence[Explanation]]]) -> str:
    """Return the page for images, each with its name and the explanation of each file."""
    title = "Where the model looks"
    parts = [part for name, found in images for part in (tag("h2", name), *_rows(found))]
    return page(title, _STYLE, tag("h1", title), tag("p", _LEGEND, class_="small"), *parts)


def _rows(found: Sequence[Explanation]) -> Iterable[Markup]:
    full = common_scale(found)
    for e in found:
        answer = f"{e.precision}: {e.label} {percent(e.probability)}"
        figures = [_figure(enlarged(e.pixels), "the image as the model sees it")]
        figures += [_figure(picture, caption) for caption, picture in pictures(e, full)]
        yield tag("p", answer, tag("br"), tag("small", e.path))
        yield tag("div", *figures, class_="row")


def _figure(picture: Image.Image, caption: str) -> Markup:
    source = f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"
    return tag("figure", tag("img", src=source, alt=caption), tag("figcaption", caption))
