"""The same trained model in INT8 by the runtimes for devices: native C, ONNX Runtime, OpenVINO, LiteRT, ExecuTorch.

    python benchmarks/edge_peers.py RUN [--rounds N]

RUN is a finished training. qdeploy exports it; LiteRT (litert-torch, ai-edge-quantizer: static, 8-bit weights and
activations) and ExecuTorch (XNNPACK's quantizer; what XNNPACK does not take runs on ExecuTorch's portable kernels) get
the same folded model in torch and the same calibration images. One thread, one image, in turn. qdeploy's engines are
given bytes; LiteRT and ExecuTorch are given the float or, LiteRT, the quantized tensor, which costs them nothing here.
`top1` is that of the data's test images, `agreement` the share of them that are answered as fp32 does.

LiteRT needs `pip install litert-torch`, ExecuTorch `pip install executorch`; without one its row says why it is
missing. Both pin other versions of things that qdeploy's own dependencies use: install them into an environment of
their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import keep
from numpy.typing import NDArray
from safetensors.torch import load_file

from qdeploy.core.artifact import read_artifact
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import read_record
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export import ExportConfig, export
from qdeploy.export.int8.calibrate import choose_images
from qdeploy.models.folding import deploy
from qdeploy.models.registry import model_from_record
from qdeploy.runtime.session import open_session

BLOCK = 10
CALIBRATION_IMAGES = 256
Logits = NDArray[np.float32]
Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One runtime with the model opened."""

    name: str
    prepare: Callable[[NDArray[np.uint8]], Any]
    """Makes the input of an image ``[1, S, S, 3]``; not timed."""
    run: Callable[[Any], Logits]
    """Gives its logits; timed."""
    size_bytes: int
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    record = read_record(given.run)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "export"
        export(given.run, ExportConfig(int8=True, allow_slower=True, allow_drop=True), out)
        fp32, int8 = (read_artifact(out / f"model.{p}.onnx") for p in ("fp32", "int8"))
        dataset = load_dataset(record.config["data"], int8.card.preprocessing)
        module = model_from_record(record.model.family, record.model.config).eval()
        (weights,) = given.run.glob("*.safetensors")
        module.load_state_dict(load_file(weights))
        folded = Folded(module, dataset.preprocessing).eval()
        calibration = floats(choose_images(dataset, CALIBRATION_IMAGES, 0).pixels)
        reference = ours("ort, fp32", fp32, "ort")
        peers = [reference, *(ours(f"{e}, INT8", int8, e) for e in ("ort", "native", "openvino"))]
        missing = []
        for name, make in (("LiteRT", litert), ("ExecuTorch", executorch)):
            try:
                peers.append(make(folded, calibration, Path(place)))
            except Exception as error:  # whatever a converter raises is its row
                missing.append({"runtime": name, "missing": str(error).strip().splitlines()[-1][:200]})
        rows = compared(peers, dataset, given.rounds)
    keep("edge_peers", [*rows, *missing], model=int8.card.name, threads=1, calibration_images=CALIBRATION_IMAGES)


