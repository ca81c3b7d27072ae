"""The bench report as one static HTML page: first what was found and whether it may be quoted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from qdeploy.bench.drawing import histograms, intervals, stacked
from qdeploy.bench.phases import PHASES
from qdeploy.core.figures import Bar, quantities, raw, verdict
from qdeploy.core.html import Markup, page, table, tag
from qdeploy.core.page_style import STYLE
from qdeploy.core.words import counted, percent

SLOW_INCLUDED = "images/s is over all queries: slow ones lower it below what p50 alone would give"
"""Why the rate is not what follows from the median."""
_RUNGS = ("python", "runtime", "model", "first run", "all runs")


def html_page(report: Mapping[str, Any]) -> str:
    """Return the page for the JSON document of ``qdeploy bench``. It needs no other file and runs no script."""
    results, config = report["results"], report["config"]
    title = f"qdeploy bench: {config['scenario']}, {counted(results[0]['samples'], 'image')} a query"
    return page(
        title,
        STYLE,
        tag("h1", title + (" (quick)" if report["quick"] else "")),
        _verdict(report),
        quantities(_quantities(results)),
        *_baseline(report.get("baseline")),
        tag("h2", "Latency of a query"),
        tag("div", histograms(results), class_="plot"),
        tag("p", f"Dots: the median of each time that the model was opened anew. {_rate(config)}", class_="small"),
        table(_HEAD, [_row(r) for r in results], kind="numbers"),
        *_server(results),
        *_comparison(report["comparisons"]),
        *_phases(results),
        *_memory(results),
        tag("h2", "Start"),
        table(_START_HEAD, [_start_row(r) for r in results], kind="numbers"),
        tag("h2", "Measured on"),
        table(("what", "found"), _environment(report["environment"]), kind="words"),
        tag("h2", "Files"),
        table(("file", "engine", "SHA-256"), [[r["path"], r["engine"], r["sha256"]] for r in results], kind="words"),
        raw("Everything as data", json.dumps(report, indent=1)),
    )


_HEAD = ("model", "top-1 %", "p50 ms", "p90", "p95", "p99", "mean", "std", "n", "images/s", "file kB", "peak MB")
_START_HEAD = ("model", "import ms", "load ms", "first run ms", "whole qdeploy predict ms", "from", "to")


def _rate(config: Mapping[str, Any]) -> str:
    """Say what the column ``images/s`` is; a server's is the rate that it kept up with."""
    return "" if config["scenario"] == "server" else f"{SLOW_INCLUDED}."


def _verdict(report: Mapping[str, Any]) -> Markup:
    """Say what the comparison found, and whether it may be quoted."""
    validity, found = report["validity"], [c["words"] for c in report["comparisons"]]
    words = ". ".join(found) + "." if found else f"{counted(len(report['results']), 'model')} measured."
    if validity["valid"]:
        return verdict("good", f"{words} Valid.")
    return verdict("wait", f"{words} Not valid for publication:", validity["reasons"])


def _quantities(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Bar]]]:
    """Return accuracy, latency, size and memory of every model; of accuracy and latency with their intervals."""
    known = [(r, r["accuracy"]) for r in results if r["accuracy"].get("top1") is not None]
    return [
        (
            "Accuracy, with its 95 % interval",
            [_bar(r, a["top1"], f"{a['top1']:.2f} %", a.get("ci95")) for r, a in known],
        ),
        ("Latency, and its range", [_bar(r, *_latency(r)) for r in results]),
        ("Size of the file", [_bar(r, r["model_bytes"], f"{r['model_bytes'] / 1e6:.2f} MB") for r in results]),
        ("Peak memory", [_bar(r, r["peak_rss_bytes"], f"{r['peak_rss_bytes'] / 1e6:.0f} MB") for r in results]),
    ]


def _latency(r: Mapping[str, Any]) -> tuple[float, str, Sequence[float] | None]:
    launches, p50 = r["launches_p50_ms"], r["latency_ms"]["p50"]
    return p50, f"{p50:.3f} ms", (min(launches), max(launches)) if launches else None


def _bar(r: Mapping[str, Any], value: float, words: str, interval: Sequence[float] | None = None) -> Bar:
    ends = (interval[0], interval[1]) if interval else None
    kind = "int8" if r["precision"] == "int8" else "fp32"
    return Bar(name=r["name"], precision=kind, value=value, words=words, interval=ends)


def _baseline(baseline: Mapping[str, Any] | None) -> list[Markup]:
    if baseline is None:
        return []
    head = f"Since {baseline['path']}; {baseline['tolerance_percent']:g} % tolerated"
    return [tag("h2", head), tag("ul", *(tag("li", c["words"]) for c in baseline["changes"]))]


def _row(r: Mapping[str, Any]) -> list[str]:
    latency = [_number(r["latency_ms"][p]) for p in ("p50", "p90", "p95", "p99", "mean", "std")]
    top1 = r["accuracy"].get("top1")
    return [
        r["name"],
        "-" if top1 is None else f"{top1:.2f}",
        *latency,
        str(r["n"]),
        f"{r['throughput_per_s']:.0f}",
        f"{r['model_bytes'] / 1e3:.0f}",
        f"{r['peak_rss_bytes'] / 1e6:.1f}",
    ]


