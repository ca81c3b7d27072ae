"""The export: trace, check, quantize, check, measure, write. Each step's result is checked on real images."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from qdeploy.core.artifact import EXPORTS
from qdeploy.core.errors import InputError
from qdeploy.core.files import folder_made_whole, sha256_of, write_bytes, write_json
from qdeploy.core.metrics import Floats
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import newest_run, read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export.calibrate import Calibration, Tick
from qdeploy.export.engine_step import build_engines
from qdeploy.export.finetune import FinetuneConfig, finetune
from qdeploy.export.half import to_fp16
from qdeploy.export.int8 import Int8Made, int8_step
from qdeploy.export.made import ExportConfig, Made, Note, Progress, Work, finish, first_card
from qdeploy.export.parity import FOLD_TOLERANCE, FP32_TOLERANCE, measure, require_equal, require_sound
from qdeploy.export.report import html_report
from qdeploy.export.trace import trace
from qdeploy.export.verdict import ExportReport, Step, judge
from qdeploy.models.folding import deploy
from qdeploy.models.registry import model_from_record

TORCH_BATCH = 64
FLOAT_GOLDEN_DB = 80.0
HALF_GOLDEN_DB = 30.0
"""Least agreement of fp16 with fp32; sound graphs reach 45 to 70."""
OWN_FILES = re.compile(r"model\.[a-z0-9.-]+\.(onnx|engine)|report\.(json|html)|calibration\.json")
"""What an export's folder may hold and be replaced."""


def silent(_: str) -> None:
    """Say nothing."""


def no_progress(_: str) -> Tick:
    """Show nothing."""
    return lambda done, total: None


def export(
    run: Path | None = None,
    config: ExportConfig | None = None,
    out: Path | None = None,
    note: Note = silent,
    tick: Progress = no_progress,
) -> ExportReport:
    """Export a run to ONNX, and with ``int8`` also to explicit Q/DQ INT8.

    Every step is compared with the one before on validation images; a failure leaves nothing behind. An INT8 file that
    is sound but loses too much accuracy, or is not faster here, is not kept, and ``accepted`` of the report is false.

    Args:
        run: A run's folder; by default the newest below ``./runs``.
        config: What to make.
        out: The export's folder; by default ``exports/<name of the run>``.
        note: Called with a line after each step.
        tick: Given a step's name, gives what is called with the number of its parts that are done and their total.

    Raises:
        InputError: If the run or its data cannot be used.
        VerdictError: If a step's parity is missed.
    """
    run = run or newest_run()
    record, weights = read_run(run)
    model = _model(record, weights, run)
    out = out or EXPORTS / run.resolve().name
    return export_model(model, record, sha256_of(weights), lambda: _dataset(record), config, out, note, tick)


def export_model(
    model: nn.Module,
    record: dict[str, Any],
    weights_sha256: str,
    read: Callable[[], Dataset],
    config: ExportConfig | None,
    out: Path,
    note: Note,
    tick: Progress = no_progress,
) -> ExportReport:
    """Export a model that the record describes; ``read`` gives its data."""
    config = config or ExportConfig()
    _require_own(out)
    with folder_made_whole(out) as folder:
        dataset = read()
        for text in dataset.notes:
            note(text)
        name = f"{record['model']['name'].replace('/', '-')}-{dataset.name}"
        work = Work(record=record, dataset=dataset, name=name, config=config, note=note, tick=tick)
        deployed = deploy(model, dataset.preprocessing.mean, dataset.preprocessing.std)
        fp32, steps = _float_step(work, model, deployed, weights_sha256)
        half = [_half_step(work, fp32)] if config.fp16 else []
        int8: list[Int8Made] = []
        if config.int8:
            int8, calibration = int8_step(work, fp32)
            if config.qat_epochs and not all(i.report.within_budget for i in int8):
                int8, calibration = int8_step(work, fp32, _finetuned(work, deployed))
            write_json(folder / "calibration.json", _calibration_record(calibration, int8))
        judged = judge(work, [fp32, *half], int8, steps, out)
        for item in judged.kept:
            write_bytes(folder / item.file, item.data)
        engines = build_engines(work, judged.kept, folder, out)
        report = replace(judged.report, engines=engines)
        write_json(folder / "report.json", report.to_dict())
        write_bytes(folder / "report.html", html_report(report.to_dict(), judged.flips).encode())
    return report


