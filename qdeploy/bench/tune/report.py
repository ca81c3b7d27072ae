"""The report of ``qdeploy tune``: every candidate with its figures, the choice, and the reasons in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from qdeploy.bench.tune.candidate import Candidate
from qdeploy.bench.tune.limits import Limits
from qdeploy.core.machine import environment
from qdeploy.runtime.device import DeviceRecord, this_machine

NO_FASTER = "no faster beyond noise"


@dataclass(frozen=True, kw_only=True)
class CandidateReport:
    """One way to run the model here, what was measured of it, and what came of that."""

    file: str
    precision: str
    engine: str
    runs_on: str | None
    """The engine that ran, in the words of the opened session; None if it was not opened."""
    threads: int
    batch: int
    top1: float | None
    """Top-1 accuracy in percent, from the file's card; measured with ONNX Runtime."""
    drop_points: float | None
    """Points of top-1 that the file loses against the fp32 file; None where a card does not tell."""
    n: int = 0
    latency_ms: dict[str, float | None] = field(default_factory=dict)
    """p50 and p95 of one call, in milliseconds."""
    throughput_per_s: float | None = None
    ratio: float | None = None
    """Time of one call divided by that of the chosen; with its 95 % interval."""
    ratio_ci95: tuple[float, float] | None = None
    peak_rss_bytes: int | None = None
    """Peak memory of a fresh process that opens the file and runs one batch; None if it was not measured."""
    result: str = ""

    def __str__(self) -> str:
        return f"{self.file} with {self.engine}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class TuneReport:
    """The choice and the reasons."""

    chosen: CandidateReport | None
    reason: str
    """Why this candidate was chosen, in one sentence; without a choice, the candidate nearest to the limits."""
    candidates: tuple[CandidateReport, ...]
    not_tried: dict[str, str]
    """Engines that cannot run here, and why."""
    written: str | None
    """Path of ``device.json``."""
    limits: Limits
    environment: dict[str, Any]
    noisy: bool = False
    """Whether the times scatter too much to tell; then nothing is written."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``qdeploy tune``."""
        return asdict(self)


def report_of(
    candidates: Sequence[Candidate], chosen: Candidate | None, not_tried: dict[str, str], limits: Limits
) -> TuneReport:
    """Put the figures and the reasons together."""
    made = {id(t): _candidate(t, chosen, limits) for t in candidates}
    first = made[id(chosen)] if chosen else None
    order = sorted(
        made.values(), key=lambda c: (c is not first, not c.n, c.ratio or 0.0, c.latency_ms.get("p50") or 0.0)
    )
    return TuneReport(
        chosen=made[id(chosen)] if chosen else None,
        reason=_reason(candidates, chosen, made) if chosen else _nothing(candidates, limits, made),
        candidates=tuple(order),
        not_tried=not_tried,
        written=None,
        limits=limits,
        environment=environment("qdeploy", "onnxruntime", "openvino", "numpy"),
    )


def device_of(chosen: Candidate, report: TuneReport) -> DeviceRecord:
    """Return what is kept beside the chosen file."""
    return DeviceRecord(
        file=chosen.artifact.path.name,
        sha256=chosen.artifact.sha256,
        engine=chosen.engine,
        threads=chosen.threads,
        batch=chosen.batch,
        machine=this_machine(),
        reason=report.reason,
        limits=asdict(report.limits),
        measured=asdict(report.chosen) if report.chosen else {},
        versions=report.environment["versions"],
        date=date.today().isoformat(),
    )


def _candidate(candidate: Candidate, chosen: Candidate | None, limits: Limits) -> CandidateReport:
    fields: dict[str, Any] = {}
    if candidate.rounds:
        fields = {
            "n": candidate.n,
            "latency_ms": {"p50": candidate.p50_ms, "p95": candidate.p95_ms},
            "throughput_per_s": candidate.throughput_per_s,
        }
        if chosen:
            ratio, low, high = candidate.against(chosen)
            fields |= {"ratio": ratio, "ratio_ci95": (low, high) if len(candidate.rounds) > 1 else None}
    return CandidateReport(
        file=candidate.artifact.path.name,
        precision=candidate.precision,
        engine=candidate.engine,
        runs_on=candidate.runs_on,
        threads=candidate.threads,
        batch=candidate.batch,
        top1=candidate.artifact.card.accuracy.top1 if candidate.artifact.card.accuracy else None,
        drop_points=candidate.drop_points,
        peak_rss_bytes=candidate.peak_rss_bytes,
        result=_result(candidate, chosen, limits),
        **fields,
    )


def _result(candidate: Candidate, chosen: Candidate | None, limits: Limits) -> str:
    if candidate is chosen:
        return "chosen"
    broken = candidate.rejected or (limits.broken(candidate) if candidate.rounds else None)
    if broken or chosen is None:
        return broken or ""
    ratio, low, _ = candidate.against(chosen)
    return f"{ratio:.2f}x the time" if low > 1.0 else NO_FASTER


def _reason(candidates: Sequence[Candidate], chosen: Candidate, made: dict[int, CandidateReport]) -> str:
    """Return in one sentence why this candidate was chosen, and if it is the fp32 file, why not INT8."""
    says = f"{made[id(chosen)]}: p50 {chosen.p50_ms:.3f} ms, within the limits and no other is surely faster"
    int8 = [t for t in candidates if t.precision == "int8"]
    if chosen.precision != "fp32" or not int8:
        return says
    timed = [t for t in int8 if t.rounds]
    best = min(timed, key=lambda t: t.against(chosen)[0]) if timed else int8[0]
    ratio, low, high = best.against(chosen) if timed else (0.0, 0.0, 0.0)
    if ratio < 1.0 and made[id(best)].result != NO_FASTER:
        return f"{says}; INT8 is out: {made[id(best)]}: {made[id(best)].result}"
    takes = f"{made[id(best)]} takes {ratio:.2f}x the time ({low:.2f} to {high:.2f})"
    if low > 1.0:
        return f"{says}; INT8 does not pay here: {takes}"
    return f"{says}; INT8 is not shown to be faster here: {takes}, and more `seconds` may tell"


def _nothing(candidates: Sequence[Candidate], limits: Limits, made: dict[int, CandidateReport]) -> str:
    """Name the candidate that misses the limits by least."""
    sound = [t for t in candidates if t.runs_on]
    if not sound:
        wrong = f"no candidate gives the right answers here: {candidates[0].rejected}" if candidates else ""
        return wrong or "no engine can run here"
    nearest = min(sound, key=limits.excess)
    return f"nothing is within the limits; nearest: {made[id(nearest)]}, {made[id(nearest)].result}"
