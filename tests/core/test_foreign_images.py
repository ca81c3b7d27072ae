"""Every image of other people is read as its numbers say, or refused in one line; nothing is printed by a library."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.core.errors import ImageError
from qdeploy.core.image import decode
from tests.core.bad_images import WHITE
from tests.foreign_images import ForeignImage, foreign_images

ROUNDING = 1
"""Units of 255 by which transparency may differ."""


def wrong(case: ForeignImage) -> str:
    """Say what is wrong with the answer to a file, or nothing."""
    try:
        image = decode(case.data, WHITE)
    except ImageError as error:
        line = str(error)
        if case.pixels is not None or "\n" in line:
            return f"{case.name}: refused: {line}"
        return ""
    found, frames = np.asarray(image), image.info.get("frames", 1)
    if case.pixels is None:
        return f"{case.name}: read as {found.shape}"
    if found.shape != case.pixels.shape or frames != case.frames:
        return f"{case.name}: {found.shape}, {frames} frames; expected {case.pixels.shape}, {case.frames}"
    off = np.abs(found.astype(int) - case.pixels).max()
    return f"{case.name}: off by {off}" if off > (ROUNDING if "alpha" in case.name else 0) else ""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_every_image_is_read_right_or_refused(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    cases = list(foreign_images(seed))
    assert len({c.name for c in cases}) == len(cases) >= 300
    assert sum(c.pixels is None for c in cases) >= 100
    assert [text for text in map(wrong, cases) if text] == []
    assert capfd.readouterr() == ("", "")
