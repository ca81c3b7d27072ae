"""The contract for the native engine, and what happens around its compiler and its cache."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import EngineError, InputError, MissingDependencyError
from qdeploy.native import library
from qdeploy.native.library import library_of
from qdeploy.native.simulate import simulate
from qdeploy.native.source import program_of
from qdeploy.runtime.session import open_session
from tests.contracts.engine_contract import EngineContract
from tests.native.compiled import needs_compiler

pytestmark = [needs_compiler, pytest.mark.xdist_group("native engine")]


class TestNative(EngineContract):
    engine = "native"
    says = r"native C, (c99|avx2|vnni) kernels"

    @pytest.fixture(params=["int8"])
    def file(self) -> Path:
        return SHIPPED / "model.int8.onnx"


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return read_artifact(SHIPPED / "model.int8.onnx")


def test_its_answers_are_the_simulators_bits(artifact: Artifact) -> None:
    program, images = program_of(artifact), artifact.card.goldens.images[:2]
    logits, _ = open_session(artifact, "native").infer(images)
    assert np.array_equal(logits, np.concatenate([simulate(program, i)[program.logits.name] for i in images]))


def test_a_model_is_compiled_once(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library_of(artifact)
    used = first.stat().st_mtime_ns
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled again"))
    assert library_of(artifact) == first
    left = first.with_suffix(".compile")  # as by a process that was killed at its last step
    left.mkdir()
    (left / "model.c").write_text("int x;")
    assert library_of(artifact) == first
    assert not left.exists()
    assert first.stat().st_mtime_ns == used


def test_two_at_once_compile_once(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    made = []

    def slowly(_: Artifact, __: Path, file: Path) -> None:
        made.append(file)
        file.write_bytes(b"library")

    monkeypatch.setattr(library, "_compile", slowly)
    workers = [threading.Thread(target=library_of, args=(artifact,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(made) == 1


def fake_compiler(folder: Path, text: str) -> Path:
    tool = folder / "fake-cc"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return tool


def test_a_compiler_that_fails_is_told_in_one_line(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, "echo 'model.c:1: error: no such luck' >&2; exit 1")))
    with pytest.raises(EngineError, match=r"could not compile .*model.int8.onnx: model.c:1: error: no such luck; its"):
        library_of(artifact)
    (log,) = (tmp_path / "native").glob("*.log")
    assert "no such luck" in log.read_text()
    assert not [p for p in (tmp_path / "native").iterdir() if p.suffix not in (".log", ".lock")]


def test_without_a_compiler_one_line_says_what_to_install(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"^the native engine needs a C compiler; install gcc or clang"):
        open_session(artifact, "native")
    monkeypatch.setenv("CC", "no-such-cc")
    with pytest.raises(MissingDependencyError, match="'no-such-cc' of CC was not found"):
        open_session(artifact, "native")


def test_a_cache_that_is_no_folder_is_told(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot hold the compiled model: .*; free some space, or set QDEPLOY_CACHE"):
        library_of(artifact)


def test_a_damaged_library_is_told(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, "echo damaged > model.so")))
    with pytest.raises(EngineError, match="cannot be loaded: .*; remove it"):
        open_session(artifact, "native")
    assert os.listdir(tmp_path / "native")
