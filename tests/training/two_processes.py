"""A run of two processes that is cut within an epoch and resumed, and one that is not; argv: the images, a folder.

Started with torchrun by test_distributed.py. Leaves the runs ``whole`` and ``cut`` in the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from qdeploy.training import config_from_recipe, resume, run, start, train
from qdeploy.training.distributed import World, joined
from qdeploy.training.learner import Learner

CUT = 6
"""Of four steps an epoch: in the middle of the second."""


class CutError(Exception):
    pass


images, folder = sys.argv[1], Path(sys.argv[2])
step, steps = Learner.step, 0


def cut(*arguments: Any) -> Any:
    global steps
    steps += 1
    if steps > CUT:
        raise CutError
    return step(*arguments)


with joined(torch.device("cpu")) as world, pytest.MonkeyPatch.context() as patch:

    @contextmanager
    def again(_: torch.device) -> Iterator[World]:
        yield world

    patch.setattr(start, "joined", again)
    patch.setattr(run, "LOOK_STEPS", 1)
    patch.setattr(run, "SAVING_SHARE", 1e9)  # a checkpoint after every step
    config = config_from_recipe(
        "qonstraint-5.9",
        data=images,
        model="nano-ar",
        epochs=2,
        batch_size=4,
        device="cpu",
        amp="off",
        dynamic_ema=False,
        ema_decay=0.5,
        checkpoint_seconds=0,
    )
    train(config, folder / "whole")
    with suppress(CutError), patch.context() as shorter:
        shorter.setattr(Learner, "step", cut)
        train(config, folder / "cut")
    resume(folder / "cut")
