"""What every peer's server calls: an image file's bytes in, the best five labels out, as anyone would write it.

    python by_hand.py MODEL FOLDER...

Run as a script it is the ceiling without HTTP: for each line read from stdin, a folder and a number of seconds, it
classifies the folder's files in turn for so long, and prints how many and in what time.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image


class Model:
    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.labels = json.loads(self.session.get_modelmeta().custom_metadata_map["qdeploy"])["labels"]

    def __call__(self, data: bytes) -> list[dict[str, object]]:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        row = self.session.run(["probabilities"], {"image": np.asarray(image)[None]})[0][0]
        return [{"label": self.labels[i], "probability": float(row[i])} for i in np.argsort(row)[:-6:-1]]


def main() -> None:
    model = Model(sys.argv[1])
    files = {name: [p.read_bytes() for p in sorted(Path(name).iterdir())] for name in sys.argv[2:]}
    for line in sys.stdin:
        name, text = line.split()
        these, seconds, begin, n = files[name], float(text), time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            model(these[n % len(these)])
            n += 1
        print(n, time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
