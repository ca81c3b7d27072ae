"""Studies that span training, export and measurement: ``sweep`` trains, exports and measures a set of models.

Nothing heavy is imported here: the processes of a sweep's trials load only what they use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdeploy.study.settings import SweepConfig

if TYPE_CHECKING:
    from qdeploy.study.campaign import SweepResult, resume, sweep

__all__ = ["SweepConfig", "SweepResult", "resume", "sweep"]


def __getattr__(name: str) -> Any:
    if name in ("SweepResult", "resume", "sweep"):
        from qdeploy.study import campaign

        return getattr(campaign, name)
    raise AttributeError(f"module 'qdeploy.study' has no attribute '{name}'")
