from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist

from qdeploy.core.errors import InputError, VerdictError
from qdeploy.training import config_from_recipe, train
from qdeploy.training.distributed import World, joined
from tests.conftest import MakeImages
from tests.training.test_run import same_run

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def execute(launcher: list[str], script: str, *arguments: Path) -> None:
    call = [sys.executable, *launcher, str(Path(__file__).with_name(script)), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        execute(launcher, "three_steps.py", tmp_path / name)
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    assert torch.allclose(one["losses"], two["losses"], rtol=1e-5)
    # Adam divides by the gradient's size: where that is rounding noise, a step of the whole rate may differ
    far = [k for k in one if ((one[k] - two[k]).abs().float() > 1e-4).float().mean() > 0.01]
    assert far == []
    moved = (one["model.head.fc.weight"] - one["average.head.fc.weight"]).abs().max()
    assert moved > 1e-4


@pytest.mark.slow
def test_two_processes_cut_within_an_epoch_end_as_two_that_were_not(tmp_path: Path, image_folder: MakeImages) -> None:
    execute(TORCHRUN, "two_processes.py", image_folder(count=12), tmp_path)
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_processes_that_torchrun_did_not_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="WORLD_SIZE is 2 but RANK is not set"), joined(torch.device("cpu")):
        pass


def test_a_process_that_loses_another_points_to_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(VerdictError, match="see its message, and if the run had begun"), joined(torch.device("cpu")):
        raise RuntimeError("Connection closed by peer")


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

    from qdeploy.training import start

    @contextmanager
    def three(device: torch.device):  # type: ignore[no-untyped-def]
        yield World(device=device, rank=0, size=3)

    monkeypatch.setattr(start, "joined", three)
    with pytest.raises(InputError, match="`batch_size=64` cannot be shared evenly by 3 processes"):
        train(config_from_recipe("small"), tmp_path / "run")
