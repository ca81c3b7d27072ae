"""A sweep from configuration to table, and its continuation.

Phases: a probe of each model if there is a budget; training, rung by rung, with the export of every model that goes
no further; then the measurement of one model after the other with nothing else running, so that latencies compare.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from qdeploy.core.errors import InputError, VerdictError
from qdeploy.core.files import BusyError, locked
from qdeploy.core.machine import cpu_name, environment, wanted_threads
from qdeploy.core.records import RecordError, decode
from qdeploy.core.words import counted
from qdeploy.data.catalog import location_of
from qdeploy.study import checks
from qdeploy.study.forecast import Forecast, unfinished
from qdeploy.study.halving import Score, kept, most_rungs, plan, predicted_s
from qdeploy.study.judgement import Judgement, judge
from qdeploy.study.page import write_tables
from qdeploy.study.pareto import Point
from qdeploy.study.process import LocalPool, Outcome, Pool
from qdeploy.study.progress import Progress, Silent
from qdeploy.study.record import Probe, Record, Rung, Step, folder_names, load_record, newest_sweep
from qdeploy.study.results import RESULTS, Probed, Result, Trained
from qdeploy.study.row import Row
from qdeploy.study.rows import pareto_of, rows_of
from qdeploy.study.settings import DEFAULT_BUDGET_MINUTES, SweepConfig
from qdeploy.study.trial import Spec

T = TypeVar("T")
RESERVE = 0.05
"""Share of the budget that no plan uses."""
PACKAGES = ("qdeploy", "torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep came to."""

    out: str
    trials: tuple[Row, ...]
    """One row a model, in the order given."""
    pareto: tuple[Point, ...]
    """The fronts, each from its cheapest point on."""
    judgement: Judgement | None = None
    """The verdict against the baseline, if there is one."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``qdeploy sweep``."""
        values = asdict(self)
        if self.judgement is None:
            del values["judgement"]
        return values


def sweep(config: SweepConfig | None = None, out: Path | None = None, progress: Progress | None = None) -> SweepResult:
    """Train, export, quantize and measure a set of models.

    A trial that fails is recorded with its reason and stops nothing. After Ctrl-C or a kill the steps that have
    ended are in the folder, and ``resume`` goes on.

    Args:
        config: What to do.
        out: The sweep's folder; the default is a new one below ``./sweeps``.
        progress: Told how far it is.

    Raises:
        InputError: If a model, the data, an option or the folder cannot be used, or the budget is too small for one
            epoch of every model.
    """
    config, progress = config or SweepConfig(), progress or Silent()
    if not config.models:
        config = replace(config, models=checks.grid())
        if config.epochs is None and config.budget_minutes is None:
            config = replace(config, budget_minutes=DEFAULT_BUDGET_MINUTES)
            progress.note(f"no epochs and no budget given: taking a budget of {DEFAULT_BUDGET_MINUTES:g} minutes")
    if config.baseline is not None and config.baseline not in config.models:
        config = replace(config, models=(*config.models, config.baseline))
    config = checks.completed(config)
    folder = checks.free_folder(config, out)
    models = checks.known_models(config, lambda done, total: progress.phase(done, total, "fetching the data"))
    models = checks.fitting(config, checks.small_enough(config, models, progress.note), progress.note)
    config = replace(config, models=tuple(models))
    config = replace(config, data=location_of(str(config.data)))
    record = Record(
        folder=folder,
        config=config,
        models=models,
        most_epochs=checks.most_epochs(config),
        environment=environment(*PACKAGES),
    )
    with closing(checks.open_pool(config)) as pool:
        return _run(Campaign(record, pool, progress).prepare(), pool, progress)


def resume(
    folder: Path | None = None,
    progress: Progress | None = None,
    *,
    retry_failed: bool = False,
    jobs: int | None = None,
) -> SweepResult:
    """Go on with a sweep; steps that have ended are kept.

    Args:
        folder: The sweep's folder; the default is the newest below ``./sweeps``.
        progress: Told how far it is.
        retry_failed: Whether what failed is tried again.
        jobs: Trials at a time from now on; by default as before.

    Raises:
        InputError: If there is no such sweep, it is complete, or another process works at it.
    """
    record, progress = load_record(folder or newest_sweep()), progress or Silent()
    failed = bool(record.failed) or any(s.error for s in record.steps)
    if record.complete and not (retry_failed and failed):
        hint = "`retry_failed` tries what failed again" if failed else ""
        raise InputError(f"{record.folder} is complete, see its sweep.html", fix=hint)
    if retry_failed:
        record = record.without_failures()
    if jobs is not None:
        record = replace(record, config=replace(record.config, jobs=jobs))
    began_on = record.environment.get("cpu")
    if began_on != cpu_name():
        progress.note(f"the sweep began on {began_on}; everything is measured again on this machine")
        record = replace(record, steps=tuple(s for s in record.steps if s.kind != "measure"))
    kept = record.without_other_targets()
    if len(kept.steps) < len(record.steps):
        progress.note(f"INT8 is for {record.config.target} now; exports for another or an unknown target are repeated")
    record = replace(kept, environment=environment(*PACKAGES))
    with closing(checks.open_pool(record.config)) as pool:
        return _run(record, pool, progress)


