"""The command ``qdeploy tune``: its options and its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.options import LIMITS, Json, ModelFile, Verbose
from qdeploy.cli.output import Bar, emit_json, note, say
from qdeploy.cli.tables import show_table, table
from qdeploy.core.errors import for_command_line
from qdeploy.core.words import rounded

if TYPE_CHECKING:
    from qdeploy.bench.tune import TuneReport
    from qdeploy.bench.tune.report import CandidateReport


def tune_command(
    artifact: ModelFile = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="Longest 95th percentile of one call, in milliseconds.", rich_help_panel=LIMITS),
    ] = None,
    memory_mb: Annotated[
        float | None, typer.Option(help="Largest peak of a fresh process, in MB.", rich_help_panel=LIMITS)
    ] = None,
    throughput: Annotated[
        float | None,
        typer.Option(help="Images per second at least; batches of 8 and 32 are tried, too.", rich_help_panel=LIMITS),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(help="Budget: points of top-1 that may be lost against the fp32 file.", rich_help_panel=LIMITS),
    ] = 1.0,
    seconds: Annotated[float, typer.Option(help="Longest time that the timing may take.")] = 30.0,
    verbose: Verbose = False,
    json: Json = False,
) -> int:
    """Find the fastest way to run a model on this machine.

    Every file, installed engine and number of threads is a candidate, checked and measured; the best within the limits
    is written to device.json beside the model, which predict then uses. The exit code is 1 if none is within the
    limits.
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
        show(report, verbose)
    return int(report.chosen is None)


def show(report: TuneReport, verbose: bool) -> None:
    """Print the candidates, the choice, and where it was written."""
    title = "candidates, interleaved, the chosen and the fastest first; images/s: over all calls"
    timed = [c for c in report.candidates if c.n]
    if timed:
        show_table(table(_HEAD, map(_row, timed), title=title, words=(0, 1, 6)))
    for line in _out(report.candidates):
        say(line)
    if verbose:
        title = "time of a call against that of the chosen, with its 95 % interval"
        show_table(table(_TIMES, map(_times, timed), title=title, words=(0, 1)))
        title = "accuracy, points of it lost against fp32, and peak memory"
        show_table(table(_COSTS, map(_costs, report.candidates), title=title, words=(0, 1)))
    for engine, why in report.not_tried.items():
        say(f"not tried: {engine}: {why}")
    say(("chosen: " if report.chosen else "") + for_command_line(report.reason))
    if report.written:
        say(f"written to {report.written}; predict uses it from now on")
    elif report.noisy:
        say("not written: give it more time by --seconds, or try again on a quieter machine")
    elif report.chosen:
        c = report.chosen
        say(f"not written: the folder is read-only or the package's; use --engine {c.engine} --threads {c.threads}")


_HEAD = ("file", "engine", "threads", "batch", "p50 ms", "images/s", "result")
_TIMES = ("file", "engine", "threads", "batch", "p50 ms", "p95 ms", "time", "95 %")
_COSTS = ("file", "engine", "threads", "batch", "top-1 %", "lost", "MB")


def _row(c: CandidateReport) -> list[str]:
    return [*_what(c), _number(c.latency_ms.get("p50"), 3), _number(c.throughput_per_s, 0), c.result]


def _times(c: CandidateReport) -> list[str]:
    interval = f"{c.ratio_ci95[0]:.2f}-{c.ratio_ci95[1]:.2f}" if c.ratio_ci95 else "-"
    latencies = (_number(c.latency_ms.get(p), 3) for p in ("p50", "p95"))
    return [*_what(c), *latencies, _number(c.ratio, 2), interval]


def _costs(c: CandidateReport) -> list[str]:
    megabytes = c.peak_rss_bytes and c.peak_rss_bytes / 1e6
    return [*_what(c), _number(c.top1, 2), _number(c.drop_points, 2), _number(megabytes, 0)]


def _what(c: CandidateReport) -> tuple[str, ...]:
    return c.file.removesuffix(".onnx"), c.engine, str(c.threads), str(c.batch)


def _out(candidates: Sequence[CandidateReport]) -> Iterator[str]:
    """Say which candidates were not timed, those with the same file and reason in one line."""
    engines: dict[tuple[str, str], dict[str, None]] = {}
    for c in candidates:
        if not c.n:
            engines.setdefault((c.file, c.result), {})[c.engine] = None
    for (file, reason), names in engines.items():
        yield f"not timed: {file} with {', '.join(names)}: {for_command_line(reason)}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else rounded(value, digits)
