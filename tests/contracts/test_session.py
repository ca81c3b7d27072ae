"""The contract itself: what the base class does for every engine, and what it asks of one."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qdeploy
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import EngineError, InputError
from qdeploy.runtime.session import ENGINES, Session, engines_for
from tests.contracts.test_tensorrt import engine_file

PACKAGE = Path(qdeploy.__file__).parent
IMAGE = np.zeros((1, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return read_artifact(SHIPPED / "model.fp32.onnx")


class Sums(Session):
    """An engine: each image's logits are ten times its sum."""

    failures = (ArithmeticError,)

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact, opened=self, engine="sums")

    def _infer(self, opened: Any, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        assert images_BSSC.flags.c_contiguous
        if images_BSSC.max() == 255:
            raise ZeroDivisionError("too\nbright")
        sums = images_BSSC.sum(axis=(1, 2, 3)).astype(np.float32)[:, None].repeat(10, axis=1)
        return sums, sums / sums.sum()


def test_an_engine_without_its_own_infer_cannot_be_opened(artifact: Artifact) -> None:
    class Forgetful(Session):
        pass

    with pytest.raises(TypeError, match="abstract method.*_infer"):
        Forgetful(artifact, opened=object(), engine="none")  # type: ignore[abstract]


def test_the_base_alone_checks_and_closes() -> None:
    """Whatever a subclass had of its own, it could forget."""
    for file in (PACKAGE / "runtime" / "engines").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Session"):
                own = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
                assert not own & {"infer", "infer_bytes", "close", "__enter__", "__exit__"}, node.name


def test_an_engine_gets_contiguous_images_and_no_empty_batch(artifact: Artifact) -> None:
    session = Sums(artifact)
    wide = np.ones((2, 64, 128, 3), np.uint8)[:, :, ::2]
    assert session.infer(wide)[0][:, 0].tolist() == [64 * 64 * 3] * 2
    assert [a.shape for a in session.infer(IMAGE[:0])] == [(0, 10)] * 2
    assert session.infer_bytes(b"", 0) == ([], [])
    assert session.infer_bytes(wide.tobytes()[: 64 * 64 * 3], 1)[0] == [[64 * 64 * 3] * 10]


@pytest.mark.parametrize("images", [[[1, 2]], "image", None, np.zeros(3)])
def test_what_is_no_batch_of_images_is_refused(artifact: Artifact, images: Any) -> None:
    with pytest.raises(InputError, match=r"takes uint8 images of shape \[batch, 64, 64, 3\], found "):
        Sums(artifact).infer(images)
    with pytest.raises(InputError, match=r"1 images of \[64, 64, 3\] are 12288 bytes, found a "):
        Sums(artifact).infer_bytes(images, 1)


def test_what_the_library_raises_is_one_line_and_exit_code_1(artifact: Artifact) -> None:
    session = Sums(artifact)
    for run in (lambda: session.infer(IMAGE + 255), lambda: session.infer_bytes(b"\xff" * 64 * 64 * 3, 1)):
        with pytest.raises(EngineError, match=r"^sums failed with .*model\.fp32\.onnx: too bright; see") as caught:
            run()
        assert caught.value.exit_code == 1


def test_leaving_a_with_closes_also_after_an_error(artifact: Artifact) -> None:
    session = Sums(artifact)

    def interrupted() -> None:
        with session as entered:
            assert entered is session
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(InputError, match="closed"):
        session.infer(IMAGE)
    session.close()


def test_the_table_says_which_engines_open_a_file(artifact: Artifact, tmp_path: Path) -> None:
    for_onnx = engines_for(artifact)
    assert for_onnx[0] == "ort"
    found = [for_onnx]
    for builder, engine in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")):
        file = read_artifact(engine_file(tmp_path / "m.engine", builder=builder))
        assert engines_for(file) == (engine,)
        found.append(engines_for(file))
    assert sorted(sum(found, ())) == sorted(ENGINES)
    assert file.engine is not None
    assert engines_for(replace(file, engine=replace(file.engine, builder="tensorrt_2030"))) == ()


def test_one_module_makes_the_sessions_of_onnx_runtime() -> None:
    makers = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in ("InferenceSession", "SessionOptions"):
                makers.add(file.relative_to(PACKAGE).as_posix())
    assert makers == {"runtime/engines/onnxruntime_binding.py"}


def test_every_engine_of_the_table_is_a_session() -> None:
    """Read, not imported: most of their libraries are not here."""
    for engine in ENGINES.values():
        for location in filter(None, (engine.location, engine.binding)):
            module, _, name = location.partition(":")
            tree = ast.parse((PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text())
            bases = {c.name: [ast.unparse(b) for b in c.bases] for c in tree.body if isinstance(c, ast.ClassDef)}
            while name in bases:
                (name,) = bases[name]
            assert name == "Session"
