"""What becomes of real models exported by torch's own exporters: taken, refused, and why.

    python benchmarks/foreign_exports.py [--only NAME ...] [--images 16] [--seconds 300] [--rows FILE] [--out NAME]

Every classifier family of torchvision (its smallest member) and thirty small models of timm, with random weights, 10
classes and 64x64 images (BatchNorms have seen noise, so that they have statistics of their own), are written by
torch's exporter of today (`dynamo`) and by the older one (`legacy`), both with a dynamic batch. Each file then goes
the way of `qdeploy quantize` without its timing: it is read, brought into qdeploy's form, compared with the file as it
came, quantized with minmax ranges of generated images, and compared again. `fp32` is the largest difference of the
adopted graph's logits from torch's own, relative to the largest logit; `INT8` is the signal-to-noise ratio to fp32 in
decibels. A row without file is a model that torch itself does not export, or does not run at 64x64.

The table of docs/real_exports.md is written anew at the end, unless there is `--only` or `--out`. With `--rows`, a
model's rows are added to a file of JSON lines as soon as it is done, and models that are in it are not done again.

Needs torchvision and, for its rows, timm (`pip install timm`); without it they are left out. One process for each
model, one thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from machine import keep
from numpy.typing import NDArray
from PIL import Image
from real_exports import EXPORTERS, exports_table
from real_exports import write as write_page
from torch import nn

from qdeploy.core.errors import QdeployError
from qdeploy.core.machine import versions
from qdeploy.core.progress import no_progress, silent
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export.config import ExportConfig
from qdeploy.export.finish import Work, finish, first_card
from qdeploy.export.graph.parity import FP32_TOLERANCE, require_equal
from qdeploy.export.int8.step import int8_step
from qdeploy.export.sources.onnx_file import onnx_source
from qdeploy.export.stress import StressSet

SIZE, CLASSES = 64, 10
OPSETS = {"dynamo": 20, "legacy": 17}
TORCHVISION: dict[str, dict[str, Any]] = {
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "mnasnet0_5": {},
    "resnet18": {},
    "regnet_y_400mf": {},
    "efficientnet_b0": {},
    "googlenet": {"aux_logits": False, "init_weights": True},
    "densenet121": {},
    "efficientnet_v2_s": {},
    "resnext50_32x4d": {},
    "swin_t": {},
    "swin_v2_t": {},
    "convnext_tiny": {},
    "maxvit_t": {"input_size": (SIZE, SIZE), "partition_size": 2},
    "inception_v3": {"aux_logits": False, "init_weights": True},
    "wide_resnet50_2": {},
    "alexnet": {},
    "vit_b_16": {"image_size": SIZE},
    "vgg11": {},
}
TIMM: dict[str, dict[str, Any]] = {
    "lcnet_035": {},
    "tinynet_e": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "mobileone_s0": {},
    "ghostnet_050": {},
    "repghostnet_050": {},
    "efficientnet_lite0": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {"img_size": SIZE},
    "regnetx_002": {},
    "regnety_002": {},
    "resnet10t": {},
    "repvgg_a0": {},
    "rexnet_100": {},
    "mixnet_s": {},
    "fbnetc_100": {},
    "hardcorenas_a": {},
    "dla46_c": {},
    "starnet_s1": {},
    "hgnetv2_b0": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "inception_next_atto": {},
    "edgenext_xx_small": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "fastvit_t8": {},
    "vit_tiny_patch16_224": {"img_size": SIZE},
    "deit_tiny_distilled_patch16_224": {"img_size": SIZE},
    "levit_128s": {"img_size": SIZE},
    "xcit_nano_12_p16_224": {},
    "resmlp_12_224": {"img_size": SIZE},
    "poolformer_s12": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these models, as timm/resnet10t")
    parser.add_argument("--images", type=int, default=16, help="generated images of each class")
    parser.add_argument("--rows", type=Path, help="file of rows that are done, continued")
    parser.add_argument("--seconds", type=float, default=300, help="most seconds for one model")
    parser.add_argument("--out", default="foreign_exports", help="name of the results' file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = done(arguments.rows) if arguments.rows else []
    known = {row["model"] for row in rows}
    names = [n for n in names_here() if n in arguments.only or not arguments.only]
    with tempfile.TemporaryDirectory() as place:
        data = generated_images(Path(place), arguments.images)
        for name in (n for n in names if n not in known):
            found = apart(name, data, Path(place), arguments.seconds)
            rows += found
            print("".join(f"{json.dumps(row)}\n" for row in found), end="", file=sys.stderr, flush=True)
            if arguments.rows:
                with arguments.rows.open("a") as file:
                    file.writelines(f"{json.dumps(row)}\n" for row in found)
    facts = {
        "size": SIZE,
        "classes": CLASSES,
        "opsets": OPSETS,
        "libraries": versions("torchvision", "timm", "onnxscript"),
        "counts": counts(rows),
    }
    keep(arguments.out, rows, **facts)
    print(exports_table(rows), whys(rows), sep="\n\n")
    if arguments.out == "foreign_exports" and not arguments.only:
        write_page()


def done(file: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier run in the order of the models."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    order = names_here()
    return sorted(rows, key=lambda row: (order.index(row["model"]), EXPORTERS.index(row["exporter"])))


def names_here() -> list[str]:
    """Return the models whose library is installed."""
    names = [f"torchvision/{n}" for n in TORCHVISION]
    try:
        import timm  # noqa: F401
    except ImportError:
        return names
    return names + [f"timm/{n}" for n in TIMM]


def made(name: str) -> nn.Module:
    """Make a model with random weights, and let its BatchNorms see noise; a head of zeros would tell nothing apart."""
    library, _, short = name.partition("/")
    torch.manual_seed(0)
    if short == "maxvit_t":
        model: nn.Module = small_maxvit(**TORCHVISION[short])
    elif library == "torchvision":
        model = torchvision.models.get_model(short, num_classes=CLASSES, **TORCHVISION[short])
    else:
        import timm

        model = timm.create_model(short, num_classes=CLASSES, **TIMM[short])
    for weight in model.parameters():
        if weight.dim() > 1 and not weight.any():
            nn.init.normal_(weight, std=0.02)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, SIZE, SIZE))
    return model.eval()


def small_maxvit(**shape: Any) -> nn.Module:
    """Make maxvit_t with other windows: its own need images of 224x224, and its builder takes no others."""
    return torchvision.models.MaxVit(
        stem_channels=64,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
        num_classes=CLASSES,
        **shape,
    )


def generated_images(place: Path, count: int) -> Path:
    """Write a folder of classes of coloured noise; returns it."""
    rng = np.random.default_rng(0)
    for k in range(CLASSES):
        folder = place / "images" / f"class {k}"
        folder.mkdir(parents=True)
        tone = rng.integers(40, 215, 3)
        for i in range(count):
            coarse = np.clip(rng.normal(tone, 50, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return place / "images"


def apart(name: str, data: Path, place: Path, seconds: float) -> list[dict[str, Any]]:
    """Export and quantize a model in a process of its own, which may take so many seconds."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=all_exporters, args=(theirs, name, data, place))
    process.start()
    theirs.close()
    rows: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + seconds
    try:
        while mine.poll(max(0.0, end - time.monotonic())):
            row = mine.recv()
            rows[row["exporter"]] = row
    except EOFError:
        pass
    if process.is_alive():
        process.join(2)
    if process.is_alive():
        process.kill()
    process.join()
    lost = {"result": "not done", "why": f"not within {seconds:.0f} s, or its process ended"}
    return [rows.get(e, {"model": name, "exporter": e, **lost}) for e in EXPORTERS]


