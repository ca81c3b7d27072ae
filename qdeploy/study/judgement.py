"""The verdict on the models of a sweep: within the parameters, and not too far below a baseline (thesis, 1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdeploy.core.words import counted
from qdeploy.study.row import Row
from qdeploy.study.settings import SweepConfig


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One model beside the baseline."""

    name: str
    params: int
    top1: float | None
    """Test top-1 of its fp32 file, in percent."""
    drop: float | None
    """Points below the baseline; negative above it."""
    accepted: bool
    reason: str
    """Why not; empty if accepted."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict of a sweep with a baseline."""

    baseline: str
    baseline_top1: float | None
    max_params: int | None
    max_drop: float
    models: tuple[Judged, ...]
    """All others, the smallest first."""
    pick: str | None
    """The accepted model with the fewest parameters; None if there is none."""


def judge(rows: Sequence[Row], config: SweepConfig) -> Judgement | None:
    """Judge every model of a sweep; None without a baseline."""
    base = next((r for r in rows if r.name == config.baseline), None)
    if config.baseline is None or base is None:
        return None
    others = sorted((r for r in rows if r is not base), key=lambda r: r.params)
    models = tuple(_judged(r, base, config) for r in others)
    return Judgement(
        baseline=base.name,
        baseline_top1=base.test_top1_fp32,
        max_params=config.max_params,
        max_drop=config.max_drop,
        models=models,
        pick=next((m.name for m in models if m.accepted), None),
    )


def _judged(row: Row, base: Row, config: SweepConfig) -> Judged:
    drop = None
    if row.test_top1_fp32 is not None and base.test_top1_fp32 is not None:
        drop = round(base.test_top1_fp32 - row.test_top1_fp32, 6)
    reason = ""
    if drop is None:
        reason = "it has no accuracy" if row.test_top1_fp32 is None else "the baseline has no accuracy"
    elif row.epochs != base.epochs:
        reason = f"trained for {counted(row.epochs or 0, 'epoch')}, the baseline for {base.epochs}"
    elif config.max_params is not None and row.params > config.max_params:
        reason = f"more than {config.max_params:,} parameters"
    elif drop > config.max_drop:
        reason = f"{drop:.2f} points below the baseline, more than {config.max_drop:g}"
    return Judged(
        name=row.name, params=row.params, top1=row.test_top1_fp32, drop=drop, accepted=not reason, reason=reason
    )
