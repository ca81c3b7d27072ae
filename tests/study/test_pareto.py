from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

from qdeploy.study.pareto import Point, front, fronts, points
from qdeploy.study.row import Row
from qdeploy.study.rows import noise_of


def point(top1: float, cost: float, name: str = "m") -> Point:
    return Point(axis="size", name=name, precision="fp32", rung=1, epochs=1, top1=top1, cost=cost)


def test_against_brute_force() -> None:
    """Small integers, so that ties in one and in both coordinates abound."""
    rng = random.Random(0)
    for _ in range(500):
        found = [point(rng.randint(0, 6), rng.randint(0, 6), str(i)) for i in range(rng.randint(0, 12))]
        unbeaten = {
            (p.top1, p.cost)
            for p in found
            if not any(
                q.top1 >= p.top1 and q.cost <= p.cost and (q.top1, q.cost) != (p.top1, p.cost) for q in found
            )
        }  # fmt: skip
        best = front(found)
        assert {(p.top1, p.cost) for p in best} == unbeaten
        assert len(best) == len(unbeaten)  # of equals, one
        assert best == sorted(best, key=lambda p: p.cost)


def test_of_equals_the_first_counts() -> None:
    assert [p.name for p in front([point(5, 1, "a"), point(5, 1, "b")])] == ["a"]


def row(name: str, **known: Any) -> Row:
    nothing = dict.fromkeys(field.name for field in fields(Row))
    return Row(**{**nothing, "name": name, "rung": 1, "epochs": 2, "params": 10, **known})


def test_each_precision_is_a_candidate_and_what_failed_is_none() -> None:
    rows = [
        row("a", test_top1_fp32=90.0, test_top1_int8=89.0, latency_fp32_ms=2.0, latency_int8_ms=1.0, params=20),
        row("b", test_top1_fp32=80.0, latency_fp32_ms=1.5),
        row("c"),
    ]
    found = fronts(rows)
    assert [(p.name, p.precision) for p in found["latency"]] == [("a", "int8"), ("a", "fp32")]
    assert found["size"] == []
    assert [(p.name, p.precision) for p in found["params"]] == [("b", "fp32"), ("a", "fp32")]
    assert len(points(rows, "latency")) == 3


def test_what_is_no_better_than_chance_is_on_no_front() -> None:
    known = {"test_n": 1000, "chance": 10.0, "size_fp32_bytes": 9, "size_int8_bytes": 3}
    flat = row("flat", test_top1_fp32=10.0, test_top1_int8=11.0, **known)
    half = row("half", test_top1_fp32=30.0, test_top1_int8=10.5, **{**known, "size_fp32_bytes": 90})
    unknown = row("old", test_top1_fp32=10.0, test_n=1000, size_fp32_bytes=1)  # of a sweep that did not record it
    rows = [flat, half, unknown]
    assert [(p.name, p.precision) for p in points(rows, "size")] == [("half", "fp32"), ("old", "fp32")]
    assert [(p.name, p.precision) for p in points(rows, "size", at_chance=True)] == [
        ("flat", "int8"),
        ("flat", "fp32"),
        ("half", "int8"),
    ]
    assert [r.learnt_nothing for r in rows] == [True, False, False]
    assert all(p.name != "flat" for found in fronts(rows).values() for p in found)


def test_models_that_one_run_does_not_tell_apart_are_named() -> None:
    rows = [row(n, test_top1_fp32=v, test_n=500, chance=10.0) for n, v in (("a", 80.0), ("b", 79.0), ("flat", 10.0))]
    assert "does not tell a from b:" in noise_of(rows)
    assert noise_of([*rows, row("c", test_top1_fp32=79.0, test_n=400)]) == ""  # not on the same images
