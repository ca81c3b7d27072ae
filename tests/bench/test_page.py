from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdeploy.cli.main import run


def test_a_page_that_cannot_be_written_loses_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    page.mkdir()
    assert run(["bench", "--quick", "--runs", "10", "--html", str(page), "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["results"]) == 2
    assert "page.html could not be made (Is a directory); the results are written" in err.splitlines()
