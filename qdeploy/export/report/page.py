"""The export's report as one static page: the verdict, four quantities, then what they rest on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from qdeploy.core.figures import Bar, Kind, quantities, raw, verdict
from qdeploy.core.html import Markup, page, table, tag
from qdeploy.core.machine import cpu_words
from qdeploy.core.only_with import switched_on
from qdeploy.core.page_style import STYLE
from qdeploy.export.report.classes import class_sections
from qdeploy.export.report.confidence import confidence_section
from qdeploy.export.report.sections import (
    PLUS_MINUS,
    base_name,
    engine_section,
    int8_sections,
    layer_section,
    step_section,
)

if TYPE_CHECKING:
    from qdeploy.export.report.record import Confusion, Flip

SAME_RUNS = (
    "The verdict's ratio and the p50 come from the same runs, both files in turn. The ratio is that of neighbouring "
    "runs; a machine that changes its speed meanwhile does not touch it, but a quotient of two p50 by some per cent."
)
"""Why the verdict's ratio is not the quotient of the medians."""
MEASURED_ON = "Measured on"
"""The heading of the last part, on the machine."""
LOOKS = (
    "Beside an image is where fp32 and INT8 find their answers, computed by the files themselves: red raises the logit "
    "of the answer, blue lowers it, in one scale; a head that picks tokens has them framed."
)
"""What the pictures beside a changed image are."""


def html_report(report: dict[str, Any], flips: Sequence[Flip] = (), confusion: Confusion | None = None) -> str:
    """Return the page for ``report.json``, the images whose prediction INT8 changed, and what is mistaken for what."""
    elsewhere = {i["target"] for i in report["int8"] if not i["native"]}
    return page(
        report["name"],
        STYLE,
        tag("h1", report["name"]),
        verdict(_kind(report), report["verdict"].replace("+-", PLUS_MINUS)),
        quantities(_quantities([*report["artifacts"], *report["rejected"]], elsewhere)),
        table(
            ("file", "top-1 %", "95 % interval", "n", "p50 ms", "size kB", "peak MB", "left in float"),
            [
                *(_artifact_row(a, elsewhere) for a in report["artifacts"]),
                *(_artifact_row(a, elsewhere, " (rejected)") for a in report["rejected"]),
            ],
        ),
        *([tag("p", SAME_RUNS, class_="small")] if report["comparison"] else []),
        *(section for int8 in report["int8"] for section in int8_sections(int8)),
        *class_sections(confusion),
        *confidence_section(report["artifacts"]),
        *_flips(flips),
        *step_section(report["steps"]),
        *layer_section(report["layers"]),
        *engine_section(report["engines"]),
        tag("h2", MEASURED_ON),
        tag("p", _machine(report["environment"])),
        tag("p", "Everything as data: ", tag("a", "report.json", href="report.json")),
        raw("Where it comes from", json.dumps(_origin(report), indent=1), *_hashes(report["artifacts"])),
    )


def _kind(report: dict[str, Any]) -> Kind:
    if not report["accepted"]:
        return "bad"
    return "wait" if any(v["outcome"].startswith("not shown") for v in report["verdicts"]) else "good"


def _quantities(artifacts: list[dict[str, Any]], elsewhere: set[str]) -> list[tuple[str, list[Bar]]]:
    """Return accuracy, latency, size and memory of the files that run on this machine, as far as they are known."""
    shown = [a for a in artifacts if a["target"] not in elsewhere]
    known = [(a, a["accuracy"]) for a in shown if a["accuracy"]]
    timed = [(a, a["latency_ms"]["p50"]) for a in shown if a["latency_ms"]["p50"] is not None]
    held = [(a, a["peak_rss_bytes"]) for a in shown if a["peak_rss_bytes"]]
    return [
        ("Accuracy, with its 95 % interval", [_bar(a, c["top1"], f"{c['top1']:.2f} %", c["ci95"]) for a, c in known]),
        ("Latency, and its range", [_bar(a, t, f"{t:.2f} ms", _range(a)) for a, t in timed]),
        ("Size of the file", [_bar(a, a["size_bytes"], f"{a['size_bytes'] / 1e6:.2f} MB") for a in shown]),
        ("Peak memory of a process", [_bar(a, m, f"{m / 1e6:.0f} MB") for a, m in held]),
    ]


def _bar(a: dict[str, Any], value: float, words: str, interval: Sequence[float] | None = None) -> Bar:
    ends = (interval[0], interval[1]) if interval else None
    kind = "int8" if a["precision"] == "int8" else "fp32"
    return Bar(name=a["precision"], precision=kind, value=value, words=words, interval=ends)


def _range(a: dict[str, Any]) -> tuple[float, float] | None:
    """Return the least and the largest median of the times that a file was opened anew."""
    return (min(a["launches_p50_ms"]), max(a["launches_p50_ms"])) if a["launches_p50_ms"] else None


def _artifact_row(a: dict[str, Any], elsewhere: set[str], more: str = "") -> list[str]:
    return [
        base_name(a["path"]) + more,
        *_accuracy_cells(a["accuracy"]),
        "not here" if a["target"] in elsewhere else f"{a['latency_ms']['p50']:.3f}",
        f"{a['size_bytes'] / 1e3:.0f}",
        f"{a['peak_rss_bytes'] / 1e6:.1f}" if a["peak_rss_bytes"] else "-",
        a["float_layers"] if a["precision"] == "int8" else "all",
    ]


def _accuracy_cells(accuracy: dict[str, Any] | None) -> list[str]:
    if accuracy is None:
        return ["not known", "", "0"]
    low, high = accuracy["ci95"]
    return [f"{accuracy['top1']:.2f}", f"{low:.1f} to {high:.1f}", str(accuracy["n"])]


def _flips(flips: Sequence[Flip]) -> list[Markup]:
    if not flips:
        return []
    legend = [tag("p", LOOKS, class_="small")] if any(f.looks for f in flips) else []
    return [tag("h2", "Test images that INT8 classifies otherwise"), *legend, *map(_figure, flips)]


def _figure(flip: Flip) -> Markup:
    lines = (flip.label, tag("br"), f"fp32: {flip.fp32}", tag("br"), f"int8: {flip.int8}")
    image = tag("img", src=_data_url(Image.fromarray(flip.pixels), "PNG"), alt=flip.label)
    looks = [tag("img", src=_data_url(look, "JPEG"), alt=caption, title=caption) for caption, look in flip.looks]
    return tag("figure", image, *looks, tag("figcaption", *lines), class_="flip looks" if looks else "flip")


def _data_url(image: Image.Image, kind: str) -> str:
    """Return an image as a URL; maps are JPEG, since their soft colours make PNG files ten times as large."""
    stream = io.BytesIO()
    image.save(stream, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _hashes(artifacts: list[dict[str, Any]]) -> list[Markup]:
    return [tag("p", f"{base_name(a['path'])} ", tag("code", a["sha256"])) for a in artifacts]


def _origin(report: dict[str, Any]) -> dict[str, Any]:
    """Return origin and calibration without the many hashes of images: calibration.json has them."""
    calibration, origin = report["calibration"], dict(report["origin"])
    origin["training"] = switched_on(origin["training"])
    if calibration is None:
        return origin
    return {**origin, "calibration": {**calibration, "images": f"{len(calibration['images'])} hashes"}}


def _machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    return f"{cpu_words(environment)}; {versions}"
