"""What all parts share: images, models, how long to measure, and how figures of rounds are summed up."""

from __future__ import annotations

import io
import math
import os
import statistics
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qdeploy.bench.compare import mean_and_margin
from qdeploy.core.artifact import SHIPPED
from qdeploy.data.embedded import embedded_source
from serving_bench.load import request
from serving_bench.process import cpu_s

NUM_IMAGES = 64
IMAGES = {"png28": ("PNG", 28, "L"), "png64": ("PNG", 64, "RGB"), "jpeg64": ("JPEG", 64, "RGB")}
IMAGES["jpeg224"] = ("JPEG", 224, "RGB")
FP32, INT8 = SHIPPED / "model.fp32.onnx", SHIPPED / "model.int8.onnx"
BOMB_SIDE = 12_000
SERVER, CLIENT = 0, 1
"""The cores of the server and of the client."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How to measure."""

    folder: Path
    """For images and logs."""
    peers: Path | None
    """The folder of the peers' environments."""
    quick: bool
    soak_s: float
    cores: tuple[int, ...] = tuple(sorted(os.sched_getaffinity(0)))

    @property
    def server(self) -> list[int]:
        """The server's core."""
        return [self.cores[0]]

    @property
    def client(self) -> list[int]:
        """The client's core."""
        return [self.cores[-1]]

    @property
    def both(self) -> list[int]:
        """Two cores."""
        return [self.cores[0], self.cores[-1]]

    def rounds(self, full: int) -> int:
        """Return how many rounds to make."""
        return 2 if self.quick else full

    def images(self, kind: str) -> list[bytes]:
        """Return encoded images of a kind."""
        return [p.read_bytes() for p in sorted((self.folder / kind).iterdir())]

    def requests(self, *kinds: str) -> list[bytes]:
        """Return requests to ``/predict`` with images of some kinds in turn."""
        return [request("/predict", data) for group in zip(*map(self.images, kinds), strict=True) for data in group]


def write_images(folder: Path) -> None:
    """Write the embedded test images in every form: grey PNG as they are, resized colour PNG and JPEG."""
    for kind, (form, side, mode) in IMAGES.items():
        (folder / kind).mkdir()
        for i, record in enumerate(embedded_source().records["test"][:NUM_IMAGES]):
            image = Image.fromarray(np.asarray(record.image())).convert(mode).resize((side, side))
            image.save(folder / kind / f"{i:02d}", form, **({"quality": 90} if form == "JPEG" else {}))


def bomb() -> bytes:
    """Return a PNG file of 144 black megapixels, made without as much memory."""
    row = bytes(1 + 3 * BOMB_SIDE)
    worker = zlib.compressobj(9)
    parts = [*(worker.compress(row) for _ in range(BOMB_SIDE)), worker.flush()]
    stream = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    stream.seek(0, io.SEEK_END)
    head = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 8, 2, 0, 0, 0)
    for name, data in ((b"IHDR", head), (b"IDAT", b"".join(parts)), (b"IEND", b"")):
        stream.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return stream.getvalue()


class InProcess:
    """A process on one core that classifies without HTTP when it is told to."""

    def __init__(self, command: Sequence[str], core: int) -> None:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            preexec_fn=lambda: os.sched_setaffinity(0, [core]),
        )

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return cpu_s(self._process.pid)

    def begin(self, images: Path, seconds: float) -> None:
        """Let it classify for a while."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{images} {seconds}\n")
            self._process.stdin.flush()

    def per_s(self) -> float:
        """Wait for it and return its images per second."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"this does not run: {' '.join(map(str, self._process.args))}")
        n, seconds = map(float, line.split())
        return n / seconds

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def in_process(setup: Setup, model: Path, core: int) -> InProcess:
    """Return a process that uses ``qdeploy.load``."""
    script = Path(__file__).with_name("inprocess.py")
    return InProcess([sys.executable, str(script), str(model), *(str(setup.folder / k) for k in IMAGES)], core)


def spread(values: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """Return median, range and number of values."""
    return {
        "median": round(statistics.median(values), digits),
        "range": [round(min(values), digits), round(max(values), digits)],
        "n": len(values),
    }


def ratio(new: Sequence[float], old: Sequence[float]) -> dict[str, Any]:
    """Return the ratio of figures of the same rounds: geometric mean with its 95 % interval, and the range."""
    logs = [math.log(a / b) for a, b in zip(new, old, strict=True)]
    centre, half = mean_and_margin(logs)
    return {
        "mean": round(math.exp(centre), 3),
        "ci95": [round(math.exp(centre - half), 3), round(math.exp(centre + half), 3)],
        "range": [round(math.exp(min(logs)), 3), round(math.exp(max(logs)), 3)],
        "rounds": len(logs),
    }


def bar(what: str, found: Any, asked: str, met: bool) -> dict[str, Any]:
    """Return one line of what was asked for."""
    return {"what": what, "found": found, "asked": asked, "met": bool(met)}
