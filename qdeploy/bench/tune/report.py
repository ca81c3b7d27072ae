"""What ``qdeploy tune`` says: every candidate with its figures, and the reasons in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from qdeploy.bench.tune.limits import Limits
from qdeploy.bench.tune.trial import Trial
from qdeploy.core.machine import environment
from qdeploy.runtime.device import DEVICE_SCHEMA, this_machine

NO_FASTER = "no faster beyond noise"


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


def report_of(trials: Sequence[Trial], chosen: Trial | None, not_tried: dict[str, str], limits: Limits) -> TuneReport:
    """Put the figures and the reasons together."""
    made = {id(t): _candidate(t, chosen, limits) for t in trials}
    order = sorted(made.values(), key=lambda c: (not c.n, c.ratio or 0.0, c.latency_ms.get("p50") or 0.0))
    return TuneReport(
        chosen=made[id(chosen)] if chosen else None,
        reason=_reason(trials, chosen, made) if chosen else _nothing(trials, limits, made),
        candidates=tuple(order),
        not_tried=not_tried,
        written=None,
        limits=limits,
        environment=environment("qdeploy", "onnxruntime", "openvino", "numpy"),
    )


def device_of(chosen: Trial, report: TuneReport) -> dict[str, Any]:
    """Give what ``device.json`` holds; see ``qdeploy.runtime.device``."""
    measured = asdict(report.chosen) if report.chosen else {}
    return {
        "schema": DEVICE_SCHEMA,
        "file": chosen.artifact.path.name,
        "sha256": chosen.artifact.sha256,
        "engine": chosen.engine,
        "threads": chosen.threads,
        "batch": chosen.batch,
        "reason": report.reason,
        "limits": asdict(report.limits),
        "measured": measured,
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
            fields |= {"ratio": ratio, "ratio_ci95": (low, high) if len(trial.rounds) > 1 else None}
    return Candidate(
        file=trial.artifact.path.name,
        precision=trial.precision,
        engine=trial.engine,
        runs_on=trial.runs_on,
        threads=trial.threads,
        batch=trial.batch,
        top1=trial.artifact.card.accuracy.top1 if trial.artifact.card.accuracy else None,
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
    return f"{ratio:.2f}x the time" if low > 1.0 else NO_FASTER


def _reason(trials: Sequence[Trial], chosen: Trial, made: dict[int, Candidate]) -> str:
    """Say in a sentence why this one, and if it is the fp32 file, why not INT8."""
    says = f"{made[id(chosen)]}: p50 {chosen.p50_ms:.3f} ms, within the limits and no other is surely faster"
    int8 = [t for t in trials if t.precision == "int8"]
    if chosen.precision != "fp32" or not int8:
        return says
    timed = [t for t in int8 if t.rounds]
    best = min(timed, key=lambda t: t.against(chosen)[0]) if timed else int8[0]
    ratio, low, high = best.against(chosen) if timed else (0.0, 0.0, 0.0)
    if ratio < 1.0 and made[id(best)].verdict != NO_FASTER:
        return f"{says}; INT8 is out: {made[id(best)]}: {made[id(best)].verdict}"
    return f"{says}; INT8 does not pay here: {made[id(best)]} takes {ratio:.2f}x the time ({low:.2f} to {high:.2f})"


def _nothing(trials: Sequence[Trial], limits: Limits, made: dict[int, Candidate]) -> str:
    """Name the candidate that misses the limits by least."""
    sound = [t for t in trials if t.runs_on]
    if not sound:
        return (
            f"no candidate gives the right answers here: {trials[0].rejected}" if trials else "no engine can run here"
        )
    nearest = min(sound, key=limits.excess)
    return f"nothing is within the limits; nearest: {made[id(nearest)]}, {made[id(nearest)].verdict}"
