"""Open Inference Protocol, version 2: what a server says of itself and its models.

With the extensions for the model's configuration, statistics and repository, in the form of Triton's documents of these
names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qdeploy import __version__
from qdeploy.serve.models import Models, Opened, Served
from qdeploy.serve.oip import EXTENSIONS, INPUT, OUTPUTS
from qdeploy.serve.refusal import RefusedError

Document = dict[str, Any]


def server_document() -> Document:
    """Return the server's metadata."""
    return {"name": "qdeploy", "version": __version__, "extensions": list(EXTENSIONS)}


def model_document(served: Served, opened: Opened, versions: Iterable[int]) -> Document:
    """Return a model's metadata: its inputs and outputs, -1 for the number of images."""
    size, classes = opened.card.preprocessing.size, len(opened.card.labels)
    return {
        "name": served.name,
        "versions": [str(v) for v in versions],
        "platform": opened.platform,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, size, size, 3]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, classes]} for name in OUTPUTS],
    }


def config_document(served: Served, opened: Opened, max_images: int) -> Document:
    """Return a model's configuration in the form of Triton's ModelConfig; shapes leave out the number of images."""
    size, classes = opened.card.preprocessing.size, len(opened.card.labels)
    batching = {"dynamic_batching": {"preferred_batch_size": [opened.max_batch]}} if opened.max_batch > 1 else {}
    return {
        "name": served.name,
        "platform": opened.platform,
        "backend": opened.platform.partition("_")[0],
        "version_policy": {"all": {}},
        "max_batch_size": max_images,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [size, size, 3]}],
        "output": [{"name": name, "data_type": "TYPE_FP32", "dims": [classes]} for name in OUTPUTS],
        "instance_group": [{"name": served.name, "kind": "KIND_CPU", "count": 1}],
        "parameters": {
            "precision": {"string_value": opened.card.precision},
            "sha256": {"string_value": opened.sha256},
            "threads": {"string_value": str(opened.threads)},
        },
        **batching,
    }


def statistics_document(served: Iterable[Served]) -> Document:
    """Return counts and nanoseconds of models, as performance analysers read them."""
    return {"model_stats": [_statistics(s) for s in served]}


def index_document(models: Models, ready_only: bool) -> list[Document]:
    """Return every version of every model with its state."""
    return [
        {"name": s.name, "version": str(s.version), "state": s.state, "reason": s.problem or ""}
        for s in models.all
        if s.opened or not ready_only
    ]


def _statistics(served: Served) -> Document:
    c = served.counters
    return {
        "name": served.name,
        "version": str(served.version),
        "last_inference": c.last_ms,
        "inference_count": c.inferences,
        "execution_count": c.executions,
        "inference_stats": c.to_dict(),
        "batch_stats": [],
    }


def repository_request(body: Document) -> bool:
    """Return whether only ready models are asked for.

    Raises:
        RefusedError: If ``ready`` is no boolean.
    """
    ready = body.get("ready", False)
    if not isinstance(ready, bool):
        raise RefusedError(400, "bad-request", f"'ready' must be true or false, found {ready!r:.40}")
    return ready


def require_own_files(body: Document) -> None:
    """Check that a request to load a model brings no files or configuration of its own.

    Raises:
        RefusedError: If it does: what is served is the file on the server's disk.
    """
    given = body.get("parameters") or {}
    if not isinstance(given, dict):
        raise RefusedError(400, "bad-request", f"'parameters' must be an object, found a {type(given).__name__}")
    brought = [name for name in given if name == "config" or name.startswith("file:")]
    if brought:
        what = (
            f"a model is loaded from its file on the server, which '{brought[0][:40]}' cannot replace; change the file"
        )
        raise RefusedError(400, "bad-request", what)
