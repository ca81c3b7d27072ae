"""JSON from files that anyone can have written: with an end to its depth, and every number finite."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MOST_DIGITS = 300
"""Of a whole number: it can become a float64."""


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parse a JSON document.

    Args:
        text: The document.
        finite: Whether to refuse NaN and infinity, which are no JSON, and numbers too large for float64.

    Raises:
        ValueError: If it is no JSON, is nested too deeply, or holds such numbers.
    """
    try:
        if not finite:
            return json.loads(text, parse_int=_whole)
        return json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_not_json)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits, at most {MOST_DIGITS} are read")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
