"""The export of any source: check, quantize, check, measure, judge, write. Each step is checked on real images."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import InputError, QdeployError, VerdictError
from qdeploy.core.files import sha256_of, write_bytes, write_json, write_rendered
from qdeploy.core.machine import computing_with
from qdeploy.core.metrics import measure
from qdeploy.core.progress import Note, StepProgress, no_progress, silent
from qdeploy.core.whole import files_in, folder_made_whole
from qdeploy.data.dataset import Dataset
from qdeploy.export.confidence import confidence_images, require_threshold_images
from qdeploy.export.config import ExportConfig
from qdeploy.export.engines.build import require_builder
from qdeploy.export.engines.step import build_engines
from qdeploy.export.finish import Made, Work, finish, first_card
from qdeploy.export.graph.finite import called, require_finite
from qdeploy.export.graph.fp16 import to_fp16
from qdeploy.export.graph.parity import FOLD_TOLERANCE, FP32_TOLERANCE, require_equal, require_sound
from qdeploy.export.graph.ties import without_ties
from qdeploy.export.int8.calibrate import Calibration
from qdeploy.export.int8.pinned import int8_artifact
from qdeploy.export.int8.step import Int8Made, int8_step
from qdeploy.export.kits.table import is_own_kit, require_kits, write_kits
from qdeploy.export.libraries import library_lines, write_libraries
from qdeploy.export.measure import Judged, measure_and_judge, with_memory
from qdeploy.export.report.page import html_report
from qdeploy.export.report.record import ExportReport, Step
from qdeploy.export.sources.source import Source
from qdeploy.export.stress import StressSet
from qdeploy.native.source import program_from
from qdeploy.runtime.device import DEVICE_FILE
from qdeploy.runtime.trial import remember

PARITY_IMAGES = 512
FLOAT_GOLDEN_DB = 80.0
HALF_GOLDEN_DB = 30.0
"""Least agreement of fp16 with fp32; sound graphs reach 45 to 70."""
OWN_FILES = re.compile(r"model\.[a-z0-9.-]+\.(onnx(\.\w+\.so)?|engine)|report\.(json|html)|(calibration|device)\.json")
"""What an export's folder may hold and be replaced."""


def export_source(
    source: Source,
    read: Callable[[], Dataset],
    config: ExportConfig,
    out: Path,
    note: Note = silent,
    progress: StepProgress = no_progress,
) -> ExportReport:
    """Export what a source gives.

    Args:
        source: The float model.
        read: Reads its data; called once the folder is known to be free.
        config: What to make.
        out: The export's folder.
        note: Called with a line after each step.
        progress: Takes a step's name, and returns what is called with the number of its parts that are done and their
            total.

    Raises:
        InputError: If ``out`` holds other files, or the data cannot be used.
        VerdictError: If a step's parity is missed.
        UnsupportedError: If libraries are asked for, and the model holds what has no kernel.
        EngineError: If a compiler fails; the export is there without its libraries.
    """
    _require_possible(config, out, note)
    with folder_made_whole(out) as folder, computing_with(config.threads), ExitStack() as stack:
        work = _begun(source, read(), config, note, progress)
        stack.callback(gc.unfreeze)
        gc.freeze()  # else what tracing has left is looked through again and again
        floats, steps, stress = _float_files(work, source)
        int8: list[Int8Made] = []
        if config.int8:
            int8, calibration = _int8(work, source, floats[0], stress)
            write_json(folder / "calibration.json", _calibration_record(calibration, int8))
        report = _write(work, measure_and_judge(work, floats, int8, steps, out), folder, out)
    if config.native_library is not None:
        _write_libraries(out, config.native_library, note)
    return report


def _require_possible(config: ExportConfig, out: Path, note: Note) -> None:
    """Refuse what cannot come to an end, before the data are read."""
    _require_own(out)
    if (out / DEVICE_FILE).exists():
        note(f"{out / DEVICE_FILE} tells of the files that are replaced, and goes with them: run `qdeploy tune` again")
    if config.like is not None:
        int8_artifact(config.like)
    for builder in config.builders:
        require_builder(builder)
    require_kits(config.kits)


def _begun(source: Source, dataset: Dataset, config: ExportConfig, note: Note, progress: StepProgress) -> Work:
    """Return what every step needs, once the data are known to suffice."""
    for text in (*dataset.notes, *dataset.problem_notes()):
        note(text)
    if config.coverage is not None and dataset.generated:
        raise InputError("`coverage` takes labelled images, and there are none", fix="give `data`")
    run = confidence_images(dataset.splits["val"], config.coverage)
    require_threshold_images(run.labels, dataset.classes, config.coverage)
    return Work(
        dataset=dataset,
        name=f"{re.sub('[/:]', '-', source.model.name)}-{dataset.name}",
        config=config,
        note=note,
        progress=progress,
        parity_pixels=_parity_pixels(source.graph, dataset, note),
    )


def _float_files(work: Work, source: Source) -> tuple[list[Made], list[Step], StressSet]:
    """Make the fp32 file and, if it is asked for, the fp16 file; ask the first for what it says of the stress set."""
    fp32, steps = _float_step(work, source)
    if work.config.native_library is not None:  # an operator without a kernel is refused before the long part
        program_from(fp32.data, work.dataset.preprocessing.size)
    stress = StressSet.of(fp32.session, work.parity_pixels)
    if broken := ", ".join(stress.not_finite):
        work.note(f"the float model itself gives no number for {broken}: `qdeploy predict` refuses such images")
    return [fp32, *([_half_step(work, fp32)] if work.config.fp16 else [])], steps, stress


