"""One step of a trial, in a process of its own: probe, train, export or measure one model.

``process`` starts it with the path of a ``Spec``. What it found, or why it could not, is written beside the spec; a
crash or a kill for want of memory ends this process and nothing else.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.core.errors import QdeployError, VerdictError
from qdeploy.core.files import read_json, write_json
from qdeploy.core.records import decode
from qdeploy.study.results import Exported, ExportedFile, Measured, MeasuredFile, Probed, Result, Speedup, Trained

if TYPE_CHECKING:
    from qdeploy.core.run_folder import RunRecord

PROBE_STEPS = 12
PROBE_SECONDS = 4.0
"""A probe ends after so many timed steps, or after two when so much time has passed."""
WARM_STEPS = 2
FORWARD_SHARE = 1 / 3
"""Time of evaluating some images, as a share of the time of a training step on as many."""
MEASURE_RUNS = 1000
LEAST_RUNS = 200
MEASURE_SECONDS = 2.5
"""Seconds for timing both precisions together; more if a slow model needs it for ``LEAST_RUNS``."""


Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a step does."""

    kind: str
    """probe, train, export or measure."""
    model: str
    folder: str
    """Where this model's runs, export, results and logs are."""
    rung: int = 0
    """Number of the rung, from 0; part of the run's name."""
    epochs: int = 1
    data: str = ""
    recipe: str = "small"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    """CPU threads of the training; 0: the fastest count within ``cores``."""
    cores: int = 1
    """Its share of the machine."""
    target: str = "auto"
    """Encoding of the INT8 file."""
    on_integers: bool = False
    """Whether INT8 leaves no layer in float, instead of what is faster so here."""

    @property
    def name(self) -> str:
        """Name of the step's files, without a suffix."""
        return f"{self.kind}-{self.rung}"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.folder) / f"run-{self.rung}"

    @property
    def export(self) -> Path:
        """The export's folder."""
        return Path(self.folder) / "export"


def main(path: str) -> None:
    """Carry out what a spec says and write the result; the entry point of the process."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    spec = decode(Spec, read_json(Path(path)))
    write_json(Path(spec.folder) / f"{spec.name}.json", outcome(spec))


def end_with_parent() -> None:
    """Exit as soon as standard input closes: the sweep holds its other end, and lets go of it however it ends."""
    while os.read(0, 1):
        pass
    os._exit(1)


def outcome(spec: Spec) -> dict[str, Any]:
    """Return a step's result, or ``error`` with the reason in one line; the log has the traceback."""
    try:
        return asdict(_KINDS[spec.kind](spec))
    except QdeployError as error:
        return {"error": _one_line(str(error))}
    except Exception as error:  # of torch or onnx: recorded, and the sweep goes on
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0]
        return {"error": _one_line(f"{type(error).__name__}: {first}")}


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


class EnoughError(Exception):
    """Ends a probe."""


class Stopwatch:
    """Times the steps of a training, and stops it when it has seen enough."""

    def __init__(self) -> None:
        self.begin = self.began = time.perf_counter()
        self.steps = self.steps_per_epoch = 0
        self.images: dict[str, int] = {}

    def reading(self, done: int, total: int) -> None:
        """Ignore."""

    def started(self, record: RunRecord, folder: Path) -> None:
        """Remember the number of images; from here on steps are taken."""
        self.images = record.dataset.images
        self.begin = self.began = time.perf_counter()

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Count a step; the first ones only warm up."""
        self.steps, self.steps_per_epoch = self.steps + 1, total
        now = time.perf_counter()
        if self.steps == WARM_STEPS:
            self.began = now
        timed = self.steps - WARM_STEPS
        if timed >= PROBE_STEPS or (timed >= 2 and now - self.begin > PROBE_SECONDS):
            raise EnoughError

    def epoch(self, row: Row) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Write it into the log."""
        print(text, file=sys.stderr)

    def result(self) -> Probed:
        """Predict the seconds of an epoch with its two evaluations, and of the rest of a run."""
        timed = max(1, self.steps - WARM_STEPS)
        step_s = (time.perf_counter() - self.began) / timed
        image_s = FORWARD_SHARE * step_s * self.steps_per_epoch / max(1, self.images["train"])
        return Probed(
            epoch_s=self.steps_per_epoch * step_s + 2 * self.images["val"] * image_s,
            test_s=self.images["test"] * image_s,
            stepping_s=time.perf_counter() - self.begin,
            images=self.images,
        )


