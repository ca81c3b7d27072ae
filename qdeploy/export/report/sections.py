"""What a verdict rests on, as sections of the report's page: each INT8 file, its parts and choices, layers, engines."""

from __future__ import annotations

from typing import Any

from qdeploy.core.figures import Dot, scatter
from qdeploy.core.html import Markup, join, table, tag
from qdeploy.core.words import counted, percent, rounded

PLUS_MINUS = "\u00b1"
CHOICES = (
    "SQNR and points lost are those on the third of the validation images that chooses; the verdict's are those on the "
    "other two thirds, and the SQNR under From step to step is that on validation images of both, so the three differ. "
    "Timed during the search, in fewer runs than the verdict's: ratios may differ by some per cent."
)
"""Why a choice's numbers are not those elsewhere on the page."""

STEPS = "Each form of the model against the one before, on the first validation images: all of them, or 512."
"""What the steps are measured on."""


def int8_sections(int8: dict[str, Any]) -> list[Markup]:
    """Show how one INT8 file came about: its calibration, the choices, what each part costs and gains."""
    where = "this machine" if int8["native"] else "not timed here"
    return [
        tag("h2", f"INT8 for {int8['target']} ({where})"),
        _words(int8),
        *_plot(int8["choices"]),
        *_parts(int8),
        tag(
            "details",
            tag("summary", "Every choice of float layers"),
            tag("p", CHOICES, class_="small"),
            table(
                ("left in float", "SQNR dB", "val. points lost", "times fp32's speed"),
                map(_choice_row, int8["choices"]),
            ),
        ),
        tag("details", tag("summary", "Stress set"), *_stress(int8["stress"])),
    ]


def _words(int8: dict[str, Any]) -> Markup:
    methods = ", ".join(f"{name} {db:.1f} dB" for name, db in int8["methods"].items())
    difference, flips = int8["loss"]["difference"], int8["loss"]["flips"]
    changed = (
        f" {flips['flips']} of {flips['n']} predictions changed over all images that did not calibrate."
        if flips
        else ""
    )
    tuned = f" Weights fine-tuned for INT8, {counted(int8['qat_epochs'], 'epoch')}." if int8["qat_epochs"] else ""
    words = (
        f" ({methods}; everything in INT8). Top-1 {rounded(difference['points'], 2, '+')} {PLUS_MINUS} "
        f"{difference['margin95']:.2f} points on the {difference['n']} validation images that the search did not see "
        f"(it uses a third of them), {int8['budget']['points']:.3g} allowed.{changed}{tuned}"
    )
    return tag("p", "Ranges by ", tag("b", int8["calibration"]), words)


def _plot(choices: list[dict[str, Any]]) -> list[Markup]:
    """Draw the timed choices: speed to the right, exactness upwards."""
    timed = [c for c in choices if c["times_fp32_speed"]]
    if len(timed) < 2:
        return []
    values = [(c["times_fp32_speed"], c["sqnr_db"]) for c in timed]
    dots = [
        Dot(
            name=_left(c) + (" (chosen)" if c["chosen"] else ""),
            x=x,
            y=y,
            precision="int8" if c["chosen"] else "other",
            best=c["chosen"] or not any(a >= x and b >= y and (a, b) != (x, y) for a, b in values),
        )
        for c, (x, y) in zip(timed, values, strict=True)
    ]
    words = (
        "Each point is a choice of parts that stay in float: faster to the right, more exact upwards. Filled: nothing "
        "measured is both faster and more exact; the coloured one was chosen."
    )
    plot = scatter(dots, "times fp32's speed", "SQNR of the logits, dB", "choices: speed and exactness")
    return [tag("h3", "Speed against exactness"), tag("p", words, class_="small"), plot]


def _left(choice: dict[str, Any]) -> str:
    return ", ".join(choice["float_units"]) or "nothing in float"


