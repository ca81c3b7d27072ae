"""A Ray Serve application that classifies images: ``serve run app:app`` in this folder.

The body of a POST is an image file; the answer is that of ``qdeploy serve`` at ``/predict``.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.errors import ImageError
from qdeploy.core.image import load_decoders
from qdeploy.core.image_formats import MAX_FILE_BYTES
from qdeploy.runtime.classifier import Classifier

TOP = 5
STATUS = {
    "too-large": 413,
    "too-many-pixels": 413,
    "unsupported-format": 415,
    "not-finite": 500,
    "out-of-memory": 500,
}
"""By the reason for which an image is refused; others are 400."""


@serve.deployment(
    num_replicas=1,  # each has one thread and one session: raise this for more throughput
    ray_actor_options={"num_cpus": 1},
    max_ongoing_requests=8,  # what a replica takes at once; what it takes more only waits
    max_queued_requests=64,  # beyond that: 503
    health_check_period_s=10,
    graceful_shutdown_timeout_s=30,
)
class ImageClassifier:
    """A replica with an open session."""

    def __init__(self, artifact: Artifact) -> None:
        self.classifier = Classifier(artifact, threads=1)
        load_decoders()

    async def __call__(self, request: Request) -> JSONResponse:
        """Classify the image in a request's body."""
        if request.method != "POST":
            return self.refusal(405, "method", "send an image file with POST")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_FILE_BYTES:
                return self.refusal(413, "too-large", f"an image has at most {MAX_FILE_BYTES // 2**20} MiB")
        try:
            return JSONResponse(await asyncio.to_thread(self.answer, bytes(body)))
        except ImageError as error:
            return self.refusal(STATUS.get(error.reason, 400), error.reason, f"image: {error}")

    def answer(self, file: bytes) -> dict[str, Any]:
        """Return the labels of an image file, best first."""
        begin = time.perf_counter_ns()
        pixels = self.classifier.card.preprocessing.to_bytes(file)
        middle = time.perf_counter_ns()
        (prediction,) = self.classifier.classify_bytes(pixels, 1)
        end = time.perf_counter_ns()
        return {
            "model": self.classifier.card.name,
            **prediction.told(),
            "predictions": [
                {"label": r.label, "index": r.index, "probability": round(r.probability, 6)}
                for r in prediction.top(TOP)
            ],
            "latency_ms": {"decode": round((middle - begin) / 1e6, 4), "infer": round((end - middle) / 1e6, 4)},
        }

    @staticmethod
    def refusal(status: int, reason: str, error: str) -> JSONResponse:
        """Return the answer to a request at fault."""
        return JSONResponse({"error": error, "reason": reason}, status)


# the model travels through Ray, and so does the class: machines of a cluster need neither this file nor that
app = ImageClassifier.bind(read_artifact(Path(__file__).with_name("model.onnx")))
