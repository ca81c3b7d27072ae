from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdeploy.cli.main import run


def test_a_page_that_cannot_be_written_loses_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--quick", "--runs", "10", "--html", "/dev/full", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["results"]) == 2
    assert "full could not be made (No space left on device); the results are written" in err.splitlines()


def test_a_folder_in_place_of_a_page_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--quick", "--html", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"qdeploy: cannot write {tmp_path}: it is a folder; give a file's name\n"