def all_exporters(answer: Connection, name: str, data: Path, place: Path) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, what the exporters print
    for exporter in EXPORTERS:
        row: dict[str, Any] = {"model": name, "exporter": exporter}
        file = place / f"{name.replace('/', '-')}.{exporter}.onnx"
        answer.send({**row, **one(name, exporter, file, data)})
        for part in place.glob(f"{file.name}*"):
            part.unlink()
    answer.close()


def one(name: str, exporter: str, file: Path, data: Path) -> dict[str, Any]:
    """Export and quantize a model; returns what became of it."""
    try:
        model = made(name)
        write(model, exporter, file)
    except Exception as error:  # whatever torch and the libraries raise
        return {"result": "no file", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    facts = {"operators": operators(file), "size_bytes": file.stat().st_size}
    try:
        return {**facts, "result": "taken", "why": "", **quantized(model, file, data)}
    except QdeployError as error:
        return {**facts, "result": "refused", "why": str(error).replace(str(file), file.name)}
    except Exception as error:  # a fault of ours
        return {**facts, "result": "failed", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def write(model: nn.Module, exporter: str, file: Path) -> None:
    """Write a file as torch's documentation shows it, with a dynamic batch."""
    example = torch.randn(2, 3, SIZE, SIZE)
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
            program = torch.onnx.export(
                model, (example,), dynamo=True, opset_version=OPSETS[exporter], dynamic_shapes=shapes, verbose=False
            )
            assert program is not None
            program.save(str(file))
        else:
            names = {"input_names": ["input"], "output_names": ["output"]}
            axes = {name: {0: "batch"} for name in ("input", "output")}
            torch.onnx.export(
                model, (example,), str(file), dynamo=False, opset_version=OPSETS[exporter], dynamic_axes=axes, **names
            )
    logging.disable(logging.NOTSET)


def operators(file: Path) -> int:
    return len(onnx.load(str(file), load_external_data=False).graph.node)


def quantized(model: nn.Module, file: Path, data: Path) -> dict[str, Any]:
    """Take a file the way of `qdeploy quantize`, without its timing; returns what was measured."""
    begin = time.monotonic()
    source, rules = onnx_source(file)
    dataset = load_dataset(str(data), rules)
    config = ExportConfig(int8=True, calibration="minmax", float_layers=("none",), allow_drop=True, allow_slower=True)
    work = work_on(dataset, config)
    reference = source.references(work.parity_pixels)[0]
    card = first_card(work, source)
    fp32 = finish(work, source.graph, card, reference.values, "model.fp32.onnx", 80.0, output=reference.output)
    largest = max(1.0, float(np.abs(reference.values).max()))
    require_equal("the file to fp32", fp32.parity, FP32_TOLERANCE * largest)
    logits = logits_of(model, work.parity_pixels, rules.mean, rules.std)
    (int8,), _ = int8_step(work, fp32, StressSet.of(fp32.session, work.parity_pixels))
    return {
        "fp32_relative": float(np.abs(fp32.parity_logits - logits).max() / np.abs(logits).max()),
        "int8_db": int8.made.parity.sqnr_db,
        "int8_agreement": int8.made.parity.top1_agreement,
        "images": fp32.parity.n,
        "seconds": round(time.monotonic() - begin, 1),
    }


def work_on(dataset: Dataset, config: ExportConfig) -> Work:
    pixels = dataset.splits["val"].pixels
    return Work(dataset=dataset, name="foreign", config=config, note=silent, progress=no_progress, parity_pixels=pixels)


def logits_of(
    model: nn.Module, pixels: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]
) -> NDArray[np.float32]:
    images = (torch.from_numpy(pixels).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        return np.asarray(model(images.permute(0, 3, 1, 2).contiguous()).numpy())


def counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count the results of each exporter."""
    kinds = sorted({r["result"] for r in rows})
    return {e: {k: sum(r["exporter"] == e and r["result"] == k for r in rows) for k in kinds} for e in EXPORTERS}


def whys(rows: list[dict[str, Any]]) -> str:
    """Return why rows were not taken."""
    return "\n".join(
        f"{r['model']}, {r['exporter']}: {r['result']}: {r['why']}" for r in rows if r["result"] != "taken"
    )


if __name__ == "__main__":
    main()
