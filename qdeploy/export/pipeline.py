"""The export: trace, check, quantize, check, measure, write. Each step's result is checked on real images."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from qdeploy.core.artifact import EXPORTS
from qdeploy.core.errors import InputError
from qdeploy.core.files import folder_made_whole, sha256_of, write_bytes, write_json
from qdeploy.core.machine import environment
from qdeploy.core.metrics import Floats, PairedDifference, paired_difference
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import newest_run, read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.calibrate import Calibration
from qdeploy.export.int8 import Candidate, int8_step
from qdeploy.export.made import ExportConfig, Made, Note, Work, finish, first_card
from qdeploy.export.parity import FOLD_TOLERANCE, FP32_TOLERANCE, measure, require_equal
from qdeploy.export.report import html_report
from qdeploy.export.trace import trace
from qdeploy.models.folding import deploy
from qdeploy.models.registry import model_from_record
from qdeploy.runtime.bench import Comparison, compare, latency_summary, sample_images, time_rounds

TORCH_BATCH = 64
FLOAT_GOLDEN_DB = 80.0
REPORT_RUNS = 300
OWN_FILES = re.compile(r"model\.[a-z0-9.]+\.(onnx|engine)|report\.(json|html)|calibration\.json")
"""What an export's folder may hold and be replaced."""


@dataclass(frozen=True, kw_only=True)
class ArtifactReport:
    """One file that an export made."""

    path: str
    precision: str
    engine: str
    size_bytes: int
    sha256: str
    parity: dict[str, Any]
    """max_abs, sqnr_db, top1_agreement, n: against the step before."""
    accuracy: dict[str, Any]
    """split, top1 and top5 in percent, n, ci95."""
    latency_ms: dict[str, float | None]
    float_layers: str


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The whole export."""

    out: str
    artifacts: tuple[ArtifactReport, ...]
    verdict: str
    recommended: str
    """Name of the file that predict and bench take: INT8 if it was measured to be faster here."""
    comparison: Comparison | None
    difference: PairedDifference | None
    """INT8 minus fp32 accuracy on the test split."""
    candidates: tuple[Candidate, ...]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON document of ``qdeploy export``."""
        return asdict(self)


def silent(_: str) -> None:
    """Say nothing."""


def export(
    run: Path | None = None, config: ExportConfig | None = None, out: Path | None = None, note: Note = silent
) -> ExportReport:
    """Export a run to ONNX, and with ``int8`` also to explicit Q/DQ INT8.

    Every step is compared with the one before on validation images; a failure leaves nothing behind.

    Args:
        run: A run's folder; by default the newest below ``./runs``.
        config: What to make.
        out: The export's folder; by default ``exports/<name of the run>``.
        note: Called with a line after each step.

    Raises:
        InputError: If the run or its data cannot be used.
        VerdictError: If parity or the accuracy budget is missed.
    """
    run = run or newest_run()
    record, weights = read_run(run)
    model = _model(record, weights, run)
    out = out or EXPORTS / run.resolve().name
    return export_model(model, record, sha256_of(weights), lambda: _dataset(record), config, out, note)


def export_model(
    model: nn.Module,
    record: dict[str, Any],
    weights_sha256: str,
    read: Callable[[], Dataset],
    config: ExportConfig | None,
    out: Path,
    note: Note,
) -> ExportReport:
    """Export a model that the record describes; ``read`` gives its data."""
    config = config or ExportConfig()
    _require_own(out)
    with folder_made_whole(out) as folder:
        dataset = read()
        for text in dataset.notes:
            note(text)
        name = f"{record['model']['name'].replace('/', '-')}-{dataset.name}"
        work = Work(record=record, dataset=dataset, name=name, config=config, note=note)
        made = [_float_step(work, model, weights_sha256)]
        candidates: tuple[Candidate, ...] = ()
        if config.int8:
            int8, calibration, candidates = int8_step(work, made[0])
            made.append(int8)
            write_json(folder / "calibration.json", _calibration_record(calibration))
        for item in made:
            write_bytes(folder / item.file, item.data)
        report = _report(out, made, dataset.splits["test"], candidates, config)
        write_json(folder / "report.json", report.to_dict())
        write_bytes(folder / "report.html", html_report(report.to_dict(), name).encode())
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


