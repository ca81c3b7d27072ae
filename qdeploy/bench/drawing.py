"""The figures of the bench report as inline SVG: histograms, intervals, stacked bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.core.html import Markup, tag

COLOURS = ("var(--fp32)", "var(--accent)", "var(--share-2)", "var(--share-4)", "var(--share-1)")
GREY = "var(--soft)"
WIDTH = 900
LEFT = 230
"""Pixels from the left where names end and figures begin."""
RIGHT = 40
ROW = 34
HISTOGRAM = 90


def histograms(results: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw each model's latencies on one axis, with the percentiles and the p50 of every launch as dots."""
    top = max(r["histogram"]["high"] for r in results)
    parts = []
    for i, r in enumerate(results):
        base = (i + 1) * HISTOGRAM - 22
        h, colour = r["histogram"], COLOURS[i % len(COLOURS)]
        step, most = (h["high"] - h["low"]) / len(h["counts"]), max(h["counts"])
        for j, count in enumerate(h["counts"]):
            x, end = _x(h["low"] + j * step, top), _x(h["low"] + (j + 1) * step, top)
            height = (HISTOGRAM - 40) * count / most
            parts.append(_box(x, base - height, max(end - x, 0.5), height, colour))
        parts += [tag("circle", cx=f"{_x(v, top):.1f}", cy=base + 6, r=2.5, fill=colour) for v in r["launches_p50_ms"]]
        for name in ("p50", "p90", "p99"):
            value = r["latency_ms"][name]
            if value is not None and value <= top:
                parts += _line(_x(value, top), base - HISTOGRAM + 34, base, name)
        parts.append(_name(r["name"], base - 20))
        parts.append(_text(8, base - 5, f"{r['n']} queries, {h['above']} beyond p99", "small"))
    return _svg("latency", len(results) * HISTOGRAM + 20, parts + _axis(len(results) * HISTOGRAM, top, "ms"))


def intervals(comparisons: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw how many times faster each model is than the first: dot, 95 % interval, and the line of no difference."""
    ends = [math.log(v) for c in comparisons for v in c["ci95"]] + [0.0]
    low, high = min(ends), max(ends)
    pad = 0.08 * ((high - low) or 1.0)
    low, high = low - pad, high + pad

    def place(ratio: float) -> float:
        return LEFT + (math.log(ratio) - low) / (high - low) * (WIDTH - LEFT - RIGHT - 60)

    height = len(comparisons) * ROW + 24
    parts = [tag("path", d=f"M{place(1):.1f} 4V{height - 20}", stroke=GREY, stroke_dasharray="4 3")]
    parts.append(_text(place(1), height - 6, f"as fast as {comparisons[0]['against']}", "middle"))
    for i, c in enumerate(comparisons):
        y = i * ROW + 20
        colour = {"faster": "var(--good)", "slower": "var(--bad)"}.get(c["finding"], GREY)
        x0, x1 = (place(v) for v in c["ci95"])
        whisker = f"M{x0:.1f} {y}H{x1:.1f}M{x0:.1f} {y - 5}v10M{x1:.1f} {y - 5}v10"
        parts.append(tag("path", d=whisker, stroke=colour, stroke_width=2))
        parts.append(tag("circle", cx=f"{place(c['ratio']):.1f}", cy=y, r=5, fill=colour))
        parts.append(_name(c["model"], y + 4))
        parts.append(_text(WIDTH - 8, y + 4, f"{c['ratio']:.2f}x", "end"))
    return _svg("comparison", height, parts)


def stacked(rows: Sequence[tuple[str, Sequence[float]]], parts_names: Sequence[str], unit: str) -> Markup:
    """Draw each row's parts one after the other on a common axis, with a legend."""
    top = max(sum(values) for _, values in rows)
    drawn = []
    for i, (name, values) in enumerate(rows):
        y, start = i * ROW + 30, 0.0
        for j, value in enumerate(values):
            x, end = _x(start, top), _x(start + value, top)
            title = f"{parts_names[j]}: {value:.3g} {unit}"
            drawn.append(_box(x, y, max(0.0, end - x), ROW - 12, COLOURS[j % len(COLOURS)], title))
            start += value
        drawn.append(_name(name, y + 16))
    x = float(LEFT)
    for j, name in enumerate(parts_names):
        drawn += [_box(x, 6, 10, 10, COLOURS[j % len(COLOURS)]), _text(x + 14, 15, name)]
        x += 30 + 7.5 * len(name)
    return _svg("parts", len(rows) * ROW + 52, drawn + _axis(len(rows) * ROW + 32, top, unit))


def _axis(y: float, top: float, unit: str) -> list[Markup]:
    step = 10 ** math.floor(math.log10(top))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if top / s <= 8)
    ticks = [step * i for i in range(int(top / step) + 1)]
    drawn = [tag("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", stroke=GREY)]
    drawn += [tag("path", d=f"M{_x(t, top):.1f} {y}v4", stroke=GREY) for t in ticks]
    drawn += [_text(_x(t, top), y + 16, f"{t:.4g}", "middle") for t in ticks]
    return [*drawn, _text(WIDTH - 8, y + 16, unit, "end")]


def _x(value: float, top: float) -> float:
    return LEFT + value / top * (WIDTH - LEFT - RIGHT)


def _box(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> Markup:
    inside = [tag("title", title)] if title else []
    return tag("rect", *inside, x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=f"{height:.1f}", fill=colour)


def _line(x: float, y0: float, y1: float, name: str) -> list[Markup]:
    line = tag("path", d=f"M{x:.1f} {y0}V{y1}", stroke="var(--text)", stroke_dasharray="2 2")
    return [line, _text(x, y0 - 3, name, "middle")]


def _name(text: str, y: float) -> Markup:
    short = text if len(text) <= 34 else f"...{text[-31:]}"
    return tag("text", short, tag("title", text), x=8, y=f"{y:.1f}")


def _text(x: float, y: float, text: str, place: str = "start") -> Markup:
    if place == "small":
        return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", font_size=11, class_="soft")
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=place)


def _svg(label: str, height: float, parts: Sequence[Markup]) -> Markup:
    box = f"0 0 {WIDTH} {height}"
    return tag("svg", *parts, viewBox=box, font_size=12, role="img", aria_label=label, class_="chart")
