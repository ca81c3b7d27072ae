"""What refusing an image costs that declares more pixels than are allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.core.bad_images import BOMBS

GOOD = Path(__file__).parents[2] / "examples" / "bag.png"
MEASURE = """
import json, sys, time
from pathlib import Path
from qdeploy.core.errors import ImageError
from qdeploy.core.image import decode
from qdeploy.core.machine import peak_memory_bytes
good, *bombs = map(Path, sys.argv[1:])
decode(good, (255, 255, 255))
for bomb in bombs:
    before, start = peak_memory_bytes(), time.perf_counter()
    try:
        decode(bomb, (255, 255, 255))
    except ImageError:
        print(json.dumps([bomb.name, time.perf_counter() - start, peak_memory_bytes() - before]))
"""


def test_a_bomb_costs_less_than_200_ms_and_50_mb(tmp_path: Path) -> None:
    for i, (data, _) in enumerate(BOMBS.values()):
        (tmp_path / str(i)).write_bytes(data)
    paths = [str(tmp_path / str(i)) for i in range(len(BOMBS))]
    code = [sys.executable, "-c", MEASURE, str(GOOD), *paths]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(BOMBS)
    for name, seconds, size_bytes in lines:
        assert seconds < 0.2, list(BOMBS)[int(name)]
        assert size_bytes < 50e6, list(BOMBS)[int(name)]
