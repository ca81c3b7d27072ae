"""Idle connections, a bomb, a long time, an empty folder and the start: what a server costs beside its work."""

from __future__ import annotations

import array
import compileall
import gc
import http.client
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from qdeploy.bench.compare import mean_and_margin, student
from qdeploy.core.metrics import percentile
from serving_bench.load import Client, closed, constant, poisson
from serving_bench.process import ROOT, Process, free_port, get, post, qdeploy_server
from serving_bench.setup import IMAGES, INT8, Setup, bar, bomb, spread

IDLE = 10_000
SETTLED_S = 120.0
STRETCH_S = 10.0
BURST_S = 10.0
SLOW_S = 0.05
SOURCES = ("qdeploy", "pyproject.toml", "README.md", "LICENSE")


def idle(setup: Setup) -> dict[str, Any]:
    """Hold connections open that have asked once and then say nothing."""
    os.sched_setaffinity(0, setup.client)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = min(IDLE, hard - 200)
    server = qdeploy_server(INT8, setup.server, cwd=setup.folder)
    image = setup.images("png28")[0]
    held: list[socket.socket] = []
    try:
        post(server.port, "/predict", image)
        before = server.memory()["rss_bytes"]
        begin = time.perf_counter()
        held = [_asked(server.port, i) for i in range(wanted)]
        took = time.perf_counter() - begin
        memory = server.memory()["rss_bytes"] - before
        fresh = [_live(server.port) for _ in range(50 if setup.quick else 200)]
        kept = _kept(server.port, 50 if setup.quick else 200)
        answers = [_timed_post(server.port, image) for _ in range(20)]
        left = _still_open(held)
    finally:
        for connection in held:
            connection.close()
        server.kill()
    slowest = max(*fresh, *kept) * 1e3
    good = sum(status == 200 for status, _ in answers)
    return {
        "connections": wanted,
        "opened_in_s": round(took, 2),
        "still_open_at_the_end": left,
        "kB_each": round(memory / wanted / 1e3, 2),
        "live_new_connection_ms": _three(fresh),
        "live_kept_connection_ms": _three(kept),
        "predict_ms": _three([t for _, t in answers]),
        "bars": [
            bar("idle connections held", left, f"{IDLE}", left >= IDLE),
            bar("slowest /v2/health/live beside them, ms", round(slowest, 2), "<= 100", slowest <= 100),
            bar("POST /predict answered with 200", f"{good} of {len(answers)}", "all", good == len(answers)),
        ],
    }


def _asked(port: int, number: int) -> socket.socket:
    """Return a connection that has been used once; each source address has ports for some thousands."""
    source = f"127.0.0.{2 + number // 5000}"
    connection = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    received = b""
    while not received.endswith(b"}"):
        block = connection.recv(4096)
        assert block, "the server closed the connection"
        received += block
    assert b" 200 " in received
    connection.setblocking(False)
    return connection


def _still_open(held: list[socket.socket]) -> int:
    still = 0
    for connection in held:
        try:
            still += bool(connection.recv(4096))
        except BlockingIOError:  # open, and silent
            still += 1
        except OSError:
            continue
    return still


def _live(port: int) -> float:
    begin = time.perf_counter()
    status, _ = get(port, "/v2/health/live")
    assert status == 200
    return time.perf_counter() - begin


def _kept(port: int, n: int) -> list[float]:
    connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=30), []
    for _ in range(n):
        begin = time.perf_counter()
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read()
        found.append(time.perf_counter() - begin)
    connection.close()
    return found


def _timed_post(port: int, image: bytes) -> tuple[int, float]:
    begin = time.perf_counter()
    status, _ = post(port, "/predict", image)
    return status, time.perf_counter() - begin


def _three(seconds: list[float]) -> dict[str, Any]:
    values = [s * 1e3 for s in seconds]
    return {"p50": round(percentile(values, 50), 2), "max": round(max(values), 2), "n": len(values)}