def _server(results: Sequence[Mapping[str, Any]]) -> list[Markup]:
    served = [(r["name"], r["server"]) for r in results if r["server"]]
    if not served:
        return []
    rows = [
        [
            name,
            f"{s['rate_per_s']:.1f}" + (" (highest)" if s["searched"] else ""),
            f"p{s['percentile']} {_number(s['percentile_ms'])}",
            "-" if s["bound_ms"] is None else f"{s['bound_ms']:g}",
            {True: "kept", False: "not kept", None: "-"}[s["within_bound"]],
            percent(s["keeping_up"], 0),
        ]
        for name, s in served
    ]
    head = ("model", "queries/s", "latency ms", "bound ms", "", "answered in time")
    note = "Poisson arrivals; latency counts from the time a query should have been sent."
    return [tag("h2", "Server"), tag("p", note, class_="small"), table(head, rows, kind="numbers")]


def _comparison(comparisons: Sequence[Mapping[str, Any]]) -> list[Markup]:
    if not comparisons:
        return []
    note = "Times as fast as the first model, with the 95 % interval of all comparisons together."
    return [tag("h2", "Comparison"), tag("p", note, class_="small"), tag("div", intervals(comparisons), class_="plot")]


def _phases(results: Sequence[Mapping[str, Any]]) -> list[Markup]:
    measured = [r for r in results if r["phases_ms"]]
    if not measured:
        return []
    names = PHASES[:-1]
    rows = [(r["name"], [r["phases_ms"][p]["p50"] for p in names]) for r in measured]
    lines = [
        [r["name"] if i == 0 else "", phase.replace("_", " ")]
        + [_number(r["phases_ms"][phase][p]) for p in ("p50", "p90", "p95", "p99")]
        for r in measured
        for i, phase in enumerate(PHASES)
    ]
    return [
        tag("h2", "From an encoded image to its labels"),
        tag("div", stacked(rows, names, "ms"), class_="plot"),
        tag("p", "Medians, one image at a time, 64 different JPEG files of 128x128 pixels.", class_="small"),
        table(("model", "phase", "p50 ms", "p90", "p95", "p99"), lines, kind="numbers"),
    ]


def _memory(results: Sequence[Mapping[str, Any]]) -> list[Markup]:
    rows = []
    for r in results:
        peaks = [v / 1e6 for v in r["ladder_bytes"].values()]
        rows.append((r["name"], [peaks[0], *(b - a for a, b in pairwise(peaks))]))
    lines = [
        [r["name"], *(f"{v / 1e6:.1f}" for v in r["ladder_bytes"].values()), _growth(r["growth"])] for r in results
    ]
    return [
        tag("h2", "Peak memory of a fresh process"),
        tag("div", stacked(rows, _RUNGS, "MB"), class_="plot"),
        table(
            ("model", "python MB", "+ runtime", "+ model", "+ first run", "+ all runs", "growth"),
            lines,
            kind="numbers",
        ),
    ]


def _growth(growth: Mapping[str, Any] | None) -> str:
    if growth is None:
        return "-"
    return f"{growth['finding']} ({growth['bytes_per_run']:+.1f} bytes a run, {growth['runs']} runs)"


def _start_row(r: Mapping[str, Any]) -> list[str]:
    starts = r["cold_starts_ms"]
    numbers = (r["import_ms"], r["load_ms"], r["first_ms"], r["cold_start_ms"], min(starts), max(starts))
    return [r["name"], *(f"{v:.1f}" for v in numbers)]


def _environment(e: Mapping[str, Any]) -> list[list[str]]:
    def share(name: str, unit: str) -> str:
        return "not readable" if e[name] is None else f"{e[name]:.2f} {unit}"

    energy = e["energy"]
    if not isinstance(energy, str):
        energy = ", ".join(f"{k}: {j:.1f} J, {energy['watts'][k]:.1f} W" for k, j in energy["joules"].items())
    return [
        ["CPU", f"{e['cpu']}, {e['cores']} usable cores, {e['system']}"],
        ["flags", ", ".join(e["flags"])],
        ["affinity, quota", f"{e['affinity']}, {e['quota_cores'] or 'no quota'}"],
        ["governor, MHz", f"{e['governor'] or 'not readable'}, {e['mhz'] or 'not readable'}"],
        ["load before, after", f"{e['load_1min']}, {e['load_after_1min']}"],
        ["measured", f"{e['measured_s']:.1f} s"],
        ["CPU time of this process", share("own_cores", "cores")],
        ["CPU time of others", share("others_cores", "cores")],
        ["stolen by other guests", share("stolen_percent", "%")],
        ["stopped by the quota", "not readable" if e["throttled"] is None else f"{e['throttled']} times"],
        ["energy", energy],
        ["versions", ", ".join(f"{k} {v}" for k, v in e["versions"].items())],
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
