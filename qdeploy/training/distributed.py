"""One process or several: who this process is, and the few things that all of them do together.

``torchrun --nproc-per-node N -m qdeploy train ...`` starts N processes that each take a share of every batch and
average their gradients (DistributedDataParallel; NCCL on GPUs, gloo on CPUs). Process 0 alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from qdeploy.core.errors import InputError, VerdictError

AGREED_BYTES = 8192
"""Longest text that processes agree on: twice the longest path of most systems."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of a run."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, which have one shape, in the order of their ranks."""
        if self.size == 1:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values)
        return found

    @torch.no_grad()
    def share_buffers(self, *modules: nn.Module) -> None:
        """Return process 0's running statistics to all.

        In training DistributedDataParallel does so before every step; only process 0's are in a checkpoint.
        """
        if self.size > 1:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(buffer, src=0)

    @torch.no_grad()
    def average_buffers(self, module: nn.Module) -> None:
        """Average running statistics that each process has computed of its own images, outside of training."""
        if self.size > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    self.sum(buffer).div_(self.size)

    def agree(self, text: str) -> str:
        """Return process 0's text to all."""
        if self.size == 1:
            return text
        padded = text.encode().ljust(AGREED_BYTES, b"\0")
        data = torch.tensor(list(padded), dtype=torch.uint8, device=self.device)
        dist.broadcast(data, src=0)
        return bytes(data.tolist()).rstrip(b"\0").decode()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let process 0 run the block before the others do: it may fill a cache that they then find."""
        if self.size > 1 and self.rank > 0:
            dist.barrier()
        yield
        if self.size > 1 and self.rank == 0:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes of this run, if torchrun started several, for the length of the block.

    Raises:
        InputError: If there are more processes than GPUs, or torchrun did not start them.
        VerdictError: If another process is lost.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield World(device=device)
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {missing[0]} is not set; start several processes with "
            "torchrun, or unset WORLD_SIZE"
        )
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise InputError(f"process {local} has no GPU: this machine has {torch.cuda.device_count()}; start fewer")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device=device, rank=rank, size=dist.get_world_size())
    except RuntimeError as error:
        if not _peer_lost(error):
            raise
        raise VerdictError(
            "another process of this run ended",
            fix="see its message, and if the run had begun continue by `resume`",
        ) from error
    dist.barrier()  # who leaves while others still speak aborts in the library's clean-up
    dist.destroy_process_group()


def _peer_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "by peer" in str(error) or "gloo" in str(error)
