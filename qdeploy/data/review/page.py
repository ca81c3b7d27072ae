"""The page on which a person labels images by keyboard: one file that needs no other and no network."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from io import BytesIO
from typing import Any

from PIL import Image

from qdeploy.core.errors import ImageError
from qdeploy.core.files import sha256_of
from qdeploy.core.html import Markup, page, tag
from qdeploy.core.page_style import STYLE
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Progress
from qdeploy.core.words import counted
from qdeploy.data.review.collected import REASONS, Collected

SIDE = 320
"""Largest height and width of a picture on the page, in pixels."""
EXACT = 128
"""Up to so many pixels a side a picture is kept exactly, as PNG; others are JPEG."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The page asks nobody for anything."""


def review_page(
    images: list[Collected], labels: tuple[str, ...], problems: list[str], progress: Progress | None = None
) -> tuple[str, int]:
    """Return the page and how many images it shows: unknown ones first, then the least probable.

    Args:
        images: What to label; pictures of them are in the page.
        labels: What a person chooses from.
        problems: Gets a line for each image that cannot be decoded; it is left out.
        progress: Called with images done and their total.
    """
    rows = []
    for i, image in enumerate(sorted(images, key=_turn)):
        try:
            rows.append({**_told(image), "picture": picture(image)})
        except ImageError as error:
            problems.append(f"{image.path}: {error}")
        if progress:
            progress(i + 1, len(images))
    identity = sha256_of("\n".join(row["sha256"] for row in rows).encode())[:16]
    title = f"{counted(len(rows), 'image')} to label"
    data = json.dumps({"id": identity, "labels": labels, "images": rows}).replace("<", "\\u003c")
    assets = files("qdeploy.data.review")
    style, script = (assets.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    text = page(
        title,
        STYLE + style,
        tag("h1", title),
        tag("div", id="review"),
        tag("script", Markup(data), type="application/json", id="data"),
        tag("script", Markup(script)),
    )
    policy = tag("meta", http_equiv="Content-Security-Policy", content=_POLICY)
    return text.replace("<meta ", f"{policy}<meta ", 1), len(rows)


def picture(image: Collected) -> str:
    """Return a picture of an image as a data URL, at most ``SIDE`` pixels high and wide.

    Raises:
        ImageError: If it cannot be decoded.
    """
    opened = Preprocessing().open(image.path)
    opened.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    kind, options = ("PNG", {}) if max(opened.size) <= EXACT else ("JPEG", {"quality": 85})
    stream = BytesIO()
    opened.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _turn(image: Collected) -> tuple[int, float, str]:
    why = REASONS.index(image.said.why) if image.said.why in REASONS else len(REASONS)
    return why, image.said.probability, image.name


def _told(image: Collected) -> dict[str, Any]:
    said = image.said
    return {
        "image": image.name,
        "sha256": image.sha256,
        "why": said.why,
        "guess": said.would_be,
        "probability": said.probability if said.would_be else None,
        "time": said.time,
    }
