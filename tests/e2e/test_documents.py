"""README and docs do what they say: every command and every Python block is run, every link leads somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdeploy.core.machine import native_target
from qdeploy.export.kits.web_runtime import VARIABLE
from qdeploy.export.report.record import ExportReport
from tests.conftest import once
from tests.ort_web import web_runtime_folder
from tests.quiet import namespace, quiet_environment, run_quietly, strange_files

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
SHORTEST = {
    "qdeploy train": "qdeploy train --model nano-ar --epochs 1",
    "qdeploy export --int8": "qdeploy export --int8 --float-layers none --allow-drop --allow-slower",
    "qdeploy bench": "qdeploy bench --quick",
}
"""Typed with more, to take seconds: that the words run, one after the other."""
SHORTER = {"qdeploy train": "qdeploy train --epochs 8"}
"""Typed with more, to take a minute and not five: the recipe's whole run is what `make demo` does."""
if native_target() != "x86":
    SHORTER["qdeploy export --int8"] = "qdeploy export --int8 --allow-slower"  # INT8 gains little without VNNI
NOT_HERE = ("make ", "pip install ", "git clone ", "cd ")
"""Set-up commands: CI runs `make test` itself; `make demo` is the README's four commands."""


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each fenced block of a document."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(), flags=re.M | re.S)


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a block of shell, without set-up and remarks."""
    for line in text.splitlines():
        command = line.partition("  #")[0].strip()
        if not command.startswith(NOT_HERE):
            assert re.match(r"([A-Z_]+=\S+ )*(qdeploy|curl) ", command), command
            yield command


def make_user_folder(folder: Path) -> Path:
    """Make a user's folder: an empty home, the examples and some photos."""
    (folder / "home" / "user").mkdir(parents=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    rng = np.random.default_rng(0)
    for shade, label in enumerate(("apple", "leaf", "stone")):
        photos = folder / "photos" / label
        photos.mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(80 * shade, 80 * shade + 90, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"{i}.jpg")
    return folder


@pytest.fixture(scope="session")
def ready_made(exported: ExportReport, shared: Path) -> Path:
    """A user's folder after a run on the embedded images and its export, and a younger run on the photos."""

    def make() -> Path:
        folder = make_user_folder(shared / "ready-made")
        for name in ("runs", "exports"):
            shutil.copytree(Path(exported.out).parents[1] / name, folder / name)
        execute(folder, shell="qdeploy train photos --model nano-ar --epochs 1")
        return folder

    return once(shared, "ready-made", make)


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def execute(place: Path, *, shell: str | None = None, python: str | None = None, alone: bool = True) -> None:
    """Run a command or a block of Python, with an empty home folder and, where the kernel lets us, without network.

    Args:
        place: The working folder.
        shell: The command.
        python: The block.
        alone: Whether it talks to no other process; those of Ray do, and clients of a server.
    """
    command = ["bash", "-ec", shell] if shell else [sys.executable, "-c", python or ""]
    home = place / "home" / "user"
    if namespace() is None or not alone or "--ray" in (shell or ""):
        environment = {**quiet_environment(home), "PATH": PATH}
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
    else:
        done, sent = run_quietly(command, home, place, {"PATH": PATH})
        assert sent == {}, shell or python
    assert done.returncode == 0, f"{shell or python}\n{done.stdout}\n{done.stderr}"
    assert strange_files(home) == [], shell or python


class Servers:
    """The servers that a document starts with ``qdeploy serve ... &``, on ports that are free."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._ports: dict[str, str] = {}
        self._running: list[subprocess.Popen[str]] = []

    def here(self, text: str) -> str:
        """Return a text with this machine's ports in place of the document's."""
        for port, free in self._ports.items():
            text = re.sub(rf"(?<=[: ]){port}\b", free, text)
        return text

    def start(self, command: str) -> None:
        """Start a server and wait until it is ready."""
        command = command.removesuffix("&").rstrip()
        port = (re.findall(r"--port (\d+)", command) or ["8000"])[0]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._ports[port] = str(free.getsockname()[1])
        if "--port" not in command:
            command += f" --port {port}"
        environment = {**quiet_environment(self._place / "home" / "user"), "PATH": PATH}
        log = (self._place / f"server-{port}.log").open("w")
        server = subprocess.Popen(
            ["bash", "-c", f"exec {self.here(command)}"],
            cwd=self._place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        log.close()
        self._running.append(server)
        assert server.stdout is not None
        assert "serving on" in server.stdout.readline(), command

    def stop(self) -> None:
        """Stop all, each with exit code 0."""
        for server in self._running:
            server.terminate()
            assert server.stdout is not None
            server.stdout.close()
            assert server.wait(60) == 0


def execute_blocks(
    document: Path, place: Path, *, known: frozenset[str] = frozenset(), typed: Mapping[str, str] | None = None
) -> set[str]:
    """Run the blocks of a document in order, but for known commands; return the commands in them.

    Args:
        document: The document.
        place: The working folder.
        known: Commands that are not run.
        typed: What is typed in place of some commands.
    """
    found: set[str] = set()
    servers = Servers(place)
    alone = "qdeploy serve" not in document.read_text()
    try:
        for language, text in blocks(document):
            if language == "python":
                execute(place, python=servers.here(text), alone=alone)
            for command in commands(text) if language == "bash" else ():
                found.add(command)
                if command.endswith("&"):
                    servers.start(command)
                elif command not in known and (shutil.which("curl") or not command.startswith("curl ")):
                    execute(place, shell=servers.here((typed or {}).get(command, command)), alone=alone)
    finally:
        servers.stop()
    return found


def readme_place(folder: Path, typed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do what the README says in an empty folder; return the records of the run and of its export."""
    place = make_user_folder(folder)
    assert execute_blocks(README, place, typed=typed) >= {"qdeploy train", "qdeploy export --int8", "qdeploy bench"}
    (run,) = (place / "runs").iterdir()
    report = json.loads((place / "exports" / run.name / "report.json").read_text())
    fp32, int8 = report["artifacts"]
    assert fp32["parity"]["max_abs"] <= 1e-4
    assert int8["parity"]["sqnr_db"] >= 20
    assert report["difference"]["n"] == 1000
    return json.loads((run / "run.json").read_text()), report


def test_the_readme_s_commands_run(tmp_path: Path) -> None:
    """A run of one epoch on the embedded data, and its INT8 export."""
    record, _ = readme_place(tmp_path, SHORTEST)
    assert record["results"]["test_top1"] >= 30.0


@pytest.mark.slow
def test_the_readme_s_first_export_pays(tmp_path: Path) -> None:
    """A short run of the default model on the embedded data, and its INT8 export."""
    record, report = readme_place(tmp_path, SHORTER)
    assert record["model"]["name"] == "nano"
    assert record["results"]["test_top1"] >= 75.0
    assert report["difference"]["points"] >= -1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "document",
    [d for d in DOCUMENTS[1:] if any(language in ("bash", "python") for language, _ in blocks(d))],
    ids=lambda document: document.stem,
)
def test_a_document_s_commands_run(
    document: Path, ready_made: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the ready-made folder; what the README has, too, is run for the README."""
    if document.stem == "web_kit":
        monkeypatch.setenv(VARIABLE, str(web_runtime_folder(shared)))
    place = shutil.copytree(ready_made, tmp_path / "place", symlinks=True)
    known = frozenset(c for language, text in blocks(README) if language == "bash" for c in commands(text))
    execute_blocks(document, place, known=known)


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
