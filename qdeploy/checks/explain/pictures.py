"""The pictures of an explanation, each with a caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from qdeploy.checks.explain.draw import marked, overlay
from qdeploy.checks.explain.run import Explanation


def pictures(found: Explanation, full: float | None = None) -> Iterator[tuple[str, Image.Image]]:
    """Give the class map, the picked tokens and the attention maps, as far as there are any.

    Args:
        found: The explanation.
        full: The size of a class map's value in full colour; by default the largest of the map.
    """
    if m := found.class_map:
        yield f"class map of {m.label}, logit {m.logit:.2f}", overlay(found.pixels, m.values, full)
    if t := found.tokens:
        yield f"{len(t.picked)} of {t.side * t.side} tokens are picked", marked(found.pixels, t.side, t.picked)
    for a in found.attention:
        size = "x".join(map(str, a.values.shape))
        yield f"attention {a.layer}, {size}", overlay(found.pixels, a.values - 1, 1.0)


def common_scale(found: Iterable[Explanation]) -> float | None:
    """Return the largest value of the class maps of one image, so that all can have the same colours."""
    return max((float(np.abs(e.class_map.values).max()) for e in found if e.class_map), default=None)
