"""The configuration of ``qdeploy bench``: what to measure and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.core.errors import InputError, near_miss
from qdeploy.core.metrics import MIN_SAMPLES
from qdeploy.runtime.session import engine_named

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
LAUNCHES = 10
QUICK_LAUNCHES = 4
"""Times that every model is opened anew: where its weights lie in memory moves its speed by a per cent or more."""
VALID_SECONDS = 60.0
"""Timed runs shorter than this are not valid for publication."""
_SAMPLES = {"multi-stream": 8, "offline": 256}
_QUICK_SECONDS = 2.0
_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How to measure. The scenarios are those of MLPerf Inference."""

    scenario: str = "single-stream"
    """single-stream: one query after another; multi-stream: the same with several samples a query; offline: all
    samples at once; server: queries arrive at random, at a rate."""
    engines: tuple[str, ...] = ("ort",)
    """Every model is measured with each of them."""
    threads: int = 1
    """Threads of one inference."""
    batch_size: int | None = None
    """Images of one call of the engine. Default: 1, in multi-stream the whole query."""
    samples_per_query: int | None = None
    """Images of one query of multi-stream (default 8) and offline (default 256)."""
    runs: int | None = None
    """Timed queries of each model, rounded up to whole rounds; p99 needs 662. Default: as many as fit into
    ``seconds``."""
    seconds: float | None = None
    """Time limit of all models' queries together. Default: 10, which is enough to look at; 60 where ``runs`` is given,
    and 2 with ``quick``. Valid for publication from 60 on."""
    rate: float | None = None
    """server: queries per second. Default: the highest rate that keeps ``latency_ms`` is searched for."""
    latency_ms: float | None = None
    """server: the bound on ``latency_percentile`` of the latency."""
    latency_percentile: int = 99
    seed: int = 0
    """Seed of the random arrival times in the server scenario."""
    quick: bool = False
    """Measure for seconds: good for a look, marked as such everywhere, never valid for publication."""
    details: bool = True
    """Also measure phases, memory growth and the start of the whole command."""

    def __post_init__(self) -> None:
        ranges = (
            ("threads", 1, 1024), ("batch_size", 1, 4096), ("runs", LAUNCHES, 10**7), ("samples_per_query", 1, 10**6),
        )  # fmt: skip
        for name, low, high in ranges:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"`{name}` must be between {low} and {high}", found=value)
        for name in ("seconds", "rate", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise InputError(f"`{name}` must be positive", found=value)
        self._check_words()
        self._check_server()

    def _check_words(self) -> None:
        if self.scenario not in SCENARIOS:
            hint = near_miss(self.scenario, SCENARIOS)
            raise InputError(f"there is no scenario '{self.scenario}'{hint}", fix=f"known: {', '.join(SCENARIOS)}")
        if not self.engines or len(set(self.engines)) < len(self.engines):
            raise InputError("the engines must be different ones", found=", ".join(self.engines) or "none")
        for name in self.engines:
            engine_named(name)
        if self.latency_percentile not in MIN_SAMPLES:
            known = ", ".join(map(str, MIN_SAMPLES))
            raise InputError(f"`latency_percentile` must be one of {known}", found=self.latency_percentile)
        if self.samples_per_query is not None and self.scenario not in _SAMPLES:
            raise InputError(f"`samples_per_query` belongs to {' and '.join(_SAMPLES)}, not to {self.scenario}")

    def _check_server(self) -> None:
        if self.scenario == "server":
            if self.rate is None and self.latency_ms is None:
                raise InputError("the server scenario needs `rate`, or `latency_ms` to search for the highest rate")
            if (self.batch_size or 1) > 1:
                raise InputError("in the server scenario a query is one image", fix="leave out `batch_size`")
            if self.rate is None and self.runs is not None:
                raise InputError("the search for the highest rate goes by `seconds`", fix="leave out `runs`")
        elif self.rate is not None or self.latency_ms is not None:
            raise InputError(f"`rate` and `latency_ms` belong to the server scenario, not to {self.scenario}")

    @property
    def samples(self) -> int:
        """Images of one query."""
        if self.scenario in _SAMPLES:
            return self.samples_per_query or _SAMPLES[self.scenario]
        return self.batch

    @property
    def batch(self) -> int:
        """Images of one call of the engine."""
        if self.scenario == "multi-stream":
            return self.batch_size or self.samples
        return self.batch_size or 1

    @property
    def limit_s(self) -> float:
        """Time limit of all models' queries together, in seconds."""
        if self.seconds is not None:
            return self.seconds
        if self.quick:
            return _QUICK_SECONDS
        return _SECONDS if self.runs is None else VALID_SECONDS

    @property
    def launches(self) -> int:
        """Times that every model is opened anew."""
        return QUICK_LAUNCHES if self.quick else LAUNCHES

    @property
    def warmup_s(self) -> float:
        """Seconds of untimed queries before a model's first timed one."""
        return 0.2 if self.quick else 1.0
