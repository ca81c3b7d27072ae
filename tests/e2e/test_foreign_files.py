"""Every twelfth of other people's files through the real commands: no crash, no verdict, no wrong answer."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_of_real_exports_says_what_was_measured() -> None:
    """Its numbers are those of the results; `python benchmarks/real_exports.py` writes them."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "real_exports.py"))
    page, rows_of = script["page"], script["rows_of"]
    text = script["PAGE"].read_text()
    results = [rows_of(name) for name in ("foreign_exports", "foreign_files")]
    assert page(text, *results) == text
    wrong = [{**row, "int8_db": 99.0} if row["result"] == "taken" else row for row in results[0]]
    other = page(text, wrong, results[1][1:])
    assert other.count("| 99.0 |") == sum(row["result"] == "taken" for row in wrong)
    assert len(other.splitlines()) == len(text.splitlines())
    graphs = sum(row["kind"] == "graph" for row in results[1])
    assert f"sends {graphs} generated graphs" in text
    assert f"sends {graphs - 1} generated graphs" in other


@pytest.mark.slow
def test_rows_that_an_interruption_cut_are_judged_again(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    done = {"kind": "image", "name": "a.png", "outcome": "taken", "says": "", "faults": []}
    rows.write_text(f'{json.dumps(done)}\n{{"kind": "image", "na')
    words = [sys.executable, "benchmarks/foreign_files.py", "images", "--every", "100000", "--rows", str(rows)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, *others = map(json.loads, rows.read_text().splitlines())
    assert first == done
    assert len(others) == 1


@pytest.mark.slow
def test_a_sample_of_the_corpora_ends_as_it_should() -> None:
    words = [sys.executable, "benchmarks/foreign_files.py", "--every", "12"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"graph"')))
    assert all(sum(kind.values()) >= 3 and "fault" not in kind for kind in counts.values())
    assert sum(kind.get("taken", 0) for kind in counts.values()) > 20
