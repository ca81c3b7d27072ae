"""The command ``qdeploy export``: its options, and the report that it and ``qdeploy quantize`` print."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.int8_options import FILES, Int8Options
from qdeploy.cli.options import Json
from qdeploy.cli.output import Bar, emit_json, extra_needed, hint, say
from qdeploy.core.errors import for_command_line
from qdeploy.core.progress import StepProgress
from qdeploy.export.kits.table import KITS, kit_folders

if TYPE_CHECKING:
    from qdeploy.export.report.record import ExportReport


def export_command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run's folder. Default: the newest below ./runs.", show_default=False),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also make an INT8 model, calibrated on training images.", rich_help_panel=FILES),
    ] = False,
    qat_epochs: Annotated[int, typer.Option(help="Fine-tune for INT8 so long, if it misses its budget without.")] = 0,
    *,
    options: Int8Options,
    json: Json = False,
) -> int:
    """Export a run to ONNX and INT8, checked after every step.

    The exit code is 1 if INT8 is rejected.
    """
    with extra_needed():
        from qdeploy.export import export
    from qdeploy.core.run_folder import newest_run

    config = options.config(int8=int8, qat_epochs=qat_epochs)
    run = run or newest_run()
    with Bar("exporting") as bar:
        bar.line(f"exporting {run}")
        report = export(run, config, options.out, bar.line, steps(bar))
    return show(report, json, config.kits)


def steps(bar: Bar) -> StepProgress:
    """Show the progress of steps by their names."""
    return lambda name: lambda done, total: bar.update(done, total, name)


def show(report: ExportReport, json: bool, kits: tuple[str, ...]) -> int:
    """Print a report and return the exit code: 1 if INT8 was rejected."""
    from qdeploy.core.artifact import EXPORTS

    if json:
        emit_json(report.to_dict())
        return int(not report.accepted)
    for a in report.artifacts:
        known = f"top-1 {a.accuracy.top1:.2f} % on {a.accuracy.n} test images" if a.accuracy else "accuracy not known"
        say(f"{a.path}: {known}, {a.size_bytes / 1e3:.0f} kB, p50 {a.latency_ms['p50']:.3f} ms")
    for e in report.engines:
        checked = "run and compared" if e.ran else "not run here"
        say(f"{e.path}: {e.size_bytes / 1e3:.0f} kB, from {e.source}, {checked}")
    show_kits(kit_folders(Path(report.out), kits))
    say(for_command_line(report.verdict))
    out = shlex.quote(report.out)
    model, bench = ("", "") if Path(report.out).parent == EXPORTS else (f" --model {out}", f" {out}")
    hint(f"report: {report.out}/report.html; next: qdeploy predict IMAGE{model}, qdeploy bench{bench}")
    return int(not report.accepted)


def show_kits(folders: Mapping[str, Path]) -> None:
    """Print where each kit is, and what."""
    for name, folder in folders.items():
        say(f"{folder}: {KITS[name].line}; its README.md says how to use it")