def _run(record: Record, pool: Pool, progress: Progress) -> SweepResult:
    record.folder.mkdir(parents=True, exist_ok=True)
    with _alone(record.folder):
        progress.started(record.folder)
        record = Campaign(record, pool, progress).go()
    rows = rows_of(record)
    return SweepResult(
        out=str(record.folder), trials=tuple(rows), pareto=pareto_of(rows), judgement=judge(rows, record.config)
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with locked(folder / ".lock", wait=False):
            yield
    except BusyError as error:
        raise InputError(f"another process works at the sweep in {folder}; wait for it or end it") from error


class Campaign:
    """A sweep while it runs."""

    def __init__(self, record: Record, pool: Pool, progress: Progress) -> None:
        self.record, self.config, self.pool, self.progress = record, record.config, pool, progress
        self.local = LocalPool(self.config.jobs, self.config.cores)
        self.alone = LocalPool(1, 1)
        self._begin, self._before_s = time.monotonic(), record.spent_s
        self._noted: set[str] = set()

    def prepare(self) -> Record:
        """Probe the models if there is a budget, make the plan and state it; nothing is written.

        Raises:
            InputError: If the budget is too small for one epoch of every model.
            VerdictError: If the probe of every model failed.
        """
        if self.config.budget_minutes is None:
            record, count = self.record, len(self.record.models)
            self.progress.note(
                f"plan: {counted(count, 'model')}, {counted(record.most_epochs, 'epoch')} each, {self._recipe()}"
            )
            rung = Rung(epochs=record.most_epochs, models=tuple(record.models))
            return replace(record, planned=(record.most_epochs,), rungs=(rung,))
        self._probe()
        record = self.record
        names = [n for n in record.models if n not in record.failed]
        if not names:
            raise VerdictError(f"no model can be trained: {next(iter(record.failed.values()))}")
        forecast = Forecast(record)
        loads, finish_s = [forecast.load(n) for n in names], forecast.finish_s(names, self.local.slots)
        slots, seconds = self.pool.slots, self._seconds_left() - finish_s
        epochs = plan(loads, seconds, most_epochs=record.most_epochs, rungs=most_rungs(len(names)), slots=slots)
        if not epochs:
            least_s = (self._elapsed() + finish_s + predicted_s(loads, (1,), slots)) / (1 - RESERVE)
            raise InputError(
                f"`budget_minutes={self.config.budget_minutes:g}` is too small: one epoch of each of {len(names)} "
                f"models takes about {least_s / 60 + 0.05:.1f} minutes here"
            )
        whole_s = self._elapsed() + finish_s + predicted_s(loads, epochs, slots)
        self.progress.note(
            f"plan: {counted(len(names), 'model')}, epochs {' -> '.join(map(str, epochs))}, {self._recipe()}; about "
            f"{whole_s / 60:.1f} of {self.config.budget_minutes:g} minutes"
        )
        rung = Rung(epochs=epochs[0], models=tuple(names))
        return replace(record, planned=epochs, rungs=(rung,), predicted_s=whole_s, spent_s=self._elapsed())

    def _recipe(self) -> str:
        at_once = f", {self.pool.slots} at a time" if self.pool.slots > 1 else ""
        return f"recipe {self.config.recipe} on {Path(str(self.config.data)).name}{at_once}"

    def _probe(self) -> None:
        record = self.record
        self.progress.note(f"timing a few training steps of each of {len(record.models)} models")
        with tempfile.TemporaryDirectory(prefix="qdeploy-probe-") as place:
            folders = folder_names(record.models)
            specs = [self._spec("probe", 0, n, record.most_epochs, Path(place) / folders[n]) for n in record.models]
            with closing(self.pool.run(specs)) as outcomes:
                for i, (spec, outcome) in enumerate(outcomes):
                    self._keep_probe(spec.model, outcome)
                    self.progress.phase(i + 1, len(specs), "probing")

    def _keep_probe(self, model: str, outcome: Outcome) -> None:
        found, error = _found(Probed, outcome)
        if found is None:
            self._keep(failed={**self.record.failed, model: str(error)})
            self.progress.note(f"{model} failed: {error}")
        else:
            self._keep(probes={**self.record.probes, model: Probe.of(found, outcome.wall_s)})

    def go(self) -> Record:
        """Carry out everything that has not ended yet."""
        self._save()
        rung = 0
        while rung < len(self.record.rungs):
            self._train(rung)
            if rung + 1 == len(self.record.rungs) and (following := self._next(rung)):
                self._save(rungs=(*self.record.rungs, following))
            rung += 1
        self._export(list(self.record.models))
        names = [n for n in unfinished(self.record) if self.record.after("export", n)]
        self._phase("measure", [(self._rung_of(n), n) for n in names], self.alone)
        self._save(complete=True)
        return self.record

    def _train(self, rung: int) -> None:
        names = [n for n in self.record.rungs[rung].models if self.record.find("train", rung, n) is None]
        self._phase("train", [(rung, n) for n in names], self.pool)

    def _export(self, names: Sequence[str]) -> None:
        record = self.record
        waiting = [n for n in names if record.longest(n) and record.after("export", n) is None]
        self._phase("export", [(self._rung_of(n), n) for n in waiting], self.local)

    def _next(self, rung: int) -> Rung | None:
        """Choose the models of the next rung, export the others, and see how long those can be trained."""
        rungs, most_epochs = self.record.rungs, self.record.most_epochs
        left = most_rungs(len(rungs[0].models)) - len(rungs)
        if self.config.budget_minutes is None or left < 1:
            return None
        scores = self._scores(rung)
        names = kept(scores)
        if not names or rungs[rung].epochs >= most_epochs:
            return None
        self._export([n for n in self.record.models if n not in names])
        forecast, slots = Forecast(self.record), self.pool.slots
        loads = [forecast.load(n) for n in names]
        seconds = self._seconds_left() - forecast.finish_s(unfinished(self.record), self.local.slots)
        epochs = plan(loads, seconds, most_epochs=most_epochs, rungs=left, slots=slots, above=rungs[rung].epochs)
        self._keep(planned=(*(r.epochs for r in rungs), *epochs))
        if not epochs:
            self.progress.note(f"the budget has no time for another rung of {len(names)} models")
            return None
        self.progress.note(f"{len(names)} of {len(scores)} models go on, epochs {' -> '.join(map(str, epochs))}")
        return Rung(epochs=epochs[0], models=tuple(names))

    def _scores(self, rung: int) -> list[Score]:
        steps = (self.record.find("train", rung, n) for n in self.record.rungs[rung].models)
        return [
            Score(name=s.model, val_top1=s.result.val_top1, macs=s.result.macs)
            for s in steps
            if s and isinstance(s.result, Trained)
        ]

    def _phase(self, kind: str, work: Sequence[tuple[int, str]], pool: Pool) -> None:
        record = self.record
        specs = [self._spec(kind, r, n, record.rungs[r].epochs, record.trial_folder(n)) for r, n in work]
        if not specs:
            return
        self.progress.phase(0, len(specs), kind)
        with closing(pool.run(specs)) as outcomes:
            for i, (spec, outcome) in enumerate(outcomes):
                step = self._step(spec, outcome)
                self._save(steps=(*self.record.steps, step))
                self.progress.phase(i + 1, len(specs), kind)
                self.progress.ended(step, i + 1, len(specs), self._left_s())

    def _step(self, spec: Spec, outcome: Outcome) -> Step:
        result: Result | None
        result, error = _found(RESULTS[spec.kind], outcome)
        if isinstance(result, Trained):
            self._keep(dataset_sha256=self.record.dataset_sha256 or result.dataset_sha256)
            if result.dataset_sha256 != self.record.dataset_sha256:
                result = None
                error = "the images have changed since the sweep began; restore them or start a new sweep"
        return Step(kind=spec.kind, rung=spec.rung, model=spec.model, wall_s=outcome.wall_s, error=error, result=result)

    def _spec(self, kind: str, rung: int, model: str, epochs: int, folder: Path) -> Spec:
        config = self.config
        return Spec(
            kind=kind,
            model=model,
            folder=str(folder.absolute()),
            rung=rung,
            epochs=epochs,
            data=str(config.data),
            recipe=config.recipe,
            settings=dict(config.settings),
            seed=config.seed or 0,
            device=config.device,
            threads=config.threads or wanted_threads() or 0,
            cores=config.cores,
            target=config.target,
            on_integers=config.on_integers,
        )

    def _rung_of(self, model: str) -> int:
        trained = self.record.longest(model)
        return trained[0].rung if trained else 0

    def _elapsed(self) -> float:
        return self._before_s + time.monotonic() - self._begin

    def _seconds_left(self) -> float:
        assert self.config.budget_minutes is not None
        return 60 * self.config.budget_minutes * (1 - RESERVE) - self._elapsed()

    def _left_s(self) -> float | None:
        return Forecast(self.record).left_s(self.pool.slots, self.local.slots)

    def _keep(self, **changes: Any) -> None:
        """Replace fields of the record."""
        self.record = replace(self.record, **changes)

    def _save(self, **changes: Any) -> None:
        """Replace fields of the record, and write it."""
        self._keep(**changes, spent_s=self._elapsed())
        write_tables(self.record, self._note_once)

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self.progress.note(text)


def _found(kind: type[T], outcome: Outcome) -> tuple[T | None, str | None]:
    """Return what a step found, or why it found nothing."""
    if outcome.error is not None:
        return None, outcome.error
    try:
        return decode(kind, outcome.result), None
    except RecordError as error:
        return None, f"its result is damaged: {error}"
