"""Classification of many files on the machines of a Ray cluster; the one module that knows Ray Data.

The model travels through Ray. The images do not: every machine opens them by the path that they have here.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.data

from qdeploy.core.artifact import Artifact
from qdeploy.core.card import Card
from qdeploy.core.errors import InputError, QdeployError
from qdeploy.core.machine import usable_cores
from qdeploy.runtime.classifier import Classifier, Prediction
from qdeploy.runtime.inputs import STDIN
from qdeploy.runtime.predict import VOLUME_BATCH, Answer, answer

REACH_S = 10.0
PHASES = ("decode", "preprocess", "infer")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How images are spread over a Ray cluster."""

    address: str | None = None
    """Address of a Ray cluster; by default that of ``RAY_ADDRESS``, and without that a Ray of this machine alone."""
    batch_size: int | None = None
    """Images of one inference; by default ``VOLUME_BATCH``."""
    workers: int | None = None
    """Processes, each with a session; by default as many as the cluster's cores hold."""
    engine: str = "ort"
    threads: int = 1
    """Threads of each session, and cores that Ray reserves for it."""
    formats: tuple[str, ...] | None = None
    """Which image files are taken; by default all that can be read."""
    selftest: bool = True
    """Whether each session is checked against the goldens on its machine."""
    abstain: bool = True
    """Whether images below the file's threshold, if it has one, are ``unknown``."""

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("workers", self.workers), ("threads", self.threads)):
            if value is not None and not 1 <= value <= 1024:
                raise InputError(f"`{name}` must be between 1 and 1024", found=value)


class Worker:
    """An actor with one open session."""

    def __init__(self, artifact: Artifact, config: RayConfig) -> None:
        self.classifier = Classifier(
            artifact, config.engine, config.threads, config.selftest, formats=config.formats, abstain=config.abstain
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer a batch of paths with columns.

        They are probabilities ``[B, K]`` (zeros: none), energy (NaN: none), unknown, error, reason, latency_ms.
        """
        answers = answer(self.classifier, [os.fsdecode(p) for p in batch["path"]])
        nothing = np.zeros(len(self.classifier.card.labels), np.float32)
        return {
            "probabilities": np.stack([a.prediction.probabilities if a.prediction else nothing for a in answers]),
            "energy": np.array([_energy(a) for a in answers]),
            "unknown": np.array([a.prediction is not None and a.prediction.unknown for a in answers]),
            "error": np.array([a.error or "" for a in answers], object),
            "reason": np.array([a.reason or "" for a in answers], object),
            "latency_ms": np.array([[a.latency_ms[p] for p in PHASES] for a in answers]),
        }


def _energy(answer: Answer) -> float:
    found = answer.prediction.energy if answer.prediction else None
    return math.nan if found is None else found


def predict_on_ray(artifact: Artifact, images: Iterable[str], config: RayConfig | None = None) -> Iterator[Answer]:
    """Classify images as ``predict_files`` does: the same answers in the same order, as they come.

    Args:
        artifact: The model.
        images: Paths that every machine of the cluster can open. All names are in memory.
        config: How to spread them.

    Raises:
        InputError: If an image is standard input.
        RayFailedError: If there is no such cluster, or it fails.
    """
    config = config or RayConfig()
    names = list(images)
    if STDIN in names:
        raise InputError("Ray cannot read standard input on other machines", fix="give files")
    _connect(config.address)
    try:
        answers = _rows(_dataset(artifact, names, config), artifact.card, config.abstain)
        yield from (replace(a, image=name) for name, a in zip(names, answers, strict=True))
    except ray.exceptions.RayError as error:
        raise RayFailedError(f"Ray failed: {_last_line(error)}") from error
    finally:
        ray.shutdown()


class RayFailedError(QdeployError):
    """A Ray cluster cannot be reached, or lost its work."""


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS") or None
    try:
        if address:
            _require_reachable(address)
            ray.init(address, **quiet)
        else:
            ray.init(num_cpus=usable_cores(), include_dashboard=False, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise RayFailedError(f"cannot use Ray at {address or 'this machine'}: {_last_line(error)}") from error


def _require_reachable(address: str) -> None:
    """Knock first: Ray itself tries for minutes, and says so in a dozen lines."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_S).close()


def _dataset(artifact: Artifact, names: list[str], config: RayConfig) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return ray.data.from_items([{"path": os.fsencode(os.path.abspath(n))} for n in names]).map_batches(
        Worker,
        fn_constructor_args=(artifact, config),
        batch_size=config.batch_size or VOLUME_BATCH,
        num_cpus=config.threads,
        compute=ray.data.ActorPoolStrategy(size=config.workers or max(1, cores // config.threads)),
    )


def _rows(dataset: ray.data.Dataset, card: Card, abstain: bool) -> Iterator[Answer]:
    judged = abstain and card.cut is not None
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        columns = (batch[name] for name in ("probabilities", "energy", "unknown", "error", "reason", "latency_ms"))
        for probabilities, found, unknown, error, reason, times in zip(*columns, strict=True):
            energy = None if math.isnan(found) else float(found)
            score, row = energy if judged else None, probabilities.tolist()
            yield Answer(
                image="",
                prediction=None if error else Prediction(card.labels, row, score, bool(unknown), energy),
                error=str(error) or None,
                reason=reason or None,
                latency_ms=dict(zip(PHASES, map(float, times), strict=True)),
            )


def _last_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error).strip().rpartition("\n")[2]
