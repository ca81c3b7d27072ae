"""What serving costs: times, rates, memory and CPU time of this server, as one JSON document."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from qdeploy import __version__
from qdeploy.core.machine import environment
from qdeploy.serve.models import Opened, Served
from qdeploy.serve.service import Service
from qdeploy.serve.stats import Slot, merged

Document = dict[str, Any]


def report(service: Service) -> Document:
    """Return the report of all workers."""
    return compose([snapshot(service), *service.others()])


def since_start(service: Service) -> Slot:
    """Return the counts of all workers."""
    return merged([service.stats.since_start(), *(Slot.from_dict(o["since_start"]) for o in service.others())])


def snapshot(service: Service) -> Document:
    """Return what one process knows, as JSON-ready values for ``compose``."""
    c = service.config
    return {
        "server": {
            "version": __version__,
            "ready": service.ready,
            "uptime_s": round(time.monotonic() - service.stats.started, 1),
            "workers": c.workers,
            "lanes": service.models.lanes,
            "queue": {"waiting": service.waiting, "capacity": c.queue},
            "max_batch": max((s.opened.max_batch for s in service.models.all if s.opened), default=1),
            "deadline_s": c.deadline_s,
            **({"collect": service.collector.to_dict()} if service.collector else {}),
        },
        "machine": machine(),
        "models": [_model(s) for s in service.models.all],
        "last_minutes": service.stats.recent().to_dict(),
        "since_start": service.stats.since_start().to_dict(),
        "memory": service.memory.to_dict(),
    }


def compose(snapshots: Sequence[Document]) -> Document:
    """Return one report of the snapshots of all workers; the first is the one that was asked."""
    first = snapshots[0]
    models = [
        {
            **model,
            "images": sum(s["models"][i]["images"] for s in snapshots),
            **({"drift": _drift([s["models"][i].get("drift") for s in snapshots])} if "drift" in model else {}),
        }
        for i, model in enumerate(first["models"])
    ]
    memory = first["memory"]
    if len(snapshots) > 1:
        totals = {key: sum(s["memory"][key] for s in snapshots) for key in ("resident_bytes", "peak_bytes")}
        memory = {**memory, "all_workers": totals}
    return {
        **{key: first[key] for key in ("server", "machine")},
        "models": models,
        **{
            name: _stretch(merged(Slot.from_dict(s[name]) for s in snapshots))
            for name in ("last_minutes", "since_start")
        },
        "memory": memory,
    }


@cache  # versions take a tenth of a second to look up
def machine() -> Document:
    """Return what the report says of the machine."""
    return environment("qdeploy", "onnxruntime", "pillow", "uvicorn")


def _stretch(slot: Slot) -> Document:
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


def _drift(found: Sequence[Document | None]) -> Document | None:
    """Return one account of all workers': that of one whose last answers differ, if there is one, and all counts."""
    known = [one for one in found if one is not None]
    if not known:
        return None
    worst = max(known, key=lambda one: (one["differs"] is True, one["differs"] is False, one["so_far"]))
    return {**worst, **{key: sum(one[key] for one in known) for key in ("windows", "alarms", "false_alarms")}}


def _model(served: Served) -> Document:
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
        "drift": opened.drift.to_dict() if opened.drift else None,
        "load_ms": round(opened.load_ms, 1),
        "memory_bytes": opened.memory_bytes,
    }
