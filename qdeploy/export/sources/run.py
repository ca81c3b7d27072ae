"""The export of a trained run, or of any model: fold, compare, trace, compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from qdeploy.core.artifact import EXPORTS
from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.machine import usable_cores
from qdeploy.core.metrics import Floats, measure
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import newest_run, read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export.config import ExportConfig, Note, Progress
from qdeploy.export.finish import Made, Work, finish, first_card
from qdeploy.export.graph.parity import FOLD_TOLERANCE, FP32_TOLERANCE, require_equal
from qdeploy.export.int8.finetune import FinetuneConfig, finetune
from qdeploy.export.pipeline import FLOAT_GOLDEN_DB, export_source, no_progress, silent
from qdeploy.export.sources.trace import trace, trace_once
from qdeploy.export.verdict import ExportReport, Step
from qdeploy.models.folding import deploy
from qdeploy.models.registry import model_from_record
from qdeploy.runtime.session import SMALL_MACS

TORCH_BATCH = 16


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
    rules = Preprocessing.from_dict(record["preprocessing"])
    source = TorchSource(_model(record, weights, run), sha256_of(weights), rules, json.dumps(record["model"]))
    return export_source(
        source, record, lambda: _dataset(record, rules), config, out or EXPORTS / run.resolve().name, note, tick
    )


@dataclass(frozen=True)
class TorchSource:
    """A model in torch, on the CPU and in its evaluation mode."""

    model: nn.Module
    weights_sha256: str
    rules: Preprocessing
    kind: str | None = None
    """What the model is apart from its weights and preprocessing; its graph is kept for the next export."""

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The folded model, traced."""
        if self.kind is None:
            return trace(self._deployed, self.rules.size)
        identity = f"{self.kind} {self.weights_sha256} {self.rules}"
        return trace_once(self._deployed, self.rules.size, identity)

    def float_step(self, work: Work) -> tuple[Made, tuple[Step, ...]]:
        """Compare the folded model and its graph with the model."""
        threads = 1 if work.record["model"]["macs"] < SMALL_MACS else usable_cores()
        images = torch.from_numpy(work.parity_pixels)
        mean, std = torch.tensor(self.rules.mean), torch.tensor(self.rules.std)
        reference = _logits(lambda p: self.model(((p.float() / 255 - mean) / std).permute(0, 3, 1, 2)), images, threads)
        folded = _logits(lambda p: self._deployed(p)[0], images, threads)
        magnitude = max(1.0, float(np.abs(reference).max()))
        folding = measure(reference, folded)
        require_equal("folding", folding, FOLD_TOLERANCE * magnitude)
        card = first_card(work, self.weights_sha256)
        made = finish(work, self.graph, card, reference, "model.fp32.onnx", FLOAT_GOLDEN_DB)
        require_equal("torch to ONNX fp32", made.parity, FP32_TOLERANCE)
        work.note(f"fp32: logits within {made.parity.max_abs:.1e} of torch on {made.parity.n} images")
        return made, (Step(name="trained to folded", parity=folding), Step(name="trained to fp32", parity=made.parity))

    def finetuned(self, work: Work) -> onnx.ModelProto:
        """Fine-tune the inference form for INT8, and trace it."""
        config = FinetuneConfig(epochs=work.config.qat_epochs)
        return trace(finetune(self._deployed, work.dataset, config, work.note), self.rules.size)

    @cached_property
    def _deployed(self) -> nn.Module:
        return deploy(self.model, self.rules.mean, self.rules.std)


def _model(record: dict[str, Any], weights: bytes, run: Path) -> nn.Module:
    try:
        model = model_from_record(record["model"])
        tensors = load_tensors(weights)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, InputError) as error:
        raise InputError(f"{run} cannot be read as a model: {str(error).splitlines()[0]}; train again") from error
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(f"the weights '{broken[0]}' of {run} hold values that are no numbers; train again")
    return model.eval()


def _dataset(record: dict[str, Any], rules: Preprocessing) -> Dataset:
    trained = record["dataset"]
    dataset = load_dataset(trained["source"], rules)
    if dataset.sha256 != trained["sha256"]:
        raise InputError(
            f"the data set {trained['source']} has changed since training (found {dataset.sha256[:12]}, trained on "
            f"{trained['sha256'][:12]}); restore it or train again"
        )
    return dataset


def _logits(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, threads: int) -> Floats:
    """Return a model's logits ``[N, K]`` of images ``[N, S, S, 3]``; of few threads, as many batches at once as fit.

    Beside a busy neighbour two threads of torch take up to thirty times as long as one, two batches twice as long.
    """

    def run(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(batch)

    with torch_threads(threads), ThreadPoolExecutor(max(1, usable_cores() // threads)) as pool:
        return np.asarray(torch.cat(list(pool.map(run, images.split(TORCH_BATCH)))).numpy(), np.float32)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let each operation of torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
