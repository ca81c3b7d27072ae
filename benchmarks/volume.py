"""How much of the cores the classification of a folder uses: from JPEG files to answers, beside the ideal pipeline.

    python benchmarks/volume.py [REPEATS] [IMAGES]

Decoding with preprocessing, and inference in batches, are timed apart on the same files, by one process a core that
does nothing else. (One process alone, its time divided by the cores, would promise too much where two "cores" are the
two threads of one.) The ideal pipeline needs the sum of both an image. What is lost against it is handing over,
waiting, and the Python in between. Parts and whole are timed in turn in every repeat; ``share`` is ideal / measured.
``command`` is ``qdeploy predict FOLDER --csv FILE`` as a process, less that of one image.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import keep
from PIL import Image

import qdeploy
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.machine import usable_cores
from qdeploy.data.embedded import embedded_source
from qdeploy.runtime.predict import VOLUME_BATCH, predict_files

SIZES = ((224, 224), (640, 480))
BATCHES = (1, 4, 8, 16, 32)
QUALITY = 90
PARENT = os.getpid()


def write_jpegs(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    records = embedded_source().records["test"]
    pixels = [np.asarray(record.source) for record in records]
    for i in range(count):
        image = Image.fromarray(pixels[i % len(pixels)]).convert("RGB")
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:06}.jpg", quality=QUALITY)
    return sorted(map(str, folder.iterdir()))


def ms_each(count: int, work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e3 / count


def all_cores_ms_each(count: int, work: Callable[[], object]) -> float:
    """Time the work done by one process a core at the same time."""
    cores = usable_cores()
    begin = time.perf_counter()
    children = [os.fork() for _ in range(cores) if os.getpid() == PARENT]
    if os.getpid() != PARENT:
        work()
        os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    return (time.perf_counter() - begin) * 1e3 / (count * cores)


def one_repeat(classifier: qdeploy.Classifier, files: list[str], batch: int) -> dict[str, float]:
    n, rules = len(files), classifier.card.preprocessing
    pixels = [rules(Path(f)) for f in files]
    parts = [np.stack(pixels[i : i + batch]) for i in range(0, n, batch)]
    decode = all_cores_ms_each(n, lambda: [rules(Path(f)) for f in files])
    infer = all_cores_ms_each(n, lambda: [classifier.session.infer(p) for p in parts])
    whole = ms_each(n, lambda: [None for _ in predict_files(classifier, files, batch)])
    ideal = decode + infer
    return {"decode_preprocess_ms": decode, "infer_ms": infer, "ideal_ms": ideal, "ms": whole, "share": ideal / whole}


def command_s(*images: str) -> float:
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        words = [
            sys.executable,
            "-m",
            "qdeploy",
            "predict",
            "--model",
            str(SHIPPED),
            *images,
            "--csv",
            file.name,
            "--force",
        ]
        begin = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        return time.perf_counter() - begin


def row(name: str, repeats: list[dict[str, float]]) -> dict[str, Any]:
    spread = {key: [round(f(r[key] for r in repeats), 4) for f in (statistics.median, min, max)] for key in repeats[0]}
    return {"what": name, "repeats": len(repeats), "median_min_max": spread}


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    classifier = qdeploy.load(threads=1)
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            files = write_jpegs(Path(name), size, count)
            jpeg = f"JPEG {size[0]}x{size[1]}"
            for batch in BATCHES if size == SIZES[0] else (VOLUME_BATCH,):
                found = [one_repeat(classifier, files, batch) for _ in range(repeats)]
                rows.append(row(f"{jpeg}, batch {batch}", found))
            times = [(command_s(name) - command_s(files[0])) * 1e3 / count for _ in range(repeats)]
            rows.append(row(f"{jpeg}, command", [{"ms": t, "images_per_s": 1e3 / t} for t in times]))
    keep("volume", rows, images=count, cores=usable_cores())


if __name__ == "__main__":
    main()
