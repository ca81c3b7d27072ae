"""``qdeploy tune``: measures all candidates and chooses file, engine, threads and batch within the user's limits.

Every candidate first gives its goldens' answers; a wrong one is fast for nothing. The others run interleaved in one
process, and who is clearly slower than the fastest within the limits stops running (successive elimination), so that
the time goes to those who are close.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qdeploy.bench.tune.candidate import Candidate
from qdeploy.bench.tune.limits import Limits
from qdeploy.bench.tune.race import WORTH, race
from qdeploy.bench.tune.report import TuneReport, device_of, report_of
from qdeploy.core.artifact import SHIPPED, Artifact, model_files, read_artifact
from qdeploy.core.card import Accuracy, Goldens
from qdeploy.core.errors import InputError, MissingDependencyError, QdeployError
from qdeploy.core.files import write_json
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.machine import usable_cores
from qdeploy.core.progress import NamedProgress
from qdeploy.runtime.device import DEVICE_FILE
from qdeploy.runtime.session import ENGINES, engines_for, open_session

BATCHES = (1, 8, 32)
NOISY = 2.0
"""Ends of the interval of a ratio that are so many times apart tell nothing."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """The configuration of ``qdeploy tune``."""

    limits: Limits = field(default_factory=Limits)
    seconds: float = 30.0
    """Seconds of timing; opening, checking and measuring memory come on top."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise InputError("`seconds` must be positive", found=self.seconds)


def tune(model: Path, config: TuneConfig | None = None, progress: NamedProgress | None = None) -> TuneReport:
    """Measure every candidate, choose one, and write ``device.json`` beside it.

    Nothing is written if nothing is within the limits, if the clock was too noisy to tell, into a folder that cannot
    be written to, and for the shipped model, whose folder belongs to the package.

    Args:
        model: A model file or an export's folder.
        config: Limits and time.
        progress: Called with what is done, the total, and what goes on.

    Raises:
        ArtifactError: If there is no usable model file.
    """
    config = config or TuneConfig()
    progress = progress or (lambda done, total, text: None)
    candidates, not_tried = opened(read_all(model), config.limits, progress)
    try:
        reference = next((t.artifact.card.accuracy for t in candidates if t.precision == "fp32"), None)
        for candidate in candidates:
            candidate.difference = difference(candidate.artifact.card.accuracy, reference)
            candidate.rejected = candidate.rejected or _rejection(candidate, config.limits)
        race([t for t in candidates if t.rejected is None], config.limits, config.seconds, progress)
    finally:
        for candidate in candidates:
            candidate.close()
    chosen = choose(candidates, config.limits)
    if chosen:
        chosen.measure_memory()
    report = report_of(candidates, chosen, not_tried, config.limits)
    if chosen and (noise := noise_of(candidates, chosen, config.limits)):
        return replace(report, reason=f"{report.reason}; {noise}", noisy=True)
    return _kept(model, report, chosen)


def _rejection(candidate: Candidate, limits: Limits) -> str | None:
    """Return what rules out a candidate before it is timed, or None; memory is measured only if it is limited."""
    try:
        if limits.memory_mb is not None:
            candidate.measure_memory()
    except QdeployError as error:
        return str(error)
    return limits.broken_before_timing(candidate)


def read_all(model: Path) -> list[Artifact]:
    """Read the model files of a folder, fp32 first; or the one file given.

    Raises:
        ArtifactError: If there is none, or one is damaged.
    """
    return sorted((read_artifact(f) for f in model_files(model)), key=lambda a: a.card.precision != "fp32")


def difference(accuracy: Accuracy | None, reference: Accuracy | None) -> PairedDifference | None:
    """Return a file's top-1 minus that of the fp32 file; None where a card does not tell.

    Early cards do not say how sure that is: its margin is infinite.
    """
    if accuracy is None or reference is None:
        return None
    if accuracy.against_fp32:
        return accuracy.against_fp32
    points = round(accuracy.top1 - reference.top1, 4)
    return PairedDifference(points=points, margin95=math.inf if points else 0.0, n=accuracy.n)


