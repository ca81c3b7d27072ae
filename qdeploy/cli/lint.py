"""The command ``qdeploy lint``: its options and its list of findings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.options import Json
from qdeploy.cli.output import emit_json, extra_needed, note, say
from qdeploy.cli.tables import show_table, table
from qdeploy.core.errors import InputError, for_command_line, near_miss
from qdeploy.export.int8.encodings import RUNTIMES

if TYPE_CHECKING:
    from qdeploy.export.lint.report import LintReport


def lint_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any ONNX file.")],
    runtime: Annotated[
        str | None,
        typer.Option("--for", metavar="RUNTIME", help=f"Exit with 1 unless this runtime is ok: {', '.join(RUNTIMES)}."),
    ] = None,
    json: Json = False,
) -> int:
    """Tell which runtimes will take an ONNX file, which will run it slowly, why, and whether qdeploy takes it.

    x86, x86-avx2 and arm are ONNX Runtime on CPUs with VNNI, without, and on ARM; cortex-m is the native C.
    """
    if runtime is not None and runtime not in RUNTIMES:
        what = f"lint knows no runtime '{runtime}'{near_miss(runtime, RUNTIMES)}"
        raise InputError(what, fix=f"known: {', '.join(RUNTIMES)}")
    with extra_needed():
        from qdeploy.export.lint.report import LARGER_THAN_2_GIB, lint_file
        from qdeploy.export.lint.taken import refusal

    report = lint_file(file)
    large = any(f.rule == LARGER_THAN_2_GIB for f in report.findings)
    if large:
        note(f"{file} takes more than 2 GiB: it was judged without its weights, and not opened")
    not_taken = "it takes more than 2 GiB" if large else refusal(file)
    if json:
        emit_json({"path": str(file), **report.to_dict(), "not_taken": not_taken})
    else:
        show(file, report)
        if not_taken is None:
            say("`qdeploy adopt` and `qdeploy quantize` take the file")
        else:
            say(f"`qdeploy adopt` and `qdeploy quantize` do not take it as it is: {for_command_line(not_taken)}")
    return int(runtime is not None and report.support[runtime] != "ok")


def show(file: Path, report: LintReport) -> None:
    """Print what each runtime makes of the file, and each finding with its remedy."""
    say(f"{file}: opset {report.opset}, {report.nodes} nodes, {'quantized' if report.quantized else 'float'}")
    rows = [
        (RUNTIMES[runtime], runtime, support, ", ".join(f.rule for f in report.findings_for(runtime)))
        for runtime, support in report.support.items()
    ]
    show_table(table(("runtime", "--for", "support", "findings"), rows, words=range(4)))
    for f in report.findings:
        places = f"{f.places} places, first" if f.places > 1 else "at"
        say(f"{f.severity}: {f.rule} ({', '.join(f.runtimes)}), {places} {f.first}")
        say(f"  {f.why}")
        say(f"  To do: {for_command_line(f.fix)}.")
