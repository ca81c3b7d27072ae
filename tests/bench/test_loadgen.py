"""MLPerf's LoadGen and we give the same numbers: of the same queries where possible, else of the same service."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.bench import server
from qdeploy.bench.images import sample_images
from qdeploy.bench.latency import latency_summary
from qdeploy.bench.rounds import Query, queries_of, time_ms, time_queries
from qdeploy.bench.server import serve
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.metrics import percentile
from qdeploy.runtime.session import open_session
from tests.bench.test_server import Clock

lg = pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen has no wheel for this platform")

AGREEMENT = 0.05
COUNT = 199
"""Of queries: LoadGen's percentile is the sample one rank above ours where a share of the samples is a whole number."""
PERCENTILES = {"p50": "50.00 percentile", "p90": "90.00 percentile", "p95": "95.00 percentile", "mean": "Mean"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One query as LoadGen saw it."""

    due_ms: float
    """When it should have been sent, since the beginning of the run."""
    latency_ms: float


def busy(seconds: float) -> Query:
    """Return a service of a known time."""

    def run() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return lambda number: run


def loadgen(folder: Path, scenario: str, query: Query, count: int, **settings: float) -> dict[str, float]:
    """Run LoadGen over a service and return the numbers of its summary."""

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            query(sample.index)()
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0)])

    test = lg.TestSettings()
    test.scenario = getattr(lg.TestScenario, scenario)
    test.mode = lg.TestMode.PerformanceOnly
    test.min_query_count, test.max_query_count, test.min_duration_ms = count, count, 0
    for name, value in settings.items():
        setattr(test, name, value)
    logs = lg.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.enable_trace = True
    sut = lg.ConstructSUT(issue, lambda: None)
    library = lg.ConstructQSL(64, 64, lambda indices: None, lambda indices: None)
    try:
        lg.StartTestWithLogSettings(sut, library, test, logs)
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)
    text = (folder / "mlperf_log_summary.txt").read_text()
    return {name.strip(): float(value) for name, value in re.findall(r"^(.+?)\s*:\s*([\d.e+]+)$", text, flags=re.M)}


def samples_of(folder: Path) -> list[Sample]:
    """Read from LoadGen's trace what it measured of each query."""
    pattern = r'"name":"Sample".*"ph":"b".*"ts":([\d.]+),.*"complete_ns":(\d+)'
    found = re.findall(pattern, (folder / "mlperf_log_trace.json").read_text())
    return [Sample(due_ms=float(due) / 1e3, latency_ms=float(ns) / 1e6) for due, ns in found]


def check_summary(latencies_ms: list[float], found: dict[str, float], rel: float) -> None:
    """Check that our summary of latencies is LoadGen's."""
    ours = latency_summary(latencies_ms)
    theirs = {mine: found[f"{name} latency (ns)"] / 1e6 for mine, name in PERCENTILES.items()}
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=rel)


def timing(service: Query, times: list[float]) -> Query:
    """Note the milliseconds that each query takes by our clock."""
    return lambda number: lambda: times.append(time_ms(service(number)))


def test_single_stream_and_our_summary_of_the_same_queries_agree(tmp_path: Path) -> None:
    times: list[float] = []
    found = loadgen(tmp_path, "SingleStream", timing(busy(0.003), times), COUNT)
    theirs = [sample.latency_ms for sample in samples_of(tmp_path)]
    assert len(times) == len(theirs) == COUNT
    check_summary(theirs, found, rel=1e-6)
    # another program may take the CPU between their clock's readings and ours, but not in every second query
    assert percentile([a / b for a, b in zip(times, theirs, strict=True)], 50) == pytest.approx(1, abs=AGREEMENT)


def test_offline_and_our_throughput_of_the_same_samples_agree(tmp_path: Path) -> None:
    times: list[float] = []
    query = timing(busy(0.002), times)
    found = loadgen(tmp_path, "Offline", query, 1, offline_expected_qps=200.0, min_duration_ms=1000)
    assert len(times) >= 200
    assert 1e3 * len(times) / sum(times) == pytest.approx(found["Samples per second"], rel=AGREEMENT)


def test_server_latencies_of_the_same_schedule_and_service_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadGen runs in real time; then we serve its schedule, in a time of our own, with what it took each time."""
    found = loadgen(tmp_path, "Server", busy(0.004), COUNT, server_target_qps=150.0)
    samples = samples_of(tmp_path)
    took_s, free_ms = [], 0.0
    for sample in samples:
        answered_ms = sample.due_ms + sample.latency_ms
        took_s.append((answered_ms - max(sample.due_ms, free_ms)) / 1e3)
        free_ms = answered_ms
    clock = Clock(1e-7)  # while there is a queue, readings of the clock add up
    monkeypatch.setattr(server, "time", clock)
    run = serve(lambda number: lambda: clock.sleep(took_s[number]), np.array([s.due_ms for s in samples]) / 1e3)
    assert run.latencies_ms == pytest.approx([s.latency_ms for s in samples], rel=AGREEMENT)
    check_summary(run.latencies_ms, found, rel=AGREEMENT)
    assert percentile(run.latencies_ms, 90) > 8  # there was a queue


def test_single_stream_of_a_real_model_in_turns(tmp_path: Path) -> None:
    artifact = read_artifact(SHIPPED / "model.int8.onnx")
    with open_session(artifact, threads=1) as session:
        query = queries_of(session, sample_images(artifact.card.preprocessing), 1, 1)
        ratios = []
        for _ in range(9):
            (rounds,) = time_queries([query], 100, 60.0)
            ours = percentile([t for block in rounds for t in block], 50)
            theirs = loadgen(tmp_path, "SingleStream", query, 100)["50.00 percentile latency (ns)"] / 1e6
            ratios.append(ours / theirs)
    # LoadGen's clock includes its call into Python, some hundredths of a millisecond
    assert 0.8 < percentile(ratios, 50) < 1.1
