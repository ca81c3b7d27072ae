"""Steps of trials on the machines of a Ray cluster; the one module that knows Ray.

A step runs there as it would here, as a process of its own in a temporary folder, and its files come back through
Ray: the machines need no common disk, only qdeploy and the data under the same name or path.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from qdeploy.core.files import write_bytes
from qdeploy.study.process import LOOK_S, Ended, Outcome, StepProcess, remove_leftovers
from qdeploy.study.trial import Spec

Files = dict[str, bytes]


def run_elsewhere(spec: Spec, threads: int) -> tuple[Outcome, Files]:
    """Run a step in a temporary folder of this machine; returns the files it has left, too."""
    with tempfile.TemporaryDirectory(prefix="qdeploy-trial-") as name:
        folder = Path(name)
        process = StepProcess(replace(spec, folder=name), threads)
        try:
            while (outcome := process.poll()) is None:
                time.sleep(LOOK_S)
        finally:
            process.stop()
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return outcome, files


class RayPool:
    """Runs steps as Ray tasks, on the cluster of ``RAY_ADDRESS`` or else on a Ray of this machine alone."""

    def __init__(self, slots: int, threads: int, *, gpu: bool) -> None:
        """Connect or start.

        Args:
            slots: Steps at a time on each machine.
            threads: CPU threads of one step.
            gpu: Whether they train on GPUs where the cluster has some.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=slots * threads,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        self.threads = threads
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = resources.get("GPU", 0.0) if gpu else 0.0
        self.gpu_share = 1 / slots if gpus else 0.0
        self.slots = max(1, int(gpus * slots) if gpus else int(resources.get("CPU", 1)) // threads)

    def run(self, specs: Iterable[Spec]) -> Ended:
        """Run steps and yield each as it ends."""
        task: Any = ray.remote(num_cpus=self.threads, num_gpus=self.gpu_share, max_retries=0)(run_elsewhere)
        running: dict[Any, Spec] = {task.remote(spec, self.threads): spec for spec in specs}
        try:
            while running:
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                outcome = _fetch(done, running[done])
                yield running.pop(done), outcome
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def close(self) -> None:
        """Disconnect, and stop a Ray of this machine alone."""
        ray.shutdown()


def _fetch(reference: Any, spec: Spec) -> Outcome:
    """Bring a step's files here."""
    try:
        outcome, files = ray.get(reference)
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0]
        return Outcome(result={}, error=f"Ray lost the trial: {first}", wall_s=0.0)
    remove_leftovers(spec)
    for name, data in files.items():
        path = Path(spec.folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    return outcome
