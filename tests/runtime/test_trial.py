"""Graphs that ask for endless work or memory, behind valid checksums and in files from elsewhere."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import InputError
from qdeploy.runtime.trial import remember, require_bounded
from tests.resealed import behind_logits, reseal

ROOT = Path(__file__).parents[2]
MODEL = SHIPPED / "model.int8.onnx"
BAG = str(ROOT / "examples" / "bag.png")
LOGITS = helper.make_tensor_value_info("carried", TensorProto.FLOAT, None)


def endless(target: Path) -> Path:
    """Write a model file whose logits go through a Loop of 2^60 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["carried"], ["turned"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            LOGITS,
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("turned", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["rounds", "true", "raw_logits"], ["logits"], body=body)
    return behind_logits(MODEL, target, [loop], {"rounds": np.array(1 << 60), "true": np.array(True)})


def vast(target: Path) -> Path:
    """Write a model file that expands its logits to 2^35 values."""
    nodes = [
        helper.make_node("ReduceSum", ["raw_logits", "vast_axes"], ["total"], keepdims=1),
        helper.make_node("Expand", ["total", "vast_shape"], ["many"]),
        helper.make_node("ReduceMax", ["many", "vast_axes"], ["far"], keepdims=1),
        helper.make_node("Sub", ["total", "far"], ["nothing"]),
        helper.make_node("Add", ["raw_logits", "nothing"], ["logits"]),
    ]
    return behind_logits(MODEL, target, nodes, {"vast_axes": np.array([1]), "vast_shape": np.array([1, 1 << 35])})


def command(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in 4 GiB of address space."""
    return subprocess.run(
        [sys.executable, "-m", "qdeploy", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
        timeout=300,
    )


def test_a_model_file_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    file = vast(tmp_path / "model.int8.onnx")
    done = command("predict", BAG, "--model", file)
    assert done.returncode == 2
    assert (
        "takes more than 1.0 GiB of memory for one image; if you trust it, allow more by QDEPLOY_TRIAL_GIB"
        in done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1
    assert run(["verify", str(file)]) == 1


@pytest.mark.slow
def test_a_model_file_without_an_end_is_refused(tmp_path: Path) -> None:
    file = endless(tmp_path / "model.int8.onnx")
    done = command("predict", BAG, "--model", file, QDEPLOY_TRIAL_SECONDS="1")
    assert done.returncode == 2
    assert "takes more than 1 s for one image" in done.stderr
    done = command("predict", BAG, "--model", file, QDEPLOY_TRIAL_SECONDS="much")
    assert (done.returncode, "QDEPLOY_TRIAL_SECONDS must be a number above 0" in done.stderr) == (2, True)


def test_a_graph_is_tried_once_whatever_its_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    started: list[object] = []
    real = subprocess.run

    def counted(*words: object, **named: object) -> object:
        started.append(words)
        return real(*words, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", counted)
    require_bounded(read_artifact(MODEL))  # of the package
    assert not started
    for name in ("a", "b"):
        require_bounded(read_artifact(reseal(MODEL, tmp_path / f"{name}.onnx", lambda card: card.update(name="other"))))
        assert len(started) == 1
    other = read_artifact(
        behind_logits(MODEL, tmp_path / "c.onnx", [helper.make_node("Neg", ["raw_logits"], ["logits"])], {})
    )
    remember(other)
    require_bounded(other)
    assert len(started) == 1


def foreign(target: Path, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> Path:
    """Write a float classifier of 4 classes, to whose logits ``extra`` is added."""
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    body = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["plain"]),
        *nodes,
        helper.make_node("Add", ["plain", "extra"], ["logits"]),
    ]
    graph = helper.make_graph(
        body,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(v, k) for k, v in {"weights": weights, **constants}.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(target))
    return target


def constant_of_shape(target: Path) -> Path:
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["extra"], keepdims=0),
    ]
    return foreign(target, nodes, shape=np.array([1 << 33]))


def padding(target: Path) -> Path:
    nodes = [
        helper.make_node("MaxPool", ["image"], ["wide"], kernel_shape=[60001, 60001], pads=[60000] * 4),
        helper.make_node("ReduceMax", ["wide"], ["extra"], keepdims=0),
    ]
    return foreign(target, nodes)


def outer_product(target: Path) -> Path:
    """No operator of a size of its own: three vectors are multiplied."""
    ones = {f"v{i}": np.ones([3000 if k == i else 1 for k in range(3)], np.float32) for i in range(3)}
    nodes = [
        helper.make_node("Mul", ["v0", "v1"], ["square"]),
        helper.make_node("Mul", ["square", "v2"], ["cube"]),
        helper.make_node("ReduceMin", ["cube"], ["extra"], keepdims=0),
    ]
    return foreign(target, nodes, **ones)


@pytest.mark.parametrize("make", [constant_of_shape, padding, outer_product])
@pytest.mark.parametrize("verb", ["adopt", "lint"])
def test_a_file_from_elsewhere_is_refused(
    make: object, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QDEPLOY_TRIAL_SECONDS", "3")
    file = make(tmp_path / "given.onnx")  # type: ignore[operator]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = ["--labels", "a,b,c,d"] if verb == "adopt" else []
    assert run([verb, str(file), *options]) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB
    assert "takes more than" in capsys.readouterr().err
    assert not (tmp_path / "exports").exists()


def test_devices_and_pipes_are_no_model_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in ("/dev/zero", str(tmp_path / "pipe.onnx")):
        for verb in (["predict", BAG, "--model", path], ["lint", path], ["verify", path], ["adopt", path]):
            assert run(verb) == 2
            assert "device or pipe" in capsys.readouterr().err


def test_without_a_process_there_is_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = read_artifact(vast(tmp_path / "vast.onnx"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(InputError, match="a process to try a graph in cannot be started: .*none"):
        require_bounded(artifact)