def _stress(stress: dict[str, Any]) -> list[Markup]:
    """Show what INT8 answers to the images that no validation split holds."""
    usual = "exact" if stress["val_sqnr_db"] is None else f"{stress['val_sqnr_db']:.1f} dB"
    words = f"Signal to noise of the logits around their mean; half of the validation images have more than {usual}."
    rows = [
        [
            join([row["name"], " ", tag("b", "(rejected)")]) if row["broken"] or not row["finite"] else row["name"],
            "not finite" if not row["finite"] else "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}",
            "yes" if row["same_top1"] else "no",
            "not finite" if row["confidence"] is None else percent(row["confidence"]),
        ]
        for row in stress["rows"]
    ]
    return [
        tag("p", words, class_="small"),
        table(("image", "SQNR dB", "same top-1", "probability in fp32"), rows),
    ]


def _parts(int8: dict[str, Any]) -> list[Markup]:
    """Show what was measured of each part; nothing where the float layers were given."""
    if not int8["units"]:
        return []
    words = (
        "What INT8 does to each part while all others are INT8. Time saved: orange where the part is faster in float. "
        "Error caused: by how much of it the squared error of the logits shrinks if the part alone is left in float. "
        "Errors of different parts partly cancel out, and parts hold one another, so the shares do not add up to "
        "100 %; one below zero (blue) means that without this part's error the others' would be larger."
    )
    return [
        tag("h3", "What each part costs and gains"),
        tag("p", words, class_="small"),
        table(("part", "operators", "time saved", "", "error caused", ""), _unit_rows(int8)),
    ]


def _unit_rows(int8: dict[str, Any]) -> list[list[str]]:
    units = sorted(int8["units"], key=lambda u: (u["time_gain"] or 0.0, -u["error"]))
    longest = max((abs(u["time_gain"] or 0.0) for u in units), default=0.0) or 1.0
    return [
        [
            u["unit"] + (" (float)" if u["unit"] in int8["float_units"] else ""),
            str(u["operators"]),
            "" if u["time_gain"] is None else percent(u["time_gain"], 1, "+"),
            "" if u["time_gain"] is None else _bar(u["time_gain"] / longest, u["time_gain"] < 0),
            percent(u["error"], 1, "+"),
            _bar(u["error"], u["error"] > 0),
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
        f"{rounded(t['val_drop'], 2)} {PLUS_MINUS} {t['val_margin']:.2f}",
        "" if speed is None else f"{speed:.2f}",
    ]


def layer_section(layers: list[dict[str, Any]]) -> list[Markup]:
    """Show the error of every layer of the first INT8 file."""
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
        tag(
            "details",
            tag("summary", "Layer by layer"),
            tag("p", "Signal to noise of each layer's output, all errors before it included.", class_="small"),
            table(("layer", "operator", "runs on", "SQNR dB", ""), rows),
        )
    ]


def engine_section(engines: list[dict[str, Any]]) -> list[Markup]:
    """Show the engine files that were built."""
    if not engines:
        return []
    rows = [
        [
            base_name(e["path"]),
            e["source"],
            f"{e['size_bytes'] / 1e3:.0f}",
            f"{e['build_s']:.1f}",
            f"{e['parity']['sqnr_db']:.1f} dB" if e["parity"] else f"not run: {e['note']}",
        ]
        for e in engines
    ]
    return [tag("h2", "Engines"), table(("file", "built from", "size kB", "seconds", "against its source"), rows)]


def step_section(steps: list[dict[str, Any]]) -> list[Markup]:
    """Show how well each form of the model agrees with the one before."""
    head = ("step", "max |d logit|", "mean", "cosine", "SQNR dB", "same top-1", "flips", "images")
    return [tag("h2", "From step to step"), tag("p", STEPS, class_="small"), table(head, map(_step_row, steps))]


def _step_row(s: dict[str, Any]) -> list[str]:
    return [
        s["step"],
        f"{s['max_abs']:.1e}",
        f"{s['mean_abs']:.1e}",
        f"{s['cosine']:.5f}",
        "exact" if s["sqnr_db"] is None else f"{s['sqnr_db']:.1f}",
        percent(s["top1_agreement"], 2),
        str(s["flips"]),
        str(s["n"]),
    ]


def base_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return path.replace("\\", "/").rpartition("/")[2]
