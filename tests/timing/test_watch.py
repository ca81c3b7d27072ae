"""What a watched folder costs while nothing happens in it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from qdeploy.serve.sources.answers import Stamp
from qdeploy.serve.sources.watch import LISTING_SHARE, Folder, Remembered
from tests.serve.serving import EXAMPLES, until


@pytest.mark.slow
def test_ten_thousand_images_cost_little_while_nothing_happens(tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    remembered = Remembered()
    for i in range(10_000):
        path = many / f"{i:05}.jpg"
        path.touch()
        found = path.stat()
        remembered.add(Stamp(str(path), found.st_size, found.st_mtime_ns, found.st_ino))
    watched = Folder(str(many), remembered)
    assert watched.look() == []  # reads all
    cpu_s = time.thread_time()
    assert watched.look() == []  # lists
    listing_s = time.thread_time() - cpu_s
    begin, cpu_s = time.monotonic(), time.thread_time()
    while time.monotonic() - begin < 1.2 * LISTING_SHARE * listing_s:
        time.sleep(0.25)
        assert watched.look() == []
    assert listing_s / 2 < time.thread_time() - cpu_s < 0.03 * (time.monotonic() - begin)
    shutil.copy(EXAMPLES / "bag.png", many / "new.png")
    until(watched.look)
