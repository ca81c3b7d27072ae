"""``qdeploy tune``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qdeploy.cli.output import Bar, emit_json, note, show_table
from qdeploy.core.errors import for_command_line

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.bench.tune import TuneReport


@click.command("tune")
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option("--latency-ms", type=float, help="Longest 95th percentile of one call, in milliseconds.")
@click.option("--memory-mb", type=float, help="Largest peak of a fresh process, in MB.")
@click.option("--max-drop", type=float, default=1.0, help="Points of top-1 that may be lost against the fp32 file.")
@click.option("--throughput", type=float, help="Images per second at least; batches of 8 and 32 are tried, too.")
@click.option("--seconds", type=float, default=30.0, help="Time limit of the timing.")
@click.option("--json", is_flag=True, help="Print the report as one JSON document.")
def tune_command(
    artifact: Path | None,
    latency_ms: float | None,
    memory_mb: float | None,
    max_drop: float,
    throughput: float | None,
    seconds: float,
    json: bool,
) -> int:
    """Find the fastest way to run a model on this machine.

    ARTIFACT is an export's folder or a model file. Default: the newest export, else the model that ships in the
    package. Every file, installed engine and number of threads is checked and measured; the best within the limits is
    written to device.json beside the model, which predict then uses. The exit code is 1 if none is within the limits.
    """
    from qdeploy.bench.tune import Limits, TuneConfig, tune
    from qdeploy.core.artifact import SHIPPED, newest_export

    limits = Limits(latency_ms=latency_ms, memory_mb=memory_mb, max_drop=max_drop, throughput=throughput)
    config = TuneConfig(limits=limits, seconds=seconds)
    if artifact is None:
        artifact = newest_export() or SHIPPED
        note(f"tuning {'the model that ships in the package' if artifact == SHIPPED else artifact}")
    with Bar("tuning") as bar:
        report = tune(artifact, config, bar.update)
    if json:
        emit_json(report.to_dict())
    else:
        show(report)
    return int(report.chosen is None)


def show(report: TuneReport) -> None:
    """Print the candidates, the choice, and where it was written."""
    show_table(_table(report))
    for engine, why in report.not_tried.items():
        print(f"not tried: {engine}: {for_command_line(why)}")
    print(("chosen: " if report.chosen else "") + for_command_line(report.reason))
    if report.written:
        print(f"written to {report.written}; predict uses it from now on")
    elif report.chosen:
        c = report.chosen
        print(f"not written: the folder is read-only or the package's; use --engine {c.engine} --threads {c.threads}")


def _table(report: TuneReport) -> Table:
    from rich.table import Table

    table = Table(title="candidates, interleaved, the chosen and the fastest first")
    for i, head in enumerate(
        ("file", "engine", "threads", "batch", "p50 ms", "p95", "images/s", "time", "95 %", "MB", "top-1 %", "verdict")
    ):
        table.add_column(head, justify="left" if i in (0, 1, 11) else "right", no_wrap=i < 11)
    for c in report.candidates:
        interval = f"{c.ratio_ci95[0]:.2f}-{c.ratio_ci95[1]:.2f}" if c.ratio_ci95 else "-"
        table.add_row(
            c.file,
            c.engine,
            str(c.threads),
            str(c.batch),
            _number(c.latency_ms.get("p50"), 3),
            _number(c.latency_ms.get("p95"), 3),
            _number(c.throughput_per_s, 0),
            _number(c.ratio, 2),
            interval,
            _number(c.peak_rss_bytes and c.peak_rss_bytes / 1e6, 0),
            _number(c.top1, 2),
            for_command_line(c.verdict),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
