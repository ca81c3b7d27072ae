"""Which GPUs a build of PyTorch can run on, seeds and determinism; no GPU is needed."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from qdeploy.core.errors import InputError
from qdeploy.training.device import choose_precision, deterministic, runs_on, seed_everything

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((6, 0), CUDA_13, False),  # a P100 and what pip installs
        ((6, 0), CUDA_12_6, True),
        ((6, 1), CUDA_12_6, True),  # kernels of 6.0 run on 6.1
        ((7, 0), CUDA_13, False),
        ((7, 5), CUDA_13, True),
        ((8, 9), CUDA_13, True),
        ((9, 0), CUDA_12_6, True),
        ((10, 0), CUDA_12_6, False),
        ((12, 1), CUDA_13, True),
        ((13, 0), CUDA_13, True),  # compiled when needed
        ((9, 0), ["sm_90a"], True),
        ((6, 0), [], False),
    ],
)
def test_kernels_run_on_their_own_generation(capability: tuple[int, int], architectures: list[str], runs: bool) -> None:
    assert runs_on(capability, architectures) == runs


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_without_kernels_is_refused_in_one_line(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_13)
    with pytest.raises(InputError, match=r"no kernels for Tesla P100.*6\.0.*CUDA 12\.6.*`device=cpu`") as error:
        choose_precision(device, "auto")
    assert "\n" not in str(error.value)
    assert choose_precision("cpu", "off").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_12_6)
    assert choose_precision(device, "auto").amp == "torch.float16"


def test_a_seed_means_the_same_to_all_three_generators() -> None:
    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    seed_everything(3)
    first = drawn()
    assert all(a != b for a, b in zip(first, drawn(), strict=True))
    seed_everything(3)
    assert drawn() == first


def test_determinism_is_asked_for_within_and_not_after() -> None:
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
