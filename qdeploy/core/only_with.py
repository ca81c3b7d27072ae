"""Which fields of a training run say nothing unless another field has some value; of ``TrainConfig``, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTROLLER = (
    "boosts", "plateau_resets", "restarts", "dynamic_momentum", "dynamic_ema", "dynamic_smoothing", "dynamic_drop_path",
)  # fmt: skip
"""The parts of the paper's controller; there is none under a cosine."""
ONLY_WITH: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = (
    ((*CONTROLLER, "warmup_epochs"), "schedule", ("confidence",)),
    (("all_images", "warmup_share"), "schedule", ("cosine",)),
    (("randaugment",), "augmentation", ("low", "mid", "high")),
    (("crop", "pad"), "augmentation", ("crop",)),
    (("shift",), "augmentation", ("shift",)),
    (("distill_weight", "distill_temperature"), "teacher", ()),
)
"""Fields, another field, and its values with which they count; where there are none, any that is not empty. What is off
by default and switched on with another value is a contradiction."""


def counts(value: Any, values: tuple[str, ...]) -> bool:
    """Tell whether fields of ``ONLY_WITH`` count with this value of the other field."""
    return value in values if values else bool(value)


def switched_on(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration that do something: neither empty nor off, nor without effect."""
    used = {k: v for k, v in training.items() if v not in (False, 0, "", "off", "none", None, {}, [])}
    for parts, other, values in ONLY_WITH:
        if other in training and not counts(training[other], values):
            used = {k: v for k, v in used.items() if k not in parts}
    return used
