"""The choice of a run's device and precision."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from qdeploy.core.errors import InputError
from qdeploy.core.machine import cpu_flags

_NATIVE_BF16 = {"amx_bf16", "avx512_bf16"}
"""CPU flags with which bf16 trains faster than float32 (benchmarks/train_speed.py); elsewhere it is emulated."""


@dataclass(frozen=True)
class Precision:
    """The device of a run and the dtype of its mixed precision, or None for float32."""

    device: torch.device
    autocast_dtype: torch.dtype | None

    @property
    def amp(self) -> str:
        """The dtype as a word; ``off`` for float32."""
        return str(self.autocast_dtype or "off")

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients must be scaled against underflow."""
        return self.autocast_dtype is torch.float16

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=enabled)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, that of every GPU included (paper, III.E)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, operations that may differ from run to run on a GPU are replaced or refused, if wanted."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first GPU is used
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def choose_precision(device: str, amp: str) -> Precision:
    """Choose the device and the precision of mixed-precision passes.

    Raises:
        InputError: If the device is not there or cannot run the precision.
    """
    found = _device(device)
    if amp == "auto":
        return Precision(found, _best_dtype(found))
    if amp == "fp16" and found.type != "cuda":
        raise InputError("`amp=fp16` needs a CUDA device", found=found.type, fix="`amp=auto` takes what the device has")
    return Precision(found, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])


def _device(name: str) -> torch.device:
    if name in ("auto", "cuda") and torch.cuda.is_available():
        _require_kernels()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise InputError("`device` must be auto, cpu, cuda or mps", found=f"'{name}'")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[name]
    if not there:
        raise InputError(
            f"`device={name}` is not available to PyTorch {torch.__version__} here", fix="use `device=cpu`"
        )
    return torch.device(name)


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Tell whether a PyTorch built for some architectures has kernels for a GPU.

    Args:
        capability: Major and minor compute capability of the GPU, e.g. (6, 0) for a P100.
        architectures: As ``torch.cuda.get_arch_list`` gives them: kernels ``sm_75`` run on the same major version from
            that minor on, ``compute_90`` is compiled when it is needed, for that and every later GPU.
    """
    for name in architectures:
        kind, _, digits = name.partition("_")
        major, minor = int(digits.rstrip("af")[:-1]), int(digits.rstrip("af")[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return False


def _require_kernels() -> None:
    """Check that this PyTorch can run on the GPU at all; else every operation would end in a CUDA error.

    Raises:
        InputError: If not.
    """
    capability, architectures = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if architectures and not runs_on(capability, architectures):
        raise InputError(
            f"PyTorch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} (compute capability "
            f"{capability[0]}.{capability[1]}; it has {', '.join(architectures)})",
            fix="install a build that has them (for a P100 one for CUDA 12.6, the last is PyTorch 2.14), or use "
            "`device=cpu`",
        )


def _best_dtype(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and platform.machine() == "x86_64" and _NATIVE_BF16 & cpu_flags():
        return torch.bfloat16
    return None
