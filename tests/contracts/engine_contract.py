"""What every engine must do; each engine's test class inherits these checks."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import InputError
from qdeploy.core.metrics import sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.runtime.session import ENGINES, Session, open_session


class EngineContract:
    """Subclass with ``engine`` set."""

    engine: str
    says: str
    """What the session must say that it runs on."""
    atol = 1e-4
    """How far equal questions may get different answers, in logits."""

    @pytest.fixture(params=["fp32", "int8"])
    def file(self, request: pytest.FixtureRequest, fp32_file: Path, int8_file: Path) -> Path:
        return {"fp32": fp32_file, "int8": int8_file}[request.param]

    @pytest.fixture
    def session(self, file: Path) -> Session:
        return open_session(read_artifact(file), self.engine, threads=1)

    def test_it_names_what_really_runs(self, session: Session) -> None:
        assert re.fullmatch(self.says, session.engine)

    def test_answers_are_the_goldens(self, session: Session, file: Path) -> None:
        card = read_artifact(file).card
        goldens = card.goldens
        logits, probabilities = session.infer(goldens.images)
        least_db = min(goldens.min_sqnr_db, ENGINES[self.engine].least_db(card.precision))
        assert sqnr_db(goldens.logits, logits) >= least_db
        powers = np.exp(logits.astype(np.float64) / card.temperature)
        assert np.allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=self.atol / 10)
        assert logits.dtype == probabilities.dtype == np.float32

    @pytest.mark.parametrize("batch", [1, 3, 19])
    def test_a_batch_gives_what_single_images_give(self, session: Session, batch: int) -> None:
        images = sample_images(Preprocessing())[:batch]
        together, _ = session.infer(images)
        alone = np.concatenate([session.infer(images[i : i + 1])[0] for i in range(batch)])
        assert together.shape == (batch, 10)
        assert np.allclose(together, alone, atol=self.atol)

    def test_arrays_that_may_not_be_written_or_lie_apart_are_taken(self, session: Session) -> None:
        images = sample_images(Preprocessing())[:6].copy()
        expected, _ = session.infer(images)
        apart = np.ascontiguousarray(np.repeat(images, 2, axis=0))[::2]
        images.setflags(write=False)
        for given in (images, apart, images[::-1][::-1]):
            assert np.allclose(session.infer(given)[0], expected, atol=self.atol)

    @pytest.mark.parametrize("batch", [0, 1, 9])
    def test_bytes_give_what_arrays_give(self, session: Session, batch: int) -> None:
        images = sample_images(Preprocessing())[:batch]
        for array, rows in zip(session.infer(images), session.infer_bytes(images.tobytes(), batch), strict=True):
            assert len(rows) == batch
            assert np.allclose(array, np.reshape(rows, (batch, 10)), atol=self.atol)

    @pytest.mark.parametrize(
        ("size_bytes", "count"), [(64 * 64 * 3 - 1, 1), (64 * 64 * 3, 2), (64 * 64 * 3, 0), (0, 1)]
    )
    def test_bytes_of_another_length_are_refused(self, session: Session, size_bytes: int, count: int) -> None:
        with pytest.raises(InputError, match=rf"{count} images of \[64, 64, 3\] are .* bytes, found {size_bytes}"):
            session.infer_bytes(bytes(size_bytes), count)

    def test_threads_do_not_change_the_answer(self, file: Path) -> None:
        artifact = read_artifact(file)
        one, two = (open_session(artifact, self.engine, threads=t) for t in (1, 2))
        images = artifact.card.goldens.images
        assert np.allclose(one.infer(images)[0], two.infer(images)[0], atol=self.atol)

    def test_concurrent_callers_get_their_own_answers(self, session: Session) -> None:
        images = sample_images(Preprocessing())[:32]
        expected = [session.infer(i[None])[0] for i in images]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: session.infer(i[None])[0], images))
        assert all(np.allclose(a, b, atol=self.atol) for a, b in zip(expected, found, strict=True))

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((1, 64, 64, 3), np.float32),
            np.zeros((64, 64, 3), np.uint8),
            np.zeros((1, 3, 64, 64), np.uint8),
            np.zeros((1, 65, 64, 3), np.uint8),
        ],
    )
    def test_wrong_inputs_are_refused_by_shape_and_dtype(self, session: Session, images: np.ndarray) -> None:
        with pytest.raises(InputError, match="the model takes uint8 images of shape"):
            session.infer(images)

    def test_a_closed_session_says_so(self, session: Session) -> None:
        with session:
            pass
        with pytest.raises(InputError, match="closed"):
            session.infer(np.zeros((1, 64, 64, 3), np.uint8))
        with pytest.raises(InputError, match="closed"):
            session.infer_bytes(bytes(64 * 64 * 3), 1)

    def test_closing_while_others_infer_ends_them_with_the_same_words(self, session: Session) -> None:
        images = sample_images(Preprocessing())[:1]
        expected, _ = session.infer(images)

        def until_closed(_: int) -> str:
            try:
                while True:
                    assert np.allclose(session.infer(images)[0], expected, atol=self.atol)
            except InputError as error:
                return str(error)

        with ThreadPoolExecutor(3) as pool:
            ends = pool.map(until_closed, range(3))
            time.sleep(0.05)
            session.close()
            assert set(ends) == {"this session is closed; open the artifact again"}
        session.close()

    @pytest.mark.parametrize("threads", [0, -1, 5000])
    def test_impossible_threads_are_refused(self, file: Path, threads: int) -> None:
        with pytest.raises(InputError, match="threads"):
            open_session(read_artifact(file), self.engine, threads=threads)
