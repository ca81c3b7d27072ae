"""README and docs do what they say: every command and every Python block is run, every link leads somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.quiet import namespace, quiet_environment, run_quietly, strange_files

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{n}.md"
        for n in (
            "checking",
            "data",
            "training",
            "models",
            "export",
            "lint",
            "tensorrt",
            "predict",
            "bench",
            "engines",
            "c_kit",
            "choosing_a_model",
            "mobilevit",
        )
    ),
]
SHORTER = {"qdeploy train": "qdeploy train --epochs 8"}
"""Typed with more, to take a minute and not five: the recipe's whole run is what `make demo` does."""
NOT_HERE = ("make ", "pip install ", "git clone ", "cd ")
"""Set-up commands: CI runs `make test` itself; `make demo` is the README's four commands."""


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """Give the fenced blocks of a document: language and text."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(), flags=re.M | re.S)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's folder: the examples and some photos."""
    (tmp_path / "home" / "user").mkdir(parents=True)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    rng = np.random.default_rng(0)
    for shade, label in enumerate(("apple", "leaf", "stone")):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(24):
            Image.fromarray(rng.integers(80 * shade, 80 * shade + 90, (40, 30, 3), dtype=np.uint8)).save(
                folder / f"{i}.jpg"
            )
    return tmp_path


def execute(place: Path, *, shell: str | None = None, python: str | None = None) -> None:
    """Run a command or a block of Python, with an empty home folder and, where the kernel lets us, without network."""
    command = ["bash", "-ec", shell] if shell else [sys.executable, "-c", python or ""]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = place / "home" / "user"
    if namespace() is None or "--ray" in (shell or ""):  # the parts of Ray talk to each other
        environment = {**quiet_environment(home), "PATH": path}
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
    else:
        done, sent = run_quietly(command, home, place, {"PATH": path})
        assert sent == {}, shell or python
    assert done.returncode == 0, f"{shell or python}\n{done.stdout}\n{done.stderr}"
    assert strange_files(home) == [], shell or python


@pytest.mark.slow
def test_every_command_runs_and_the_first_export_pays(place: Path) -> None:
    seen = set()
    for document in DOCUMENTS:
        for language, text in blocks(document):
            if language == "python":
                execute(place, python=text)
            for line in text.splitlines() if language == "bash" else ():
                command = line.partition("  #")[0].strip()
                if command.startswith(NOT_HERE) or command in seen:
                    continue
                assert command.startswith("qdeploy "), f"{document.name}: {command}"
                seen.add(command)
                execute(place, shell=SHORTER.get(command, command))
        if document.name == "README.md":
            check_demo(place)
    assert seen >= {"qdeploy train", "qdeploy export --int8", "qdeploy bench"}


def check_demo(place: Path) -> None:
    """A short run on the embedded data, and its INT8 export."""
    (run,) = (place / "runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["model"]["name"] == "nano"
    assert record["results"]["test_top1"] >= 75.0
    report = json.loads((place / "exports" / run.name / "report.json").read_text())
    fp32, int8 = report["artifacts"]
    assert fp32["parity"]["max_abs"] <= 1e-4
    assert int8["parity"]["sqnr_db"] >= 20
    assert report["difference"]["points"] >= -1.0
    assert report["difference"]["n"] == 1000


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
