"""Graphs of every family, built for real by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.card import Card
from qdeploy.core.engine_file import unpack
from qdeploy.core.errors import InputError, MissingDependencyError, VerdictError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Split
from qdeploy.export.engines import build as engines
from qdeploy.export.engines.build import build_engine
from qdeploy.export.graph.fp16 import to_fp16
from qdeploy.export.graph.seal import sealed_bytes
from qdeploy.export.int8.calibrate import calibrate
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.sources.trace import trace
from qdeploy.models import mobilevit
from qdeploy.models.classifier import Classifier
from qdeploy.models.folding import deploy
from qdeploy.models.registry import create_model, model_config
from qdeploy.runtime.engines import tensorrt_library
from tests.contracts.stand_in_gpu import StandInCuda
from tests.export.test_other_models import lived_in

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this machine")

RULES = Preprocessing()
SMALL_59 = "qonstraint-5.9-sota"
"""Built with its operators but few and narrow layers; the real one is a plan of 400 MB."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    fp32: onnx.ModelProto
    card: Card


@pytest.fixture(scope="module")
def images(own_cache: Path) -> Split:
    return load_dataset(preprocessing=RULES).splits["train"].take(np.arange(16))


@pytest.fixture
def shipped() -> Artifact:
    return read_artifact(SHIPPED / "model.fp32.onnx")


def shallow(name: str) -> Classifier:
    """Give a model with all operators of its family and few layers."""
    if name == SMALL_59:
        config: Any = model_config(name, 10)
        return replace(config, dims=(16, 32, 64, 128), depths=(1, 1, 1), fusion_dim=64).build()
    with pytest.MonkeyPatch.context() as patch:
        one = {channels: (width, 1) for channels, (width, _) in mobilevit.TRANSFORMERS.items()}
        patch.setattr(mobilevit, "TRANSFORMERS", one)
        return create_model(name, 10)


@pytest.fixture(
    scope="module",
    params=[
        "nano",
        "micro",
        SMALL_59,
        "mobilevit-depthwise-separable-v1",
        "mobilevit-standard-mha-v2",
        "mobilevit-grouped-lowrank-v3",
    ],
)
def traced(request: pytest.FixtureRequest) -> Traced:
    torch.manual_seed(0)
    model = lived_in(shallow(request.param))
    card = read_artifact(SHIPPED / "model.fp32.onnx").card
    return Traced(fp32=trace(deploy(model, RULES.mean, RULES.std), RULES.size), card=card)


def int8(model: onnx.ModelProto, images: Split) -> onnx.ModelProto:
    """Quantize for TensorRT, with the float layers that the export leaves."""
    stay = [n.name for n in model.graph.node if "stem" in n.name or ".attention" in n.name]
    ranges = calibrate(model, images, 0).ranges("minmax", symmetric=True)
    return quantize(model, ranges, encoding_for("tensorrt"), stay)


@pytest.mark.slow
@pytest.mark.xdist_group("engines of families")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_family_builds_in_every_precision(traced: Traced, precision: str, images: Split) -> None:
    card = replace(traced.card, precision=precision)
    model = traced.fp32
    if precision != "fp32":
        model = to_fp16(model) if precision == "fp16" else int8(model, images)
    header, plan = unpack(build_engine(sealed_bytes(model, card), card, "tensorrt_rtx", max_batch=4))
    assert header.precision == precision
    assert len(plan) > 100_000


def test_an_engine_file_says_what_it_is(shipped: Artifact, tmp_path: Path) -> None:
    data = build_engine(shipped.data, shipped.card, "tensorrt_rtx", max_batch=8)
    (tmp_path / "m.engine").write_bytes(data)
    artifact = read_artifact(tmp_path / "m.engine")
    header = artifact.engine
    assert header is not None
    assert (header.builder, header.builder_version) == ("tensorrt_rtx", rtx.__version__)
    assert header.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert (header.min_batch, header.opt_batch, header.max_batch) == (1, 1, 8)
    assert header.source_sha256 == shipped.sha256
    assert artifact.card.to_dict() == shipped.card.to_dict()


