"""What serving costs: times, rates, memory and CPU time of this server, as one JSON document."""

from __future__ import annotations

import time
from typing import Any

from qdeploy import __version__
from qdeploy.core.machine import environment
from qdeploy.serve.models import Opened, Served
from qdeploy.serve.service import Service
from qdeploy.serve.stats import Slot


def report(service: Service) -> dict[str, Any]:
    """Return the report as JSON-ready values."""
    machine = environment("qdeploy", "onnxruntime", "pillow", "uvicorn")
    c = service.config
    return {
        "server": {
            "version": __version__,
            "ready": service.ready,
            "uptime_s": round(time.monotonic() - service.stats.started, 1),
            "workers": c.workers,
            "lanes": service.lanes.count,
            "queue": {"waiting": service.lanes.waiting, "capacity": c.queue},
            "max_batch": c.max_batch,
            "deadline_s": c.deadline_s,
        },
        "machine": machine,
        "models": [_model(s) for s in service.models.all],
        "last_minutes": _stretch(service.stats.recent()),
        "since_start": _stretch(service.stats.since_start()),
        "memory": service.memory.to_dict(),
    }


def _stretch(slot: Slot) -> dict[str, Any]:
    """Sum up a stretch of time."""
    seconds = max(time.monotonic() - slot.begin, 1e-3)
    requests = sum(slot.statuses.values())
    answered = slot.times["total"].n
    return {
        "seconds": round(seconds, 1),
        "requests": requests,
        "requests_per_s": round(requests / seconds, 2),
        "statuses": {str(status): n for status, n in sorted(slot.statuses.items())},
        "images": slot.images,
        "inferences": slot.runs,
        "cpu_ms_per_request": round(1e3 * slot.cpu_s / answered, 4) if answered else None,
        "cpu_cores": round(slot.cpu_s / seconds, 3),
        "latency_ms": {phase: times.summary() for phase, times in slot.times.items()},
        "histogram_ms": [[edge, n] for edge, n in slot.times["total"].doublings().items()],
    }


def _model(served: Served) -> dict[str, Any]:
    opened: Opened | None = served.opened
    head = {
        "name": served.name,
        "version": str(served.version),
        "state": served.state,
        "problem": served.problem,
        "swaps": served.swaps,
        "images": served.counters.inferences,
    }
    if opened is None:
        return head
    card = opened.card
    return {
        **head,
        "file": str(opened.path),
        "sha256": opened.sha256,
        "size_bytes": opened.size_bytes,
        "model": card.model.name,
        "params": card.model.params,
        "macs": card.model.macs,
        "precision": card.precision,
        "target": card.target,
        "engine": opened.session.engine,
        "threads": opened.threads,
        "note": opened.note,
        "labels": list(card.labels),
        "input_size": card.preprocessing.size,
        "accuracy": card.accuracy.to_dict() if card.accuracy else None,
        "dataset": card.origin.dataset.name,
        "load_ms": round(opened.load_ms, 1),
        "memory_bytes": opened.memory_bytes,
    }
