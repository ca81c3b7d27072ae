"""Images that cannot be had are named, by every command that reads a folder of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qdeploy.export.api import export_onnx
from qdeploy.export.config import ExportConfig
from tests.conftest import SHORT
from tests.serve.serving import Serving, until
from tests.unprivileged import give_up_privileges

ROOT = Path(__file__).parents[2]
LOST = {
    "Bag/closed": "cannot be read: Permission denied",
    "Bag/gone.png": "leads to no file",
    "Bag/loop.png": "leads to itself",
    "Bag/pipe.png": "is not a regular file",
    "Bag/zero.png": "is not a regular file",
}
LINKED = ("Bag/one", "Bag/two")


@pytest.fixture
def folder(boots: Path, tmp_path: Path) -> Iterator[Path]:
    """The boots, with all that can make an image unreachable among its bags."""
    folder = Path(shutil.copytree(boots, tmp_path / "boots"))
    (folder / "Bag" / "torn.png").unlink()
    closed = folder / "Bag" / "closed"
    closed.mkdir()
    shutil.copy(folder / "Bag" / "00.png", closed / "inside.png")
    os.mkfifo(folder / "Bag" / "pipe.png")
    targets = {"gone.png": "nowhere", "loop.png": "loop.png", "zero.png": "/dev/zero", "one": ".", "two": "."}
    for name, target in targets.items():
        (folder / "Bag" / name).symlink_to(target)
    closed.chmod(0)
    yield folder
    closed.chmod(0o700)


def run(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as a user whom permissions hold."""
    command = [sys.executable, "-m", "qdeploy", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, preexec_fn=give_up_privileges, timeout=100)
    assert done.returncode == code, done.stderr
    return done


def named(text: str, folder: Path) -> bool:
    """Tell whether all that is lost is named in a text, with the reason."""
    return all(f"{folder / name}: {why}" in text for name, why in LOST.items())


def test_data_and_eval_name_them(folder: Path) -> None:
    done = run("data", folder, "--json")
    told = json.loads(done.stdout)
    expected = {f"{folder / name}: {why}" for name, why in LOST.items()}
    links = {f"{folder / name}: a link to a folder, which is not followed" for name in LINKED}
    assert set(told["problems"]) == expected | links
    assert sum(n for split in told["splits"].values() for n in split.values()) == 60
    assert named(run("eval", folder, "--split", "all").stderr, folder)
    (folder / "Bag" / "closed").chmod(0o700)
    (folder / "Bag" / "gone.png").unlink()
    shutil.copy(folder / "Bag" / "00.png", folder / "Bag" / "gone.png")
    again = json.loads(run("data", folder, "--json").stdout)
    new = set(again["problems"]) - set(told["problems"])
    assert len(new) == 2
    assert all(": the same image as " in p and p.endswith(" of train; left out") for p in new)
    assert len(again["problems"]) == len(told["problems"])


def test_permissions_that_come_back_bring_the_images_back(boots: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(boots, tmp_path / "boots"))
    lost = folder / "Trouser" / "07.png"
    lost.chmod(0)
    for _ in range(2):  # decoded, and from the cache
        problems = json.loads(run("data", folder, "--json").stdout)["problems"]
        assert f"{lost}: cannot be read: Permission denied" in problems
    lost.chmod(0o644)
    told = json.loads(run("data", folder, "--json").stdout)
    assert len(told["problems"]) == 1
    assert "torn.png" in told["problems"][0]
    assert sum(split["Trouser"] for split in told["splits"].values()) == 20


def test_predict_names_them_in_folders_and_globs(folder: Path) -> None:
    done = run("predict", folder, "--model", "qdeploy/shipped", "--json", code=2)
    answers = {str(Path(a["image"]).relative_to(folder)): a for a in map(json.loads, done.stdout.splitlines())}
    assert len(answers) == 60 + len(LOST)
    refused = {name: a["reason"] for name, a in answers.items() if "error" in a}
    assert refused == {
        **{"Bag/closed": "unreadable", "Bag/gone.png": "not-found", "Bag/loop.png": "not-found"},
        **{"Bag/pipe.png": "not-a-file", "Bag/zero.png": "not-a-file"},
    }
    for name in LINKED:
        assert f"{folder / name} (a link to a folder)" in done.stderr
    done = run("predict", f"{folder}/**/*.png", "--model", "qdeploy/shipped", "--json", code=2)
    by_glob = {str(Path(a["image"]).relative_to(folder)) for a in map(json.loads, done.stdout.splitlines())}
    assert by_glob == set(answers)


@pytest.mark.slow
def test_a_watched_folder_names_them_and_answers_when_they_are_back(folder: Path, tmp_path: Path) -> None:
    closed = folder / "Bag" / "closed"
    locked = folder / "Bag" / "01.png"
    locked.chmod(0)
    with Serving(tmp_path, "--watch", "boots", preexec_fn=give_up_privileges) as serving:
        until(lambda: len(serving.answers()) == 60, 60)
        left_out = {e["path"]: e["why"] for e in serving.events("left-out")}
        assert left_out == {
            **{str(folder / name): why for name, why in LOST.items() if name != "Bag/closed"},
            **{str(folder / name): "a link to a folder, which is not followed" for name in LINKED},
        }
        assert serving.events("folder-unreadable")[0]["why"] == f"{closed}: cannot be read: Permission denied"
        (refusal,) = (a for a in serving.answers() if a["image"] == str(locked))
        assert refusal["reason"] == "unreadable"
        locked.chmod(0o644)
        closed.chmod(0o700)
        until(lambda: len(serving.answers()) == 62, 60)
        back = [
            a["label"]
            for a in serving.answers()
            if a["image"] in (str(locked), str(closed / "inside.png"))[:2] and "label" in a
        ]
        assert back == ["Bag", "Bag"]


@pytest.mark.slow
def test_train_and_quantize_name_them(folder: Path, fp32_file: Path, tmp_path: Path) -> None:
    done = run("train", folder, "--model", "nano-ar", "--epochs", "1", "--out", tmp_path / "run")
    assert f"{len(LOST) + len(LINKED)} problems with the data" in done.stderr
    lines: list[str] = []
    export_onnx(fp32_file, str(folder), tmp_path / "out", config=ExportConfig(search=SHORT), note=lines.append)
    assert any("problems with the data" in line and "Bag/gone.png: leads to no file" in line for line in lines)
