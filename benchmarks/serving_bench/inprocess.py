"""Decoding, inference and the best five labels without HTTP; ``serving.py`` starts this.

    python serving_inprocess.py MODEL FOLDER...

For each line read from stdin, a folder and a number of seconds, it classifies the folder's files in turn for so long,
and prints how many and in what time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import qdeploy


def main() -> None:
    classifier = qdeploy.load(Path(sys.argv[1]), threads=1)
    files = {name: [p.read_bytes() for p in sorted(Path(name).iterdir())] for name in sys.argv[2:]}
    for line in sys.stdin:
        name, text = line.split()
        these, seconds, begin, n = files[name], float(text), time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            classifier(these[n % len(these)]).top(5)
            n += 1
        print(n, time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
