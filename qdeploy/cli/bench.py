"""``qdeploy bench``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qdeploy.cli.output import Bar, emit_json, note, show_table

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.runtime.bench import BenchReport


@click.command("bench")
@click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=1, help="Threads of one inference.")
@click.option("--batch-size", type=int, default=1, help="Images per inference.")
@click.option("--runs", type=int, default=1000, help="Timed runs of each model; p99 needs 662.")
@click.option("--seconds", type=float, default=60.0, help="Time limit of all runs together.")
@click.option("--json", is_flag=True, help="Print the report as one JSON document.")
def bench_command(
    artifacts: tuple[Path, ...], threads: int, batch_size: int, runs: int, seconds: float, json: bool
) -> None:
    """Measure latency, throughput, memory and start-up.

    ARTIFACTS are model files or export folders, measured interleaved in one run. Default: the newest export, else the
    model that ships in the package.
    """
    from qdeploy.runtime.bench import BenchConfig, bench

    config = BenchConfig(threads=threads, batch_size=batch_size, runs=runs, seconds=seconds)
    paths, report_page = _model_files(artifacts)
    with Bar("timing") as bar:
        report = bench(paths, config, bar.update)
    if json:
        emit_json(report.to_dict())
        return
    show_table(_table(report))
    for c in report.comparisons:
        interval = f"95 % interval {c.ci95[0]:.2f} to {c.ci95[1]:.2f}"
        print(f"{c.model} is {c.ratio:.2f}x as fast as {c.against} ({interval}): {c.verdict}")
    print(_machine(report))
    if report_page:
        print(f"report: {report_page}")


def _model_files(given: Sequence[Path]) -> tuple[list[Path], Path | None]:
    from qdeploy.core.artifact import SHIPPED, newest_export
    from qdeploy.core.errors import ArtifactError

    folder = None
    if not given:
        folder = newest_export()
        note(f"measuring {folder or 'the model that ships in the package'}")
        given = [folder or SHIPPED]
    files: list[Path] = []
    for path in given:
        found = sorted(path.glob("model*.onnx")) if path.is_dir() else [path]
        if not found:
            raise ArtifactError(f"{path} holds no model file; give a file or folder that `qdeploy export` wrote")
        files += found
    page = folder / "report.html" if folder else None
    return files, page if page and page.is_file() else None


def _table(report: BenchReport) -> Table:
    from rich.table import Table

    head = (
        "model",
        "top-1 %",
        "p50 ms",
        "p90",
        "p95",
        "p99",
        "n",
        "images/s",
        "file kB",
        "peak MB",
        "load ms",
        "first ms",
        "cold ms",
    )
    table = Table(title=f"batch {report.config.batch_size}, {report.config.threads} thread(s), interleaved")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for r in report.results:
        t = r.latency_ms
        cells = [f"{v:.3f}" if v is not None else "-" for v in (t["p50"], t["p90"], t["p95"], t["p99"])]
        table.add_row(
            r.name,
            f"{r.accuracy['top1']:.2f}" if "top1" in r.accuracy else "-",
            *cells,
            str(r.n),
            f"{r.throughput_per_s:.0f}",
            f"{r.model_bytes / 1e3:.0f}",
            f"{r.peak_rss_bytes / 1e6:.0f}",
            f"{r.load_ms:.1f}",
            f"{r.first_ms:.2f}",
            f"{r.cold_start_ms:.0f}",
        )
    return table


def _machine(report: BenchReport) -> str:
    e = report.environment
    versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
    return f"{e['cpu']}, {e['cores']} cores ({', '.join(e['flags'])}), load {e['load_1min']}; {versions}"
