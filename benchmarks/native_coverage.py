"""Which models the native compiler takes: every model of ours that fits, the named baselines, files from elsewhere.

    python benchmarks/native_coverage.py [--only NAME ...] [--foreign [--exporter dynamo]] [--answers] [--rows FILE]

Weights are random (BatchNorms are not trivial). Of each model four graphs are made: the float one, INT8 for ``x86``,
where everything that may be is on integers, INT8 for ``arm``, where only products are, and ``mixed``: for ``x86`` with
a seeded half of the operators left in float, so that every operator comes both ways. A graph is compiled, or refused by
the name of an operator. With ``--answers``, what it computes for an image of noise (``qdeploy.native.simulate``, whose
bits the C gives) is compared with ONNX Runtime's answer, in decibels.

``--foreign`` takes the models of ``foreign_exports.py`` instead, as torch's two exporters write them and ``qdeploy
quantize`` reads them. With ``--rows``, each row is added to a file of JSON lines, and what is in it is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import foreign_exports
import numpy as np
import onnx
import torch
from machine import keep

from qdeploy.core.errors import QdeployError
from qdeploy.core.metrics import sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Split
from qdeploy.export.int8.calibrate import calibrate
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.int8.units import feeding, quantizable
from qdeploy.export.sources.onnx_file import onnx_source
from qdeploy.export.sources.trace import trace
from qdeploy.models.folding import deploy
from qdeploy.models.registry import GRID, QONSTRAINTS, create_model
from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.simulate import simulate
from qdeploy.native.source import memory_of_program, program_from
from qdeploy.runtime.engines.onnxruntime_binding import open_binding

FORMS = ("fp32", "x86", "arm", "mixed")
IMAGES = 8
CLASSES = 10
LARGE = 30_000_000
"""Parameters; larger models stay with ONNX Runtime."""
BASELINES = ("torchvision/resnet18", "torchvision/mobilenet_v2", "timm/mobilenetv3_small_050", "resnet-20")
NAMES = ("pico", "nano", "nano-r", "nano-a", "nano-ar", "micro", "micro-r", "micro-a", "micro-ar")
HEADS = ("sota", "gap+sota")
WAYS: dict[str, str] = {"norm": "layernorm", "recentre": "sample", "clamps": "throughout", "head_norm": "mixed"}
"""Other forms of the presets."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--foreign", action="store_true")
    parser.add_argument("--exporter", nargs="+", choices=foreign_exports.EXPORTERS, default=foreign_exports.EXPORTERS)
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--rows", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    graphs = partial(foreign_graphs, exporters=arguments.exporter) if arguments.foreign else own_graphs
    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()] if _is(arguments.rows) else []
    known = {row["model"] for row in rows}
    for name, graph in graphs(arguments.only, known):
        row = {"model": name, **(row_of(graph, arguments.answers) if isinstance(graph, onnx.ModelProto) else graph)}
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.rows:
            with arguments.rows.open("a") as file:
                file.write(f"{json.dumps(row)}\n")
    keep("native_coverage_foreign" if arguments.foreign else "native_coverage", rows, counts=counts(rows))


def _is(file: Path | None) -> bool:
    return file is not None and file.is_file()


def own_graphs(only: list[str], known: set[str]) -> Iterator[tuple[str, onnx.ModelProto]]:
    presets = [(name, "", ()) for name in (*NAMES, *(n for n in QONSTRAINTS if n not in NAMES), *GRID, *BASELINES)]
    ways = [
        (name, f", {field} {value}", ((field, value),)) for name, (field, value) in product(("nano",), WAYS.items())
    ]
    heads = [(name, f", {head} head", (("head", head),)) for name, head in product(("nano", "nano-ar", "micro"), HEADS)]
    for name, words, changes in (*presets, *heads, *ways):
        if (only and name not in only and name + words not in only) or name + words in known:
            continue
        torch.manual_seed(0)
        with torch.device("meta"):
            small = create_model(name, CLASSES)
        if sum(p.numel() for p in small.parameters()) > LARGE:
            continue
        yield name + words, traced(name, changes)


def traced(name: str, changes: tuple[tuple[str, str], ...]) -> onnx.ModelProto:
    torch.manual_seed(0)
    rules, model = Preprocessing(), create_model(name, CLASSES, changes=changes)
    with torch.no_grad():
        model.train()
        for _ in range(2):
            model(torch.randn(8, 3, rules.size, rules.size))
    return trace(deploy(model.eval(), rules.mean, rules.std), rules.size)


def foreign_graphs(only: list[str], known: set[str], exporters: Sequence[str]) -> Iterator[tuple[str, Any]]:
    names = [n for n in foreign_exports.names_here() if not only or n in only]
    with tempfile.TemporaryDirectory() as place:
        for name, exporter in product(names, exporters):
            title = f"{name}, {exporter}"
            if title in known:
                continue
            file = Path(place) / "model.onnx"
            try:
                foreign_exports.write(foreign_exports.made(name), exporter, file)
            except Exception as error:  # whatever torch raises
                yield title, {"no file": type(error).__name__}
                continue
            try:
                yield title, onnx_source(file)[0].graph
            except QdeployError as error:
                yield title, {"not read": str(error)[:200]}


def row_of(graph: onnx.ModelProto, answers: bool) -> dict[str, Any]:
    return {form: result(made, answers) for form, made in forms(graph).items()}


def forms(graph: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
    """Return the float graph and its INT8 forms."""
    size = graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
    images = Split(pixels=pixels, labels=np.zeros(IMAGES, np.int64), hashes=tuple(map(str, range(IMAGES))))
    calibration = calibrate(graph, images, 0)
    made = {"fp32": graph}
    for form, target in (("x86", "x86"), ("arm", "arm"), ("mixed", "x86")):
        encoding = encoding_for(target)
        stay = set(feeding(graph, encoding))
        if form == "mixed":
            order = sorted(quantizable(graph, encoding))
            stay |= {order[i] for i in np.random.default_rng(1).permutation(len(order))[: len(order) // 2]}
        made[form] = quantize(graph, calibration.ranges("minmax", encoding.symmetric), encoding, stay)
    return made


def result(graph: onnx.ModelProto, answers: bool) -> dict[str, Any]:
    """Return what a graph needs as C, or the operator by which it is refused."""
    data = graph.SerializeToString()
    size = graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    try:
        program = program_from(data, size)
        memory = memory_of_program(program)
    except UnsupportedError as error:
        return {"refused": f"{error.kind}: {error.why}"}
    found: dict[str, Any] = {"ram_bytes": memory["ram_bytes"], "flash_bytes": memory["flash_bytes"]}
    if answers:
        image = np.random.default_rng(2).integers(0, 256, (size, size, 3), np.uint8)
        expected = open_binding(data).run(["logits"], {"image": image[None]})[0]
        logits = simulate(program, image)[program.logits.name]
        found["db"] = round(float(sqnr_db(np.asarray(expected), logits)), 1)
    return found


def counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count, for each form, what is compiled and what is refused."""
    found = {f: [row[f] for row in rows if f in row] for f in FORMS}
    return {
        f: {k: sum(("refused" in r) == (k == "refused") for r in rs) for k in ("compiled", "refused")}
        for f, rs in found.items()
    }


if __name__ == "__main__":
    main()
