"""What an opened model answers is asked once, and takes no more memory than a batch."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.machine import computing_with
from qdeploy.data.catalog import load_dataset
from qdeploy.export.graph.parity import Answers, run_session
from qdeploy.runtime.session import Session, open_session

FILE = SHIPPED / "model.fp32.onnx"


class Counting:
    """A session that remembers how many images it was asked for at a time."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.ran: list[int] = []

    def infer(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.ran.append(len(batch))
        return self.session.infer(batch)


def test_each_image_is_run_once_and_gets_its_own_answer() -> None:
    pixels = load_dataset().splits["val"].pixels[:12]
    with open_session(read_artifact(FILE)) as session:
        counting = Counting(session)
        answers = Answers(counting)  # type: ignore[arg-type]
        answers.logits(pixels[[0, 1, 0, 2, 1, 3, 4]])
        assert sum(counting.ran) == 5
        again = answers.logits(pixels[[*range(11, -1, -1), 3]])
        assert sum(counting.ran) == len(pixels)
        np.testing.assert_allclose(again, run_session(session, pixels[[*range(11, -1, -1), 3]]), atol=1e-5)


def test_images_that_lie_in_a_file_are_not_copied_into_memory(tmp_path: Path) -> None:
    """With all of them new, and with every second one known."""
    np.save(tmp_path / "pixels.npy", load_dataset().splits["val"].pixels[:300])
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    with computing_with(1), open_session(read_artifact(FILE)) as session:
        for known in (pixels[:1], pixels[::2]):
            answers = Answers(session)
            answers.logits(known)
            tracemalloc.start()
            answers.logits(pixels)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < pixels.nbytes / 5