class Folded(torch.nn.Module):
    """The inference form of a model, from pixels as floats from 0 to 255, ``[N, 3, S, S]``, to logits."""

    def __init__(self, module: torch.nn.Module, rules: Preprocessing) -> None:
        super().__init__()
        self.inside = deploy(module, rules.mean, rules.std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inside(pixels.permute(0, 2, 3, 1))[0]
        return logits


def floats(pixels_NSSC: NDArray[np.uint8]) -> Values:
    """Return images as ``Folded`` takes them."""
    return np.ascontiguousarray(pixels_NSSC.transpose(0, 3, 1, 2), dtype=np.float32)


def ours(name: str, artifact: Any, engine: str) -> Peer:
    """Open one of qdeploy's files."""
    session = open_session(artifact, engine, 1)
    return Peer(
        name=name,
        prepare=lambda image: image,
        run=lambda image: session.infer(image)[0],
        size_bytes=len(artifact.data),
        said=session.engine,
    )


def litert(module: torch.nn.Module, calibration: Values, place: Path) -> Peer:
    """Convert with litert-torch, quantize with ai-edge-quantizer."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    wide, narrow = str(place / "fp32.tflite"), str(place / "int8.tflite")
    litert_torch.convert(module, (torch.zeros(1, *calibration.shape[1:]),)).export(wide)
    signatures = Interpreter(wide).get_signature_list()
    (name,) = signatures
    (entrance,) = signatures[name]["inputs"]
    quantize = quantizer.Quantizer(wide, recipe.static_wi8_ai8())
    found = quantize.calibrate({name: [{entrance: image[None]} for image in calibration]})
    quantize.quantize(found).export_model(narrow)
    interpreter = Interpreter(narrow, num_threads=1)
    interpreter.allocate_tensors()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()

    def prepare(image: NDArray[np.uint8]) -> NDArray[Any]:
        scale, zero = into["quantization"]
        values = np.round(floats(image) / scale) + zero
        return values.clip(-128, 127).astype(np.int8)

    def run(values: NDArray[Any]) -> Logits:
        interpreter.set_tensor(into["index"], values)
        interpreter.invoke()
        answer: Logits = interpreter.get_tensor(out["index"])
        return answer

    said = f"LiteRT {version('ai-edge-litert')}, litert-torch {version('litert-torch')}"
    return Peer(name="LiteRT, INT8", prepare=prepare, run=run, size_bytes=os.path.getsize(narrow), said=said)


def executorch(module: torch.nn.Module, calibration: Values, place: Path) -> Peer:
    """Quantize for XNNPACK and lower to it."""
    import executorch.kernels.quantized  # noqa: F401  # registers the operators that are left to other kernels
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = (torch.zeros(1, *calibration.shape[1:]),)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(torch.export.export(module, example).module(), quantizer)
    for image in calibration:
        observed(torch.from_numpy(image[None]))
    exported = torch.export.export(convert_pt2e(observed), example)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    nodes = [str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    left = sum("convolution" in name for name in nodes)
    program = lowered.to_executorch().buffer
    _unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(program).load_method("forward")
    kept = program, method  # the method reads the program's bytes, and does not keep them
    return Peer(
        name="ExecuTorch, INT8",
        prepare=lambda image: [torch.from_numpy(floats(image))],
        run=lambda tensors: np.asarray(kept[1].execute(tensors)[0]),
        size_bytes=len(program),
        said=f"ExecuTorch {version('executorch')}, XNNPACK; {left} convolutions are left to portable kernels",
    )


def compared(peers: list[Peer], dataset: Dataset, rounds: int) -> list[dict[str, Any]]:
    """Let all classify the test images, then time them in turn."""
    test = dataset.splits["test"]
    answers = [np.array([int(p.run(p.prepare(i[None])).argmax()) for i in test.pixels]) for p in peers]
    inputs = [[p.prepare(i[None]) for i in test.pixels[:BLOCK]] for p in peers]
    rounds_ms: list[list[float]] = [[] for _ in peers]
    for r in range(rounds):
        turns = list(zip(peers, inputs, rounds_ms, strict=True))
        for peer, images, mine in turns[r % len(turns) :] + turns[: r % len(turns)]:
            times = []
            for image in images:
                begin = time.perf_counter_ns()
                peer.run(image)
                times.append((time.perf_counter_ns() - begin) / 1e6)
            mine.append(statistics.median(times))
    native = next(m for p, m in zip(peers, rounds_ms, strict=True) if p.name.startswith("native"))
    return [
        {
            "runtime": peer.name,
            "said": peer.said,
            "top1": round(100 * float((found == test.labels).mean()), 2),
            "agreement": round(100 * float((found == answers[0]).mean()), 2),
            "test_images": len(test.labels),
            "p50_ms": round(statistics.median(mine), 4),
            "p10_ms": round(float(np.percentile(mine, 10)), 4),
            "times_native": round(statistics.median(m / n for m, n in zip(mine, native, strict=True)), 2),
            "size_bytes": peer.size_bytes,
            "n": rounds * BLOCK,
        }
        for peer, found, mine in zip(peers, answers, rounds_ms, strict=True)
    ]


if __name__ == "__main__":
    main()
