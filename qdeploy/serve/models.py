"""The served models: opened, checked and warm, by name and version; swapped when their files change."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from qdeploy.core.artifact import read_artifact
from qdeploy.core.card import Card
from qdeploy.core.confidence import Cut
from qdeploy.core.drift import FALSE_ALARMS, DriftWatch
from qdeploy.core.errors import InputError, QdeployError, near_miss
from qdeploy.core.machine import resident_bytes, usable_cores
from qdeploy.core.signing import signature_of
from qdeploy.runtime.classifier import find_setup, read_setup
from qdeploy.runtime.device import DEVICE_FILE
from qdeploy.runtime.session import SMALL_MACS, Session, open_session
from qdeploy.serve.config import ServeConfig
from qdeploy.serve.memory import settle_again
from qdeploy.serve.refusal import RefusedError

WARM_UP_RUNS = 3
CHEAP_MS = 5.0
CHEAP_BATCH = 4
"""Requests of a small model that are answered together: a fifth less CPU time each, and more gain nothing
(benchmarks/serving.py)."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
Event = Callable[..., None]
"""Called with what happened and its details; see ``qdeploy.serve.logs``."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that answers."""

    path: Path
    card: Card = field(repr=False)
    """What the file says of itself."""
    sha256: str
    size_bytes: int
    platform: str
    """Triton's word for the kind of file."""
    session: Session = field(repr=False)
    cut: Cut | None = field(repr=False)
    """Which images are unknown; None if none is."""
    drift: DriftWatch | None = field(repr=False)
    """Whether its answers are like those to the validation images; None if its card does not say what those were."""
    label_texts: tuple[str, ...] = field(repr=False)
    """The beginning of each label's entry in an answer, up to its probability."""
    engine: str
    """A key of ``ENGINES``."""
    threads: int
    run_ms: float
    """Milliseconds of one inference, the least of the warm-up."""
    max_batch: int
    """Most waiting requests that one inference answers."""
    note: str | None
    """What the user should know of how it runs here."""
    load_ms: float
    """Milliseconds to read, check and warm it."""
    memory_bytes: int
    """Growth of the process's resident size meanwhile."""

    @property
    def cheap(self) -> bool:
        """Whether an inference is so short that whatever else a server does may wait for it."""
        return self.run_ms < CHEAP_MS


_PARTS = ("queue", "compute_input", "compute_infer", "compute_output", "success")


@dataclass
class Counters:
    """What the statistics extension reports of a model: counts and nanoseconds."""

    inferences: int = 0
    executions: int = 0
    last_ms: int = 0
    """Time of the last inference, in milliseconds since 1970."""
    answered: int = 0
    phases_ms: list[float] = field(default_factory=lambda: [0.0] * len(_PARTS))
    """Milliseconds of all answered requests, in the order of ``qdeploy.serve.stats.PHASES``."""
    failed: int = 0
    failed_ns: int = 0

    def succeed(self, times_ms: Sequence[float], images: int, runs: int) -> None:
        """Count an answer by the milliseconds of its phases."""
        self.inferences += images
        self.executions += runs
        self.last_ms = time.time_ns() // 1_000_000
        self.answered += 1
        for i, ms in enumerate(times_ms):
            self.phases_ms[i] += ms

    def fail(self, arrived_ns: int) -> None:
        """Count a request that got no answer, by the time at which it arrived."""
        self.failed += 1
        self.failed_ns += time.perf_counter_ns() - arrived_ns

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return count and nanoseconds of every part that the extension knows."""
        found = {
            part: {"count": self.answered, "ns": int(ms * 1e6)} for part, ms in zip(_PARTS, self.phases_ms, strict=True)
        }
        nothing = {"count": 0, "ns": 0}
        failed = {"count": self.failed, "ns": self.failed_ns}
        return {"success": found.pop("success"), "fail": failed, **found, "cache_hit": nothing, "cache_miss": nothing}


class Served:
    """One version of a model under its name, whether opened or not."""

    def __init__(self, name: str, version: int, given: Path | None) -> None:
        self.name = name
        self.version = version
        self.given = given
        """What the user named: a file or an export's folder; None stands for the newest export."""
        self.opened: Opened | None = None
        self.problem: str | None = None
        """Why the file as it is now does not serve; an older state of it may."""
        self.swaps = 0
        """Times that a changed file took the place of the former."""
        self.counters = Counters()
        self.explainer: tuple[str, Any] | None = None
        """What explains the answers, once it was asked for, and the hash of its file."""
        self.drifted = False
        """Whether the log says that its answers differ from those to its validation images."""
        self.path: Path | None = None
        self.stamp: Any = None
        """Sizes and times of the files when they were read."""
        self.seen: Any = None
        """The same when they were last looked at."""

    @property
    def state(self) -> str:
        """READY or UNAVAILABLE, the words of the repository extension."""
        return "READY" if self.opened else "UNAVAILABLE"

    def stamps(self) -> Any:
        """Return the sizes and times of all files that decide what is served."""
        if self.path is None:
            return None
        folder = self.path.parent
        return tuple(
            _stamp(p) for p in (self.path, signature_of(self.path), folder / "report.json", folder / DEVICE_FILE)
        )


