"""The shipped model end to end: the simulator against ONNX Runtime, and the C against the simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.machine import saturates
from qdeploy.core.metrics import sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.native.simulate import simulate
from qdeploy.native.source import program_of
from tests.native.compiled import Compiled, needs_compiler

IMAGES = 12


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return read_artifact(SHIPPED / "model.int8.onnx")


@pytest.mark.skipif(saturates("x86"), reason="ONNX Runtime's own 8-bit products saturate on this CPU")
def test_it_answers_as_onnxruntime(artifact: Artifact) -> None:
    program, images = program_of(artifact), sample_images(Preprocessing())[:IMAGES]
    session = onnxruntime.InferenceSession(artifact.data, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": images})[0]
    found = np.concatenate([simulate(program, image)[program.logits.name] for image in images])
    assert sqnr_db(expected, found) >= 45
    assert np.mean(expected.argmax(1) == found.argmax(1)) >= 0.995


@pytest.mark.skipif(saturates("x86"), reason="ONNX Runtime's own 8-bit products saturate on this CPU")
def test_fed_onnxruntimes_codes_every_operator_on_codes_gives_them(artifact: Artifact) -> None:
    program = program_of(artifact)
    codes = [op.output.name for op in program.ops if op.output.integer and op.output.name.endswith("_quantized")]
    model = onnx.load_from_string(artifact.data)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in codes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    behind_floats = {op.output.name for op in program.ops if op.kind in ("quantize", "mean")}
    assert len(set(codes) - behind_floats) > 50
    for image in sample_images(Preprocessing())[:3]:
        expected = dict(zip(names, session.run(None, {"image": image[None]}), strict=True))
        found = simulate(program, image, expected)
        for name in codes:
            off = np.abs(found[name].astype(int) - expected[name])
            assert off.max() <= (1 if name in behind_floats else 0), name
            assert np.mean(off > 0) <= 1e-3


@needs_compiler
def test_every_tier_gives_the_simulators_bits(artifact: Artifact, tmp_path: Path) -> None:
    program = program_of(artifact)
    compiled = Compiled({"nano": program}, tmp_path, "-O1")
    for image in artifact.card.goldens.images[:2]:
        expected = simulate(program, image)
        for tier in compiled.tiers:
            found = compiled.run("nano", tier, image)
            assert len(found) > 80
            for name in set(found) & set(expected):
                assert np.array_equal(found[name].reshape(-1), expected[name].reshape(-1)), (tier, name)
            assert np.array_equal(found["logits"], expected[program.logits.name].reshape(-1))
