"""``qdeploy bench``: honest numbers. Latency, throughput, memory and start-up of artifacts, measured side by side."""

from qdeploy.bench.compare import Comparison, Speed, compare
from qdeploy.bench.config import BenchConfig
from qdeploy.bench.images import encoded_images, sample_images
from qdeploy.bench.latency import latency_summary
from qdeploy.bench.report import BenchReport, BenchResult
from qdeploy.bench.rounds import time_rounds
from qdeploy.bench.run import bench

__all__ = [
    "BenchConfig",
    "BenchReport",
    "BenchResult",
    "Speed",
    "Comparison",
    "bench",
    "compare",
    "encoded_images",
    "latency_summary",
    "sample_images",
    "time_rounds",
]
