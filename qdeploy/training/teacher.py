"""Distillation: what one or several trained models answer to the training images, computed once and kept.

A teacher is a run's folder or a model file (ONNX) of qdeploy's. Its answers are those to the images as they are; a
student sees them augmented, and mixed images have mixed answers.

Array names: N images, B batch, S height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of, write_bytes
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import read_run
from qdeploy.data.places import cache_folder
from qdeploy.models.registry import model_from_record, require_as_large
from qdeploy.runtime.session import open_session
from qdeploy.training.augment import normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdeploy.data.dataset import Dataset, Split

PART = 64
"""Images asked about at once."""
Ask = Callable[["NDArray[np.uint8]"], Tensor]
"""uint8 images ``[B, S, S, 3]`` to float32 logits ``[B, K]``."""


def teacher_targets(teachers: str, temperature: float, dataset: Dataset, split: Split) -> Tensor:
    """Return the mean of the teachers' softened probabilities of every image of a split, float32 ``[N, K]``.

    Args:
        teachers: Paths of runs or model files, separated by commas.
        temperature: The logits are divided by it before the softmax.
        dataset: What the student is trained on.
        split: The images.

    Raises:
        InputError: If a teacher cannot be read, knows other classes, or takes images of another size or by other rules.
    """
    found = [_logits(Path(path.strip()), dataset, split) for path in teachers.split(",")]
    return torch.stack([(logits / temperature).softmax(dim=1) for logits in found]).mean(dim=0)


def absolute(teachers: str) -> str:
    """Return the paths made absolute: a run that goes on elsewhere finds its teachers."""
    return ",".join(str(Path(path.strip()).resolve()) for path in teachers.split(",")) if teachers else ""


def _logits(path: Path, dataset: Dataset, split: Split) -> Tensor:
    with torch.random.fork_rng(devices=[]):  # building it draws weights: the student's chances stay the same
        digest, ask = _open(path, dataset)
    images = sha256_of("\n".join(split.hashes).encode())
    rules = dataset.preprocessing
    key = sha256_of(f"{digest} {images} {len(split)} {rules.size} {rules.interpolation} {rules.background}".encode())
    kept = cache_folder() / "teachers" / f"{key[:32]}.safetensors"
    if kept.is_file():
        logits = load_file(kept).get("logits")
        if logits is not None and logits.shape == (len(split), len(dataset.classes)):
            return logits
    logits = torch.cat([ask(np.asarray(split.pixels[part])) for part in _parts(len(split))])
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(kept, save_tensors({"logits": logits.contiguous()}))
    return logits


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + PART) for start in range(0, count, PART))


def _open(path: Path, dataset: Dataset) -> tuple[str, Ask]:
    """Return a teacher's hash and what asks it."""
    if path.is_dir():
        record, weights = read_run(path)
        _require_same(path, record.labels, record.preprocessing, dataset)
        require_as_large(record.model.family, record.model.config, len(weights))
        model = model_from_record(record.model.family, record.model.config)
        model.load_state_dict(load_tensors(weights))
        model.eval()
        mean, std = torch.tensor(record.preprocessing.mean), torch.tensor(record.preprocessing.std)

        def ask_run(images: NDArray[np.uint8]) -> Tensor:
            with torch.inference_mode():
                return model(normalise(torch.from_numpy(images), mean, std)).float()

        return sha256_of(weights), ask_run
    artifact = read_artifact(path)
    _require_same(path, tuple(artifact.card.labels), artifact.card.preprocessing, dataset)
    session = open_session(artifact)
    return sha256_of(artifact.data), lambda images: torch.from_numpy(np.array(session.infer(images)[0]))


def _require_same(path: Path, labels: tuple[str, ...], rules: Preprocessing, dataset: Dataset) -> None:
    if labels != tuple(dataset.classes):
        raise InputError(
            f"the teacher {path} knows other classes than the data: {', '.join(labels[:3])} ... and "
            f"{', '.join(dataset.classes[:3])} ..."
        )
    for name in ("size", "interpolation", "background"):
        theirs, ours = getattr(rules, name), getattr(dataset.preprocessing, name)
        if theirs != ours:
            raise InputError(f"the teacher {path} takes images of {name} {theirs}, the student of {ours}")
