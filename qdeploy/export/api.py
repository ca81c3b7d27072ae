"""The functions that export: a run, your own module, an ONNX file from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from qdeploy.core.artifact import EXPORTS
from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Note, StepProgress, no_progress, silent
from qdeploy.core.run_folder import newest_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export.config import ExportConfig
from qdeploy.export.pipeline import export_source
from qdeploy.export.report.record import ExportReport
from qdeploy.export.sources.findings import what_data_say
from qdeploy.export.sources.foreign import ForeignConfig
from qdeploy.export.sources.generated import generated_dataset
from qdeploy.export.sources.labels import matched, require_count
from qdeploy.export.sources.module import module_source
from qdeploy.export.sources.module_copy import class_name
from qdeploy.export.sources.onnx_file import AS_IT_IS, onnx_source
from qdeploy.export.sources.run import run_source
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeRunError


def export(
    run: Path | None = None,
    config: ExportConfig | None = None,
    out: Path | None = None,
    note: Note = silent,
    progress: StepProgress = no_progress,
) -> ExportReport:
    """Export a run to ONNX, and with ``int8`` also to explicit Q/DQ INT8.

    Every step is compared with the one before on validation images; a failure leaves nothing behind. An INT8 file that
    is sound but loses too much accuracy, or is not faster here, is not kept, and ``accepted`` of the report is false.

    Args:
        run: A run's folder; by default the newest below ``./runs``.
        config: What to make.
        out: The export's folder; by default ``exports/<name of the run>``.
        note: Called with a line after each step.
        progress: Takes a step's name, and returns what is called with the number of its parts that are done and their
            total.

    Raises:
        InputError: If the run or its data cannot be used.
        VerdictError: If a step's parity is missed.
    """
    run = run or newest_run()
    source, read = run_source(run)
    return export_source(source, read, config or ExportConfig(), out or EXPORTS / run.resolve().name, note, progress)


def export_module(
    module: nn.Module,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    data: str | Dataset,
    out: Path,
    *,
    name: str | None = None,
    config: ExportConfig | None = None,
    note: Note = silent,
) -> ExportReport:
    """Export your own trained module, with the same checks, INT8 and card as a run.

    Args:
        module: Takes normalised float32 ``[B, 3, S, S]`` and returns logits ``[B, K]``; it is not changed.
        labels: The K class names in the order of the logits: those of the data, in its order.
        preprocessing: How an image becomes the module's input.
        data: A data set as ``qdeploy train`` takes it, or a loaded one: ranges come from its training split, parity
            from validation, accuracy from test.
        out: The export's folder.
        name: Name of the model in the card; by default that of the module's class.
        config: What to make.
        note: Called with a line after each step.

    Raises:
        InputError: If module, labels and data do not fit together.
        VerdictError: If a step's parity is missed.
    """
    dataset = load_dataset(data, preprocessing) if isinstance(data, str) else data
    if dataset.preprocessing != preprocessing:
        raise InputError("the data was loaded with another preprocessing than the module's; load it with that one")
    if tuple(labels) != dataset.classes:
        raise InputError(f"the labels are {', '.join(labels)}, the data's classes {', '.join(dataset.classes)}")
    source = module_source(module, len(labels), preprocessing, name or class_name(module), note)
    return export_source(source, lambda: dataset, config or ExportConfig(), out, note)


def export_onnx(
    file: Path,
    data: str,
    out: Path,
    *,
    foreign: ForeignConfig = AS_IT_IS,
    config: ExportConfig | None = None,
    note: Note = silent,
    progress: StepProgress = no_progress,
) -> ExportReport:
    """Export a float ONNX file, made by any tool, with the same checks, INT8 and card as a run.

    Args:
        file: An image classifier: one input of images ``[batch, C, H, W]`` or ``[batch, H, W, C]``, and logits or
            probabilities of K classes. Or a float file of qdeploy, which says itself how images become its input.
        data: A data set as ``qdeploy train`` takes it, with the file's K classes or, where its labels are known, some
            of them.
        out: The export's folder.
        foreign: What the graph does not say: labels, mean and std, colours, which output.
        config: What to make.
        note: Called with a line after each step.
        progress: Takes a step's name, and returns what is called with the number of its parts that are done and their
            total.

    Raises:
        InputError: If the file is no such graph, the data do not fit it, or ONNX Runtime fails with what is made of it.
        VerdictError: If a step's parity is missed.
    """
    source, rules = onnx_source(file, foreign)
    for text in source.notes:
        note(text)
    dataset, texts = matched(load_dataset(data, rules), source.labels, source.model.num_classes, file)
    for text in (*texts, *what_data_say(source, dataset)):
        note(text)
    try:
        return export_source(source, lambda: dataset, config or ExportConfig(), out, note, progress)
    except OnnxRuntimeRunError as error:
        raise InputError(f"what is made of {file} cannot be run: {error.what}", fix="export it again") from error


def adopt_onnx(
    file: Path,
    out: Path,
    *,
    data: str | None = None,
    foreign: ForeignConfig = AS_IT_IS,
    note: Note = silent,
    progress: StepProgress = no_progress,
) -> ExportReport:
    """Make a model file of a float ONNX file, made by any tool, without quantizing it.

    It is complete: card, labels, preprocessing, goldens, and the hash of the file that it was made from.

    Args:
        file: As ``export_onnx`` takes it.
        out: The export's folder.
        data: Images to compare and measure on; without them generated ones are compared, and no accuracy is known.
        foreign: What the graph does not say; the labels must be known, from here, the file or the data.
        note: Called with a line after each step.
        progress: As ``export_onnx`` takes it.

    Raises:
        InputError: If the file is no such graph, or its labels are not known.
        VerdictError: If a step's parity is missed.
    """
    if data is not None:
        return export_onnx(file, data, out, foreign=foreign, note=note, progress=progress)
    source, rules = onnx_source(file, foreign)
    for text in source.notes:
        note(text)
    if source.labels is None:
        raise InputError(
            f"nothing says what the {source.model.num_classes} classes of {file} are called",
            fix="give `labels`, or `data` with a folder for each class",
        )
    require_count(source.labels, source.model.num_classes, file)
    note(source.labels.said())
    dataset = generated_dataset(rules, source.labels.labels)
    return export_source(source, lambda: dataset, ExportConfig(), out, note, progress)
