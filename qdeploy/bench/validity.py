"""The verdict whether a measurement may be quoted, and the reasons if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qdeploy.bench.config import VALID_SECONDS, BenchConfig
from qdeploy.bench.latency import drift_percent
from qdeploy.bench.watch import Watch
from qdeploy.core.metrics import MIN_SAMPLES
from qdeploy.core.words import percent

MAX_STOLEN_PERCENT = 1.0
MAX_OTHERS_CORES = 0.1
MAX_DRIFT_PERCENT = 5.0
LEAST_OWN_CORES = 0.9
"""A closed loop of one thread computes all the time; if not, it was made to wait."""
SPARE_CORES = 0.25
"""More CPU time than the threads asked for, by so much: the engine did not keep to them."""


@dataclass(frozen=True, kw_only=True)
class Validity:
    """Whether a whole measurement may be quoted."""

    valid: bool
    reasons: tuple[str, ...]
    """Why it is not valid."""

    def words(self) -> str:
        """Return the answer as a sentence."""
        return "valid" if self.valid else f"not valid for publication: {'; '.join(self.reasons)}"


def judge(config: BenchConfig, watch: Watch, samples: Mapping[str, Sequence[float]]) -> Validity:
    """Judge a measurement.

    Args:
        config: How it was made.
        watch: What the machine did meanwhile.
        samples: Each model's latencies in the order of time.
    """
    reasons = [*_too_short(config, watch, samples), *_machine(config, watch)]
    for name, series in samples.items():
        drift = drift_percent(series)
        if abs(drift) > MAX_DRIFT_PERCENT:
            reasons.append(f"{name} drifted by {drift:+.1f} % from the first to the last third of its runs")
    return Validity(valid=not reasons, reasons=tuple(reasons))


def _too_short(config: BenchConfig, watch: Watch, samples: Mapping[str, Sequence[float]]) -> list[str]:
    reasons = ["a quick look"] if config.quick else []
    if watch.wall_s < VALID_SECONDS and not config.quick:
        reasons.append(f"measured for {watch.wall_s:.0f} s, {VALID_SECONDS:.0f} needed")
    fewest = min(map(len, samples.values()))
    if config.scenario != "offline" and fewest < MIN_SAMPLES[99]:
        reasons.append(f"{fewest} queries, {MIN_SAMPLES[99]} needed for p99")
    return reasons


def _machine(config: BenchConfig, watch: Watch) -> list[str]:
    reasons = []
    if watch.stolen_percent is not None and watch.stolen_percent > MAX_STOLEN_PERCENT:
        reasons.append(f"{watch.stolen_percent:.1f} % of the machine's time went to its other guests (steal)")
    if watch.others_cores is not None and watch.others_cores > MAX_OTHERS_CORES:
        reasons.append(f"other processes used {watch.others_cores:.2f} cores")
    if watch.throttled:
        reasons.append(f"the cgroup's quota stopped the process {watch.throttled} times")
    own = watch.own_cores
    if own is not None and config.scenario != "server" and own < LEAST_OWN_CORES:
        reasons.append(f"the process had the CPU for {percent(own, 0)} of the time only")
    if own is not None and own > config.threads + SPARE_CORES:
        reasons.append(f"an engine used {own:.1f} cores instead of {config.threads}")
    return reasons
