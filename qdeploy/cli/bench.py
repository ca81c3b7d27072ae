"""The command ``qdeploy bench``: its options and its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli.options import OUTPUT, Json, Verbose
from qdeploy.cli.output import Bar, emit_json, hint, note, say
from qdeploy.cli.tables import WIDTH, show_table, table
from qdeploy.core.words import counted, percent

if TYPE_CHECKING:
    from qdeploy.bench import BenchConfig, BenchReport, BenchResult

HOW = "How to measure"
SERVER = "The server scenario"
BASELINE = "Against an earlier measurement"


def bench_command(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="ARTIFACTS...",
            help="Model files or export folders, measured in turns. Default: the newest export, else the model that "
            "ships in the package.",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="single-stream, multi-stream, offline or server.", rich_help_panel=HOW)
    ] = "single-stream",
    engine: Annotated[
        list[str] | None,
        typer.Option(help="What executes the files; may be repeated. Default: ort.", rich_help_panel=HOW),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of one inference.", rich_help_panel=HOW)] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images of one inference. Default: 1; multi-stream: the whole query.", rich_help_panel=HOW),
    ] = None,
    samples_per_query: Annotated[
        int | None,
        typer.Option(help="Images of a query. Default: multi-stream 8, offline 256.", rich_help_panel=HOW),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(help="Timed queries of each model; p99 needs 662. Default: as time allows.", rich_help_panel=HOW),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Time of all queries together. Default: 10; to be quoted: 60.", rich_help_panel=HOW),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in seconds; not to be quoted.", rich_help_panel=HOW)
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="Queries per second. Default: the highest is searched for.", rich_help_panel=SERVER),
    ] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Limit of the latency.", rich_help_panel=SERVER)] = None,
    latency_percentile: Annotated[
        int, typer.Option(help="The percentile that keeps the limit.", rich_help_panel=SERVER)
    ] = 99,
    baseline: Annotated[
        Path | None, typer.Option(help="What --json printed before; exit 1 if slower since.", rich_help_panel=BASELINE)
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Per cent that two measurements may differ. Default: 10.", rich_help_panel=BASELINE),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page, too.", rich_help_panel=OUTPUT)] = None,
    verbose: Verbose = False,
    json: Json = False,
) -> int:
    """Measure latency, throughput, memory and start-up.

    Everything is measured in turns, in one process, so that models can be compared.
    """
    from qdeploy.bench import BenchConfig, bench
    from qdeploy.bench.baseline import TOLERANCE_PERCENT, changes_since, read_baseline, require_comparable
    from qdeploy.bench.page import html_page
    from qdeploy.core.errors import InputError
    from qdeploy.core.files import write_rendered
    from qdeploy.core.whole import require_place

    config = BenchConfig(
        scenario=scenario,
        engines=tuple(engine or ("ort",)),
        threads=threads,
        batch_size=batch_size,
        samples_per_query=samples_per_query,
        runs=runs,
        seconds=seconds,
        rate=rate,
        latency_ms=latency_ms,
        latency_percentile=latency_percentile,
        quick=quick,
    )
    if tolerance is not None and baseline is None:
        raise InputError("--tolerance belongs to --baseline; give both or none")
    earlier = read_baseline(baseline) if baseline else None
    if html:
        require_place(html)
    paths, report_page = _model_files(artifacts or ())
    if earlier:
        require_comparable(earlier, paths, config)
    _note_tuned(paths, config)
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
    if json:
        emit_json(document)
    else:
        show(report, verbose)
        for change in changes:
            say(f"since {baseline}: {change.words()}")
    if html and write_rendered(html, lambda: html_page(document).encode(), note) is None:
        html = None
    if not json:
        for page in (html, report_page):
            if page:
                say(f"report: {page}")
    return 1 if any(c.regression for c in changes) else 0


def show(report: BenchReport, verbose: bool) -> None:
    """Print the measurements, how the models compare, the machine, and whether it all may be quoted."""
    from qdeploy.bench.page import SLOW_INCLUDED

    config = report.config
    title = (
        f"{config.scenario}, {counted(config.samples, 'image')} a query, {counted(config.threads, 'thread')}, in turns"
    )
    quick = "QUICK, not to be quoted: " if config.quick else ""
    show_table(table(_HEAD, map(_row, report.results), title=quick + title))
    if config.scenario != "server":
        hint(SLOW_INCLUDED)
    if verbose:
        show_table(table(_PERCENTILES, map(_percentiles, report.results), title="latency of a query, ms"))
        show_table(table(_START, map(_start, report.results), title="file and start"))
    for engine in dict.fromkeys(r.engine for r in report.results):
        names = ", ".join(r.name for r in report.results if r.engine == engine)
        for line in wrap(f"{engine}: {names}", WIDTH, subsequent_indent="  "):
            say(line)
    if config.details:
        show_table(table(_PHASES, map(_phases, report.results), title="p50 of one image's phases, ms"))
        title = "peak memory of a fresh process, MB"
        show_table(table(_LADDER, map(_ladder, report.results), title=title, words=(0, 6)))
    for result in report.results:
        if result.server:
            say(f"{result.name}: {_served(result)}")
    for comparison in report.comparisons:
        say(comparison.words())
    say(_machine(report.environment))
    say(f"energy: {_energy(report.environment['energy'])}")
    say(report.validity.words())


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


def _note_tuned(paths: Sequence[Path], config: BenchConfig) -> None:
    """Say which engine and threads `qdeploy tune` chose for a file, where they are not measured."""
    from qdeploy.runtime.device import DEVICE_FILE, setup_for

    for path in paths:
        tuned = setup_for(path, named=True)
        if tuned.threads and (tuned.engine not in config.engines or tuned.threads != config.threads):
            options = f"--engine {tuned.engine} --threads {tuned.threads}"
            note(f"{path.parent / DEVICE_FILE} chose other settings for {path.name}, not measured here: {options}")


_HEAD = ("model", "top-1 %", "p50 ms", "p99 ms", "images/s", "peak MB", "cold ms")
_PERCENTILES = ("model", "p50", "p90", "p95", "p99", "mean", "std", "n")
_START = ("model", "file kB", "load ms", "first ms", "cold ms")
_PHASES = ("model", "decode", "preprocess", "infer", "post", "end to end", "p99")
_LADDER = ("model", "python", "+ runtime", "+ model", "+ first", "+ all", "growth")


def _row(r: BenchResult) -> list[str]:
    return [
        r.name,
        f"{r.accuracy['top1']:.2f}" if "top1" in r.accuracy else "-",
        *(_number(r.latency_ms[p]) for p in ("p50", "p99")),
        f"{r.throughput_per_s:.0f}",
        f"{r.peak_rss_bytes / 1e6:.0f}",
        f"{r.cold_start_ms:.0f}",
    ]


def _percentiles(r: BenchResult) -> list[str]:
    return [r.name, *(_number(r.latency_ms[p]) for p in _PERCENTILES[1:-1]), str(r.n)]


def _start(r: BenchResult) -> list[str]:
    return [r.name, f"{r.model_bytes / 1e3:.0f}", f"{r.load_ms:.1f}", f"{r.first_ms:.2f}", f"{r.cold_start_ms:.0f}"]


def _phases(r: BenchResult) -> list[str]:
    phases = r.phases_ms or {}
    return [r.name, *(_number(p["p50"]) for p in phases.values()), _number(phases["end_to_end"]["p99"])]


def _ladder(r: BenchResult) -> list[str]:
    growth = "too slow to tell" if r.growth is None else r.growth.finding
    if r.growth and r.growth.finding == "grows":
        growth = f"{r.growth.bytes_per_run:.0f} bytes"
    return [r.name, *(f"{v / 1e6:.1f}" for v in r.ladder_bytes.values()), growth]


def _served(r: BenchResult) -> str:
    s = r.server
    assert s is not None
    what = "highest rate" if s.searched else "rate"
    kept = {True: "kept", False: "NOT kept", None: "not judged: too few queries"}[s.within_bound]
    bound = "" if s.bound_ms is None else f", limit {s.bound_ms:g} ms {kept}"
    behind = "" if s.keeping_up >= 0.95 else f"; TOO HIGH: {percent(s.keeping_up, 0)} of the queries answered in time"
    return f"{what} {s.rate_per_s:.1f} queries/s, p{s.percentile} {_number(s.percentile_ms)} ms{bound}{behind}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _energy(energy: Any) -> str:
    if isinstance(energy, str):
        return energy
    return ", ".join(f"{k} {j:.1f} J ({energy['watts'][k]:.1f} W)" for k, j in energy["joules"].items())


def _machine(e: dict[str, Any]) -> str:
    from qdeploy.core.machine import cpu_words

    versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
    return f"{cpu_words(e)}, load {e['load_1min']}; {versions}"
