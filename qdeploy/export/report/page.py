"""The export's report as one static page: the verdict on top, then what it rests on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from qdeploy.core.html import Markup, join, page, table, tag

if TYPE_CHECKING:
    from qdeploy.export.report.record import Flip

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid #d8dee6}
th:first-child,td:first-child{text-align:left}td{vertical-align:middle}
.verdict{background:#eef4ee;border-left:4px solid #3a7d44;padding:.6rem 1rem}
.rejected{background:#f8eeee;border-color:#a33}
code{font-size:.85em;word-break:break-all}pre{white-space:pre-wrap;font-size:.8em;background:#f5f7f9;padding:.6rem}
.bar{display:inline-block;height:.7rem;background:#3b6ea8}.bar.minus{background:#c0603a}
figure{display:inline-block;margin:.4rem;text-align:center;font-size:.8em}
figure img{width:96px;image-rendering:pixelated}
.small{color:#5a6675;font-size:.9em}.int8{color:#3a7d44}.fp32{color:#a33}
"""
_PLUS_MINUS = "\u00b1"
_PICTURE = (520, 300)
_EDGE = 50


def html_report(report: dict[str, Any], flips: Sequence[Flip] = ()) -> str:
    """Return the page for ``report.json`` and the images whose prediction INT8 changed."""
    here = {"float", *(i["target"] for i in report["int8"] if i["native"])}
    return page(
        report["name"],
        _STYLE,
        tag("h1", report["name"]),
        tag("p", report["verdict"], class_="verdict" if report["accepted"] else "verdict rejected"),
        tag("h2", "Files"),
        table(
            ("file", "top-1 %", "95 % interval", "n", "p50 ms", "size kB", "left in float"),
            [_artifact_row(a, here) for a in report["artifacts"]],
        ),
        tag("h2", "From step to step"),
        table(
            ("step", "max |d logit|", "mean", "cosine", "SQNR dB", "same top-1", "flips", "images"),
            map(_step_row, report["steps"]),
        ),
        *_engines(report["engines"]),
        *(section for int8 in report["int8"] for section in _int8(int8)),
        *_layers(report["layers"]),
        *_flips(flips),
        tag("h2", "Where it comes from"),
        tag("pre", json.dumps(_origin(report), indent=1)),
        *(tag("p", f"{_base(a['path'])} ", tag("code", a["sha256"])) for a in report["artifacts"]),
        tag("h2", "Measured on"),
        tag("p", _machine(report["environment"])),
    )


def _artifact_row(a: dict[str, Any], here: set[str]) -> list[str]:
    low, high = a["accuracy"]["ci95"]
    return [
        _base(a["path"]),
        f"{a['accuracy']['top1']:.2f}",
        f"{low:.1f} to {high:.1f}",
        str(a["accuracy"]["n"]),
        f"{a['latency_ms']['p50']:.3f}" if a["target"] in here else "not here",
        f"{a['size_bytes'] / 1e3:.0f}",
        a["float_layers"] if a["precision"] == "int8" else "all",
    ]


def _step_row(s: dict[str, Any]) -> list[str]:
    return [
        s["step"],
        f"{s['max_abs']:.1e}",
        f"{s['mean_abs']:.1e}",
        f"{s['cosine']:.5f}",
        "exact" if s["sqnr_db"] is None else f"{s['sqnr_db']:.1f}",
        f"{s['top1_agreement']:.2%}",
        str(s["flips"]),
        str(s["n"]),
    ]


def _engines(engines: list[dict[str, Any]]) -> list[Markup]:
    if not engines:
        return []
    rows = [
        [
            _base(e["path"]),
            e["source"],
            f"{e['size_bytes'] / 1e3:.0f}",
            f"{e['build_s']:.1f}",
            f"{e['parity']['sqnr_db']:.1f} dB" if e["parity"] else f"not run: {e['note']}",
        ]
        for e in engines
    ]
    return [tag("h2", "Engines"), table(("file", "built from", "size kB", "seconds", "against its source"), rows)]


def _int8(int8: dict[str, Any]) -> list[Markup]:
    """Show how one INT8 file came about: its calibration, what each part costs and gains, and the choices."""
    where = "this machine" if int8["native"] else "not timed here"
    methods = ", ".join(f"{name} {db:.1f} dB" for name, db in int8["methods"].items())
    difference, flips = int8["loss"]["difference"], int8["loss"]["flips"]
    changed = (
        f" {flips['flips']} of {flips['n']} predictions changed over all images that did not calibrate."
        if flips
        else ""
    )
    words = (
        f" ({methods}; everything in INT8). Top-1 {difference['points']:+.2f} {_PLUS_MINUS} "
        f"{difference['margin95']:.2f} points on {difference['n']} validation images that chose nothing, "
        f"{int8['budget']['points']:.3g} allowed.{changed}{_tuned(int8['qat_epochs'])}"
    )
    return [
        tag("h2", f"INT8 for {int8['target']} ({where})"),
        tag("p", "Ranges by ", tag("b", int8["calibration"]), words),
        *_parts(int8),
        tag("p", tag("b", "Choices of float layers")),
        *_pareto(int8["choices"]),
        table(
            ("left in float", "SQNR dB", "val. points lost", "times fp32's speed"),
            map(_choice_row, int8["choices"]),
        ),
    ]


