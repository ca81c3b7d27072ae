"""Every page, with names in it that try to be HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.bench import BenchConfig, bench
from qdeploy.bench.page import html_page
from qdeploy.core.artifact import SHIPPED
from qdeploy.export.report.page import html_report
from qdeploy.export.report.record import ExportReport, Flip
from qdeploy.study.page import html_page as sweep_html
from qdeploy.study.rows import pareto_of, rows_of
from tests.study.sweeps import measured_sweep

NASTY = "<script>alert(1)</script>&\"'"


class Parser(HTMLParser):
    """Lists the elements of a page with the names of their attributes, and what a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def nasty(value: Any) -> Any:
    """The same document, every text of which ends in markup."""
    if isinstance(value, dict):
        return {k: nasty(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [nasty(v) for v in value]
    return value + NASTY if isinstance(value, str) else value


def require_same_page(page: str, plain: str) -> None:
    """The names change no element, and are read as they are."""
    found = Parser(page)
    assert "script" not in {element[0] for element in found.elements}
    assert found.elements == Parser(plain).elements
    assert found.text.count(NASTY) >= 10


def test_the_page_of_a_bench() -> None:
    report = bench([SHIPPED / "model.fp32.onnx", SHIPPED / "model.int8.onnx"], BenchConfig(runs=10, quick=True))
    document = {
        **report.to_dict(),
        "baseline": {"path": "a", "tolerance_percent": 1.0, "changes": [{"words": "slower"}]},
    }
    require_same_page(html_page(nasty(document)), html_page(document))


def test_the_report_of_an_export(exported: ExportReport) -> None:
    document, pixels = exported.to_dict(), np.zeros((64, 64, 3), np.uint8)
    flip = Flip(pixels=pixels, label="bag", fp32="shirt", int8="boot")
    other = Flip(pixels=pixels, label=NASTY, fp32=NASTY, int8=NASTY)
    require_same_page(html_report(nasty(document), [other]), html_report(document, [flip]))


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    require_same_page(sweep_page(tmp_path, NASTY), sweep_page(tmp_path, ""))


def sweep_page(folder: Path, more: str) -> str:
    record = measured_sweep(folder, more)
    rows = rows_of(record)
    return sweep_html(record, rows, pareto_of(rows), b"png")
