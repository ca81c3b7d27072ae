"""``qdeploy bench``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdeploy.cli.output import Bar, emit_json, note, show_table

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.bench import BenchReport, BenchResult


@click.command("bench")
@click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--scenario", default="single-stream", help="single-stream, multi-stream, offline or server.")
@click.option("--engine", "engines", multiple=True, default=("ort",), help="Inference engine; may be repeated.")
@click.option("--threads", type=int, default=1, help="Threads of one inference.")
@click.option("--batch-size", type=int, help="Images per inference. Default: 1; multi-stream: the whole query.")
@click.option("--samples-per-query", type=int, help="Images of a query. Default: multi-stream 8, offline 256.")
@click.option("--runs", type=int, help="Timed queries of each model; p99 needs 662. Default: as time allows.")
@click.option("--seconds", type=float, help="Time of all queries together. Default: 10; to be quoted: 60.")
@click.option("--rate", type=float, help="server: queries per second. Default: the highest is searched for.")
@click.option("--latency-ms", type=float, help="server: the bound on the latency.")
@click.option("--latency-percentile", type=int, default=99, help="server: the percentile that keeps the bound.")
@click.option("--quick", is_flag=True, help="A look in seconds; not to be quoted.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as a page, too.")
@click.option("--baseline", type=click.Path(path_type=Path), help="An earlier --json; exit 1 if slower since.")
@click.option("--tolerance", type=click.FloatRange(min=0), help="Per cent that runs may differ. Default: 10.")
@click.option("--json", is_flag=True, help="Print the report as one JSON document.")
def bench_command(
    artifacts: tuple[Path, ...],
    html: Path | None,
    baseline: Path | None,
    tolerance: float | None,
    json: bool,
    **how: Any,
) -> int:
    """Measure latency, throughput, memory and start-up.

    ARTIFACTS are model files or export folders, measured in turns in one run. Default: the newest export, else the
    model that ships in the package.
    """
    from qdeploy.bench import BenchConfig, bench
    from qdeploy.bench.baseline import TOLERANCE_PERCENT, changes_since, read_baseline, require_comparable
    from qdeploy.bench.page import html_page
    from qdeploy.core.errors import InputError
    from qdeploy.core.files import require_writable, write_bytes

    config = BenchConfig(**how)
    if tolerance is not None and baseline is None:
        raise InputError("--tolerance belongs to --baseline; give both or none")
    earlier = read_baseline(baseline) if baseline else None
    if html and not html.parent.is_dir():
        raise InputError(f"cannot write {html}: there is no folder {html.parent}; make it or give another path")
    if html:
        require_writable(html.parent)
    paths, report_page = _model_files(artifacts)
    if earlier:
        require_comparable(earlier, paths, config)
    with Bar("timing") as bar:
        report = bench(paths, config, bar.update)
    document = report.to_dict()
    percent = TOLERANCE_PERCENT if tolerance is None else tolerance
    changes = changes_since(earlier, document, percent) if earlier else []
    if baseline:
        document["baseline"] = {
            "path": str(baseline),
            "tolerance_percent": percent,
            "changes": [c.to_dict() for c in changes],
        }
    if html:
        write_bytes(html, html_page(document).encode())
    if json:
        emit_json(document)
    else:
        _show(report)
        for change in changes:
            print(f"since {baseline}: {change.words()}")
        for page in (html, report_page):
            if page:
                print(f"report: {page}")
    return 1 if any(c.regression for c in changes) else 0


def _show(report: BenchReport) -> None:
    config = report.config
    title = f"{config.scenario}, {config.samples} image(s) a query, {config.threads} thread(s), in turns"
    quick = "QUICK, not to be quoted: " if config.quick else ""
    show_table(_table(quick + title, _HEAD, [_row(r) for r in report.results]))
    for engine in dict.fromkeys(r.engine for r in report.results):
        names = ", ".join(r.name for r in report.results if r.engine == engine)
        print(f"{engine}: {names}")
    if config.details:
        show_table(_table("p50 of one image's phases, ms", _PHASES, [_phases(r) for r in report.results]))
        show_table(_table("peak memory of a fresh process, MB", _LADDER, [_ladder(r) for r in report.results]))
    for result in report.results:
        if result.server:
            print(f"{result.name}: {_served(result)}")
    for comparison in report.comparisons:
        print(comparison.words())
    print(_machine(report.environment))
    print(f"energy: {_energy(report.environment['energy'])}")
    print(report.validity.words())


def _model_files(given: Sequence[Path]) -> tuple[list[Path], Path | None]:
    from qdeploy.core.artifact import ONNX_FILES, SHIPPED, model_files, newest_export

    folder = None
    if not given:
        folder = newest_export()
        note(f"measuring {folder or 'the model that ships in the package'}")
        given = [folder or SHIPPED]
    files: list[Path] = []
    for path in given:
        files += model_files(path, [ONNX_FILES])
    page = folder / "report.html" if folder else None
    return files, page if page and page.is_file() else None


_HEAD = (
    *("model", "top-1 %", "p50 ms", "p90", "p95", "p99", "n", "images/s"),
    *("file kB", "peak MB", "load ms", "first ms", "cold ms"),
)
_PHASES = ("model", "decode", "preprocess", "infer", "post", "end to end", "p99")
_LADDER = ("model", "python", "+ runtime", "+ model", "+ first run", "+ all runs", "growth a run")


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _row(r: BenchResult) -> list[str]:
    return [
        r.name,
        f"{r.accuracy['top1']:.2f}" if "top1" in r.accuracy else "-",
        *(_number(r.latency_ms[p]) for p in ("p50", "p90", "p95", "p99")),
        str(r.n),
        f"{r.throughput_per_s:.0f}",
        f"{r.model_bytes / 1e3:.0f}",
        f"{r.peak_rss_bytes / 1e6:.0f}",
        f"{r.load_ms:.1f}",
        f"{r.first_ms:.2f}",
        f"{r.cold_start_ms:.0f}",
    ]


def _phases(r: BenchResult) -> list[str]:
    phases = r.phases_ms or {}
    return [r.name, *(_number(p["p50"]) for p in phases.values()), _number(phases["end_to_end"]["p99"])]


def _ladder(r: BenchResult) -> list[str]:
    growth = "too slow to tell" if r.growth is None else r.growth.verdict
    if r.growth and r.growth.verdict == "grows":
        growth = f"{r.growth.bytes_per_run:.0f} bytes"
    return [r.name, *(f"{v / 1e6:.1f}" for v in r.ladder_bytes.values()), growth]


def _served(r: BenchResult) -> str:
    s = r.server
    assert s is not None
    what = "highest rate" if s.searched else "rate"
    kept = {True: "kept", False: "NOT kept", None: "not judged: too few queries"}[s.within_bound]
    bound = "" if s.bound_ms is None else f", bound {s.bound_ms:g} ms {kept}"
    behind = "" if s.keeping_up >= 0.95 else f"; TOO HIGH: {s.keeping_up:.0%} of the queries answered in time"
    return f"{what} {s.rate_per_s:.1f} queries/s, p{s.percentile} {_number(s.percentile_ms)} ms{bound}{behind}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _energy(energy: Any) -> str:
    if isinstance(energy, str):
        return energy
    return ", ".join(f"{k} {j:.1f} J ({energy['watts'][k]:.1f} W)" for k, j in energy["joules"].items())


def _machine(e: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
    return f"{e['cpu']}, {e['cores']} cores ({', '.join(e['flags'])}), load {e['load_1min']}; {versions}"