def _float_step(work: Work, model: nn.Module, weights_sha256: str) -> Made:
    rules, pixels = work.dataset.preprocessing, work.parity_pixels
    reference = _trained_logits(model, pixels, rules)
    deployed = deploy(model, rules.mean, rules.std)
    with torch.inference_mode():
        folded = torch.cat([deployed(p)[0] for p in torch.from_numpy(pixels).split(TORCH_BATCH)]).numpy()
    magnitude = max(1.0, float(np.abs(reference).max()))
    require_equal("folding", measure(reference, folded), FOLD_TOLERANCE * magnitude)
    graph = trace(deployed, rules.size)
    card = first_card(work, weights_sha256)
    made = finish(work, graph, card, reference, "model.fp32.onnx", FLOAT_GOLDEN_DB)
    require_equal("torch to ONNX fp32", made.parity, FP32_TOLERANCE)
    work.note(f"fp32: logits within {made.parity.max_abs:.1e} of torch on {made.parity.n} images")
    return made


def _trained_logits(model: nn.Module, pixels: NDArray[np.uint8], rules: Preprocessing) -> Floats:
    mean, std = torch.tensor(rules.mean), torch.tensor(rules.std)
    with torch.inference_mode():
        parts = torch.from_numpy(pixels).split(TORCH_BATCH)
        logits = [model(((p.float() / 255 - mean) / std).permute(0, 3, 1, 2)) for p in parts]
        return np.asarray(torch.cat(logits).numpy(), np.float32)


def _calibration_record(calibration: Calibration) -> dict[str, Any]:
    return {
        "method": "minmax",
        "seed": calibration.seed,
        "images": list(calibration.image_hashes),
        "images_sha256": calibration.sha256,
        "ranges": {name: list(pair) for name, pair in calibration.ranges.items()},
    }


def _report(
    out: Path, made: list[Made], test: Split, candidates: tuple[Candidate, ...], config: ExportConfig
) -> ExportReport:
    images = sample_images(made[0].card.preprocessing)
    rounds = time_rounds([m.session for m in made], [images] * len(made), runs=REPORT_RUNS, seconds=30.0)
    comparison = difference = None
    verdict = "fp32 exported; its logits are those of the trained model"
    if len(made) == 2:
        comparison = compare("int8", "fp32", rounds[1], rounds[0])
        difference = paired_difference(made[1].test_logits, made[0].test_logits, test.labels)
        verdict = _verdict(comparison, difference, config.target)
    use_int8 = config.target == "x86" and comparison is not None and comparison.verdict == "faster"
    return ExportReport(
        out=str(out),
        artifacts=tuple(
            _artifact_report(out, m, [t for block in r for t in block]) for m, r in zip(made, rounds, strict=True)
        ),
        verdict=verdict,
        recommended=made[-1].file if use_int8 else made[0].file,
        comparison=comparison,
        difference=difference,
        candidates=candidates,
        environment=environment("qdeploy", "torch", "onnx", "onnxruntime", "numpy"),
    )


def _artifact_report(out: Path, made: Made, samples: list[float]) -> ArtifactReport:
    return ArtifactReport(
        path=str(out / made.file),
        precision=made.card.precision,
        engine=made.session.engine,
        size_bytes=len(made.data),
        sha256=sha256_of(made.data),
        parity=made.parity.to_dict(),
        accuracy=made.card.accuracy,
        latency_ms=latency_summary(samples),
        float_layers=made.float_layers,
    )


def _verdict(comparison: Comparison, difference: PairedDifference, target: str) -> str:
    accuracy = f"{difference.points:+.2f} +- {difference.margin95:.2f} points of top-1 on {difference.n} test images"
    if target != "x86":
        return f"INT8 for {target}: {accuracy}; its speed must be measured on the target"
    low, high = comparison.ci95
    speed = f"{comparison.ratio:.2f}x the speed of fp32 (95 % interval {low:.2f} to {high:.2f})"
    word = "accepted" if comparison.verdict == "faster" else "exported but not recommended here"
    return f"INT8 {word}: {accuracy}, {speed}"