def _parts(int8: dict[str, Any]) -> list[Markup]:
    """Show what was measured of each part; nothing where the float layers were given."""
    if not int8["units"]:
        return []
    words = (
        "What INT8 does to each part while all others are INT8: time it saves (orange: floats are faster), and share "
        "of the error of the logits that it causes."
    )
    return [
        tag("p", words, class_="small"),
        table(("part", "layers", "time saved", "", "error caused", ""), _unit_rows(int8)),
    ]


def _tuned(epochs: int) -> str:
    return f" Weights fine-tuned for INT8, {epochs} epoch(s)." if epochs else ""


def _unit_rows(int8: dict[str, Any]) -> list[list[str]]:
    units = sorted(int8["units"], key=lambda u: (u["time_gain"] or 0.0, -u["error"]))
    longest = max((abs(u["time_gain"] or 0.0) for u in units), default=0.0) or 1.0
    return [
        [
            u["unit"] + (" (float)" if u["unit"] in int8["float_units"] else ""),
            str(u["layers"]),
            "" if u["time_gain"] is None else f"{u['time_gain']:+.1%}",
            "" if u["time_gain"] is None else _bar(u["time_gain"] / longest, u["time_gain"] < 0),
            f"{u['error']:+.1%}",
            _bar(max(u["error"], 0.0), minus=True),
        ]
        for u in units
    ]


def _bar(share: float, minus: bool) -> Markup:
    return tag("span", class_="bar minus" if minus else "bar", style=f"width:{min(abs(share), 1.0) * 8:.2f}rem")


def _choice_row(t: dict[str, Any]) -> list[str]:
    speed, names = t["times_fp32_speed"], ", ".join(t["float_units"]) or "nothing"
    return [
        join([names, " ", tag("b", "(chosen)")]) if t["chosen"] else names,
        f"{t['sqnr_db']:.1f}",
        f"{t['val_drop']:.2f} {_PLUS_MINUS} {t['val_margin']:.2f}",
        "" if speed is None else f"{speed:.2f}",
    ]


def _pareto(choices: list[dict[str, Any]]) -> list[Markup]:
    """Draw the timed choices: speed to the right, exactness upwards."""
    timed = [c for c in choices if c["times_fp32_speed"]]
    if len(timed) < 2:
        return []
    width, height = _PICTURE
    speeds, noises = [c["times_fp32_speed"] for c in timed], [c["sqnr_db"] for c in timed]
    slow, coarse = min(speeds), min(noises)
    fast, exact = max(speeds), max(noises)
    dots = []
    for choice, speed, db in zip(timed, speeds, noises, strict=True):
        x = _EDGE + (speed - slow) / ((fast - slow) or 1.0) * (width - 2 * _EDGE)
        y = height - _EDGE - (db - coarse) / ((exact - coarse) or 1.0) * (height - 2 * _EDGE)
        title = tag("title", f"{', '.join(choice['float_units']) or 'nothing'} in float")
        colour = "#3a7d44" if choice["chosen"] else "#3b6ea8"
        dots.append(tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=5, fill=colour))
    labels = [
        tag("text", f"{slow:.2f}x", x=_EDGE, y=height - 15),
        tag("text", f"{fast:.2f}x fp32's speed", x=width - _EDGE, y=height - 15, text_anchor="end"),
        tag("text", f"{coarse:.1f}", x=8, y=height - _EDGE),
        tag("text", f"{exact:.1f} dB", x=8, y=_EDGE - 20),
    ]
    axes = tag("path", d=f"M{_EDGE} {_EDGE - 15}V{height - 35}H{width - 20}", fill="none", stroke="#9aa6b2")
    label = "choices: speed and exactness"
    return [tag("svg", axes, *dots, *labels, width=width, height=height, font_size=12, role="img", aria_label=label)]


def _layers(layers: list[dict[str, Any]]) -> list[Markup]:
    if not layers:
        return []
    rows = [
        [
            row["name"],
            row["operator"],
            tag("span", row["precision"], class_=row["precision"]),
            "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}",
            _bar((row["sqnr_db"] or 60.0) / 60.0, minus=False),
        ]
        for row in layers
    ]
    return [
        tag("h2", "Layer by layer"),
        tag("p", "Signal to noise of each layer's output, all errors before it included.", class_="small"),
        table(("layer", "operator", "runs on", "SQNR dB", ""), rows),
    ]


def _flips(flips: Sequence[Flip]) -> list[Markup]:
    if not flips:
        return []
    return [tag("h2", "Test images that INT8 classifies otherwise"), *map(_figure, flips)]


def _figure(flip: Flip) -> Markup:
    lines = (flip.label, tag("br"), f"fp32: {flip.fp32}", tag("br"), f"int8: {flip.int8}")
    return tag("figure", tag("img", src=_data_url(flip), alt=flip.label), tag("figcaption", *lines))


def _data_url(flip: Flip) -> str:
    stream = io.BytesIO()
    Image.fromarray(flip.pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _origin(report: dict[str, Any]) -> dict[str, Any]:
    """Return origin and calibration without the many hashes of images: calibration.json has them."""
    calibration = report["calibration"]
    if calibration is None:
        return dict(report["origin"])
    return {**report["origin"], "calibration": {**calibration, "images": f"{len(calibration['images'])} hashes"}}


def _base(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    return f"{environment['cpu']}, {environment['cores']} cores ({', '.join(environment['flags'])}); {versions}"
