"""The pieces speed, precision and data: what a training step costs."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from campaign.results import Cell, Row, at_most, one_line, spread
from campaign.sizes import EPOCH_IMAGES, REPORTED, Size
from campaign.stepper import Stepper
from qdeploy.core.errors import InputError
from qdeploy.training import config_from_recipe

PAPER: dict[str, Row] = {
    REPORTED: {"memory_gb": 9.2, "epoch_s": 333},
    "qonstraint-5.9-sota": {"memory_gb": 9, "epoch_s": 370},
    "qonstraint-5.9-aggressive": {"memory_gb": 6.5, "epoch_s": 150},
    "qonstraint-5.9-lighter": {"memory_gb": 10.6, "epoch_s": 215},
    "qonstraint-5.9-heavier": {"memory_gb": 11.2, "epoch_s": 230},
    "qonstraint-5.9-heaviest": {"memory_gb": 9.9, "epoch_s": 490},
}
"""One P100, an epoch of 80,000 images at the recipe's batch size (paper, IV.B and the comparison table)."""
MEMORY_GB, EPOCH_S, DATA_SHARE = 9.2, 15.0, 0.10
"""What 5.9 is to reach on an H200."""


def or_unavailable(cell: Cell) -> Cell:
    """That a device cannot do something, or has not the memory, is a result."""

    def made(seconds: float) -> Row | None:
        try:
            return cell(seconds)
        except (InputError, torch.OutOfMemoryError) as error:
            return {"unavailable": one_line(error)}

    return made


def speed_cells(size: Size, _: Path) -> dict[str, Cell]:
    return {model: or_unavailable(partial(speed_row, model, size)) for model in size.models}


def speed_row(model: str, size: Size, _: float) -> Row:
    recipe, batch_size = size.models[model]
    stepper = Stepper(config_from_recipe(recipe, model=model, batch_size=batch_size), size)
    stepper.warm_up(size.warmup)
    times = {
        phase: [stepper.group_ms(epoch, size.group_steps) for _ in range(size.groups)]
        for phase, epoch in stepper.phases.items()
    }
    batch = stepper.config.batch_size
    return {
        **stepper.facts(),
        "steps_per_group": size.group_steps,
        "step_ms": {phase: spread(values) for phase, values in times.items()},
        "images_per_s": {phase: round(1000 * batch / statistics.median(v), 1) for phase, v in times.items()},
        "epoch_80000_s": {
            phase: round(EPOCH_IMAGES / batch * statistics.median(v) / 1000, 2) for phase, v in times.items()
        },
        **stepper.memory(),
        "paper_p100": PAPER.get(model),
    }


def speed_verdict(rows: dict[str, Row]) -> Row:
    row = rows.get(REPORTED, {})
    if "peak_allocated_bytes" not in row:
        return {}
    return {
        f"{REPORTED}: peak allocated GB": at_most(row["peak_allocated_bytes"] / 1e9, MEMORY_GB),
        f"{REPORTED}: seconds of 80,000 images": at_most(max(row["epoch_80000_s"].values()), EPOCH_S),
    }


def precision_cells(size: Size, _: Path) -> dict[str, Cell]:
    """Every combination, and what a user gets who chooses nothing."""
    choices = [("auto", True, False)]
    choices += [(a, c, k) for k in size.compile for c in (True, False) for a in ("bf16", "fp16", "off")]
    return {
        f"amp {amp}, {'channels last' if last else 'channels first'}, {'compiled' if compiled else 'eager'}": (
            or_unavailable(partial(precision_row, size, amp, last, compiled))
        )
        for amp, last, compiled in choices
    }


def precision_row(size: Size, amp: str, channels_last: bool, compiled: bool, _: float) -> Row:
    config = config_from_recipe("qonstraint-5.9", **size.reported, amp=amp, compile=compiled)
    stepper = Stepper(config, size, channels_last=channels_last)
    first_s = stepper.warm_up(max(1, size.warmup // 2))
    epoch = stepper.phases["phase_1"]
    times = [stepper.group_ms(epoch, size.group_steps) for _ in range(size.groups)]
    row = {
        **stepper.facts(),
        "channels_last": channels_last,
        "compiled": compiled,
        "steps_per_group": size.group_steps,
        "first_step_s": round(first_s, 2),
        "step_ms": spread(times),
        "images_per_s": round(1000 * config.batch_size / statistics.median(times), 1),
        **stepper.memory(),
    }
    if compiled and (amp, channels_last) == ("bf16", True):
        # drop path follows the confidence: what the first step costs after an epoch has changed it
        begin = perf_counter()
        stepper.step(epoch, confidence=0.71).item()
        row["step_after_new_confidence_s"] = round(perf_counter() - begin, 2)
    return row


def data_cells(size: Size, _: Path) -> dict[str, Cell]:
    return {phase: or_unavailable(partial(data_row, phase, size)) for phase in ("phase_1", "phase_2")}


def data_row(phase: str, size: Size, _: float) -> Row:
    """A whole epoch, group by group in turn with the same steps on one batch that is already on the device."""
    stepper = Stepper(config_from_recipe("qonstraint-5.9", **size.reported), size)
    stepper.warm_up(size.warmup)
    epoch, steps = stepper.phases[phase], stepper.batches.steps
    fixed = stepper.draw(epoch, 0)
    drawn: list[float] = []
    still: list[float] = []
    counts = [min(size.group_steps, steps - first) for first in range(0, steps, size.group_steps)]
    stepper.drawing_s = 0.0
    for count in counts:
        drawn.append(stepper.group_ms(epoch, count))
        still.append(stepper.group_ms(epoch, count, fixed))
    epoch_s = sum(ms * count for ms, count in zip(drawn, counts, strict=True)) / 1000
    return {
        **stepper.facts(),
        "images": steps * stepper.config.batch_size,
        "steps_per_group": size.group_steps,
        "epoch_s": round(epoch_s, 2),
        "step_ms": spread(drawn),
        "step_on_one_batch_ms": spread(still),
        "waiting_share": round(1 - statistics.median(still) / statistics.median(drawn), 4),
        "data_share": round(stepper.drawing_s / epoch_s, 4),
    }


def data_verdict(rows: dict[str, Row]) -> Row:
    """The waiting share is what images really cost; the data share is what a run reports of itself."""
    found = {name: row for name, row in rows.items() if row.get("model") == REPORTED}
    return {
        f"{name}: {kind.replace('_', ' ')}": at_most(row[kind], DATA_SHARE)
        for name, row in found.items()
        for kind in ("waiting_share", "data_share")
    }
