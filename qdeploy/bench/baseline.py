"""Comparison of a measurement with an earlier one of the same machine: what became slower.

Across days a machine drifts, so noise within the runs is not the whole doubt. A regression is claimed only if it is
beyond the spread of both runs (each opened its models several times; Welch's interval of the two sets of medians) *and*
beyond a tolerance for what changes between runs: clock, neighbours, memory layout.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qdeploy.bench.compare import student
from qdeploy.bench.config import BenchConfig
from qdeploy.core.errors import InputError
from qdeploy.core.files import read_json
from qdeploy.core.machine import environment

TOLERANCE_PERCENT = 10.0
"""More than the p50 of one file differs between runs on an otherwise idle machine; see docs/bench.md."""
_SAME = ("file", "precision", "engine_key", "scenario", "batch", "samples", "threads", "rate")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One number of one model, then and now."""

    model: str
    what: str
    """latency, rate or peak memory."""
    before: float
    now: float
    worse: float
    """How many times worse it is now; below 1 it is better."""
    ci95: tuple[float, float]
    """Interval of ``worse`` from the spread within both runs; both ends are equal where only one number is known."""
    regression: bool

    def words(self) -> str:
        """Return it as a sentence."""
        how = "worse" if self.worse > 1 else "better"
        percent = abs(100 * (self.now / self.before - 1))
        change = f"{self.before:.4g} to {self.now:.4g} {_UNITS[self.what]}, {percent:.1f} % {how}"
        return f"{self.model}: {self.what} {change}{': REGRESSION' if self.regression else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return its part of the JSON document."""
        return {**asdict(self), "words": self.words()}


_UNITS = {"latency": "ms", "rate": "queries/s", "peak memory": "MB"}


def read_baseline(path: Path) -> dict[str, Any]:
    """Read an earlier ``qdeploy bench --json`` and check that it is of this machine.

    Raises:
        InputError: If it cannot be read, is something else, or is of another CPU.
    """
    found = read_json(path)
    try:
        cpu, flags = found["environment"]["cpu"], found["environment"]["flags"]
        for result in found["results"]:
            hash(_key(result))
            _values(result)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no baseline", fix="write one as JSON with `qdeploy bench`") from error
    here = environment()
    if (cpu, flags) != (here["cpu"], here["flags"]):
        raise InputError(
            f"{path} is of another machine: {cpu} {flags}; this is {here['cpu']} {here['flags']}; "
            "measure a baseline here"
        )
    return dict(found)


def changes_since(
    baseline: Mapping[str, Any], report: Mapping[str, Any], tolerance_percent: float = TOLERANCE_PERCENT
) -> list[Change]:
    """Compare a report with an earlier one of the same machine, model by model.

    Args:
        baseline: What ``read_baseline`` gave.
        report: ``BenchReport.to_dict``.
        tolerance_percent: What may change between runs without meaning anything.

    Raises:
        InputError: If no model was measured in the same way in both.
    """
    before = {_key(r): r for r in baseline["results"]}
    pairs = [(before[_key(r)], r) for r in report["results"] if _key(r) in before]
    if not pairs:
        raise _nothing_comparable(baseline)
    return [change for old, new in pairs for change in _changes(old, new, tolerance_percent)]


def require_comparable(baseline: Mapping[str, Any], files: Sequence[Path], config: BenchConfig) -> None:
    """Check before measuring that there will be something to compare.

    Raises:
        InputError: If no file of such a name was measured in such a way.
    """
    names = {f.name for f in files}
    how = (config.scenario, config.batch, config.samples, config.threads)
    for r in baseline["results"]:
        if _file(r) in names and (r["scenario"], r["batch"], r["samples"], r["threads"]) == how:
            return
    raise _nothing_comparable(baseline)


def _nothing_comparable(baseline: Mapping[str, Any]) -> InputError:
    has = "; ".join(_described(_key(r)) for r in baseline["results"]) or "no result"
    return InputError(
        "the baseline has nothing comparable: the same file name, precision, engine, scenario, batch and threads are "
        f"needed; it has {has}"
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], tolerance_percent: float) -> list[Change]:
    changes = []
    then = _values(old)
    for what, values in _values(new).items():
        logs = [[math.log(v) for v in numbers] for numbers in (then[what], values)]
        means = [statistics.fmean(mine) for mine in logs]
        log_worse = means[0] - means[1] if what == "rate" else means[1] - means[0]
        margin = _welch(*logs)
        low = math.exp(log_worse - margin)
        changes.append(
            Change(
                model=new["name"],
                what=what,
                before=math.exp(means[0]),
                now=math.exp(means[1]),
                worse=math.exp(log_worse),
                ci95=(low, math.exp(log_worse + margin)),
                regression=low > 1 + tolerance_percent / 100,
            )
        )
    return changes


def _key(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what must be the same for two results to be comparable."""
    server = result["server"]
    rate = server and server["rate_per_s"]
    if server and server["searched"]:
        rate = f"for p{server['percentile']} within {server['bound_ms']} ms"
    return (_file(result), *(result[name] for name in _SAME[1:-1]), rate)


def _file(result: Mapping[str, Any]) -> str:
    return str(result["path"]).replace("\\", "/").rpartition("/")[2]


def _described(key: Sequence[Any]) -> str:
    return ", ".join(
        f"{name.removesuffix('_key')} {value}" for name, value in zip(_SAME, key, strict=True) if value is not None
    )


def _values(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the numbers that are compared, each with as many readings as there are."""
    server = result["server"]
    searched = server is not None and server["searched"]
    speed = {"rate": [server["rate_per_s"]]} if searched else {"latency": list(result["launches_p50_ms"])}
    values = {**speed, "peak memory": [result["peak_rss_bytes"] / 1e6]}
    if not all(0 < v < math.inf for numbers in values.values() for v in numbers) or not all(values.values()):
        raise ValueError("numbers must be positive")
    return values


def _welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the difference of two means; 0 where a single number is known."""
    if min(len(a), len(b)) < 2:
        return 0.0
    u, v = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if u + v == 0:
        return 0.0
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    return student(0.975, int(freedom)) * math.sqrt(u + v)
