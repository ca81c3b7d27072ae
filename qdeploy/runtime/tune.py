"""Choose file, engine, threads and batch for this machine by measuring them all, under the user's limits.

Every candidate first gives its goldens' answers; a wrong one is fast for nothing. The others run interleaved in one
process, and who is clearly slower than the fastest within the limits stops running (successive elimination), so that
the time goes to those who are close.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import ArtifactError, InputError, MissingDependencyError, QdeployError
from qdeploy.core.files import write_json
from qdeploy.core.machine import environment, usable_cores
from qdeploy.runtime.device import DEVICE_FILE, DEVICE_SCHEMA, this_machine
from qdeploy.runtime.limits import Limits
from qdeploy.runtime.session import ENGINES, open_session
from qdeploy.runtime.trial import WORTH, Trial, race

Tick = Callable[[int, int, str], None]
BATCHES = (1, 8, 32)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What to look for."""

    limits: Limits = field(default_factory=Limits)
    seconds: float = 30.0
    """Of timing; opening, checking and measuring memory come on top."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise InputError(f"--seconds must be positive, found {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run the model here, what was measured of it, and what came of that."""

    file: str
    precision: str
    engine: str
    runs_on: str | None
    """What the opened session said it runs."""
    threads: int
    batch: int
    top1: float | None
    """In percent, from the file's card; measured with ONNX Runtime."""
    drop_points: float | None
    """Of top-1 against the fp32 file."""
    n: int = 0
    latency_ms: dict[str, float | None] = field(default_factory=dict)
    """p50 and p95 of one call."""
    throughput_per_s: float | None = None
    ratio: float | None = None
    """Time of one call divided by that of the chosen; with its 95 % interval."""
    ratio_ci95: tuple[float, float] | None = None
    peak_rss_bytes: int | None = None
    """Of a fresh process that opens the file and runs one batch."""
    verdict: str = ""

    def __str__(self) -> str:
        return f"{self.file} with {self.engine}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class TuneReport:
    """The choice and the reasons."""

    chosen: Candidate | None
    reason: str
    """In one sentence; without a choice it names the nearest candidate."""
    candidates: tuple[Candidate, ...]
    not_tried: dict[str, str]
    """Engines that cannot run here, and why."""
    written: str | None
    """Path of ``device.json``."""
    limits: Limits
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON document of ``qdeploy tune``."""
        return asdict(self)


def tune(model: Path, config: TuneConfig | None = None, tick: Tick | None = None) -> TuneReport:
    """Measure every candidate, choose one, and write ``device.json`` beside it.

    Nothing is written for the shipped model, whose folder belongs to the package, and if nothing is within the limits.

    Args:
        model: A model file or an export's folder.
        config: Limits and time.
        tick: Called with what is done, the total, and what goes on.

    Raises:
        ArtifactError: If there is no usable model file.
    """
    config = config or TuneConfig()
    tick = tick or (lambda done, total, text: None)
    trials, not_tried = opened(model_files(model), config.limits, tick)
    try:
        reference = next((t.artifact.card.accuracy.get("top1") for t in trials if t.precision == "fp32"), None)
        for trial in trials:
            trial.drop_points = drop(trial.artifact, reference)
            if config.limits.memory_mb is not None and trial.rejected is None:
                trial.measure_memory()
            trial.rejected = trial.rejected or config.limits.broken_before_timing(trial)
        race([t for t in trials if t.rejected is None], config.limits, config.seconds, tick)
    finally:
        for trial in trials:
            trial.close()
    chosen = choose(trials, config.limits)
    if chosen:
        chosen.measure_memory()
    return _report(model, trials, chosen, not_tried, config)


def model_files(model: Path) -> list[Artifact]:
    """Read the model files of a folder, ONNX and engines, fp32 first; or the one file given.

    Raises:
        ArtifactError: If there is none, or one is damaged.
    """
    patterns = ("model*.onnx", "model*.engine")
    files = [f for p in patterns for f in sorted(model.glob(p))] if model.is_dir() else [model]
    if not files:
        raise ArtifactError(f"{model} holds no model file; give a file or folder that `qdeploy export` wrote")
    return sorted((read_artifact(f) for f in files), key=lambda a: a.card.precision != "fp32")


def drop(artifact: Artifact, reference: float | None) -> float | None:
    """Give the points of top-1 that a file loses against the fp32 file; None where a card does not tell."""
    top1 = artifact.card.accuracy.get("top1")
    return None if top1 is None or reference is None else round(reference - top1, 4)


def thread_counts(cores: int) -> list[int]:
    """Give the powers of two up to the usable cores, and these."""
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})


def opened(artifacts: Sequence[Artifact], limits: Limits, tick: Tick) -> tuple[list[Trial], dict[str, str]]:
    """Open every file with every engine that fits and can run here; a wrong answer is kept as the reason against it."""
    trials: list[Trial] = []
    not_tried: dict[str, str] = {}
    wanted = list(_combinations(artifacts, BATCHES if limits.throughput else BATCHES[:1]))
    for i, (artifact, engine, threads, batch) in enumerate(wanted):
        tick(i, len(wanted), "opening and checking")
        if engine in not_tried:
            continue
        trial = Trial(artifact=artifact, engine=engine, threads=threads, batch=batch)
        try:
            trial.session = open_session(_with_goldens_of(artifact, batch), engine, threads)
            trial.runs_on = trial.session.engine
        except MissingDependencyError as error:
            not_tried[engine] = str(error)
            continue
        except QdeployError as error:
            trial.rejected = str(error)
        trials.append(trial)
    return trials, not_tried


def _combinations(artifacts: Sequence[Artifact], batches: Sequence[int]) -> Iterator[tuple[Artifact, str, int, int]]:
    for artifact, (name, engine) in itertools.product(artifacts, ENGINES.items()):
        builder = artifact.engine.builder if artifact.engine else None
        on_gpu = engine.builder is not None
        if engine.builder == builder:
            for threads, batch in itertools.product([1] if on_gpu else thread_counts(usable_cores()), batches):
                yield artifact, name, threads, batch


def _with_goldens_of(artifact: Artifact, batch: int) -> Artifact:
    """Repeat the goldens until they fill a batch: an engine may compile another graph for it."""
    goldens = artifact.card.goldens
    repeated = np.arange(max(batch, len(goldens.images))) % len(goldens.images)
    filled = replace(goldens, images=goldens.images[repeated], logits=goldens.logits[repeated])
    return replace(artifact, card=replace(artifact.card, goldens=filled))


def choose(trials: Sequence[Trial], limits: Limits) -> Trial | None:
    """Give the simplest of those that are about as fast as the fastest within the limits; None if none is within.

    Simple is: the engine that comes first in ``ENGINES``, few threads, a small batch, fp32.
    """
    able = [t for t in trials if t.rejected is None and t.rounds and limits.broken(t) is None]
    if not able:
        return None
    fastest = min(able, key=lambda t: t.p50_ms)
    ties = [t for t in able if t is fastest or t.against(fastest)[1] <= WORTH]
    best = min(ties, key=_complexity)
    # one that was measured more exactly may have left the ties for being surely slower than the fastest
    return min((t for t in able if t.against(best)[0] <= 1.0), key=_complexity)


def _complexity(trial: Trial) -> tuple[float, ...]:
    return list(ENGINES).index(trial.engine), trial.threads, trial.batch, trial.precision != "fp32", trial.p50_ms


def _report(
    model: Path, trials: Sequence[Trial], chosen: Trial | None, not_tried: dict[str, str], config: TuneConfig
) -> TuneReport:
    made = {id(t): _candidate(t, chosen, config.limits) for t in trials}
    best = made[id(chosen)] if chosen else None
    reason = _reason(trials, chosen, made) if chosen else _nothing(trials, config.limits, made)
    report = TuneReport(
        chosen=best,
        reason=reason,
        candidates=tuple(
            sorted(made.values(), key=lambda c: (not c.n, c.ratio or 0.0, c.latency_ms.get("p50") or 0.0))
        ),
        not_tried=not_tried,
        written=None,
        limits=config.limits,
        environment=environment("qdeploy", "onnxruntime", "openvino", "numpy"),
    )
    folder = model if model.is_dir() else model.parent
    if chosen is None or best is None or folder.resolve() == SHIPPED.resolve():
        return report
    write_json(folder / DEVICE_FILE, device_of(chosen, best, report))
    return replace(report, written=str(folder / DEVICE_FILE))


def device_of(chosen: Trial, candidate: Candidate, report: TuneReport) -> dict[str, Any]:
    """Give what ``device.json`` holds; see ``qdeploy.runtime.device``."""
    return {
        "schema": DEVICE_SCHEMA,
        "file": candidate.file,
        "sha256": chosen.artifact.sha256,
        "engine": candidate.engine,
        "threads": candidate.threads,
        "batch": candidate.batch,
        "reason": report.reason,
        "limits": asdict(report.limits),
        "measured": asdict(candidate),
        "machine": this_machine(),
        "versions": report.environment["versions"],
        "date": date.today().isoformat(),
    }


def _candidate(trial: Trial, chosen: Trial | None, limits: Limits) -> Candidate:
    fields: dict[str, Any] = {}
    if trial.rounds:
        fields = {
            "n": trial.n,
            "latency_ms": {"p50": trial.p50_ms, "p95": trial.p95_ms},
            "throughput_per_s": trial.throughput_per_s,
        }
        if chosen:
            ratio, low, high = trial.against(chosen)
            fields |= {"ratio": ratio, "ratio_ci95": (low, high)}
    return Candidate(
        file=trial.artifact.path.name,
        precision=trial.precision,
        engine=trial.engine,
        runs_on=trial.runs_on,
        threads=trial.threads,
        batch=trial.batch,
        top1=trial.artifact.card.accuracy.get("top1"),
        drop_points=trial.drop_points,
        peak_rss_bytes=trial.peak_rss_bytes,
        verdict=_verdict(trial, chosen, limits),
        **fields,
    )


def _verdict(trial: Trial, chosen: Trial | None, limits: Limits) -> str:
    if trial is chosen:
        return "chosen"
    broken = trial.rejected or (limits.broken(trial) if trial.rounds else None)
    if broken or chosen is None:
        return broken or ""
    ratio, low, _ = trial.against(chosen)
    return f"{ratio:.2f}x the time" if low > 1.0 else "no faster beyond noise"


def _reason(trials: Sequence[Trial], chosen: Trial, made: dict[int, Candidate]) -> str:
    """Say in a sentence why this one, and if it is no INT8 file, why not INT8."""
    best = made[id(chosen)]
    says = f"{best}: p50 {chosen.p50_ms:.3f} ms"
    others = [t for t in trials if t.precision == "int8" and t.rounds]
    refused = [t for t in trials if t.precision == "int8" and not t.rounds]
    if chosen.precision != "fp32" or not (others or refused):
        return f"{says}, the best within the limits"
    if not others:
        return f"{says}; INT8 is out: {refused[0].rejected}"
    fastest = min(others, key=lambda t: t.against(chosen)[0])
    ratio, low, high = fastest.against(chosen)
    says += f"; INT8 does not pay here: {made[id(fastest)]} takes {ratio:.2f}x the time ({low:.2f} to {high:.2f})"
    broken = made[id(fastest)].verdict if ratio < 1 / WORTH else ""
    return f"{says}, {broken}" if broken else says


def _nothing(trials: Sequence[Trial], limits: Limits, made: dict[int, Candidate]) -> str:
    """Name the candidate that misses the limits by least."""
    sound = [t for t in trials if t.runs_on]
    if not sound:
        return (
            f"no candidate gives the right answers here: {trials[0].rejected}" if trials else "no engine can run here"
        )
    nearest = min(sound, key=limits.excess)
    return f"nothing is within the limits; nearest: {made[id(nearest)]}, {made[id(nearest)].verdict}"