def bombs(setup: Setup) -> dict[str, Any]:
    """Send a small file that holds 144 megapixels."""
    os.sched_setaffinity(0, setup.client)
    server = qdeploy_server(INT8, setup.server, cwd=setup.folder)
    data, image = bomb(), setup.images("jpeg224")[0]
    try:
        closed(server.port, setup.requests(*IMAGES), 8, 1.0)
        before = server.peak_bytes()
        answers = [_timed_post(server.port, data) for _ in range(10)]
        growth = (server.peak_bytes() - before) / 1e6
        after, _ = post(server.port, "/predict", image)
    finally:
        server.kill()
    statuses = sorted({status for status, _ in answers})
    return {
        "file_kB": round(len(data) / 1e3),
        "n": len(answers),
        "statuses": statuses,
        "ms": _three([t for _, t in answers]),
        "peak_growth_MB": round(growth, 2),
        "next_request": after,
        "bars": [
            bar("memory that ten bombs cost, MB", round(growth, 2), "< 50", growth < 50),
            bar("their status", statuses, "413 or 400", set(statuses) <= {400, 413} and after == 200),
        ],
    }


def soak(setup: Setup) -> dict[str, Any]:
    """Keep 70 % of the load up for long, all kinds of images in turn, Poisson; ask for the health once a second.

    A burst before it fills the queue: the memory that a server keeps once it has seen the worst is no leak.
    """
    os.sched_setaffinity(0, setup.client)
    server = qdeploy_server(INT8, setup.server, cwd=setup.folder)
    wire = setup.requests(*IMAGES)
    times = array.array("d")
    statuses: dict[int, int] = {}
    memory: list[tuple[float, int]] = []
    health_s: list[float] = []
    worst: list[dict[str, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            health_s.append(_live(server.port))

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        top = statistics.median(closed(server.port, wire, 32, 1.0).per_s for _ in range(3))
        watcher.start()
        client = Client(server.port, wire)
        client.open(constant(2 * top, BURST_S))
        begin = time.perf_counter()
        while (now := time.perf_counter() - begin) < setup.soak_s:
            stolen = _stolen_s()
            found = client.open(poisson(0.7 * top, min(STRETCH_S, setup.soak_s - now + 0.1), seed=int(now)))
            for answer in found:
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
                times.append(answer.latency_s)
            last = max(found, key=lambda a: a.latency_s, default=None)
            if last is not None and last.latency_s > SLOW_S:
                refused = sum(a.status != 200 for a in found)
                at, late = now + last.due_s, last.sent_s - last.due_s
                worst.append({
                    "at_s": round(at, 2), "slowest_ms": round(last.latency_s * 1e3, 1), "refused": refused,
                    "sent_late_ms": round(late * 1e3, 1), "stolen_s_of_10": round(_stolen_s() - stolen, 2),
                })  # fmt: skip
            memory.append((time.perf_counter() - begin, server.memory()["rss_bytes"]))
            gc.collect()
        client.close()
        alive = watcher.is_alive()  # it ends at the first answer that is none
        over.set()
        watcher.join()
    finally:
        over.set()
        server.kill()
    slowest = round(max(health_s, default=0.0) * 1e3, 2)
    failed = sum(n for status, n in statuses.items() if status != 200)
    growth = _growth(memory)
    bars = [
        bar("failed requests", failed, "0", failed == 0),
        bar("slowest /v2/health/live, ms", slowest if alive else "no answer", "<= 100", alive and slowest <= 100),
    ]
    if growth is not None:
        low, high = growth["MB_per_hour_ci95"]
        flat = low <= 0.0 <= high or abs(growth["MB_per_hour"]) < 1.0
        bars.append(bar("growth of resident memory, MB per hour", growth, "about 0", flat))
    return {
        "model": INT8.name,
        "minutes": round(setup.soak_s / 60, 2),
        "rate_per_s": round(0.7 * top, 1),
        "statuses": {str(k): v for k, v in sorted(statuses.items())},
        "p50_ms": round(percentile(times, 50) * 1e3, 3),
        "p99_ms": round(percentile(times, 99) * 1e3, 3),
        "health": {"n": len(health_s), "slowest_ms": slowest},
        "resident_MB": {
            "first": memory[0][1] / 1e6,
            "last": memory[-1][1] / 1e6,
            "most": max(m for _, m in memory) / 1e6,
        },
        "stretches_with_an_answer_after_50_ms": worst,
        "resident_over_time": [[round(t, 1), b] for t, b in memory],
        "growth_after_2_minutes": growth,
        "bars": bars,
    }


def _stolen_s() -> float:
    """Return the seconds in which this machine's cores worked for others, since it began."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(words[8]) / os.sysconf("SC_CLK_TCK")


def _growth(memory: list[tuple[float, int]]) -> dict[str, Any] | None:
    """Return the slope after the first two minutes with its interval, from means of minutes: readings follow others."""
    minutes: dict[int, list[float]] = {}
    for t, found in memory:
        if t > SETTLED_S:
            minutes.setdefault(int(t // 60), []).append(found / 1e6)
    points = [(k, statistics.fmean(v)) for k, v in minutes.items()]
    if len(points) < 4:
        return None
    x, y = [float(k) for k, _ in points], [v for _, v in points]
    slope, start = statistics.linear_regression(x, y)
    wide = sum((a - statistics.fmean(x)) ** 2 for a in x)
    rest = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    half = student(0.975, len(points) - 2) * (rest / (len(points) - 2) / wide) ** 0.5
    ci95 = [round(60 * (slope - half), 3), round(60 * (slope + half), 3)]
    return {"MB_per_hour": round(60 * slope, 3), "MB_per_hour_ci95": ci95, "minutes": len(points)}


def install(setup: Setup) -> dict[str, Any]:
    """Install ``qdeploy[serve]`` into an empty folder and serve from there."""
    copy, target = setup.folder / "source", setup.folder / "installed"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), f"{copy}[serve]"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sizes = {p.name: _size(p) for p in target.iterdir()}
    whole = sum(sizes.values()) / 1e6
    compiled = sum(_size(p) for p in target.rglob("__pycache__")) / 1e6
    port, python = free_port(), getattr(sys, "_base_executable", sys.executable)
    command = [python, "-s", "-m", "qdeploy", "serve", "--port", str(port)]
    server = Process(command, port, "/v2/health/ready", setup.both, {"PYTHONPATH": str(target)}, setup.folder)
    try:
        status, _ = post(port, "/predict", setup.images("png28")[0])
    finally:
        ended = server.end()
    largest = sorted(sizes.items(), key=lambda s: -s[1])[:10]
    return {
        "MB": round(whole, 1),
        "of_which_compiled_MB": round(compiled, 1),
        "packages": len(list(target.glob("*.dist-info"))),
        "largest_MB": {name: round(size / 1e6, 1) for name, size in largest},
        "predict_from_there": status,
        "sigterm": ended,
        "bars": [
            bar("installed size, MB", round(whole, 1), "<= 200", whole <= 200),
            bar("it serves from there", status, "200", status == 200),
        ],
    }


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())


def start(setup: Setup) -> dict[str, Any]:
    """Time from the start of the process to the first 200, on one core and on two."""
    os.sched_setaffinity(0, setup.client)
    compileall.compile_dir(ROOT / "qdeploy", quiet=1)  # as installing does
    found: dict[str, list[dict[str, Any]]] = {"one core": [], "two cores": []}
    wire = setup.requests("png28")
    qdeploy_server(INT8, setup.server, cwd=setup.folder).kill()
    for _ in range(3 if setup.quick else 7):
        for name, cores in (("one core", setup.server), ("two cores", setup.both)):
            server = qdeploy_server(INT8, cores, cwd=setup.folder)
            ready = server.memory()["rss_bytes"]
            closed(server.port, wire, 8, 1.0)
            loaded = server.memory()["rss_bytes"]
            found[name].append({"s": server.ready_s, "ready": ready, "loaded": loaded, "sigterm": server.end()})
    rows = [
        {
            "cores": name,
            "ready_s": spread([f["s"] for f in starts], 3),
            "ready_s_mean_and_margin": [round(v, 3) for v in mean_and_margin([f["s"] for f in starts])],
            "ready_rss_MB": spread([f["ready"] / 1e6 for f in starts]),
            "loaded_rss_MB": spread([f["loaded"] / 1e6 for f in starts]),
            "exit_codes": [f["sigterm"]["exit_code"] for f in starts],
            "sigterm_s": spread([float(f["sigterm"]["seconds"]) for f in starts], 3),
        }
        for name, starts in found.items()
    ]
    bars = [
        bar(f"start to ready, {r['cores']}, s", r["ready_s"], "<= 0.6", r["ready_s"]["median"] <= 0.6) for r in rows
    ]
    return {"model": INT8.name, "polled_every_ms": 10, "rows": rows, "bars": bars}
