"""The part of an export's page that tells how far probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdeploy.core.html import Markup, table, tag
from qdeploy.core.words import percent

_SIDE, _EDGE = 240, 34
_BEFORE, _AFTER = "var(--soft)", "var(--good)"


def confidence_section(artifacts: Sequence[dict[str, Any]]) -> list[Markup]:
    """Show temperature, calibration error and diagram of each file; nothing where no images were labelled."""
    known = [(a["path"].replace("\\", "/").rpartition("/")[2], a) for a in artifacts if a.get("confidence")]
    if not known:
        return []
    words = (
        "Of answers given with 80 %, 80 % should be right. Logits are divided by the temperature before they become "
        "probabilities; labels do not change. An arrow leads from before that division to after it. ECE: 15 bins of "
        "equally many test images; the 95 % bootstrap interval is that of the ECE after."
    )
    measures = ("ECE", "95 % interval", "NLL", "Brier")
    head = ("file", "temperature", *measures, "unknown below", "coverage on test", "top-1 of these")
    return [
        tag("h2", "Confidence"),
        tag("p", words, class_="small"),
        table(head, [_row(name, a["confidence"]) for name, a in known]),
        *(tag("p", f"{name}: {a['confidence']['reason']}", class_="small") for name, a in known),
        *(_figure(name, a["diagram"]) for name, a in known if a["diagram"]),
    ]


def _row(name: str, c: dict[str, Any]) -> list[str]:
    before, after = c["before"], c["after"]
    cut = "nothing" if c["threshold"] is None else f"{c['threshold']:.2f}"
    coverage, right = c["test_coverage"], c["test_top1_answered"]
    measured = ["not measured", "", "", ""]
    if before and after:
        low, high = after["ece_ci95"]
        measured = [f"{before['ece']:.4f} \u2192 {after['ece']:.4f}", f"{low:.4f} to {high:.4f}"]
        measured += [f"{before[k]:.4f} \u2192 {after[k]:.4f}" for k in ("nll", "brier")]
    return [
        name,
        f"{c['temperature']:.3f}",
        *measured,
        cut,
        "" if coverage is None else percent(coverage, 2),
        "" if right is None else f"{right:.2f} %",
    ]


def _figure(name: str, diagram: dict[str, Any]) -> Markup:
    """Draw the share of right answers over what was said of them; on the diagonal they are equal."""

    def place(bin_: dict[str, Any]) -> tuple[float, float]:
        return _EDGE + bin_["confidence"] * _SIDE, _EDGE + (1 - bin_["accuracy"]) * _SIDE

    end = _EDGE + _SIDE
    parts = [
        tag("path", d=f"M{_EDGE} {_EDGE}V{end}H{end}", fill="none", stroke=_BEFORE),
        tag("path", d=f"M{_EDGE} {end}L{end} {_EDGE}", stroke=_BEFORE, stroke_dasharray="4 3"),
        tag("text", "right", x=4, y=_EDGE - 12),
        tag("text", "said", x=end, y=end + 28, text_anchor="end"),
        tag("text", "1", x=_EDGE - 14, y=_EDGE + 4),
        tag("text", "0", x=_EDGE - 14, y=end + 14),
        tag("text", "1", x=end, y=end + 14, text_anchor="middle"),
    ]
    for which, colour in (("before", _BEFORE), ("after", _AFTER)):
        points = [place(b) for b in diagram[which]]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(tag("path", d=f"M{line}", fill="none", stroke=colour, stroke_width=2))
        for b, (x, y) in zip(diagram[which], points, strict=True):
            said, right = percent(b["confidence"]), percent(b["accuracy"])
            title = tag("title", f"{which}: {b['n']} answers given {said}, right {right}")
            parts.append(tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5, fill=colour))
    size = _SIDE + 2 * _EDGE
    label = f"reliability of {name}"
    box = f"0 0 {size} {size}"
    drawn = tag("svg", *parts, viewBox=box, width=size, font_size=12, role="img", aria_label=label)
    return tag("figure", drawn, tag("figcaption", f"{name}: grey at temperature 1, green as it is"))
