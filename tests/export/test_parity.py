"""What an opened model answers is asked once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.artifact import read_artifact
from qdeploy.data.catalog import load_dataset
from qdeploy.export.graph.parity import Answers, run_outputs
from qdeploy.runtime.session import Session, open_session


def test_each_image_is_run_once_and_gets_its_own_answer(fp32_file: Path) -> None:
    pixels = load_dataset().splits["val"].pixels[:12]
    ran: list[int] = []

    class Counting:
        def __init__(self, session: Session) -> None:
            self.session = session

        def infer(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            ran.append(len(batch))
            return self.session.infer(batch)

    with open_session(read_artifact(fp32_file)) as session:
        answers = Answers(Counting(session))  # type: ignore[arg-type]
        answers.logits(pixels[:5])
        again = answers.outputs(pixels[::-1])
        assert sum(ran) == len(pixels)
        for found, expected in zip(again, run_outputs(session, pixels[::-1]), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