def thread_counts(cores: int) -> list[int]:
    """Return the powers of two up to the usable cores, and these."""
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})


def opened(
    artifacts: Sequence[Artifact], limits: Limits, progress: NamedProgress
) -> tuple[list[Candidate], dict[str, str]]:
    """Open every file with every engine that fits and can run here; a wrong answer is kept as the reason against it."""
    candidates: list[Candidate] = []
    not_tried: dict[str, str] = {}
    wanted = list(_combinations(artifacts, BATCHES if limits.throughput else BATCHES[:1]))
    for i, (artifact, engine, threads, batch) in enumerate(wanted):
        progress(i, len(wanted), "opening and checking")
        if engine in not_tried:
            continue
        candidate = Candidate(artifact=artifact, engine=engine, threads=threads, batch=batch)
        try:
            tried = replace(_with_goldens_of(artifact, batch), library=False)  # nobody asked for it by name
            candidate.session = open_session(tried, engine, threads)
            candidate.runs_on = candidate.session.engine
        except MissingDependencyError as error:
            not_tried[engine] = str(error)
            continue
        except QdeployError as error:
            candidate.rejected = str(error)
        candidates.append(candidate)
    return candidates, not_tried


def _combinations(artifacts: Sequence[Artifact], batches: Sequence[int]) -> Iterator[tuple[Artifact, str, int, int]]:
    for artifact in artifacts:
        counts = [1] if artifact.engine else thread_counts(usable_cores())  # an engine file runs on a GPU
        yield from itertools.product([artifact], engines_for(artifact), counts, batches)


def _with_goldens_of(artifact: Artifact, batch: int) -> Artifact:
    """Repeat the goldens until they fill a batch: an engine may compile another graph for it."""
    goldens = artifact.card.goldens
    count = len(goldens.rows)
    repeated = np.arange(max(batch, count)) % count
    filled = Goldens.of(goldens.images[repeated], goldens.logits[repeated], goldens.min_sqnr_db)
    return replace(artifact, card=replace(artifact.card, goldens=filled))


def choose(candidates: Sequence[Candidate], limits: Limits) -> Candidate | None:
    """Return the simplest of those that are about as fast as the fastest within the limits; None if none is within.

    Simple is: the engine that comes first in ``ENGINES``, few threads, a small batch, fp32.
    """
    able = [t for t in candidates if t.rejected is None and t.rounds and limits.broken(t) is None]
    if not able:
        return None
    fastest = min(able, key=lambda t: t.p50_ms)
    ties = [t for t in able if t is fastest or t.against(fastest)[1] <= WORTH]
    best = min(ties, key=_complexity)
    # one that was measured more exactly may have left the ties for being surely slower than the fastest
    return min((t for t in able if t.against(best)[0] <= 1.0), key=_complexity)


def _complexity(c: Candidate) -> tuple[float, ...]:
    return list(ENGINES).index(c.engine), c.threads, c.batch, c.precision != "fp32", c.p50_ms


def noise_of(candidates: Sequence[Candidate], chosen: Candidate, limits: Limits) -> str:
    """Say that the times scatter too much for the choice to mean anything; empty if they do not."""
    for other in candidates:
        if other is chosen or other.rejected or len(other.rounds) < 2 or limits.broken(other):
            continue
        ratio, low, high = other.against(chosen)
        if low < WORTH and high > NOISY * low:
            return (
                f"the clock is too noisy to tell: {other.artifact.path.name} with {other.engine}, {other.threads} "
                f"thread{'s' * (other.threads > 1)} takes {ratio:.2f} times as long, or {low:.2f} to {high:.2f}"
            )
    return ""


def _kept(model: Path, report: TuneReport, chosen: Candidate | None) -> TuneReport:
    """Write the choice beside the model, if that is the user's own folder."""
    folder = model if model.is_dir() else model.parent
    ours = folder.resolve() != SHIPPED.resolve() and os.access(folder, os.W_OK)
    if chosen is None or not ours:
        return report
    write_json(folder / DEVICE_FILE, device_of(chosen, report).to_dict())
    return replace(report, written=str(folder / DEVICE_FILE))
