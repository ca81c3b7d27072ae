"""The export's report as one static page."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.35rem .6rem;border-bottom:1px solid #d8dee6}
th:first-child,td:first-child{text-align:left}
.verdict{background:#eef4ee;border-left:4px solid #3a7d44;padding:.6rem 1rem}
code{font-size:.85em;word-break:break-all}.bar{background:#3b6ea8;height:.8rem}
"""


def html_report(report: dict[str, Any], name: str) -> str:
    """Give the page for ``report.json``: files, verdict, candidates, environment."""
    rows = [_artifact_row(a) for a in report["artifacts"]]
    head = ("file", "top-1 %", "n", "p50 ms", "size kB", "SQNR dB", "top-1 agreement", "max |d logit|")
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="verdict">{escape(report["verdict"])}</p>',
        "<h2>Files</h2>",
        _table(head, rows),
        *_candidates(report["candidates"]),
        "<h2>Checksums</h2>",
        *(f"<p>{escape(_base(a['path']))} <code>{a['sha256']}</code></p>" for a in report["artifacts"]),
        "<h2>Measured on</h2>",
        f"<p>{escape(_machine(report['environment']))}</p>",
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _artifact_row(a: dict[str, Any]) -> tuple[str, ...]:
    parity, sqnr = a["parity"], a["parity"]["sqnr_db"]
    return (
        _base(a["path"]),
        f"{a['accuracy']['top1']:.2f}",
        str(a["accuracy"]["n"]),
        f"{a['latency_ms']['p50']:.3f}",
        f"{a['size_bytes'] / 1e3:.0f}",
        "exact" if sqnr is None else f"{sqnr:.1f}",
        f"{parity['top1_agreement']:.4f}",
        f"{parity['max_abs']:.2e}",
    )


def _candidates(candidates: list[dict[str, Any]]) -> list[str]:
    if not candidates:
        return []
    candidates = [c for c in candidates if c["times_fp32_speed"]]
    longest = max((c["times_fp32_speed"] for c in candidates), default=1.0)
    rows: list[tuple[str, ...]] = [
        (
            c["float_layers"] + (" (chosen)" if c["chosen"] else ""),
            f"{c['sqnr_db']:.1f}",
            f"{c['val_drop']:.2f}",
            f"{c['times_fp32_speed']:.2f}x",
            f"{c['ci95'][0]:.2f} to {c['ci95'][1]:.2f}",
            f'<div class="bar" style="width:{100 * c["times_fp32_speed"] / longest:.0f}%"></div>',
        )
        for c in candidates
    ]
    head = ("layers left in float", "SQNR dB", "val. points lost", "speed of fp32", "95 % interval", "")
    return ["<h2>INT8 candidates, timed in turn</h2>", _table(head, rows, raw_last=True)]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], raw_last: bool = False) -> str:
    cells = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = ""
    for row in rows:
        shown = [escape(c) for c in row]
        if raw_last:
            shown[-1] = row[-1]
        body += "<tr>" + "".join(f"<td>{c}</td>" for c in shown) + "</tr>"
    return f"<table><tr>{cells}</tr>{body}</table>"


def _base(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    return f"{environment['cpu']}, {environment['cores']} cores ({', '.join(environment['flags'])}); {versions}"
