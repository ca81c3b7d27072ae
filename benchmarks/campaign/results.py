"""A piece's rows, and the file that keeps them with the machine they were measured on."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

import qdeploy
from qdeploy.core.files import read_json, write_json
from qdeploy.core.git import git_commit
from qdeploy.core.machine import environment

Row = dict[str, Any]
Cell = Callable[[float], Row | None]
"""Makes a row in about the given seconds; None if they were not enough, and it goes on when called again."""
PACKAGES = ("torch", "torchvision", "triton", "onnx", "onnxruntime", "numpy", "pillow", "tensorrt", "tensorrt_rtx_cu13")


class Results:
    """A piece's file. Rows that another machine or version began are not mixed with this one's."""

    def __init__(self, piece: str, out: Path, dry_run: bool) -> None:
        self.piece, self.path, self.dry_run = piece, out / f"{piece}.json", dry_run
        self.environment = describe_machine()
        self.rows: dict[str, Row] = {}
        self.calls = 1
        if self.path.exists():
            self._take_up(read_json(self.path))

    def _take_up(self, begun: Row) -> None:
        if begun["state"].endswith("dry run") != self.dry_run or identity(begun["environment"]) != identity(
            self.environment
        ):
            print(f"{self.piece}: {self.path} was begun on another machine or version; it begins anew")
            return
        self.calls += begun["calls"]
        self.rows = {row.pop("name"): row for row in begun["rows"]}

    def keep(self, state: str, **facts: Any) -> None:
        """Write the file, whole or not at all."""
        document = {
            "state": f"{state}, dry run" if self.dry_run else state,
            "command": f"benchmarks/gpu_campaign.sh {'--dry-run ' if self.dry_run else ''}OUT {self.piece}",
            "calls": self.calls,
            "date": date.today().isoformat(),
            "git": git_commit(),
            "environment": self.environment,
            **facts,
            "rows": [{"name": name, **row} for name, row in self.rows.items()],
        }
        write_json(self.path, document)


def identity(machine: Row) -> tuple[Any, ...]:
    """What must be the same for numbers to be compared."""
    gpu = machine["gpu"] or {}
    return machine["cpu"], machine["versions"], gpu.get("name"), gpu.get("driver")


def describe_machine() -> Row:
    """The machine as in every benchmark here, and its GPU."""
    found = environment("qdeploy", *PACKAGES)
    found["versions"]["qdeploy"] = qdeploy.__version__
    found["gpu"] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver_version(),
        }
    return found


def driver_version() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def spread(values: Sequence[float], digits: int = 3) -> Row:
    return {
        "n": len(values),
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def at_most(found: float, target: float) -> Row:
    return {"found": round(found, 4), "at_most": target, "met": found <= target}


def one_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
