"""The tensorrt encoding, parsed and built by TensorRT-RTX, which needs no GPU to build."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.export.api import export
from qdeploy.export.config import ExportConfig
from qdeploy.training import TrainResult

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this machine")


def build(file: Path) -> tuple[bool, str, int]:
    """Parse and build a file: whether it parsed, the first error, and the plan's size in bytes."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(file.read_bytes()):
        return False, parser.get_error(0).desc(), 0
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 64, 64, 3), (1, 64, 64, 3), (8, 64, 64, 3))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return True, "", 0 if plan is None else plan.nbytes


@pytest.mark.slow
def test_the_tensorrt_encoding_builds_and_the_x86_one_does_not(
    trained: TrainResult, int8_file: Path, tmp_path: Path
) -> None:
    export(Path(trained.run), ExportConfig(int8=True, target="tensorrt"), tmp_path / "export")
    for name in ("model.int8.tensorrt.onnx", "model.fp32.onnx"):
        parsed, error, size = build(tmp_path / "export" / name)
        assert parsed, error
        assert size > 100_000
    assert not build(int8_file)[0]  # TensorRT refuses uint8 activations: that is why there are two encodings
