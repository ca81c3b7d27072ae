"""The C library of ONNX Runtime: its table of functions, where it is found, and what it holds on to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from ctypes import c_float
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import ArtifactError, EngineError
from qdeploy.core.machine import resident_bytes
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.runtime.engines import onnxruntime_library as library
from qdeploy.runtime.engines.onnxruntime_library import FUNCTIONS, GET_ERROR_MESSAGE, RELEASES, Model
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError, cpu_engine
from qdeploy.runtime.session import Session, open_session
from tests.ort_header import HEADER, header_folder
from tests.ort_session import plain_session

INT8 = SHIPPED / "model.int8.onnx"


def test_the_places_of_the_functions_are_those_of_the_header(tmp_path: Path) -> None:
    include = header_folder()
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    ours = {"GetErrorMessage": GET_ERROR_MESSAGE, **RELEASES, **{name: place for name, (place, _) in FUNCTIONS.items()}}
    lines = [f'printf("{name} %zu\\n", offsetof(OrtApi, {name}) / sizeof(void *));' for name in ours]
    source = f"#include <stddef.h>\n#include <stdio.h>\n#include <{HEADER}>\nint main(void) {{ {' '.join(lines)} }}"
    (tmp_path / "places.c").write_text(source)
    subprocess.run(["cc", f"-I{include}", "places.c", "-o", "places"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "places"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0]: int(line.split()[1]) for line in printed.splitlines()} == ours


def test_it_answers_as_the_python_binding_does() -> None:
    images = sample_images(Preprocessing())
    binding = plain_session(str(INT8), threads=1)
    ours = open_session(read_artifact(INT8)).infer(images)
    for mine, theirs in zip(ours, binding.run(["logits", "probabilities"], {"image": images}), strict=True):
        assert np.array_equal(mine, theirs)
    assert onnxruntime.__version__ == library.VERSION


def run(code: str, *arguments: str | Path, folder: Path | None = None) -> str:
    path = os.pathsep.join(filter(None, [str(folder) if folder else "", os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPEN = (
    "import sys; from pathlib import Path; from qdeploy.core.artifact import SHIPPED, read_artifact; "
    "from qdeploy.core.errors import QdeployError; from qdeploy.runtime.session import open_session\n"
    "try: print(open_session(read_artifact(SHIPPED / 'model.int8.onnx'), threads=2).engine)\n"
    "except QdeployError as error: print(error)\n"
)


def packaged(folder: Path, *files: Path) -> Path:
    """Make a package of ONNX Runtime that holds these files only."""
    capi = folder / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").touch()
    for file in files:
        (capi / file.name).symlink_to(file)
    return folder


def test_a_package_without_the_library_is_used_by_its_binding(tmp_path: Path) -> None:
    package = Path(onnxruntime.__file__).parent
    shutil.copytree(package, tmp_path / "onnxruntime", ignore=shutil.ignore_patterns("libonnxruntime.*"))
    code = (
        f"{OPEN}print([m for m in ('numpy', 'onnxruntime') if m in sys.modules])\n"
        "from qdeploy.runtime.session import engine_class; print(engine_class('ort') is engine_class('ort'))"
    )
    printed = run(code, folder=tmp_path).splitlines()
    assert printed == [cpu_engine(library.VERSION, "binding", "x86"), "['numpy', 'onnxruntime']", "True"]


def test_without_the_package_it_says_what_to_install() -> None:
    blocked = f"import sys; sys.modules['onnxruntime'] = None\n{OPEN}"
    assert run(blocked) == "onnxruntime is not installed; run: pip install 'onnxruntime'"


@pytest.mark.parametrize("kind", ["no library", "another library"])
def test_a_library_that_is_none_is_said_in_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "libonnxruntime.so.9"
    if kind == "no library":
        file.write_bytes(b"nothing")
    else:
        file.symlink_to(next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime_providers_shared*")))
    text = run(OPEN, folder=packaged(tmp_path / "packages", file))
    assert text.startswith("the library of ONNX Runtime cannot be loaded: ")
    assert "\n" not in text


@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_ends_well_with_an_open_session(threads: int) -> None:
    code = f"{OPEN}session = open_session(read_artifact(SHIPPED / 'model.int8.onnx'), threads={threads})"
    for _ in range(5):
        assert run(code) == cpu_engine(library.VERSION, "library", "x86")


def test_what_is_made_ahead_and_fails_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OnnxRuntimeError("no")

    monkeypatch.setattr(library.API, "CreateEnv", refused)
    library.environment.cache_clear()
    library.try_environment()
    with pytest.raises(ArtifactError, match="cannot be opened by ONNX Runtime .*: no"):
        open_session(read_artifact(INT8))
    monkeypatch.undo()
    open_session(read_artifact(INT8)).close()


def test_wrong_sizes_of_answers_are_refused_and_nothing_is_written() -> None:
    model = Model(INT8.read_bytes(), 1, "x86")
    shape = (1, 64, 64, 3)
    logits, probabilities = ((c_float * 11)(*[-1.0] * 11) for _ in range(2))
    with pytest.raises(OnnxRuntimeError):
        model.run(bytes(64 * 64 * 3), shape, logits, probabilities, 11)
    assert set(logits) == set(probabilities) == {-1.0}


def test_a_run_that_fails_is_one_line() -> None:
    artifact = read_artifact(INT8)
    other = replace(artifact, card=replace(artifact.card, labels=(*artifact.card.labels, "one more")))
    session = open_session(other, selftest=False)
    with pytest.raises(EngineError, match=r"ONNX Runtime .* failed with .*model\.int8\.onnx: .*: 11") as caught:
        session.infer_bytes(bytes(64 * 64 * 3), 1)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def grown_by(session: Session, runs: int) -> int:
    image = bytes(64 * 64 * 3)
    for _ in range(500):
        session.infer_bytes(image, 1)
    before = resident_bytes()
    for _ in range(runs):
        session.infer_bytes(image, 1)
    return resident_bytes() - before


def test_runs_leave_nothing_behind() -> None:
    assert grown_by(open_session(read_artifact(INT8), threads=1), 3000) < 300_000  # 100 bytes each


def test_closed_models_give_their_memory_back() -> None:
    artifact = read_artifact(INT8)
    for _ in range(5):
        open_session(artifact, threads=1).close()
    before = resident_bytes()
    for _ in range(20):
        open_session(artifact, threads=1).close()
    assert resident_bytes() - before < 20 * len(artifact.data)
