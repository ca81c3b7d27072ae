from __future__ import annotations

from dataclasses import dataclass

import pytest

from qdeploy.core.records import RecordError, decode


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Whole:
    parts: tuple[Part, ...]
    counts: dict[str, int]
    pair: tuple[int, str]
    size: float | None = None


VALUES = {"parts": [{"name": "a"}, {"name": "b", "share": 1}], "counts": {"x": 1}, "pair": [1, "y"]}


def test_dataclasses_are_made_at_every_depth_and_what_is_unknown_is_passed_over() -> None:
    expected = Whole(parts=(Part(name="a"), Part(name="b", share=1.0)), counts={"x": 1}, pair=(1, "y"))
    assert decode(Whole, VALUES) == decode(Whole, {**VALUES, "later": 3, "size": None}) == expected
    assert isinstance(expected.parts[1].share, float)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"parts": None}, "'parts' is no list"),
        ({"parts": [{}]}, "'parts.0.name' is missing"),
        ({"parts": [{"name": 1}]}, "'parts.0.name' is no str"),
        ({"parts": ["a"]}, "'parts.0' is no dict"),
        ({"counts": {"x": True}}, "'counts.x' is no int"),
        ({"counts": {"x": 1.5}}, "'counts.x' is no int"),
        ({"pair": [1]}, "'pair' has 1 values, expected 2"),
        ({"size": "big"}, "'size' is no float"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], text: str) -> None:
    with pytest.raises(RecordError, match=text):
        decode(Whole, {**VALUES, **change})