def _probe(spec: Spec) -> Probed:
    """Time a few training steps."""
    from qdeploy.training import train

    watch = Stopwatch()
    with suppress(EnoughError):
        train(_config(spec), spec.run, watch, cores=spec.cores)
    return watch.result()


def _config(spec: Spec) -> Any:
    from qdeploy.training import config_from_recipe

    return config_from_recipe(
        spec.recipe,
        model=spec.model,
        data=spec.data,
        epochs=spec.epochs,
        seed=spec.seed,
        device=spec.device,
        threads=spec.threads,
        **spec.settings,
    )


class _Log(Stopwatch):
    """Writes a line an epoch into the log."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Ignore."""

    def epoch(self, row: Row) -> None:
        """Write the row."""
        print(f"epoch {row['epoch']}: val {row['val_top1']:.2f} %, {row['all_s']:.1f} s", file=sys.stderr, flush=True)


def _train(spec: Spec) -> Trained:
    from qdeploy.core.run_folder import read_record
    from qdeploy.training import train

    result = train(_config(spec), spec.run, _Log(), cores=spec.cores)
    record = read_record(spec.run)
    return Trained(
        family=record.model.family,
        params=result.params,
        macs=record.model.macs,
        input_size=record.model.input_size,
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        val_top1=result.val_top1,
        test_top1=result.test_top1,
        seconds=result.seconds,
        images=record.dataset.images,
        dataset=record.dataset.name,
        dataset_sha256=record.dataset.sha256,
        epoch_s=result.epoch_s,
        chance=result.chance,
    )


def _export(spec: Spec) -> Exported:
    """Export to fp32 and INT8, slower and coarser ones too; where INT8 is broken, to fp32 alone, with the reason."""
    from qdeploy.export.api import export
    from qdeploy.export.config import ExportConfig

    reason = None
    try:
        floats = ("none",) if spec.on_integers else None
        config = ExportConfig(int8=True, target=spec.target, float_layers=floats, allow_drop=True, allow_slower=True)
        report = export(spec.run, config, spec.export, _log)
    except VerdictError as error:
        reason = _one_line(str(error))
        report = export(spec.run, ExportConfig(), spec.export, _log)
    artifacts = {
        a.precision: ExportedFile(
            test_top1=a.accuracy.top1,
            test_n=a.accuracy.n,
            size_bytes=a.size_bytes,
            p50_ms=a.latency_ms["p50"],
            precision=100 * a.macro.precision if a.macro else None,
            recall=100 * a.macro.recall if a.macro else None,
            file=Path(a.path).name,
            **_on_a_board(Path(a.path)),
        )
        for a in report.artifacts
        if a.accuracy  # a run has its data
    }
    return Exported(artifacts=artifacts, verdict=report.verdict, int8_error=reason, target=spec.target)


def _on_a_board(file: Path) -> dict[str, int]:
    """Return what a file needs as a whole program on a Cortex-M; nothing if it cannot be one."""
    from qdeploy.core.artifact import read_artifact
    from qdeploy.core.errors import ArtifactError
    from qdeploy.native.source import memory_of

    try:
        needed = memory_of(read_artifact(file, trusted=()))
    except ArtifactError:
        return {}
    return {f"{kind}_bytes": needed[f"whole_{kind}_bytes"] for kind in ("flash", "ram")}


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _measure(spec: Spec) -> Measured:
    """Time the files of an export in turn: batch 1, one thread; memory of fresh processes."""
    from qdeploy.bench import BenchConfig, bench

    exported = decode(Exported, read_json(Path(spec.folder) / f"export-{spec.rung}.json")).artifacts
    round_s = sum(file.p50_ms or 0.0 for file in exported.values()) / 1e3
    seconds = max(MEASURE_SECONDS, 1.1 * LEAST_RUNS * round_s)
    files = [spec.export / (found.file or f"model.{precision}.onnx") for precision, found in exported.items()]
    report = bench(files, BenchConfig(runs=MEASURE_RUNS, seconds=seconds, details=False))
    artifacts = {
        r.precision: MeasuredFile(latency_ms=r.latency_ms["p50"], n=r.n, peak_bytes=r.peak_rss_bytes)
        for r in report.results
    }
    speedup = next((Speedup(ratio=c.ratio, ci95=c.ci95) for c in report.comparisons), None)
    return Measured(artifacts=artifacts, int8_speedup=speedup, cpu=report.environment["cpu"])


_KINDS: dict[str, Callable[[Spec], Probed | Result]] = {
    "probe": _probe,
    "train": _train,
    "export": _export,
    "measure": _measure,
}
