"""A finding means what it says: on equal models as on different ones, with noise as machines make it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qdeploy.bench import launches, sample_images
from qdeploy.bench.compare import Speed, compare, mean_and_margin, student
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import InputError
from qdeploy.runtime.session import Session, open_session

LAUNCHES, ROUNDS, BLOCK = 10, 15, 6


def series(rng: np.random.Generator, machine: NDArray[np.float64], scale: float = 1.0) -> list[list[float]]:
    """One model's rounds: the machine's slow noise, a place in memory that each launch draws anew, jitter."""
    place = np.repeat(rng.normal(0, 0.01, LAUNCHES), ROUNDS)
    own = autocorrelated(rng, 0.01)
    jitter = rng.exponential(0.03, (LAUNCHES * ROUNDS, BLOCK))
    return (scale * np.exp(machine + place + own)[:, None] * (1 + jitter)).tolist()


def autocorrelated(rng: np.random.Generator, size: float) -> NDArray[np.float64]:
    noise = rng.normal(0, size, LAUNCHES * ROUNDS)
    for i in range(1, len(noise)):
        noise[i] += 0.8 * noise[i - 1]
    return noise


def test_equal_models_are_called_equal_and_two_per_cent_are_seen() -> None:
    rng = np.random.default_rng(0)
    false, seen = 0, 0
    for _ in range(200):
        machine = autocorrelated(rng, 0.1)
        base, same, slower = series(rng, machine), series(rng, machine), series(rng, machine, 1.03)
        false += compare("same", "base", same, base).finding != Speed.NO_DIFFERENCE
        seen += compare("slower", "base", slower, base).finding == "slower"
    assert false <= 20  # 5 % expected; more than 20 of 200 has a chance of 1 in 1,000
    assert seen >= 150


def test_ten_equal_models_give_no_winner_either() -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(60):
        machine = autocorrelated(rng, 0.1)
        base = series(rng, machine)
        found = [compare("same", "base", series(rng, machine), base, comparisons=10) for _ in range(10)]
        wrong += any(c.finding != Speed.NO_DIFFERENCE for c in found)
    assert wrong <= 9


def test_four_launches_of_unequal_length_are_the_stretches() -> None:
    """Two of four launches had the luck of the better place: forty rounds do not make that a win."""
    rng = np.random.default_rng(2)
    lengths, places = (4, 20, 6, 10), (0.99, 0.9, 1.0, 0.9)
    place = np.repeat(places, lengths)[:, None]
    new = (place * (1 + 0.001 * rng.standard_normal((40, 10)))).tolist()
    old = (1 + 0.001 * rng.standard_normal((40, 10))).tolist()
    assert compare("new", "old", new, old, launches=lengths).finding == Speed.NO_DIFFERENCE
    assert compare("new", "old", new, old).finding == "faster"


def test_a_win_is_put_in_words() -> None:
    def flat(scale: float, seed: int) -> list[list[float]]:
        return (scale * (1 + 0.02 * np.random.default_rng(seed).standard_normal((50, 10)))).tolist()

    faster = compare("int8", "fp32", flat(1.0, 0), flat(1.5, 1))
    assert faster.finding == "faster"
    assert faster.ratio == pytest.approx(1.5, rel=0.02)
    assert faster.words().startswith("int8 is 1.5")
    assert "x faster than fp32 (95 % interval 1." in faster.words()
    slower = compare("int8", "fp32", flat(1.5, 0), flat(1.0, 1))
    assert slower.finding == "slower"
    assert slower.words().startswith("int8 is 1.5")
    assert "x slower than fp32 (95 % interval 1." in slower.words()
    assert Speed.NO_DIFFERENCE.value in compare("int8", "fp32", flat(1.0, 0), flat(1.0, 1)).words()
    with pytest.raises(InputError, match="two rounds"):
        compare("int8", "fp32", [[1.0]], [[1.0]])


def test_student_s_quantiles_are_those_of_the_tables() -> None:
    for freedom, probability, quantile in ((1, 0.975, 12.706), (9, 0.975, 2.262), (9, 0.995, 3.250), (30, 0.95, 1.697)):
        assert student(probability, freedom) == pytest.approx(quantile, abs=6e-4)
    assert mean_and_margin([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), abs=1e-3)


def test_files_are_opened_anew_and_the_order_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = [read_artifact(SHIPPED / f"model.{p}.onnx") for p in ("fp32", "int8")]
    opened: list[str] = []

    def noting(artifact: Artifact, **options: Any) -> Session:
        opened.append(artifact.card.precision)
        return open_session(artifact, **options)

    monkeypatch.setattr(launches, "open_session", noting)
    fp32, int8 = launches.time_launches(artifacts, sample_images(artifacts[0].card.preprocessing), 100, 60.0)
    assert opened == ["fp32", "int8", "int8", "fp32"] * 5
    assert len(fp32) == len(int8) == LAUNCHES
    assert [len(rounds) for rounds in fp32] == [len(rounds) for rounds in int8]
    assert sum(len(block) for rounds in fp32 for block in rounds) >= 100
    assert all(t > 0 for rounds in (*fp32, *int8) for block in rounds for t in block)
