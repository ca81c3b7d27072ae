from __future__ import annotations

import random

import pytest

from qdeploy.study.halving import Load, Score, expected_kept, kept, most_rungs, plan, predicted_s, wall_s


def scores(*values: tuple[str, float, int]) -> list[Score]:
    return [Score(name=n, val_top1=v, macs=m) for n, v, m in values]


def test_the_best_third_and_the_front_are_kept() -> None:
    """Worked by hand. Best three: e 80, b 79, h 78. Front against MACs: a (10), c (20), h (40), e (90).

    d is beaten by c (cheaper, better), f by a (as cheap, better), g by c (as good, cheaper), i by h.
    """
    found = kept(
        scores(
            ("a", 60.0, 10), ("b", 79.0, 95), ("c", 70.0, 20), ("d", 65.0, 30), ("e", 80.0, 90), ("f", 59.0, 10),
            ("g", 70.0, 25), ("h", 78.0, 40), ("i", 77.0, 80),
        )
    )  # fmt: skip
    assert found == ["a", "b", "c", "e", "h"]


def test_equal_models_and_few_models() -> None:
    assert kept(scores(("a", 50.0, 10), ("b", 50.0, 10))) == ["a", "b"]  # neither beats the other
    assert kept(scores(("a", 50.0, 10), ("b", 50.0, 11))) == ["a"]
    assert kept(scores(("a", 50.0, 10))) == ["a"]
    assert kept([]) == []


def test_a_third_is_rounded_up_and_the_cheaper_of_equals_is_first() -> None:
    """Four models: two are kept by accuracy. b and c are equal, c is cheaper; d is the cheapest."""
    assert kept(scores(("a", 90.0, 10), ("b", 80.0, 40), ("c", 80.0, 30), ("d", 70.0, 50))) == ["a", "c"]


def test_the_number_of_rungs() -> None:
    assert [most_rungs(n) for n in (1, 2, 3, 8, 9, 26, 27, 36, 243)] == [1, 1, 2, 2, 3, 3, 3, 3, 3]
    assert [expected_kept(n) for n in (1, 2, 3, 9, 36)] == [1, 2, 3, 5, 14]


NINE = [Load(start_s=1.0, epoch_s=2.0)] * 9


def test_a_plan_worked_by_hand() -> None:
    """Nine models, five expected to go on, four of them again.

    e = 1: 9 (1 + 2) + 5 (1 + 6) + 4 (1 + 18) = 27 + 35 + 76 = 138 s; e = 2: 45 + 65 + 148 = 258 s.
    """
    assert predicted_s(NINE, (1, 3, 9)) == 138
    assert predicted_s(NINE, (2, 6, 18)) == 258
    assert plan(NINE, 257.9, most_epochs=100, rungs=3) == (1, 3, 9)
    assert plan(NINE, 258.0, most_epochs=100, rungs=3) == (2, 6, 18)


def test_too_little_time_gives_fewer_rungs_and_then_none() -> None:
    """Two rungs with e = 1: 27 + 35 = 62 s; one rung: e = 3 is 63 s, e = 1 is 27 s."""
    assert plan(NINE, 137.9, most_epochs=100, rungs=3) == (2, 6)  # 45 + 65 = 110 s; e = 3: 63 + 95 = 158 s
    assert plan(NINE, 61.9, most_epochs=100, rungs=3) == (2,)
    assert plan(NINE, 27.0, most_epochs=100, rungs=3) == (1,)
    assert plan(NINE, 26.9, most_epochs=100, rungs=3) == ()


def test_time_for_all_needs_no_halving_and_no_rung_exceeds_the_most() -> None:
    assert plan(NINE, 9 * 73.0, most_epochs=36, rungs=3) == (36,)
    assert plan(NINE, 9 * 73.0 - 1, most_epochs=36, rungs=3) == (4, 12, 36)
    assert plan(NINE, 150.0, most_epochs=8, rungs=3) == (2, 6)


def test_a_later_plan_trains_longer_than_the_rung_before() -> None:
    five = NINE[:5]  # 4 go on: e = 4 takes 5 (1 + 8) + 4 (1 + 24) = 145 s
    assert plan(five, 145.0, most_epochs=100, rungs=2, above=3) == (4, 12)
    assert plan(five, 145.0, most_epochs=100, rungs=2, above=4) == (14,)  # one rung: 5 (1 + 28) = 145 s
    assert plan(five, 145.0, most_epochs=100, rungs=2, above=14) == ()


def test_no_plan_exceeds_its_time() -> None:
    rng = random.Random(0)
    for _ in range(300):
        loads = [Load(start_s=rng.uniform(0, 9), epoch_s=rng.uniform(0.1, 20)) for _ in range(rng.randint(1, 40))]
        seconds, slots = rng.uniform(1, 5000), rng.randint(1, 4)
        epochs = plan(loads, seconds, most_epochs=rng.randint(1, 90), rungs=most_rungs(len(loads)), slots=slots)
        if epochs:
            assert predicted_s(loads, epochs, slots) <= seconds
        else:
            assert predicted_s(loads, (1,), slots) > seconds


def test_the_bound_of_several_workers_holds_for_any_order() -> None:
    rng = random.Random(1)
    for _ in range(200):
        seconds, slots = [rng.uniform(0, 10) for _ in range(rng.randint(1, 12))], rng.randint(1, 4)
        busy = [0.0] * slots
        for s in seconds:
            worker = min(range(slots), key=busy.__getitem__)
            busy[worker] += s
        assert max(busy) <= wall_s(seconds, slots) + 1e-9
    assert wall_s([3.0, 4.0], 1) == pytest.approx(7.0)
