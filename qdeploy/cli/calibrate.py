"""The command ``qdeploy calibrate``: its options, and what it prints of a file's confidence."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.options import OUTPUT, Json
from qdeploy.cli.output import Bar, emit_json, extra_needed, hint, say
from qdeploy.core.words import percent

if TYPE_CHECKING:
    from qdeploy.core.confidence import Confidence


def calibrate_command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An ONNX file of qdeploy; without --out it is replaced."),
    ],
    data: Annotated[str, typer.Option(help="Data set with the file's labels: a name or a folder.")],
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Share of validation images that keep their label; others are unknown. Default: all are answered.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write another file instead of replacing this one.", rich_help_panel=OUTPUT)
    ] = None,
    json: Json = False,
) -> int:
    """Fit a model file's confidence to data.

    Its probabilities get a temperature, and with --coverage images of a low score are unknown. Weights, logits and
    best labels stay as they are.
    """
    with extra_needed():
        from qdeploy.export import recalibrate
    from qdeploy.cli.export import steps

    with Bar("calibrating") as bar:
        made = recalibrate(file, data, coverage=coverage, out=out, note=bar.line, progress=steps(bar))
    if json:
        emit_json(made.to_dict())
        return 0
    for line in lines(made.confidence):
        say(line)
    hint(f"written: {made.path}; next: qdeploy eval {shlex.quote(str(made.path))} {shlex.quote(made.data)}")
    return 0


def lines(confidence: Confidence) -> list[str]:
    """Return what is known of a file's confidence, in words."""
    c = confidence
    said = [f"temperature {c.temperature:.3f}: {c.reason}"]
    if c.before and c.after:
        (low, high), n = c.after.ece_ci95, c.test_images
        said.append(
            f"on {n} test images: ECE {c.before.ece:.4f} -> {c.after.ece:.4f} (95 % interval {low:.4f} to {high:.4f}), "
            f"NLL {c.before.nll:.4f} -> {c.after.nll:.4f}, Brier {c.before.brier:.4f} -> {c.after.brier:.4f}"
        )
    if c.threshold is not None and c.coverage is not None:
        said.append(
            f"unknown: a score below {c.threshold:.3f}, which {percent(c.coverage)} of {c.images} validation images "
            "reach"
        )
        if c.test_coverage is not None and c.test_top1_answered is not None:
            said[-1] += (
                f"; {percent(c.test_coverage, 2)} of the test images do, with {c.test_top1_answered:.2f} % top-1"
            )
    if c.reference:
        said.append(f"later answers are compared with those to {c.reference.n} validation images")
    return said