class Models:
    """All served models. Lookups never wait for a load."""

    def __init__(self, given: Sequence[str], config: ServeConfig, event: Event) -> None:
        self._config = config
        self._event = event
        self._loading = Lock()
        self.served: dict[str, dict[int, Served]] = {}
        self._order: list[Served] = []
        for word in given or [""]:
            self._add(word)

    @property
    def all(self) -> list[Served]:
        """Every version of every model in the order given."""
        return list(self._order)

    @property
    def lanes(self) -> int:
        """How many inferences may run at a time without more threads than this process's share of the cores."""
        threads = max((s.opened.threads for s in self._order if s.opened), default=1)
        return max(1, usable_cores() // self._config.workers // threads)

    def get(self, name: str | None, version: str | None = None) -> tuple[Served, Opened]:
        """Return a model by name, by default the first, and its version, by default the latest.

        Raises:
            RefusedError: 404 if there is no such model or version, 503 if it is not loaded.
        """
        served = self.find(name, version)
        opened = served.opened  # another thread may swap it meanwhile
        if opened is None:
            raise RefusedError(503, "not-ready", f"the model '{served.name}' is not loaded")
        return served, opened

    def find(self, name: str | None, version: str | None = None) -> Served:
        """Return a model by name and version, loaded or not.

        Raises:
            RefusedError: 404 if there is none.
        """
        if name is None:
            name = self._order[0].name
        versions = self.versions(name)
        if version is None:
            loaded = [v for v in versions if versions[v].opened]
            return versions[max(loaded or versions)]
        number = int(version) if version.isdecimal() and len(version) < 10 else 0
        if number not in versions:
            known = ", ".join(map(str, versions))
            raise RefusedError(
                404, "unknown-version", f"the model '{name}' has no version '{version[:40]}'; it has: {known}"
            )
        return versions[number]

    def versions(self, name: str) -> dict[int, Served]:
        """Return all versions of a model.

        Raises:
            RefusedError: 404 if there is no such model.
        """
        if name not in self.served:
            close = near_miss(name[:128], self.served)
            what = f"there is no model '{name[:128]}'{close}; there are: {', '.join(self.served)}"
            raise RefusedError(404, "unknown-model", what)
        return self.served[name]

    def open_all(self) -> None:
        """Open every model.

        Raises:
            QdeployError: If one cannot be opened.
        """
        for served in self._order:
            self.load(served)

    def load(self, served: Served) -> None:
        """Read, check and warm a model's file, and let it take the place of the former.

        Raises:
            QdeployError: If it cannot; the former goes on serving.
        """
        with self._loading:
            stamp = served.stamps()
            try:
                opened = self._open(served.given)
            except QdeployError as error:
                served.problem = str(error)
                raise
            if served.path != opened.path:
                served.path = opened.path
                stamp = served.stamps()
            served.stamp = served.seen = stamp
            former, served.opened, served.problem = served.opened, opened, None
            self._event("model-loaded", model=served.name, version=served.version, **_told(opened))
        if former is not None:
            served.swaps += 1  # the former is freed with the last request that was given to it
            settle_again()

    def unload(self, served: Served) -> None:
        """Let a model go; requests for it are refused until it is loaded again."""
        with self._loading:
            former, served.opened = served.opened, None
        if former is not None:  # it is freed with the last request that was given to it
            self._event("model-unloaded", model=served.name, version=served.version)

    def look(self) -> None:
        """Load the models whose files have changed and are still since the last look; a bad file leaves the old one."""
        for served in self._order:
            now = served.stamps()
            settled, served.seen = now == served.seen, now
            if served.opened is None or now == served.stamp or not settled:
                continue
            try:
                self.load(served)
            except QdeployError as error:
                served.stamp = now  # one message for one change
                self._event("model-refused", level="error", model=served.name, version=served.version, why=str(error))

    def tell_drift(self) -> None:
        """Write into the log when a model's answers begin or cease to differ from those to its validation images."""
        for served in self._order:
            drift = served.opened.drift if served.opened else None
            latest = drift.latest if drift else None
            if drift is None or latest is None or served.drifted == latest.differs:
                continue
            if latest.differs or served.drifted:
                self._event(
                    "drift" if latest.differs else "drift-ended",
                    model=served.name,
                    version=served.version,
                    why=drift.text,
                )
            served.drifted = latest.differs

    def close(self) -> None:
        """Let all models go."""
        for served in self._order:
            self.unload(served)

    def _add(self, word: str) -> None:
        name, given = _name_and_path(word)
        setup = find_setup(given, self._config.engine, self._config.threads)
        if name is None:
            card = read_artifact(setup.path, trusted=self._config.trusted_keys).card
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{card.name}-{card.precision}").lstrip("._-")[:128] or "model"
        versions = self.served.setdefault(name, {})
        served = Served(name, len(versions) + 1, given)
        versions[served.version] = served
        self._order.append(served)

    def _open(self, given: Path | None) -> Opened:
        begin, before = time.perf_counter(), resident_bytes()
        setup = find_setup(given, self._config.engine, self._config.threads)
        artifact = read_setup(setup, self._config.trusted_keys)
        share = max(1, usable_cores() // self._config.workers)
        threads = setup.threads or (1 if artifact.card.model.macs < SMALL_MACS else share)
        note = setup.note
        if threads > share:
            note = "; ".join(filter(None, (note, f"{share} threads instead of {threads}, this process's share")))
            threads = share
        session = open_session(artifact, setup.engine, threads, self._config.selftest)
        card = artifact.card
        card = replace(card, preprocessing=card.preprocessing.taking(self._config.formats))
        run_ms = _warm(session, 1)
        max_batch = self._config.max_batch or (CHEAP_BATCH if run_ms < CHEAP_MS else 1)
        if max_batch > 1:
            _warm(session, max_batch)
        return Opened(
            path=artifact.path,
            card=card,
            sha256=artifact.sha256,
            size_bytes=len(artifact.data),
            platform="onnxruntime_onnx" if artifact.engine is None else "tensorrt_plan",
            session=session,
            cut=card.cut if self._config.abstain else None,
            drift=self._drift_watch(card),
            label_texts=tuple(
                f'{{"label": {json.dumps(label)}, "index": {i}, "probability": '
                for i, label in enumerate(artifact.card.labels)
            ),
            engine=setup.engine,
            threads=threads,
            run_ms=run_ms,
            max_batch=max_batch,
            note="; ".join(filter(None, (note, session.note))) or None,
            load_ms=(time.perf_counter() - begin) * 1e3,
            memory_bytes=max(0, resident_bytes() - before),
        )

    def _drift_watch(self, card: Card) -> DriftWatch | None:
        """Return what compares a model's answers, of which each process may use its share of the false alarms."""
        c = self._config
        if card.reference is None or not c.drift_window:
            return None
        return DriftWatch(card.reference, card.labels, c.drift_window, FALSE_ALARMS / c.workers)


def _warm(session: Session, count: int) -> float:
    """Run a batch of so many images a few times, so that the first client does not pay for it.

    Returns:
        The least time in milliseconds.
    """
    images = bytes(count * session.size * session.size * 3)
    times = []
    for _ in range(WARM_UP_RUNS):
        begin = time.perf_counter()
        session.infer_bytes(images, count)
        times.append((time.perf_counter() - begin) * 1e3)
    return min(times)


def _name_and_path(word: str) -> tuple[str | None, Path | None]:
    """Split ``NAME=PATH``; a path that holds an equals sign and exists is a path."""
    name, equals, path = word.partition("=")
    if not equals or os.path.exists(word):
        return None, Path(word) if word else None
    if not NAME.fullmatch(name):
        raise InputError(f"'{name}' cannot be a model's name", fix="use letters, digits, '.', '_' and '-', at most 128")
    return name, Path(path)


def _told(opened: Opened) -> dict[str, Any]:
    return {
        "file": str(opened.path),
        "engine": opened.session.engine,
        "threads": opened.threads,
        "load_ms": round(opened.load_ms, 1),
        **({"note": opened.note} if opened.note else {}),
    }


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
