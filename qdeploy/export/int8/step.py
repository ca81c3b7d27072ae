"""The INT8 step: one calibration, then for each target its ranges, its layers in float, and its graph."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx

from qdeploy.bench import sample_images
from qdeploy.core.budget import AccuracyBudget
from qdeploy.core.card import CalibrationRecord, Card, FloatLayersRecord
from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.machine import compute_threads, native_target
from qdeploy.core.metrics import Floats, sqnr_db
from qdeploy.data.dataset import Split
from qdeploy.export.finish import Made, Work, finish, open_graph
from qdeploy.export.graph.parity import require_sound, run_session
from qdeploy.export.graph.walk import all_nodes, is_standard
from qdeploy.export.int8.bias_correction import biases_of, channel_means, correct_biases
from qdeploy.export.int8.calibrate import Calibration, calibrate, choose_images, random_images
from qdeploy.export.int8.choices import Choices
from qdeploy.export.int8.clock import real_clock
from qdeploy.export.int8.encodings import Encoding, encoding_for
from qdeploy.export.int8.float_choice import FloatChoice, Found, UnitCost
from qdeploy.export.int8.float_search import FloatSearch
from qdeploy.export.int8.loss import Judges, flips_of
from qdeploy.export.int8.pinned import Pinned, pinned
from qdeploy.export.int8.quantize import Integers, quantize
from qdeploy.export.int8.ranges import METHODS, Range
from qdeploy.export.int8.units import MATRIX_OPERATORS, feeding
from qdeploy.export.stress import Stress, StressSet
from qdeploy.export.verdict import Loss

CALIBRATION_SEED = 0
INT8_GOLDEN_DB = 35.0
"""Least SQNR of an INT8 file's goldens, in decibels: other CPUs reach 42 and more, kernels that saturate 15 to 30
(benchmarks/other_cpus.py)."""
PICKING_GOLDEN_DB = 20.0
"""Least SQNR for graphs with ``TopK``, in decibels: where two values are nearly equal, rounding may pick another."""
WAY_IMAGES = 128
"""Validation images that the ways to calibrate are judged on."""
SMALL_CHANNELS = 16
"""Convolutions that read fewer stay in float for TensorRT: their integers do not pay there."""
FLOAT_FOR_TENSORRT = "products of activations, convolutions of few channels"
FLOAT_FOR_DIVISIONS = "what feeds divisions, roots and logarithms"


@dataclass(frozen=True, kw_only=True)
class Int8Report:
    """How one INT8 file came about."""

    target: str
    native: bool
    """Whether this machine runs the target, so that its speed was measured."""
    calibration: str
    """The method that set its ranges and, where it helps, bias correction."""
    methods: dict[str, float]
    """Signal-to-noise ratio of the logits on validation images, in decibels, in each way that was tried."""
    float_units: tuple[str, ...]
    units: tuple[UnitCost, ...]
    choices: tuple[FloatChoice, ...]
    """Choices of float layers whose whole graph was measured."""
    loss: Loss
    """Loss of accuracy on images that took no part in any choice."""
    budget: AccuracyBudget
    qat_epochs: int
    """Epochs of the fine-tune that the weights come from; 0 if none was needed."""
    stress: Stress
    """Answers to images that no validation split holds."""


@dataclass(frozen=True, kw_only=True)
class Int8Made:
    """An INT8 graph and how it came about."""

    made: Made
    report: Int8Report
    ranges: dict[str, Range]


def int8_step(
    work: Work, fp32: Made, stress: StressSet, finetuned: onnx.ModelProto | None = None
) -> tuple[list[Int8Made], Calibration]:
    """Make the INT8 graphs of a float one, one for each target.

    Args:
        work: The export.
        fp32: What INT8 is judged against.
        stress: What it answers to images that no validation split holds.
        finetuned: The float graph with fine-tuned weights, which expect INT8; by default the fp32 file's.

    Raises:
        VerdictError: If one of them is broken.
    """
    graph = finetuned or fp32.model
    images = calibration_images(work)
    require_layers(graph)
    calibration = calibrate(graph, images, CALIBRATION_SEED, work.progress("calibrating"))
    _require_integers(graph, calibration, encoding_for(work.config.targets[0]))
    epochs = work.config.qat_epochs if finetuned else 0
    judges = Judges(fp32=fp32.answers, dataset=work.dataset, calibrated=frozenset(calibration.image_hashes))
    with ThreadPoolExecutor(1) as pool:
        means = None  # tuned biases expect the rounding already
        if not finetuned:
            means = pool.submit(copy_context().run, channel_means, graph, images.pixels)
            if compute_threads() == 1:  # else beside the search for ranges, which keeps one core busy
                means.result()
        one = partial(_one, work, fp32, stress, graph, epochs, means, calibration, judges)
        made = [one(target) for target in work.config.targets]
    return made, calibration


def require_layers(model: onnx.ModelProto) -> None:
    """Refuse a graph of which nothing would become faster.

    Raises:
        InputError: If it has no layer that multiplies matrices.
    """
    if any(is_standard(node, *MATRIX_OPERATORS) for node in model.graph.node):
        return
    if any(is_standard(node, *MATRIX_OPERATORS) for node in all_nodes(model)):
        raise InputError(
            "all layers of the model are inside If, Loop or Scan, which INT8 leaves alone",
            fix="export it again without them, or with a dynamic batch if its batch is fixed, or leave out `int8`: of "
            "an ONNX file `qdeploy adopt` makes the fp32 file",
        )
    raise InputError(
        f"the model has no layer that INT8 can compute ({', '.join(MATRIX_OPERATORS)}): nothing is to be quantized",
        fix="leave out `int8`; of an ONNX file `qdeploy adopt` makes the fp32 file",
    )


def _require_integers(model: onnx.ModelProto, calibration: Calibration, encoding: Encoding) -> None:
    """Refuse a graph whose values are all beyond integers, so that its INT8 form would be the float graph."""
    int8 = quantize(model, calibration.ranges("minmax", encoding.symmetric), encoding)
    if not any(is_standard(node, "QuantizeLinear", "DequantizeLinear") for node in int8.graph.node):
        raise InputError(
            "integers can hold none of the model's values: they are subnormal, huge or infinite",
            fix="leave out `int8`, or repair the model",
        )


def calibration_images(work: Work) -> Split:
    """Return the images to calibrate on, and note what they are."""
    config, dataset = work.config, work.dataset
    if config.random_calibration:
        work.note("calibrating on noise: the INT8 file is only good for trying, and its card says so")
        return random_images(dataset.splits["train"], config.calibration_images, CALIBRATION_SEED)
    images = choose_images(dataset, config.calibration_images, CALIBRATION_SEED)
    work.note(f"calibrating on {len(images)} training images, none of which is in validation or test")
    counts = np.bincount(images.labels, minlength=len(dataset.classes))
    fewest = int(counts.argmin())
    if counts[fewest] < counts.max() - 1:  # a balanced choice differs by one at most
        work.note(
            f"only {counts[fewest]} of them are of the class '{dataset.classes[fewest]}', which has no more, against "
            f"{counts.max()} of others: INT8 may be worse for it"
        )
    return images


def float_for_tensorrt(model: onnx.ModelProto) -> frozenset[str]:
    """Return the nodes whose integers do not pay in TensorRT, whatever they cost in accuracy.

    These are products of two activations (attention), which it fuses in 16-bit floats, and convolutions of few
    channels, such as the first; NVIDIA's own quantizer leaves out the same.
    """
    weights = {i.name: tuple(i.dims) for i in model.graph.initializer}
    stay = set()
    for node in model.graph.node:
        if is_standard(node, "MatMul") and not any(i in weights for i in node.input):
            stay.add(node.name)
        shape = weights.get(node.input[1], ()) if is_standard(node, "Conv") else ()
        if shape and shape[1] * _groups(node) < SMALL_CHANNELS:
            stay.add(node.name)
    return frozenset(stay)


def _groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _one(
    work: Work,
    fp32: Made,
    stress: StressSet,
    graph: onnx.ModelProto,
    epochs: int,
    means: Future[dict[str, Floats]] | None,
    calibration: Calibration,
    judges: Judges,
    target: str,
) -> Int8Made:
    encoding = encoding_for(target)
    origin = replace(fp32.card.origin, parent_sha256=sha256_of(fp32.data))
    card = replace(fp32.card, precision="int8", target=encoding.target, origin=origin, qat_epochs=epochs)
    start = feeding(graph, encoding) | (float_for_tensorrt(graph) if target == "tensorrt" else frozenset())
    ways = _ways(work, graph, means, calibration, encoding)
    integers = Integers()
    with ThreadPoolExecutor(compute_threads()) as pool:
        found_db = pool.map(lambda way: _error(judges, graph, way, encoding, card, start, integers), ways)
    errors = {way.name: db for way, db in zip(ways, found_db, strict=True)}
    way = max(ways, key=lambda w: errors[w.name])
    native = encoding.target == native_target()
    budget = _budget(work, fp32)
    search = FloatSearch(
        choices=Choices(
            model=graph, card=card, encoding=encoding, ranges=way.ranges, biases=way.biases, integers=integers
        ),
        images=judges.choosing,
        before=judges.choosing_logits,
        stress=stress,
        budget=budget,
        clock=real_clock(sample_images(work.dataset.preprocessing)) if native else None,
        config=work.config.search,
        note=work.note,
        progress=work.progress(f"INT8 for {encoding.target}"),
    )
    pins = pinned(work.config, graph, encoding)
    found = search.search(start) if pins is None else search.pinned(start | pins.nodes, pins.record.layers)
    made = _finished(work, fp32, card, found, pins, calibration, way.name, native)
    return Int8Made(
        made=made,
        report=Int8Report(
            target=encoding.target,
            native=native,
            calibration=way.name,
            methods=errors,
            float_units=found.float_units,
            units=found.units,
            choices=found.choices,
            loss=judges.loss(made.answers, flips_of(fp32.test_logits, made.test_logits), budget),
            budget=budget,
            qat_epochs=epochs,
            stress=stress.judge(made.session, fp32.parity_logits, made.parity_logits),
        ),
        ranges=way.ranges,
    )


def _finished(
    work: Work,
    fp32: Made,
    card: Card,
    found: Found,
    pins: Pinned | None,
    calibration: Calibration,
    method: str,
    native: bool,
) -> Made:
    record = CalibrationRecord(
        method=method,
        images=calibration.image_hashes,
        seed=calibration.seed,
        random=work.config.random_calibration,
    )
    choice = FloatLayersRecord(by="search", layers=found.float_units) if pins is None else pins.record
    card = replace(card, float_layers=found.float_nodes, calibration=record, float_choice=choice)
    file = "model.int8.onnx" if native else f"model.int8.{card.target}.onnx"
    fixed = [FLOAT_FOR_TENSORRT] if card.target == "tensorrt" else []
    fixed += [FLOAT_FOR_DIVISIONS] if feeding(fp32.model, encoding_for(card.target)) else []
    words = ", ".join((*fixed, *found.float_units)) or "nothing"
    picks = any(node.op_type == "TopK" for node in found.model.graph.node)
    golden_db = PICKING_GOLDEN_DB if picks else INT8_GOLDEN_DB
    int8 = finish(work, found.model, card, fp32.parity_logits, file, golden_db, float_layers=words, fp32=fp32)
    require_sound(f"fp32 to INT8 for {card.target}", int8.parity)
    work.note(
        f"int8 for {card.target}: {int8.parity.sqnr_db:.1f} dB, top-1 agrees on {int8.parity.same_words()}; "
        f"left in float: {words}"
    )
    return int8


@dataclass(frozen=True, kw_only=True)
class _Way:
    """One way to set the integers' parameters."""

    name: str
    ranges: dict[str, Range]
    biases: dict[str, Floats]


