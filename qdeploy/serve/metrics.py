"""``GET /metrics``: the counts in Prometheus' text format, by its own client library."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from qdeploy import __version__
from qdeploy.core.drift import PARTS
from qdeploy.core.machine import resident_bytes
from qdeploy.serve.report import report, since_start
from qdeploy.serve.service import Service
from qdeploy.serve.stats import Times

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
BOUNDS_MS = tuple(2.0**k for k in range(-4, 15))
"""Powers of two, at which our own histograms have bounds, too: the counts are exact."""
_PHASES = {
    "total": ("qdeploy_request_duration_seconds", "From the last byte of a request to its answer."),
    "queue": ("qdeploy_queue_duration_seconds", "Waiting for a free core."),
    "decode": ("qdeploy_decode_duration_seconds", "Parsing the request and decoding its images."),
    "infer": ("qdeploy_infer_duration_seconds", "Inference."),
}


class _Counts:
    """Turns a service's counts into metrics when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        whole = since_start(self._service)
        requests = CounterMetricFamily("qdeploy_requests", "Answered requests by HTTP status.", labels=["code"])
        for status, n in sorted(whole.statuses.items()):
            requests.add_metric([str(status)], n)
        yield requests
        for phase, (name, text) in _PHASES.items():
            yield _histogram(name, text, whole.times[phase])
        yield CounterMetricFamily("qdeploy_images", "Images classified.", value=whole.images)
        yield CounterMetricFamily("qdeploy_inferences", "Inferences.", value=whole.runs)
        yield CounterMetricFamily("qdeploy_cpu_seconds", "CPU time of the process.", value=whole.cpu_s)
        yield GaugeMetricFamily("qdeploy_queue_requests", "Waiting requests.", value=self._service.waiting)
        yield GaugeMetricFamily("qdeploy_resident_memory_bytes", "Resident memory.", value=resident_bytes())
        yield GaugeMetricFamily("qdeploy_ready", "Whether the server is ready.", value=int(self._service.ready))
        yield self._models()
        yield from self._drift()
        build = GaugeMetricFamily("qdeploy_build_info", "Version of qdeploy.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _models(self) -> Metric:
        loaded = GaugeMetricFamily(
            "qdeploy_model_info", "Loaded models.", labels=["model", "version", "precision", "engine", "sha256"]
        )
        for s in self._service.models.all:
            opened = s.opened
            if opened is not None:
                words = (s.name, str(s.version), opened.card.precision, opened.session.engine, opened.sha256)
                loaded.add_metric(words, 1)
        return loaded

    def _drift(self) -> Iterator[Metric]:
        names = ["model", "version"]
        differs = GaugeMetricFamily(
            "qdeploy_drift", "Whether the last window of answers differs from those to validation images.", labels=names
        )
        psi = GaugeMetricFamily(
            "qdeploy_drift_psi", "Population stability index of the last window of answers.", labels=[*names, "of"]
        )
        windows = CounterMetricFamily("qdeploy_drift_windows", "Windows of answers that were judged.", labels=names)
        alarms = CounterMetricFamily("qdeploy_drift_alarms", "Windows of answers that differed.", labels=names)
        for model in report(self._service)["models"]:
            found = model.get("drift")
            if found is None:
                continue
            words = (model["name"], model["version"])
            windows.add_metric(words, found["windows"])
            alarms.add_metric(words, found["alarms"])
            if latest := found["latest"]:
                differs.add_metric(words, int(found["differs"]))
                for part in PARTS:
                    psi.add_metric((*words, part), latest[part]["psi"])
        yield from (differs, psi, windows, alarms)


def exposition(service: Service) -> bytes:
    """Return the metrics of a service."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Counts(service))
    return generate_latest(registry)


def _histogram(name: str, text: str, times: Times) -> Metric:
    buckets = [(f"{bound / 1e3:g}", times.below(bound)) for bound in BOUNDS_MS]
    return HistogramMetricFamily(name, text, buckets=[*buckets, ("+Inf", times.n)], sum_value=times.total_ms / 1e3)
