"""The report of a server: the numbers of ``qdeploy bench``, and nothing that grows."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path

import pytest

from qdeploy.serve.stats import PHASES, SLOT_S, Slot, Stats, Times, merged
from tests.serve.running import INT8, Running, in_process, in_thread

BAG = (Path(__file__).parents[2] / "examples" / "bag.png").read_bytes()


def test_the_report_tells_what_serving_costs() -> None:
    with in_thread() as server:
        for _ in range(30):
            server.send("POST", "/predict", BAG)
        server.send("POST", "/predict", b"hello")
        report = server.get("/report").json
    for stretch in ("last_minutes", "since_start"):
        found = report[stretch]
        assert found["statuses"] == {"200": 30, "415": 1}
        assert (found["requests"], found["images"], found["inferences"]) == (31, 30, 30)
        assert found["requests_per_s"] > 0
        assert found["cpu_ms_per_request"] > 0.1
        times = found["latency_ms"]
        assert set(times) == set(PHASES)
        for phase in PHASES:
            assert times[phase]["n"] == 30
            assert 0 < times[phase]["p50"] <= times[phase]["p90"] <= times[phase]["p99"] < 1000
        assert times["total"]["p50"] >= times["infer"]["p50"]
        assert sum(n for _, n in found["histogram_ms"]) == 30
    memory = report["memory"]
    assert 30e6 < memory["resident_bytes"] <= memory["peak_bytes"]
    assert set(memory["share_bytes"]) == {"python_and_server", "inference_runtime", "models", "buffers"}
    (model,) = report["models"]
    assert (model["precision"], model["threads"], model["state"]) == ("int8", 1, "READY")
    assert model["accuracy"]["n"] > 0
    assert "ONNX Runtime" in model["engine"]
    assert report["machine"]["cpu"]


def test_the_report_of_a_server_that_nobody_asked() -> None:
    with in_thread() as server:
        report = server.get("/report").json
    found = report["since_start"]
    assert found["requests"] == 0
    assert found["cpu_ms_per_request"] is None
    assert report["since_start"]["cpu_cores"] * report["since_start"]["seconds"] < 0.1, (
        "opening the models is not counted"
    )
    assert found["latency_ms"]["total"] == {"n": 0, "p50": None, "p90": None, "p99": None, "mean": None}


@pytest.mark.parametrize("scale", [0.01, 1.0, 700.0])
def test_percentiles_are_those_of_the_samples(scale: float) -> None:
    samples = sorted(scale * (1 + (i * 7919 % 1000) / 100) for i in range(1000))
    times = Times()
    times.add(samples[:400])
    times.add(samples[400:])
    for percent in (50, 90, 99):
        exact = samples[int(percent / 100 * 1000) - 1]
        assert times.percentile(percent) == pytest.approx(exact, rel=0.0115)
    assert times.summary()["mean"] == pytest.approx(statistics.fmean(samples), rel=1e-3)
    bound = 2.0 ** round(math.log2(samples[500]))
    assert times.below(bound) == sum(s < bound for s in samples)


def test_slots_add_up_and_survive_json() -> None:
    slots = []
    for i in range(3):
        slot = Slot(begin=100.0 + i)
        slot.statuses.update({200: 2, 503: i})
        slot.images, slot.runs, slot.cpu_s = 5, 2, 0.5
        for times in slot.times.values():
            times.add([1.0 + i])
        slots.append(Slot.from_dict(json.loads(json.dumps(slot.to_dict()))))
    whole = merged(slots)
    assert whole.statuses == {200: 6, 503: 3}
    assert (whole.begin, whole.images, whole.runs, whole.cpu_s) == (100.0, 15, 6, 1.5)
    assert whole.times["total"].n == 3


def test_old_slots_leave_the_last_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stats = Stats()
    for _ in range(100):
        stats.record(200, (1.0,) * len(PHASES), 1, 1)
        now[0] += SLOT_S
    assert stats.since_start().images == 100
    recent = stats.recent()
    assert 29 <= recent.images <= 31
    assert stats.since_start().times["total"].n == 100


def test_many_idle_connections_leave_room_for_others(tmp_path: Path) -> None:
    """With few files allowed to the process: the oldest idle connections make way."""
    import resource
    import socket

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    idle: list[socket.socket] = []
    try:
        with in_process(INT8, cwd=tmp_path, files=256) as server:
            idle += [socket.create_connection(server.running.address, timeout=5) for _ in range(1000)]
            begin = time.perf_counter()
            assert server.running.get("/v2/health/live").status == 200
            assert time.perf_counter() - begin < 0.5
            assert server.running.send("POST", "/predict", BAG).status == 200
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_openapi_document_names_every_path(tmp_path: Path) -> None:
    with in_thread([f"m={INT8}"]) as server:
        document = server.get("/openapi.json").json
        assert document["openapi"].startswith("3.")
        for path, methods in document["paths"].items():
            for method in methods:
                filled = path.format(model="m", version="1")
                reply = server.send(method.upper(), filled, b"" if method == "post" else None)
                assert reply.json.get("reason") != "unknown-path" if reply.status >= 400 else True, path
                assert reply.status not in (404, 405, 500), (path, reply.status)
        refs = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
        assert {r.partition('"')[0] for r in refs} <= set(document["components"]["schemas"])


def test_the_report_file_is_written_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with in_process(INT8, "--report", file, cwd=tmp_path) as server:
        assert Running.send(server.running, "POST", "/predict", BAG).status == 200
        assert server.end() == 0
    assert json.loads(file.read_text())["since_start"]["images"] == 1
