from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qdeploy.core.errors import InputError
from qdeploy.training import config_from_recipe, train
from qdeploy.training.distributed import World

SCRIPT = Path(__file__).with_name("three_steps.py")


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        call = [sys.executable, *launcher, str(SCRIPT), str(tmp_path / name)]
        done = subprocess.run(call, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    assert torch.allclose(one["losses"], two["losses"], rtol=1e-5)
    # Adam divides by the gradient's size: where that is rounding noise, a step of the whole rate may differ
    far = [k for k in one if ((one[k] - two[k]).abs().float() > 1e-4).float().mean() > 0.01]
    assert far == []
    moved = (one["model.head.fc.weight"] - one["average.head.fc.weight"]).abs().max()
    assert moved > 1e-4


def test_alone_nothing_is_exchanged() -> None:
    world = World(device=torch.device("cpu"))
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(world.sum(values), torch.tensor([1.0, 2.0]))
    assert world.gather(values) == [values]
    assert world.agree("runs/a b") == "runs/a b"
    assert world.writes
    with world.first_alone():
        pass


def test_a_batch_must_be_shared_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    from qdeploy.training import loop

    @contextmanager
    def three(device: torch.device):  # type: ignore[no-untyped-def]
        yield World(device=device, rank=0, size=3)

    monkeypatch.setattr(loop, "joined", three)
    with pytest.raises(InputError, match="--batch-size 64 cannot be shared evenly by 3 processes"):
        train(config_from_recipe("small"), tmp_path / "run")
