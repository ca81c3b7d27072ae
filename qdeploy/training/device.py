"""The choice of a run's device and precision."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass

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


def choose_precision(device: str, amp: str) -> Precision:
    """Choose the device and the precision of mixed-precision passes.

    Raises:
        InputError: If the device is not there or cannot run the precision.
    """
    found = _device(device)
    if amp == "auto":
        return Precision(found, _best_dtype(found))
    if amp == "fp16" and found.type != "cuda":
        raise InputError("`amp=fp16` needs a CUDA device", found=found.type, fix="use `amp=bf16` or `amp=off`")
    return Precision(found, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])


def _device(name: str) -> torch.device:
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


def _best_dtype(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and platform.machine() == "x86_64" and _NATIVE_BF16 & cpu_flags():
        return torch.bfloat16
    return None