def _require_own(out: Path) -> None:
    """Refuse to replace a folder that is not an earlier export, or that the user stands in."""
    if Path.cwd().resolve().is_relative_to(out.resolve()):
        raise InputError(f"cannot export to {out}, the folder you are in; give a new folder with --out")
    if not out.is_dir():
        return
    others = [p.name for p in out.iterdir() if not (p.is_file() and OWN_FILES.fullmatch(p.name))]
    if others:
        raise InputError(f"{out} holds '{others[0]}' and would be replaced; give an empty or new folder with --out")


def _model(record: dict[str, Any], weights: bytes, run: Path) -> nn.Module:
    try:
        model = model_from_record(record["model"])
        model.load_state_dict(load_tensors(weights))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, InputError) as error:
        raise InputError(f"{run} cannot be read as a model: {str(error).splitlines()[0]}; train again") from error
    return model.eval()


def _dataset(record: dict[str, Any]) -> Dataset:
    trained = record["dataset"]
    dataset = load_dataset(trained["source"], Preprocessing.from_dict(record["preprocessing"]))
    if dataset.sha256 != trained["sha256"]:
        raise InputError(
            f"the data set {trained['source']} has changed since training (found {dataset.sha256[:12]}, trained on "
            f"{trained['sha256'][:12]}); restore it or train again"
        )
    return dataset


def _float_step(
    work: Work, model: nn.Module, deployed: nn.Module, weights_sha256: str
) -> tuple[Made, tuple[Step, ...]]:
    rules, pixels = work.dataset.preprocessing, work.parity_pixels
    reference = _trained_logits(model, pixels, rules)
    with torch.inference_mode():
        folded = torch.cat([deployed(p)[0] for p in torch.from_numpy(pixels).split(TORCH_BATCH)]).numpy()
    magnitude = max(1.0, float(np.abs(reference).max()))
    folding = measure(reference, folded)
    require_equal("folding", folding, FOLD_TOLERANCE * magnitude)
    graph = trace(deployed, rules.size)
    card = first_card(work, weights_sha256)
    made = finish(work, graph, card, reference, "model.fp32.onnx", FLOAT_GOLDEN_DB)
    require_equal("torch to ONNX fp32", made.parity, FP32_TOLERANCE)
    work.note(f"fp32: logits within {made.parity.max_abs:.1e} of torch on {made.parity.n} images")
    steps = (Step(name="trained to folded", parity=folding), Step(name="trained to ONNX fp32", parity=made.parity))
    return made, steps


def _half_step(work: Work, fp32: Made) -> Made:
    """Make the fp16 graph: for GPUs and engines, not faster on a CPU."""
    lineage = {**fp32.card.lineage, "parent_sha256": sha256_of(fp32.data)}
    card = replace(fp32.card, precision="fp16", lineage=lineage)
    half = finish(work, to_fp16(fp32.model), card, fp32.parity_logits, "model.fp16.onnx", HALF_GOLDEN_DB)
    require_sound("fp32 to fp16", half.parity, HALF_GOLDEN_DB)
    work.note(f"fp16: {half.parity.sqnr_db:.1f} dB, top-1 agrees on {half.parity.top1_agreement:.1%} of images")
    return half


def _finetuned(work: Work, deployed: nn.Module) -> onnx.ModelProto:
    """Fine-tune the inference form for INT8, and trace it."""
    config = FinetuneConfig(epochs=work.config.qat_epochs)
    tuned = finetune(deployed, work.dataset, config, work.note)
    return trace(tuned, work.dataset.preprocessing.size)


def _trained_logits(model: nn.Module, pixels: NDArray[np.uint8], rules: Preprocessing) -> Floats:
    mean, std = torch.tensor(rules.mean), torch.tensor(rules.std)
    with torch.inference_mode():
        parts = torch.from_numpy(pixels).split(TORCH_BATCH)
        logits = [model(((p.float() / 255 - mean) / std).permute(0, 3, 1, 2)) for p in parts]
        return np.asarray(torch.cat(logits).numpy(), np.float32)


def _calibration_record(calibration: Calibration, int8: list[Int8Made]) -> dict[str, Any]:
    targets = {i.report.target: {"method": i.report.calibration, "ranges": i.ranges} for i in int8}
    return {
        "seed": calibration.seed,
        "images": list(calibration.image_hashes),
        "images_sha256": calibration.sha256,
        "extremes": calibration.ranges("minmax"),
        "targets": targets,
    }
