"""``qdeploy bench``: honest numbers. Latency, throughput, memory and start-up of artifacts, measured side by side."""

from qdeploy.runtime.bench.compare import Comparison, compare
from qdeploy.runtime.bench.config import BenchConfig
from qdeploy.runtime.bench.images import encoded_images, sample_images
from qdeploy.runtime.bench.latency import latency_summary
from qdeploy.runtime.bench.report import BenchReport, BenchResult
from qdeploy.runtime.bench.rounds import time_rounds
from qdeploy.runtime.bench.run import bench

__all__ = [
    "BenchConfig",
    "BenchReport",
    "BenchResult",
    "Comparison",
    "bench",
    "compare",
    "encoded_images",
    "latency_summary",
    "sample_images",
    "time_rounds",
]
