"""The measurement as one static page: whether it may be quoted first, then pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from qdeploy.bench.drawing import histograms, intervals, stacked
from qdeploy.bench.phases import PHASES

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid #d8dee6}
th:first-child,td:first-child{text-align:left;overflow-wrap:anywhere}
.verdict{background:#eef4ee;border-left:4px solid #3a7d44;padding:.6rem 1rem}
.rejected{background:#f8eeee;border-color:#a33}
.small{color:#5a6675;font-size:.9em}.words td,.words th{text-align:left;overflow-wrap:anywhere}
"""
_RUNGS = ("python", "runtime", "model", "first run", "all runs")


def html_page(report: Mapping[str, Any]) -> str:
    """Give the page for the JSON document of ``qdeploy bench``. It needs no other file and runs no script."""
    results, config = report["results"], report["config"]
    title = f"qdeploy bench: {config['scenario']}, {results[0]['samples']} image(s) a query"
    parts = [
        f"<h1>{escape(title)}{' (quick)' if report['quick'] else ''}</h1>",
        _verdict(report["validity"]),
        *(f"<p>{escape(c['words'])}</p>" for c in report["comparisons"]),
        *_baseline(report.get("baseline")),
        "<h2>Latency of a query</h2>",
        histograms(results),
        '<p class="small">Dots: the median of each time that the model was opened anew.</p>',
        _table(_HEAD, [_row(r) for r in results]),
        *_server(results),
        *_comparison(report["comparisons"]),
        *_phases(results),
        *_memory(results),
        "<h2>Start</h2>",
        _table(_START_HEAD, [_start_row(r) for r in results]),
        "<h2>Measured on</h2>",
        _table(("what", "found"), _environment(report["environment"]), "words"),
        "<h2>Files</h2>",
        _table(("file", "engine", "SHA-256"), [[r["path"], r["engine"], r["sha256"]] for r in results], "words"),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


_HEAD = ("model", "top-1 %", "p50 ms", "p90", "p95", "p99", "mean", "std", "n", "images/s", "file kB", "peak MB")
_START_HEAD = ("model", "import ms", "load ms", "first run ms", "whole qdeploy predict ms", "from", "to")


def _verdict(validity: Mapping[str, Any]) -> str:
    if validity["valid"]:
        return '<p class="verdict">Valid.</p>'
    reasons = "".join(f"<li>{escape(r)}</li>" for r in validity["reasons"])
    return f'<div class="verdict rejected">Not valid for publication:<ul>{reasons}</ul></div>'


def _baseline(baseline: Mapping[str, Any] | None) -> list[str]:
    if baseline is None:
        return []
    lines = "".join(f"<li>{escape(c['words'])}</li>" for c in baseline["changes"])
    head = f"Since {escape(baseline['path'])}; {baseline['tolerance_percent']:g} % tolerated"
    return [f"<h2>{head}</h2><ul>{lines}</ul>"]


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


def _server(results: Sequence[Mapping[str, Any]]) -> list[str]:
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
            f"{s['keeping_up']:.0%}",
        ]
        for name, s in served
    ]
    head = ("model", "queries/s", "latency ms", "bound ms", "", "answered in time")
    note = "Poisson arrivals; latency counts from the time a query should have been sent."
    return ["<h2>Server</h2>", f'<p class="small">{note}</p>', _table(head, rows)]


def _comparison(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    if not comparisons:
        return []
    note = "Times as fast as the first model, with the 95 % interval of all comparisons together."
    return ["<h2>Comparison</h2>", f'<p class="small">{note}</p>', intervals(comparisons)]


def _phases(results: Sequence[Mapping[str, Any]]) -> list[str]:
    measured = [r for r in results if r["phases_ms"]]
    if not measured:
        return []
    names = PHASES[:-1]
    rows = [(r["name"], [r["phases_ms"][p]["p50"] for p in names]) for r in measured]
    table = [
        [r["name"] if i == 0 else "", phase.replace("_", " ")]
        + [_number(r["phases_ms"][phase][p]) for p in ("p50", "p90", "p95", "p99")]
        for r in measured
        for i, phase in enumerate(PHASES)
    ]
    return [
        "<h2>From an encoded image to its labels</h2>",
        stacked(rows, names, "ms"),
        '<p class="small">Medians, one image at a time, 64 different JPEG files of 128x128 pixels.</p>',
        _table(("model", "phase", "p50 ms", "p90", "p95", "p99"), table),
    ]


def _memory(results: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for r in results:
        peaks = [v / 1e6 for v in r["ladder_bytes"].values()]
        rows.append((r["name"], [peaks[0], *(b - a for a, b in pairwise(peaks))]))
    table = [
        [r["name"], *(f"{v / 1e6:.1f}" for v in r["ladder_bytes"].values()), _growth(r["growth"])] for r in results
    ]
    return [
        "<h2>Peak memory of a fresh process</h2>",
        stacked(rows, _RUNGS, "MB"),
        _table(("model", "python MB", "+ runtime", "+ model", "+ first run", "+ all runs", "growth"), table),
    ]


def _growth(growth: Mapping[str, Any] | None) -> str:
    if growth is None:
        return "-"
    return f"{growth['verdict']} ({growth['bytes_per_run']:+.1f} bytes a run, {growth['runs']} runs)"


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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Give a table; the cells are plain text."""
    cells = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<table class="{kind}"><tr>{cells}</tr>{body}</table>'
