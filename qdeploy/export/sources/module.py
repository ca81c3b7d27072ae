"""A module that did not come from a run, as a source."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import nn

from qdeploy.core.card import MODULE_FAMILY, ModelInfo
from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.git import git_commit
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Note, silent
from qdeploy.core.reasons import onnxruntime_reason
from qdeploy.data.dataset import Dataset
from qdeploy.export.graph.parity import FP32_TOLERANCE, HALF_TOLERANCE
from qdeploy.export.sources.answers import PASSING
from qdeploy.export.sources.float32 import HALVES, in_float32, other_floats
from qdeploy.export.sources.module_copy import own_copy
from qdeploy.export.sources.module_run import noise_pixels, normalised, plain, tried
from qdeploy.export.sources.source import Reference
from qdeploy.export.sources.torch_model import TorchSource
from qdeploy.export.sources.torch_reason import refusal
from qdeploy.export.sources.trace import is_scripted, trace
from qdeploy.models.registry import count
from qdeploy.runtime.engines.onnxruntime_binding import FAILURES, open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError

TRACED_TOLERANCE = 1e-3
"""Largest difference of a traced graph, relative to the largest logit; the export's own parity is stricter."""
BATCH = "let forward use x.shape[0] and tensor operations where it uses Python's numbers, as len(x)"
"""What to do where a graph holds the size of a batch, or another value, as a constant."""


def module_source(
    module: nn.Module, classes: int, rules: Preprocessing, name: str, note: Note = silent
) -> ModuleSource:
    """Return a copy of a module as a source.

    Raises:
        InputError: If it does not take normalised images ``[B, 3, S, S]``, or does not give the same logits ``[B, K]``
            each time; the error names the part of the module.
    """
    model = tried(own_copy(module), rules, classes, note)
    weights = save_tensors({k: v.detach().clone().contiguous() for k, v in model.state_dict().items() if _is_plain(v)})
    if is_scripted(model):
        note("the module holds TorchScript: it is traced by torch's older exporter")
    return ModuleSource(
        model=ModelInfo(
            name=name,
            family=MODULE_FAMILY,
            params=sum(p.numel() for p in model.parameters()),
            macs=_macs(model, rules),
            input_size=rules.size,
            num_classes=classes,
        ),
        training={},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        git=git_commit(),
        sha256=sha256_of(weights),
        module=model,
        rules=rules,
    )


@dataclass(frozen=True, kw_only=True)
class ModuleSource(TorchSource):
    """A user's module, whose graph is compared with it as soon as it is traced."""

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The module, traced; in float32, whatever parts of it cast to."""
        graph = in_float32(self._traced) if other_floats(self._traced) else self._traced
        self._require_same(graph)
        self._require_no_sigmoids(graph)
        return graph

    def finetuned(self, dataset: Dataset, epochs: int, note: Note) -> onnx.ModelProto:
        """Fine-tune the module for INT8, and trace it; in float32, too."""
        traced = super().finetuned(dataset, epochs, note)
        return in_float32(traced) if other_floats(traced) else traced

    @property
    def rounding(self) -> float:
        """Larger for a module that casts to 16 bits."""
        return HALF_TOLERANCE if other_floats(self._traced) in HALVES.values() else FP32_TOLERANCE

    def references(self, pixels_NSSC: NDArray[np.uint8]) -> list[Reference]:
        """Return the logits of the module as it was given, and with its normalisation inside."""
        with plain():
            return super().references(pixels_NSSC)

    @cached_property
    def _traced(self) -> onnx.ModelProto:
        try:
            with plain():
                return trace(self._deployed, self.rules.size)
        except Exception as error:  # the exporter's, and whatever the module raises while it is traced
            raise refusal("torch cannot export the module", error, self._inside) from error

    @property
    def _inside(self) -> nn.Module:
        """The module in the form that is traced."""
        inside: nn.Module = getattr(self._deployed, "model", self._deployed)
        return inside

    def _require_no_sigmoids(self, graph: onnx.ModelProto) -> None:
        """Refuse a module that gives an independent probability for each class: its softmax would be others."""
        makers = {name: node for node in graph.graph.node for name in node.output}
        last = makers["logits"]
        while last.op_type in PASSING and last.input[0] in makers:
            last = makers[last.input[0]]
        if last.op_type in ("Sigmoid", "HardSigmoid"):
            raise InputError(
                f"the module gives {self.model.num_classes} independent probabilities (a sigmoid for each class), of "
                "which several may be high",
                fix="if only one class is right for an image, return what goes into the sigmoid",
            )

    def _require_same(self, graph: onnx.ModelProto) -> None:
        """Refuse a graph that holds what the module did for other images, as the size of their batch."""
        pixels = noise_pixels(5, self.rules.size)
        try:
            session = open_binding(graph.SerializeToString())
        except OnnxRuntimeError as error:
            raise InputError(f"ONNX Runtime refuses the module's graph: {error}") from error
        for size in (2, 1, 5):
            with plain():
                wanted = self.module(normalised(pixels[:size], self.rules)).detach().numpy()
            try:
                found = session.run(["logits"], {"image": pixels[:size]})[0]
            except FAILURES as error:
                said = onnxruntime_reason(str(error))
                raise InputError(f"the module's graph cannot take {size} images: {said}", fix=BATCH) from error
            largest = max(1.0, float(np.abs(wanted).max()))
            most = max(TRACED_TOLERANCE, self.rounding) * largest
            if found.shape != wanted.shape or not np.abs(found - wanted).max() <= most:
                raise InputError(f"the module's graph answers {size} images differently from the module", fix=BATCH)


def _is_plain(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided


def _macs(model: nn.Module, rules: Preprocessing) -> int:
    """Return the multiply-accumulates of one image, or 0 where torch cannot count them."""
    try:
        with plain():
            return count(model, rules.size, normalised(noise_pixels(1, rules.size), rules))[1]
    except Exception:  # the counter follows the module with another kind of tensors; nothing depends on it
        return 0
