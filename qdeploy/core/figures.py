"""What the pages show in the same form: the verdict, quantities as bars, points on two axes, a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qdeploy.core.html import Markup, tag

Kind = Literal["good", "wait", "bad"]
_ICONS = {"good": "M5 12.5l4.5 4.5L19 7.5", "wait": "M12 6.5v7M12 17v.6", "bad": "M7 7l10 10M17 7L7 17"}
_WORDS = {"good": "accepted", "wait": "with reservations", "bad": "not accepted"}
_WIDTH, _HEIGHT = 860, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 260, 18, 50
_MOST_NAMED = 18
_COLOURS = {"fp32": "var(--fp32)", "int8": "var(--accent)"}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One model's value of a quantity."""

    name: str
    precision: str
    """``fp32`` or ``int8``: its colour."""
    value: float
    words: str
    """The value as it is written, with its unit."""
    interval: tuple[float, float] | None = None
    """Where the value may lie."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point of a plot."""

    name: str
    x: float
    y: float
    precision: str = "int8"
    best: bool = False
    """Filled, and named."""


def verdict(kind: Kind, words: str, reasons: Sequence[str] = ()) -> Markup:
    """Return the verdict: an icon, a sentence, and its reasons."""
    stroke = tag("path", d=_ICONS[kind], fill="none", stroke="currentColor", stroke_width=2.2, stroke_linecap="round")
    ring = tag("circle", cx=12, cy=12, r=10.5, fill="none", stroke="currentColor", stroke_width=1.5)
    icon = tag("svg", ring, stroke, viewBox="0 0 24 24", role="img", aria_label=_WORDS[kind])
    listed = [tag("ul", *(tag("li", reason) for reason in reasons))] if reasons else []
    return tag("div", icon, tag("div", words, *listed), class_=f"verdict {kind}")


def quantities(shown: Sequence[tuple[str, Sequence[Bar]]]) -> Markup:
    """Return quantities side by side, each with one bar a model and, where it is known, the interval on the bar."""
    return tag("div", *(_quantity(title, bars) for title, bars in shown if bars), class_="quantities")


def _quantity(title: str, bars: Sequence[Bar]) -> Markup:
    longest = max(max(bar.value, bar.interval[1] if bar.interval else 0.0) for bar in bars) or 1.0
    rows = []
    for bar in bars:
        inside = [tag("span", class_=bar.precision, style=f"width:{100 * bar.value / longest:.1f}%")]
        if bar.interval:
            low, high = (100 * max(0.0, v) / longest for v in bar.interval)
            inside.append(tag("i", style=f"left:{low:.1f}%;width:{max(high - low, 0.5):.1f}%"))
        rows += [tag("p", tag("span", bar.name), tag("b", bar.words)), tag("div", *inside, class_="track")]
    return tag("div", tag("h3", title), *rows, class_="quantity")


def scatter(dots: Sequence[Dot], x_title: str, y_title: str, label: str) -> Markup:
    """Draw points on two axes with ticks; the best are filled, joined, numbered, and named beside the plot."""
    x0, x1 = _span([d.x for d in dots])
    y0, y1 = _span([d.y for d in dots])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, _HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    drawn = []
    for value, text in _ticks(x0, x1):
        x, _ = at(value, y0)
        drawn += [_rule(f"M{x:.1f} {_TOP}V{floor}"), _text(x, floor + 18, text, "middle")]
    for value, text in _ticks(y0, y1):
        _, y = at(x0, value)
        drawn += [_rule(f"M{_LEFT} {y:.1f}H{right}"), _text(_LEFT - 8, y + 4, text, "end")]
    drawn.append(_text((_LEFT + right) / 2, _HEIGHT - 10, x_title, "middle"))
    middle = (_TOP + floor) / 2
    turned = f"rotate(-90 14 {middle:.0f})"
    drawn.append(tag("text", y_title, x=14, y=f"{middle:.0f}", text_anchor="middle", transform=turned))
    best = sorted(((at(d.x, d.y), d) for d in dots if d.best), key=lambda found: found[0])
    if len(best) > 1:
        line = "L".join(f"{x:.1f} {y:.1f}" for (x, y), _ in best)
        drawn.append(tag("path", d=f"M{line}", fill="none", stroke="var(--soft)", stroke_dasharray="3 3"))
    numbers = {id(dot): i for i, (_, dot) in enumerate(best[:_MOST_NAMED], 1)}
    for dot in sorted(dots, key=lambda d: d.best):
        (x, y), colour = at(dot.x, dot.y), _COLOURS.get(dot.precision, "var(--soft)")
        fill = colour if dot.best else "none"
        title = tag("title", f"{dot.name}: {dot.x:.4g}, {dot.y:.4g}")
        where = {"cx": f"{x:.1f}", "cy": f"{y:.1f}"}
        drawn.append(tag("circle", title, **where, r=5, fill=fill, stroke=colour, stroke_width=1.6))
        if number := numbers.get(id(dot)):
            drawn += [_text(x, y - 9, str(number), "middle")]
            drawn += [_text(right + 14, _TOP + 18 * number, f"{number}  {_short(dot.name)}", "start")]
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    svg = tag("svg", *drawn, viewBox=box, font_size=12, role="img", aria_label=label, class_="chart")
    return tag("div", svg, class_="plot")


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """Return a confusion matrix: a row for each true class, a column for each answer, shaded by the row's share."""
    head = tag("tr", tag("th", "true \\ answer"), *(tag("th", label) for label in labels))
    rows = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        cells = []
        for j, count in enumerate(row):
            colour = "var(--good)" if i == j else "var(--bad)"
            share = 100 * count / total
            shade = f"background:color-mix(in srgb,{colour} {min(70.0, 10 + share * 0.6):.0f}%,transparent)"
            cells.append(tag("td", str(count) if count else "", style=shade if count else ""))
        rows.append(tag("tr", tag("th", labels[i]), *cells))
    return tag("div", tag("table", head, *rows, class_="matrix"), class_="wide")


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return some five round values within a range, and how each is written."""
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if (high - low) / s <= 7)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step)
    return [(i * step, f"{i * step:.{digits}f}") for i in range(first, math.floor(high / step) + 1)]


def _short(name: str) -> str:
    return name if len(name) <= 38 else f"{name[:36]}\u2026"


def _rule(path: str) -> Markup:
    return tag("path", d=path, fill="none", stroke="var(--line)")


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_="soft")


def raw(title: str, text: str, *more: str) -> Markup:
    """Return what is shown on demand only: a document as text, and what else belongs to it."""
    return tag("details", tag("summary", title), *more, tag("pre", text))
