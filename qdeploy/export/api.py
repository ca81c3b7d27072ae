"""The functions that export: a run, your own module, an ONNX file from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from qdeploy.core.artifact import EXPORTS
from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qdeploy.core.progress import Note, StepProgress, no_progress, silent
from qdeploy.core.run_folder import newest_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export.config import ExportConfig
from qdeploy.export.pipeline import export_source
from qdeploy.export.report.record import ExportReport
from qdeploy.export.sources.module import module_source
from qdeploy.export.sources.onnx_file import onnx_source
from qdeploy.export.sources.run import run_source


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
    name: str = "module",
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
        name: Name of the model in the card.
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
    source = module_source(module, len(labels), preprocessing, name)
    return export_source(source, lambda: dataset, config or ExportConfig(), out, note)


def export_onnx(
    file: Path,
    data: str,
    out: Path,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    config: ExportConfig | None = None,
    note: Note = silent,
    progress: StepProgress = no_progress,
) -> ExportReport:
    """Export a float ONNX file, made by any tool, with the same checks, INT8 and card as a run.

    Args:
        file: An image classifier: one float32 input ``[batch, 3, S, S]`` or ``[batch, S, S, 3]``, the batch not
            fixed, and one output of logits or probabilities ``[batch, K]``, whatever their names. Or a float file of
            qdeploy, which says itself how images become its input.
        data: A data set as ``qdeploy train`` takes it, whose K classes in their order are those of the output.
        out: The export's folder.
        mean: What is taken from each channel of an image in [0, 1].
        std: What that is divided by.
        config: What to make.
        note: Called with a line after each step.
        progress: Takes a step's name, and returns what is called with the number of its parts that are done and their
            total.

    Raises:
        InputError: If the file is no such graph, or the data do not fit it.
        VerdictError: If a step's parity is missed.
    """
    source, rules = onnx_source(file, mean, std)
    dataset = load_dataset(data, rules)
    classes = source.model.num_classes
    if classes != len(dataset.classes):
        raise InputError(f"{file} tells {classes} classes apart, {data} has {len(dataset.classes)}; give its own data")
    return export_source(source, lambda: dataset, config or ExportConfig(), out, note, progress)
