"""Every page, with names in it that try to be HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.bench import BenchConfig, bench
from qdeploy.bench.page import html_page
from qdeploy.core.artifact import SHIPPED
from qdeploy.export.report.page import html_report
from qdeploy.export.report.record import Confusion, ExportReport, Flip
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


@pytest.mark.slow
def test_the_report_of_an_export(exported: ExportReport) -> None:
    document, pixels = exported.to_dict(), np.zeros((64, 64, 3), np.uint8)
    document["rejected"] = document["artifacts"][1:]
    flip = Flip(pixels=pixels, label="bag", fp32="shirt", int8="boot")
    other = Flip(pixels=pixels, label=NASTY, fp32=NASTY, int8=NASTY)
    counts = np.arange(4).reshape(2, 2)
    confusion = Confusion(labels=("bag", "boot"), fp32=counts, int8=counts)
    others = Confusion(labels=(f"bag{NASTY}", f"boot{NASTY}"), fp32=counts, int8=counts)
    require_same_page(html_report(nasty(document), [other], others), html_report(document, [flip], confusion))


def test_the_report_of_an_export_says_what_each_class_and_process_got(exported: ExportReport) -> None:
    """The 1,000 test images have as many of each class, so the mean of the classes is the accuracy."""
    page = (Path(exported.out) / "report.html").read_text()
    (section,) = re.findall(r"<h2>Class by class</h2>(.*?)</table>", page)
    changed = re.findall(r'<figure class="flip looks">(.*?)</figure>', page)
    assert 0 < len(changed) == page.count('<figure class="flip')
    for figure in changed:
        names = re.search(r"<br>fp32: ([^<]*)<br>int8: ([^<]*)<", figure)
        assert names
        maps = re.findall(
            r'<img src="data:image/jpeg;base64,[^"]+" alt="([a-z0-9]+): class map of ([^,]+), logit', figure
        )
        assert maps == [("fp32", names[1]), ("int8", names[2])]
    rows = re.findall(r"<td>(\d+)</td><td>([0-9.]+) %</td><td>([0-9.]+) %</td>", section)
    assert [n for n, _, _ in rows] == ["100"] * 10
    for artifact, column in zip(exported.artifacts, (1, 2), strict=True):
        assert artifact.accuracy is not None
        assert np.mean([float(row[column]) for row in rows]) == pytest.approx(artifact.accuracy.top1, abs=0.01)
        assert artifact.peak_rss_bytes is not None
        assert 30e6 < artifact.peak_rss_bytes < 200e6
        assert page.count("come from the same runs") == 1
        assert min(artifact.launches_p50_ms) <= (artifact.latency_ms["p50"] or 0.0) <= max(artifact.launches_p50_ms)


def test_the_report_of_an_export_says_what_its_numbers_are_of(exported: ExportReport) -> None:
    """A file with one part whose error makes up for that of others, and a choice that costs less than nothing."""
    document = exported.to_dict()
    int8 = document["int8"][0]
    unit = {"unit": "*.act", "operators": 7, "time_gain": 0.1}
    int8["units"] = [{**unit, "error": -0.671}, {**unit, "error": 0.5}]
    int8["choices"][0]["val_drop"] = -0.001
    int8["loss"]["difference"]["points"] = -0.001
    page = html_report(document)
    text = Parser(page).text
    assert "-0.00" not in text
    assert "+-" not in text
    assert "\u00b1" in text
    assert '"recipe"' in text, "where it comes from"
    assert '"swa": false' not in text
    assert "<td>7</td><td>+10.0 %</td>" in page
    assert re.search(r'-67\.1 %</td><td><span class="bar" style="width:5\.37rem">', page)
    assert re.search(r'\+50\.0 %</td><td><span class="bar minus" style="width:4\.00rem">', page)
    for words in "the shares do not add up to 100 %", "on the third of the validation images that chooses":
        assert words in page
    assert page.count("\u2192") == 3 * len(document["artifacts"])


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    require_same_page(sweep_page(tmp_path, NASTY), sweep_page(tmp_path, ""))


def sweep_page(folder: Path, more: str) -> str:
    record = measured_sweep(folder, more)
    rows = rows_of(record)
    return sweep_html(record, rows, pareto_of(rows))