def _write(work: Work, judged: Judged, folder: Path, out: Path) -> ExportReport:
    """Write what is kept: model files, engines, the report as JSON and as a page, and kits."""
    for item in judged.kept:
        write_bytes(folder / item.file, item.data)
        remember(Artifact(out / item.file, item.data, item.card))
    report = with_memory(judged.report, folder, work.note)
    report = replace(report, engines=build_engines(work, judged.kept, folder, out))
    write_json(folder / "report.json", report.to_dict())
    page = partial(html_report, flips=judged.flips, confusion=judged.confusion)
    write_rendered(folder / "report.html", lambda: page(report.to_dict()).encode(), work.note)
    write_kits(folder, work.config.kits)
    return report


def _write_libraries(out: Path, names: str, note: Note) -> None:
    """Compile the libraries of an export that is whole: a compiler that fails costs no more than them."""
    try:
        lines = library_lines(write_libraries(out, names))
    except QdeployError:
        note(f"{out} is whole but for its libraries, which `qdeploy kit` makes, too, by `native_library`")
        raise
    for line in lines:
        note(line)


def _parity_pixels(graph: onnx.ModelProto, dataset: Dataset, note: Note) -> NDArray[np.uint8]:
    images = dataset.splits["val"].pixels[:PARITY_IMAGES]
    decided = without_ties(graph, images)
    if ties := len(images) - len(decided):
        note(f"{ties} of {len(images)} images are not compared: what the model picks is a tie there")
    return decided


def _require_own(out: Path) -> None:
    """Refuse to replace a folder that is not an earlier export, or that the user stands in."""
    if Path.cwd().resolve().is_relative_to(out.resolve()):
        raise InputError(f"cannot export to {out}, the folder you are in", fix="give a new folder with `out`")
    if not out.is_dir():
        return
    others = [p.name for p in files_in(out) if not _is_own(p)]
    if others:
        raise InputError(
            f"{out} holds '{others[0]}' and would be replaced", fix="give an empty or new folder with `out`"
        )


def _is_own(path: Path) -> bool:
    return (path.is_file() and OWN_FILES.fullmatch(path.name) is not None) or is_own_kit(path)


def _float_step(work: Work, source: Source) -> tuple[Made, list[Step]]:
    """Make the fp32 file: every form of the model, and the graph, must give what the model gave as it came."""
    first, *others = source.references(work.parity_pixels)
    steps = []
    require_finite(source.graph, first.values, work.parity_pixels, partial(_called, work))
    largest = max(1.0, float(np.abs(first.values).max()))  # rounding is relative to the values
    folding = FOLD_TOLERANCE
    if source.rounding > FP32_TOLERANCE:
        folding = source.rounding
        work.note("the model computes in 16-bit floats in parts, and what is made of it in float32")
    for other in others:
        parity = measure(first.values, other.values)
        require_equal(f"{first.form} to {other.form}", parity, folding * largest)
        steps.append(Step(step=f"{first.form} to {other.form}", parity=parity))
    card = first_card(work, source)
    made = finish(work, source.graph, card, first.values, "model.fp32.onnx", FLOAT_GOLDEN_DB, output=first.output)
    try:
        require_equal(f"{first.form} to fp32", made.parity, source.rounding * largest)
    except VerdictError as error:
        raise source.refusal(error) from error
    work.note(f"fp32: {first.output} within {made.parity.max_abs:.1e} of {first.form} on {made.parity.n} images")
    return made, [*steps, Step(step=f"{first.form} to fp32", parity=made.parity)]


def _called(work: Work, position: int) -> str:
    """Return what an image of those that are compared is called."""
    images = work.dataset.splits["val"]
    same = (i for i, p in enumerate(images.pixels) if np.array_equal(p, work.parity_pixels[position]))
    return called("validation", images.hashes, 0, next(same))


def _half_step(work: Work, fp32: Made) -> Made:
    """Make the fp16 graph: for GPUs and engines, not faster on a CPU."""
    origin = replace(fp32.card.origin, parent_sha256=sha256_of(fp32.data))
    card = replace(fp32.card, precision="fp16", origin=origin)
    half = finish(work, to_fp16(fp32.model), card, fp32.parity_logits, "model.fp16.onnx", HALF_GOLDEN_DB, fp32=fp32)
    require_sound("fp32 to fp16", half.parity, HALF_GOLDEN_DB)
    work.note(f"fp16: {half.parity.sqnr_db:.1f} dB, top-1 agrees on {half.parity.same_words()}")
    return half


def _int8(work: Work, source: Source, fp32: Made, stress: StressSet) -> tuple[list[Int8Made], Calibration]:
    """Quantize, and where that misses the budget and a fine-tune is wanted, fine-tune and quantize again."""
    made = int8_step(work, fp32, stress)
    losses = [(i.report.budget, i.report.loss) for i in made[0]]
    if work.config.qat_epochs and not all(b.tolerates(loss.difference, loss.flips) for b, loss in losses):
        finetuned = source.finetuned(work.dataset, work.config.qat_epochs, work.note)
        if finetuned is not None:
            return int8_step(work, fp32, stress, finetuned)
        work.note("a graph without its model cannot be fine-tuned, and is not")
    return made


def _calibration_record(calibration: Calibration, int8: list[Int8Made]) -> dict[str, Any]:
    targets = {i.report.target: {"method": i.report.calibration, "ranges": i.ranges} for i in int8}
    return {
        "seed": calibration.seed,
        "images": list(calibration.image_hashes),
        "images_sha256": calibration.sha256,
        "extremes": calibration.ranges("minmax"),
        "targets": targets,
    }
