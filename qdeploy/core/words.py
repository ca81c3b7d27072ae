"""Numbers as people read them: counts with their noun, shares in per cent, and roundings without a minus zero."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """Return a count with its noun, as ``1 image`` or ``1,234 images``.

    Args:
        n: How many.
        noun: The singular of a noun whose plural ends with s; words before it stay as they are.
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def percent(share: float, digits: int = 1, sign: str = "") -> str:
    """Return a share, 1.0 being the whole, as ``95.2 %``; with ``+`` as sign, a gain has it, too."""
    return f"{rounded(100 * share, digits, sign)} %"


def rounded(value: float, digits: int, sign: str = "") -> str:
    """Return a number with so many decimals; what rounds to zero has no minus."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"
