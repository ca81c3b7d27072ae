"""The same inputs give the same bytes: of the wheel, and of an export whose choices are pinned."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from qdeploy.core.files import sha256_of
from qdeploy.export.report.record import ExportReport

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def built(folder: Path, epoch: int) -> Path:
    """Build the wheel in a fresh copy of what is in the repository; gives its file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    for path in (folder / "source").rglob("*"):
        os.utime(path, (time.time(),) * 2)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONPATH": ""}
    words = [sys.executable, "-c", code, str(folder)]
    subprocess.run(words, cwd=folder / "source", env=environment, capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_two_builds_give_the_same_wheel(tmp_path: Path) -> None:
    wheels = []
    for name in ("here", "a longer path"):
        (tmp_path / name).mkdir()
        wheels.append(built(tmp_path / name, 1_700_000_000))
        time.sleep(2)  # the clock of a zip file ticks every two seconds
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = set(wheel.namelist())
        assert {i.date_time[0] for i in wheel.infolist()} == {2023}
    package = {f"qdeploy/{p.relative_to(ROOT / 'qdeploy')}" for p in (ROOT / "qdeploy").rglob("*.py")}
    assert package <= names


def test_two_exports_with_pinned_choices_give_the_same_files(exported: ExportReport, tmp_path: Path) -> None:
    """In processes of their own, and with another seed of Python's hashes."""
    runs = Path(exported.out).parents[1] / "runs"
    found: list[dict[str, str]] = []
    for seed in ("1", "2"):
        place = tmp_path / seed
        place.mkdir()
        shutil.copytree(runs, place / "runs")
        options = ("--int8", "--calibration", "minmax", "--float-layers", "none", "--allow-slower", "--allow-drop")
        words = [sys.executable, "-m", "qdeploy", "export", "--out", "made", *options]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "QDEPLOY_CACHE": str(place / "cache")}
        subprocess.run(words, cwd=place, env=environment, capture_output=True, check=True)
        found.append({f.name: sha256_of(f.read_bytes()) for f in sorted((place / "made").glob("*.onnx"))})
    assert found[0] == found[1]
    assert set(found[0]) == {"model.fp32.onnx", "model.int8.onnx"}
