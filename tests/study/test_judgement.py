"""The verdict against a baseline, on rows written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qdeploy.core.errors import InputError
from qdeploy.study.judgement import Judgement, judge
from qdeploy.study.row import Row
from qdeploy.study.rows import rows_of
from qdeploy.study.settings import SweepConfig
from tests.study.sweeps import measured_sweep


def rows(values: dict[str, tuple[int, float | None, int]]) -> list[Row]:
    one = rows_of(measured_sweep(Path("x")))[0]
    assert (one.flash_int8_bytes, one.ram_int8_bytes) == (3001, 2001)
    return [replace(one, name=n, params=p, test_top1_fp32=a, epochs=e) for n, (p, a, e) in values.items()]


FOUND = {
    "base": (1_086_234, 91.0, 36),
    "large": (1_200_000, 92.0, 36),
    "close": (833_018, 90.0, 36),
    "small": (602_234, 89.75, 36),
    "short": (499_450, 90.9, 4),
    "failed": (525_434, None, 36),
}


def judged(**fields: object) -> Judgement:
    found = judge(rows(FOUND), SweepConfig(baseline="base", max_params=1_000_000, **fields))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_model_a_quarter_point_too_low_is_not_accepted() -> None:
    found = judged()
    reasons = {m.name: m.reason for m in found.models}
    assert reasons == {
        "short": "trained for 4 epochs, the baseline for 36",
        "failed": "it has no accuracy",
        "small": "1.25 points below the baseline, more than 1",
        "close": "",
        "large": "more than 1,000,000 parameters",
    }
    assert (found.pick, found.baseline_top1) == ("close", 91.0)


def test_the_smallest_accepted_is_picked_or_none() -> None:
    assert judged(max_drop=1.25).pick == "small"
    assert judged(max_drop=0.5).pick is None
    assert judge(rows(FOUND), SweepConfig()) is None
    assert judge(rows({**FOUND, "base": (9, None, 36)}), SweepConfig(baseline="base")).pick is None  # type: ignore[union-attr]


@pytest.mark.parametrize("fields", [{"max_params": 0}, {"max_drop": -1.0}, {"max_drop": 101.0}])
def test_limits_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(fields))}` must be"):
        SweepConfig(**fields)  # type: ignore[arg-type]
