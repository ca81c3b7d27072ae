"""``qdeploy lint``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qdeploy.cli.output import emit_json, extra_needed, show_table
from qdeploy.core.errors import for_command_line

if TYPE_CHECKING:
    from qdeploy.export.lint.report import LintReport

RUNTIMES = ("x86", "x86-avx2", "arm", "openvino", "tensorrt")


@click.command("lint")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--for", "runtime", type=click.Choice(RUNTIMES), help="Exit with 1 unless this runtime is ok.")
@click.option("--json", is_flag=True, help="Print the report as one JSON document.")
def lint_command(file: Path, runtime: str | None, json: bool) -> int:
    """Tell which runtimes will take an ONNX file, which will run it slowly, and why.

    FILE is any ONNX file. x86, x86-avx2 and arm are ONNX Runtime on CPUs with VNNI, without, and on ARM.
    """
    with extra_needed():
        from qdeploy.export.lint.report import lint_file

    report = lint_file(file)
    if json:
        emit_json({"path": str(file), **report.to_dict()})
    else:
        _show(file, report)
    return int(runtime is not None and report.verdicts[runtime] != "ok")


def _show(file: Path, report: LintReport) -> None:
    from rich.table import Table

    from qdeploy.export.lint.report import RUNTIMES as LABELS

    print(f"{file}: opset {report.opset}, {report.nodes} nodes, {'quantized' if report.quantized else 'float'}")
    table = Table("runtime", "--for", "verdict", "findings")
    for runtime, verdict in report.verdicts.items():
        rules = ", ".join(f.rule for f in report.findings_for(runtime))
        table.add_row(LABELS[runtime], runtime, verdict, rules)
    show_table(table)
    for f in report.findings:
        places = f"{f.places} places, first" if f.places > 1 else "at"
        print(f"{f.severity}: {f.rule} ({', '.join(f.runtimes)}), {places} {f.first}\n  {f.why}")
        print(f"  To do: {for_command_line(f.fix)}.")
