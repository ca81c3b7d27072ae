"""The result of ``qdeploy bench``, as dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qdeploy.bench.compare import Comparison
from qdeploy.bench.config import BenchConfig
from qdeploy.bench.fresh import Growth
from qdeploy.bench.phases import Phases
from qdeploy.bench.server import Served
from qdeploy.bench.validity import Validity


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """One model's numbers with one engine; a percentile is None where there are too few queries to state it."""

    path: str
    name: str
    precision: str
    engine: str
    """What really ran, e.g. ``ONNX Runtime 1.32.0, CPU, library``."""
    engine_key: str
    """A key of ``ENGINES``, by which results of different versions are compared."""
    scenario: str
    batch: int
    """Images of one call of the engine."""
    samples: int
    """Images of one query."""
    threads: int
    n: int
    """Timed queries."""
    latency_ms: dict[str, float | None]
    """p50, p90, p95, p99, mean, std of one query, in milliseconds."""
    launches_p50_ms: tuple[float, ...]
    """p50 of each time the model was opened anew: the spread that one number hides."""
    histogram: dict[str, Any]
    """``low`` and ``high`` in milliseconds, ``counts`` of equal bins between, and the number ``above``."""
    throughput_per_s: float
    """Images per second: those of one query divided by its mean latency; in the server scenario, those that arrived
    and were answered."""
    server: Served | None
    phases_ms: Phases | None
    """decode, preprocess, infer, post and end_to_end of one image, each summed up as ``latency_ms`` is."""
    peak_rss_bytes: int
    """Peak memory of a fresh process that opens the model and runs it once."""
    base_rss_bytes: int
    """Peak before the engine is imported: Python, numpy and this package."""
    ladder_bytes: dict[str, int]
    """Peak of one fresh process after each step: python, runtime, model, first_run, all_runs."""
    growth: Growth | None
    """Whether memory grows with every run."""
    model_bytes: int
    sha256: str
    import_ms: float
    """Time to import the engine's library."""
    load_ms: float
    """Time to read, check and open the file."""
    first_ms: float
    cold_start_ms: float
    """The whole command ``qdeploy predict`` with one image, from the interpreter's start to the answer; with
    ``details`` off, a fresh process that opens the model and runs it once."""
    cold_starts_ms: tuple[float, ...]
    accuracy: dict[str, Any]
    """Accuracy of the file as its card says, measured at export."""


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The whole measurement."""

    environment: dict[str, Any]
    config: BenchConfig
    results: tuple[BenchResult, ...]
    comparisons: tuple[Comparison, ...]
    """Comparison of each model with the first."""
    validity: Validity

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``qdeploy bench``."""
        return {
            "quick": self.config.quick,
            "validity": {**asdict(self.validity), "words": self.validity.words()},
            "environment": self.environment,
            "config": asdict(self.config),
            "results": [asdict(r) for r in self.results],
            "comparisons": [c.to_dict() for c in self.comparisons],
        }