def _ways(
    work: Work,
    graph: onnx.ModelProto,
    means: Future[dict[str, Floats]] | None,
    calibration: Calibration,
    encoding: Encoding,
) -> list[_Way]:
    """Return every method's ranges, of one calibration, without and, where means are given, with corrected biases."""
    asked = work.config.calibration
    names = (*METHODS, "mixed") if asked == "auto" else (asked,)
    ranges = {name: calibration.ranges(name, encoding.symmetric) for name in names}
    ways = [_Way(name=name, ranges=ranges[name], biases={}) for name in names]
    found = means.result() if means else {}
    if not found:
        return ways
    corrected = biases_of(correct_biases(graph, found, seven_bit_weights=encoding.seven_bit_weights))
    return ways + [_Way(name=f"{n}, bias correction", ranges=ranges[n], biases=corrected) for n in names]


def _error(
    judges: Judges,
    graph: onnx.ModelProto,
    way: _Way,
    encoding: Encoding,
    card: Card,
    start: frozenset[str],
    integers: Integers,
) -> float:
    """Return the signal-to-noise ratio of the logits on validation images, with all that may be INT8 in INT8."""
    pixels, before = judges.choosing.pixels[:WAY_IMAGES], judges.choosing_logits[:WAY_IMAGES]
    with open_graph(quantize(graph, way.ranges, encoding, start, way.biases, integers), card) as session:
        return sqnr_db(before, run_session(session, pixels))


def _budget(work: Work, fp32: Made) -> AccuracyBudget:
    config, accuracy = work.config, fp32.card.accuracy
    if config.max_drop_relative is None or accuracy is None:
        return AccuracyBudget(points=config.max_drop)
    return AccuracyBudget(points=config.max_drop_relative / 100 * accuracy.top1)
