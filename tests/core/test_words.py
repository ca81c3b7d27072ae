"""Numbers as people read them."""

from __future__ import annotations

import pytest

from qdeploy.core.words import counted, percent, rounded


@pytest.mark.parametrize(("n", "says"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (12_345, "12,345 images")])
def test_a_count_agrees_with_its_noun(n: int, says: str) -> None:
    assert counted(n, "image") == says


def test_a_share_has_a_space_before_its_sign() -> None:
    assert percent(0.9524) == "95.2 %"
    assert percent(1, 0) == "100 %"
    assert percent(0.105, 1, "+") == "+10.5 %"
    assert percent(-0.671, 1, "+") == "-67.1 %"


@pytest.mark.parametrize("value", [0.0, -0.0, 0.004, -0.004])
def test_what_rounds_to_zero_has_no_minus(value: float) -> None:
    assert rounded(value, 2) == "0.00"
    assert rounded(value, 2, "+") == "+0.00"
    assert rounded(value - 1, 2, "+") == "-1.00"
