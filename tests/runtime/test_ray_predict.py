"""Prediction over Ray Data, on a Ray of this machine: the answers and the order of the local path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED

EXAMPLES = Path(__file__).parents[2] / "examples"
COMPARE = """
import sys
from dataclasses import replace
from pathlib import Path
from qdeploy.core.artifact import read_artifact
from qdeploy.runtime.classifier import Classifier
from qdeploy.runtime.inputs import expand
from qdeploy.runtime.predict import predict_files
from qdeploy.runtime.ray_predict import RayConfig, RayFailedError, predict_on_ray

artifact, images = read_artifact(Path(sys.argv[1])), list(expand(sys.argv[2:]))
config = RayConfig(batch_size=3, workers=2)
there = list(predict_on_ray(artifact, iter(images), config))
here = list(predict_files(Classifier(artifact, threads=1), images, batch_size=3))
assert [(a.image, a.error, a.reason) for a in there] == [(a.image, a.error, a.reason) for a in here]
assert sum(a.error is not None for a in there) == 2
for a, b in zip(there, here):
    if a.prediction:
        assert a.latency_ms.keys() == b.latency_ms.keys()
        assert abs(a.prediction.probabilities - b.prediction.probabilities).max() < 1e-6
        assert (a.prediction.label, a.prediction.unknown) == (b.prediction.label, b.prediction.unknown)
        assert abs(a.prediction.score - b.prediction.score) + abs(a.prediction.energy - b.prediction.energy) < 1e-3
assert {a.prediction.unknown for a in there if a.prediction} == {True, False}
for a in predict_on_ray(artifact, iter(images), replace(config, abstain=False)):
    assert a.error or not a.prediction.unknown and a.prediction.score is None and a.prediction.energy is not None
"""


@pytest.mark.slow
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="Ray's own processes do not start with a preloaded library")
def test_ray_gives_the_answers_and_order_of_this_process(tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    (tmp_path / os.fsdecode(b"not text \xff.png")).write_bytes(b"x")
    ImageOps.invert(Image.open(EXAMPLES / "sandal.png").convert("RGB")).save(tmp_path / "no clothes.png")
    names = sorted(p.name for p in EXAMPLES.glob("*.png"))
    images = [*names[:4], str(tmp_path), *names[4:], "missing.png", *names]
    script = [sys.executable, "-c", COMPARE, str(SHIPPED / "model.int8.onnx"), *images]
    done = subprocess.run(
        script, cwd=EXAMPLES, capture_output=True, text=True, timeout=120, env={**os.environ, "RAY_ADDRESS": ""}
    )
    assert done.returncode == 0, done.stderr


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "qdeploy.runtime.ray_predict", raising=False)
    assert run(["predict", str(EXAMPLES), "--ray"]) == 2
    assert "pip install 'qdeploy[ray]'" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    assert run(["predict", str(EXAMPLES), "--ray-address", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "qdeploy: cannot use Ray at 127.0.0.1:1: Connection refused"
