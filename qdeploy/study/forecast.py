"""The forecast of how long the rest of a sweep takes: from probes first, then from measured steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from qdeploy.study.halving import Load, expected_kept, wall_s
from qdeploy.study.record import Record, Step
from qdeploy.study.results import Trained

START_S = 8.0
"""Guessed seconds of a training process besides its epochs, until one was measured."""
EXPORT_S = 12.0
"""Guessed seconds of an export besides its inferences; scaled by measured exports later."""
MACS_PER_S = 1e10
"""Guessed multiply-accumulates per second of one ONNX Runtime thread, for the time of an export's inferences."""
MEASURE_S = 6.0


class Forecast:
    """Predictions from the present state of a sweep."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.epoch_s = {n: p.epoch_s for n, p in record.probes.items()}
        self.start_s = {n: p.start_s for n, p in record.probes.items()}
        self.images: dict[str, int] = next((p.images for p in record.probes.values()), {})
        for step in record.steps:
            if isinstance(step.result, Trained):
                self.epoch_s[step.model] = step.result.seconds / step.result.epochs
                self.start_s[step.model] = max(0.0, step.wall_s - step.result.seconds)
                self.images = step.result.images
        self._per_mac = _mean([s / max(1, record.models[n].macs) for n, s in self.epoch_s.items()])
        self._export_ratio = _ratio([(s.wall_s, self._export_guess(s.model)) for s in _succeeded(record, "export")])
        self._measure_ratio = _ratio([(s.wall_s, MEASURE_S) for s in _succeeded(record, "measure")])

    @property
    def known(self) -> bool:
        """Whether any training was timed; without that nothing can be said."""
        return self._per_mac is not None

    def load(self, model: str) -> Load:
        """Predict a model's training."""
        guess = (self._per_mac or 0.0) * self.record.models[model].macs
        start = self.start_s.get(model, _mean(list(self.start_s.values())) or START_S)
        return Load(start_s=start, epoch_s=self.epoch_s.get(model, guess))

    def finish_s(self, models: Sequence[str], slots: int) -> float:
        """Predict what is left of the exports and measurements of some models."""
        waiting = [m for m in models if self.record.after("export", m) is None]
        exports = [self._export_guess(m) * self._export_ratio for m in waiting]
        return wall_s(exports, slots) + len(models) * MEASURE_S * self._measure_ratio

    def _export_guess(self, model: str) -> float:
        images = 2400 + 6 * self.images.get("val", 0) + 2 * self.images.get("test", 0)
        return EXPORT_S + images * self.record.models[model].macs / MACS_PER_S

    def left_s(self, slots: int, export_slots: int) -> float | None:
        """Predict the seconds until the sweep ends, or None if nothing was timed yet."""
        record = self.record
        if not self.known or not record.rungs:
            return None
        rung, last = record.rungs[-1], len(record.rungs) - 1
        waiting = [self.load(m) for m in rung.models if record.find("train", last, m) is None]
        total = wall_s([x.start_s + rung.epochs * x.epoch_s for x in waiting], slots)
        mean = [self.load(m) for m in rung.models]
        count = len(mean)
        for epochs in record.planned[len(record.rungs) :]:
            count = expected_kept(count)
            later = sum(x.start_s + epochs * x.epoch_s for x in mean) / len(mean)
            total += wall_s([later] * count, slots)
        return total + self.finish_s(unfinished(record), export_slots)


def unfinished(record: Record) -> list[str]:
    """Return the models that will still be measured, as far as one can tell."""
    found = []
    for name in record.models:
        trained_or_waits = record.longest(name) is not None or record.find("train", 0, name) is None
        exported = record.after("export", name)
        failed = name in record.failed or (exported is not None and exported.error is not None)
        if trained_or_waits and not failed and record.after("measure", name) is None:
            found.append(name)
    return found


def _succeeded(record: Record, kind: str) -> list[Step]:
    return [s for s in record.steps if s.kind == kind and s.error is None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return measured over guessed time, 1 before anything was measured."""
    guessed = sum(g for _, g in pairs)
    return sum(m for m, _ in pairs) / guessed if guessed else 1.0
