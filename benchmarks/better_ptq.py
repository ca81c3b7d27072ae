"""What equalisation, bias correction and a fine-tune bring over plain INT8 quantization.

    python benchmarks/better_ptq.py [--models shipped nano-ar torchvision/mobilenet_v2] [--epochs 12] [--draws 5]

Each model is trained here on the embedded data (`shipped` is the one in the package, which has no checkpoint and
therefore no fine-tune), exported to a float graph and quantized with minmax ranges of 256 training images. A row
compares one way with the float graph on the embedded test split: signal to noise of the logits, top-1 (of equal
logits the first counts), and the paired difference of top-1 with its 95 % interval; one value for each of several
draws of the calibration images, which alone can move the signal to noise by some dB. The fine-tuned rows are
compared with the float graph before the fine-tune.
"""

from __future__ import annotations

import qdeploy  # isort: skip  # first: it switches off the usage events of onnxruntime

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from equalize import equalize
from machine import keep
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import nn

from qdeploy.core.metrics import Floats, agreement, paired_difference, sqnr_db
from qdeploy.core.run_folder import read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.int8.bias_correction import channel_means, correct_biases
from qdeploy.export.int8.calibrate import calibrate, choose_images
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.finetune import FinetuneConfig, finetune
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.sources.trace import trace
from qdeploy.models.folding import deploy
from qdeploy.models.registry import model_from_record
from qdeploy.training import config_from_recipe, train

MODELS = ("shipped", "nano-ar", "torchvision/mobilenet_v2")
SHIPPED = Path(qdeploy.__file__).parent / "shipped" / "model.fp32.onnx"
BATCH = 50
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rows share."""

    dataset: Dataset
    draws: tuple[Split, ...]
    """Images for ranges and channel means."""
    test: Split
    target: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="shipped, or names that `qdeploy train` knows")
    parser.add_argument("--epochs", type=int, default=12, help="of training")
    parser.add_argument("--finetune-epochs", type=int, default=2)
    parser.add_argument("--calibration", type=int, default=256, help="training images for ranges and means")
    parser.add_argument("--draws", type=int, default=5, help="of these images")
    parser.add_argument("--test", type=int, default=1000, help="most test images")
    parser.add_argument("--target", default="x86", help="encoding of the integers")
    parser.add_argument("--out", default="better_ptq", help="name of the results' file")
    args = parser.parse_args()
    dataset = load_dataset()
    test = dataset.splits["test"]
    bench = Bench(
        dataset=dataset,
        draws=tuple(choose_images(dataset, args.calibration, seed) for seed in range(args.draws)),
        test=test.take(np.arange(min(args.test, len(test)), dtype=np.int64)),
        target=args.target,
    )
    rows = []
    for name in args.models:
        module = None if name == "shipped" else trained(name, args.epochs, dataset)
        graph = onnx.load(SHIPPED) if module is None else trace(module, dataset.preprocessing.size)
        rows += compared(bench, name, graph, module, args.finetune_epochs)
    facts = {"training_epochs": args.epochs, "finetune_epochs": args.finetune_epochs, "target": args.target}
    keep(args.out, rows, calibration_images=len(bench.draws[0]), n=len(bench.test), **facts)


def trained(name: str, epochs: int, dataset: Dataset) -> nn.Module:
    """Train a model and give its inference form."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(config_from_recipe("small", model=name, epochs=epochs, seed=SEED), Path(folder) / "run")
        record, weights = read_run(Path(result.run))
    model = model_from_record(record.model.family, record.model.config)
    model.load_state_dict(load_tensors(weights))
    return deploy(model.eval(), dataset.preprocessing.mean, dataset.preprocessing.std)


def compared(
    bench: Bench, name: str, graph: onnx.ModelProto, module: nn.Module | None, epochs: int
) -> list[dict[str, Any]]:
    """Quantize one model in every way."""
    reference, labels = logits(graph, bench.test.pixels), bench.test.labels
    rows: list[dict[str, Any]] = []

    def add(way: str, found: onnx.ModelProto, corrected: bool = False) -> None:
        values = [logits(quantized(bench, found, images, corrected), bench.test.pixels) for images in bench.draws]
        rows.append({"model": name, "way": way, **row(reference, values, labels)})
        print(rows[-1], flush=True)

    rows.append({"model": name, "way": "float", **row(reference, [reference], labels)})
    equal, pairs = equalize(graph)
    add("plain", graph)
    add(f"equalised ({pairs} pairs)", equal)
    add("bias correction", graph, corrected=True)
    add("equalised, bias correction", equal, corrected=True)
    if module is not None:
        tuned = finetune(module, bench.dataset, FinetuneConfig(epochs=epochs), lambda line: print(line, flush=True))
        tuned_graph = trace(tuned, bench.dataset.preprocessing.size)
        values = logits(tuned_graph, bench.test.pixels)
        rows.append({"model": name, "way": "fine-tuned, float", **row(reference, [values], labels)})
        add("fine-tuned", tuned_graph)
        add("fine-tuned, bias correction", tuned_graph, corrected=True)
    return rows


def quantized(bench: Bench, graph: onnx.ModelProto, images: Split, corrected: bool) -> onnx.ModelProto:
    """Quantize every layer, with minmax ranges; the one place that knows how that is called."""
    encoding = encoding_for(bench.target)
    if corrected:
        means = channel_means(graph, images.pixels)
        graph = correct_biases(graph, means, seven_bit_weights=encoding.seven_bit_weights)
    calibration = calibrate(graph, images, SEED)
    return quantize(graph, calibration.ranges("minmax", encoding.symmetric), encoding)


def logits(graph: onnx.ModelProto, pixels_NSSC: NDArray[np.uint8]) -> Floats:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    starts = range(0, len(pixels_NSSC), BATCH)
    return np.concatenate([session.run(["logits"], {"image": pixels_NSSC[i : i + BATCH]})[0] for i in starts])


def row(reference: Floats, values: list[Floats], labels: NDArray[np.int64]) -> dict[str, Any]:
    differences = [paired_difference(v, reference, labels) for v in values]
    decibels = [sqnr_db(reference, v) for v in values]
    return {
        "sqnr_db": [round(d, 2) if np.isfinite(d) else None for d in decibels],
        "sqnr_db_mean": round(float(np.mean(decibels)), 2) if np.isfinite(decibels).all() else None,
        "top1": [round(100 * float((v.argmax(axis=1) == labels).mean()), 2) for v in values],
        "points": [round(d.points, 2) for d in differences],
        "margin95": [round(d.margin95, 2) for d in differences],
        "agreement": [round(agreement(reference, v), 4) for v in values],
        "n": len(labels),
    }


if __name__ == "__main__":
    main()