def test_nothing_rounds_float32_unasked(shipped: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = []
    original = rtx.Builder.build_serialized_network

    def spy(builder: Any, network: Any, config: Any) -> Any:
        flags.append(config.get_flag(rtx.BuilderFlag.TF32))
        flags.append(network.get_flag(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        return original(builder, network, config)

    monkeypatch.setattr(rtx.Builder, "build_serialized_network", spy)
    build_engine(shipped.data, shipped.card, "tensorrt_rtx")
    assert flags == [False, True]


def test_a_refused_graph_names_the_node_and_what_to_do() -> None:
    x86 = read_artifact(SHIPPED / "model.int8.onnx")
    with pytest.raises(VerdictError) as caught:
        build_engine(x86.data, x86.card, "tensorrt_rtx")
    text = str(caught.value)
    assert f"tensorrt_rtx {rtx.__version__} refuses the graph at node '" in text
    assert "Linear): " in text
    assert "; export INT8 with `target=tensorrt`, or use the ONNX file" in text
    assert "\n" not in text


def test_bytes_that_are_no_graph_are_refused_in_one_line(shipped: Artifact) -> None:
    with pytest.raises(VerdictError, match="refuses the graph") as caught:
        build_engine(b"no graph", shipped.card, "tensorrt_rtx")
    assert "\n" not in str(caught.value)


def test_a_graph_of_another_size_cannot_be_built(shipped: Artifact) -> None:
    card = replace(shipped.card, preprocessing=Preprocessing(size=96))
    with pytest.raises(VerdictError, match="cannot build the graph: ") as caught:
        build_engine(shipped.data, card, "tensorrt_rtx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"builder": "tensorrt-rtx"}, "there is no builder 'tensorrt-rtx' .did you mean 'tensorrt_rtx'"),
        ({"max_batch": 0}, "largest batch must be between 1 and 4096, found 0"),
        ({"max_batch": 5000}, "found 5000"),
        ({"timing_cache": Path("t")}, "tensorrt_rtx has no timing cache"),
    ],
)
def test_wrong_arguments_are_refused(shipped: Artifact, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_engine(shipped.data, shipped.card, **{"builder": "tensorrt_rtx", **arguments})


def test_a_missing_package_names_its_extra(shipped: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qdeploy\[tensorrt\]'"):
        build_engine(shipped.data, shipped.card, "tensorrt")


@pytest.fixture
def under_the_name_of_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorRT-RTX as ``tensorrt``: the same path, as far as that can be walked here."""
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    tensorrt_library.messages.cache_clear()
    yield
    tensorrt_library.messages.cache_clear()


@pytest.mark.usefixtures("under_the_name_of_tensorrt")
def test_tensorrt_asks_for_the_gpu_it_builds_for(shipped: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandInCuda(compute_capability=(8, 7))
    monkeypatch.setattr(tensorrt_library, "load_cuda", lambda: device)
    header, _ = unpack(build_engine(shipped.data, shipped.card, "tensorrt"))
    assert header.compute_capabilities == ("8.7",)
    monkeypatch.setattr(device, "cudaGetDeviceCount", lambda: (device.cudaError_t.cudaErrorNoDevice, None))
    with pytest.raises(MissingDependencyError, match="tensorrt builds only on the GPU that will run the engine, and h"):
        build_engine(shipped.data, shipped.card, "tensorrt")


class StandInConfig:
    """What is called of a builder's configuration for timings."""

    def __init__(self, accepts: bool) -> None:
        self.accepts = accepts
        self.given = b""

    def create_timing_cache(self, data: bytes) -> Any:
        self.given = data
        return SimpleNamespace(serialize=lambda: data + b"+new")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return self.accepts


def test_timings_of_an_earlier_build_are_given_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "timings"
    config = StandInConfig(accepts=True)
    engines.read_timings(config, path)
    assert config.given == b""
    path.write_bytes(b"earlier")
    engines.read_timings(config, path)
    assert config.given == b"earlier"
    with pytest.raises(InputError, match="is of another GPU or TensorRT, or damaged; delete it"):
        engines.read_timings(StandInConfig(accepts=False), path)
    with pytest.raises(InputError, match="cannot be read"):
        engines.read_timings(config, tmp_path)
