"""Measures artifacts side by side: what ``qdeploy bench`` runs.

All models take turns in one process, so that a noisy neighbour hits all of them alike; memory and start-up come from
fresh processes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qdeploy.bench.compare import Comparison, compare
from qdeploy.bench.config import BenchConfig
from qdeploy.bench.fresh import Fresh, ladder_of
from qdeploy.bench.images import encoded_images, sample_images
from qdeploy.bench.latency import histogram, latency_summary
from qdeploy.bench.launches import Subject, run_scenario
from qdeploy.bench.phases import QUICK_RUNS, RUNS, Phases, time_phases
from qdeploy.bench.report import BenchReport, BenchResult
from qdeploy.bench.validity import judge
from qdeploy.bench.watch import Watch, limits
from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.errors import InputError
from qdeploy.core.machine import environment
from qdeploy.core.progress import Progress
from qdeploy.runtime.session import ENGINES


def bench(paths: Sequence[Path], config: BenchConfig | None = None, progress: Progress | None = None) -> BenchReport:
    """Measure artifacts side by side; the first is the one the others are compared with.

    Args:
        paths: Model files; every one is measured with every engine of the configuration.
        config: How to measure.
        progress: Called with the parts of the work done and their number.

    Raises:
        QdeployError: If a file or an engine cannot be used, or gives other answers than its goldens.
    """
    config = config or BenchConfig()
    progress = progress or (lambda done, total: None)
    subjects = subjects_of([read_artifact(p) for p in paths], config.engines)
    for subject in subjects:  # a file that an engine refuses is found before minutes are spent
        subject.open(config).close()
    machine = environment("qdeploy", "numpy", "pillow", *(ENGINES[e].library for e in config.engines))
    watch = Watch()
    run_scenario(subjects, config, watch, progress)
    card = {
        **machine,
        "threads": config.threads,
        "load_after_1min": environment()["load_1min"],
        **limits(),
        **watch.to_dict(),
    }
    details = _phases(subjects, config) if config.details else [None] * len(subjects)
    return BenchReport(
        environment=card,
        config=config,
        results=tuple(_result(s, p, config) for s, p in zip(subjects, details, strict=True)),
        comparisons=_comparisons(subjects, config),
        validity=judge(config, watch, {s.name: s.samples for s in subjects}),
    )


def subjects_of(artifacts: Sequence[Artifact], engines: Sequence[str]) -> list[Subject]:
    """Pair every artifact with every engine and give each pair a name of its own."""
    if not artifacts:
        raise InputError("there is no model file to measure")
    images = {a.card.preprocessing: sample_images(a.card.preprocessing) for a in artifacts}
    return [
        Subject(
            name=f"{name} {engine}" if len(engines) > 1 else name,
            artifact=artifact,
            engine=engine,
            images=images[artifact.card.preprocessing],
        )
        for name, artifact in zip(_names(artifacts), artifacts, strict=True)
        for engine in engines
    ]


def _names(artifacts: Sequence[Artifact]) -> list[str]:
    """Name artifacts by card and precision; where two have one name, by as much of the path as tells them apart."""
    names = [f"{a.card.name} {a.card.precision}" for a in artifacts]
    if len(set(names)) == len(names):
        return names
    for parts in range(1, max(len(a.path.parts) for a in artifacts) + 1):
        tails = ["/".join(a.path.parts[-parts:]) for a in artifacts]
        if len(set(tails)) == len(tails):
            return tails
    return [f"{n} #{i + 1}" for i, n in enumerate(names)]


def _comparisons(subjects: Sequence[Subject], config: BenchConfig) -> tuple[Comparison, ...]:
    if config.scenario == "server" and config.rate is None:
        return ()  # latencies at different rates do not compare
    base, *others = subjects
    launches = [len(launch) for launch in base.launches]
    return tuple(compare(s.name, base.name, s.rounds, base.rounds, len(others), launches) for s in others)


def _phases(subjects: Sequence[Subject], config: BenchConfig) -> list[Phases]:
    with ExitStack() as stack:
        sessions = [stack.enter_context(s.open(config)) for s in subjects]
        runs = QUICK_RUNS if config.quick else RUNS
        return time_phases([s.artifact.card for s in subjects], sessions, encoded_images(), runs)


def _result(subject: Subject, phases: Phases | None, config: BenchConfig) -> BenchResult:
    artifact, samples = subject.artifact, subject.samples
    fresh = Fresh(
        path=artifact.path,
        engine=subject.engine,
        threads=config.threads,
        batch=config.batch,
        quick=config.quick,
    )
    found = fresh.probe()
    mean_ms = statistics.fmean(samples)
    rate = subject.served.rate_per_s * subject.served.keeping_up if subject.served else 1e3 / mean_ms
    return BenchResult(
        path=str(artifact.path),
        name=subject.name,
        precision=artifact.card.precision,
        engine=subject.ran,
        engine_key=subject.engine,
        scenario=config.scenario,
        batch=config.batch,
        samples=config.samples,
        threads=config.threads,
        n=len(samples),
        latency_ms=latency_summary(samples),
        launches_p50_ms=tuple(statistics.median([t for b in launch for t in b]) for launch in subject.launches),
        histogram=histogram(samples),
        throughput_per_s=config.samples * rate,
        server=subject.served,
        phases_ms=phases,
        model_bytes=len(artifact.data),
        sha256=artifact.sha256,
        peak_rss_bytes=found["peak_rss_bytes"],
        base_rss_bytes=found["base_rss_bytes"],
        import_ms=found["import_ms"],
        load_ms=found["load_ms"],
        first_ms=found["first_ms"],
        accuracy=artifact.card.accuracy.to_dict() if artifact.card.accuracy else {},
        **_details(fresh, found, config),
    )


def _details(fresh: Fresh, found: dict[str, Any], config: BenchConfig) -> dict[str, Any]:
    """Return what further fresh processes tell, or without details what the first one told."""
    if config.details:
        grown, found = fresh.growth()
        starts = fresh.cold_starts_ms(encoded_images()[0])
    else:
        grown, starts = None, [found["process_ms"]]
    return {
        "ladder_bytes": ladder_of(found),
        "growth": grown,
        "cold_start_ms": statistics.median(starts),
        "cold_starts_ms": tuple(starts),
    }
