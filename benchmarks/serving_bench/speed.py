"""Throughput, latency, overload, and the same beside peers: each in rounds that take turns, so that noise hits all."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdeploy.core.metrics import MIN_SAMPLES, percentile
from qdeploy.serve import ServeConfig
from serving_bench.contenders import Contender, contenders, made_environments
from serving_bench.load import Answered, Client, Closed, closed, constant, ideal_latencies, poisson
from serving_bench.process import Process, post, qdeploy_server
from serving_bench.setup import FP32, IMAGES, INT8, InProcess, Setup, bar, bomb, in_process, ratio, spread

CONNECTIONS = (1, 8, 32)
BLOCK_S = 1.0
OPEN_S = 3.0
LEAD_IN_S = 0.5
"""Load before what is measured: the first requests wait for new connections, which a steady load does not make."""
LOAD, TOO_MUCH = 0.7, 2.0
"""Shares of the saturation: the latency's, and the overload's."""
REFUSED_WITHIN_S = 0.05
SEEN = ("png28", "jpeg224")
"""The kinds of images of all parts but the throughput: the least and the most to decode."""


def throughput(setup: Setup) -> dict[str, Any]:
    """Measure requests per second against classifying in the process, on one core and on two."""
    rows = _one_core(setup)
    two = _two_cores(setup)
    least = min(rows, key=lambda r: max(r["of_in_process"][str(c)]["mean"] for c in CONNECTIONS))
    best = max((least["of_in_process"][str(c)] for c in CONNECTIONS), key=lambda r: float(r["mean"]))
    bars = [
        bar(
            f"requests per second of in-process, equal cores, least of all images ({least['images']})",
            best,
            ">= 0.85",
            best["mean"] >= 0.85,
        )
    ]
    return {"model": INT8.name, "one_core": rows, "two_cores": two, "bars": bars}


def _one_core(setup: Setup) -> list[dict[str, Any]]:
    os.sched_setaffinity(0, setup.client)
    server = qdeploy_server(INT8, setup.server, cwd=setup.folder, log=setup.folder / "serve.log")
    floor = in_process(setup, INT8, setup.server[0])
    rows = []
    try:
        for kind in IMAGES:
            wire = setup.requests(kind)
            closed(server.port, wire, 8, BLOCK_S)
            rows.append(_turns(setup, floor, server, kind, wire))
    finally:
        floor.end()
        server.kill()
    return rows


@dataclass(frozen=True)
class Block:
    """One second of work."""

    per_s: float
    cpu_ms: float
    """CPU milliseconds of each image."""
    load: Closed | None = None


def _turns(setup: Setup, floor: InProcess, server: Process, kind: str, wire: Sequence[bytes]) -> dict[str, Any]:
    """Measure in-process, served with each number of connections, in-process, and so on; pairs are of one round."""
    inside: list[Block] = []
    served: dict[int, list[Block]] = {c: [] for c in CONNECTIONS}
    for _ in range(setup.rounds(5)):
        before = _block_inside(floor, setup.folder / kind)
        for connections in CONNECTIONS:
            served[connections].append(_block_served(server, wire, connections))
        after = _block_inside(floor, setup.folder / kind)
        inside.append(Block((before.per_s + after.per_s) / 2, (before.cpu_ms + after.cpu_ms) / 2))
    rates = {c: [b.per_s for b in served[c]] for c in CONNECTIONS}
    costs = {c: [b.cpu_ms for b in served[c]] for c in CONNECTIONS}
    loads = {c: [b.load for b in served[c] if b.load] for c in CONNECTIONS}
    return {
        "images": kind,
        "in_process_per_s": spread([b.per_s for b in inside]),
        "in_process_cpu_ms": spread([b.cpu_ms for b in inside], 3),
        "served_per_s": {str(c): spread(rates[c]) for c in CONNECTIONS},
        "served_cpu_ms": {str(c): spread(costs[c], 3) for c in CONNECTIONS},
        "of_in_process": {str(c): ratio(rates[c], [b.per_s for b in inside]) for c in CONNECTIONS},
        "of_in_process_by_cpu_time": {str(c): ratio([b.cpu_ms for b in inside], costs[c]) for c in CONNECTIONS},
        "p50_ms": {str(c): spread([b.p50_ms for b in loads[c]], 2) for c in CONNECTIONS},
        "p99_ms": {str(c): spread([b.p99_ms for b in loads[c]], 2) for c in CONNECTIONS},
        "failed": sum(b.not_2xx + b.broken for blocks in loads.values() for b in blocks),
    }


def _block_inside(floor: InProcess, images: Path) -> Block:
    begin = floor.cpu_s
    floor.begin(images, BLOCK_S)
    per_s = floor.per_s()
    return Block(per_s, (floor.cpu_s - begin) / (per_s * BLOCK_S) * 1e3)


def _block_served(server: Process, wire: Sequence[bytes], connections: int) -> Block:
    begin = server.cpu_s()
    load = closed(server.port, wire, connections, BLOCK_S)
    return Block(load.per_s, (server.cpu_s() - begin) / load.n * 1e3, load)


def _inside(floors: Sequence[InProcess], images: Path) -> float:
    for floor in floors:
        floor.begin(images, BLOCK_S)
    return sum(floor.per_s() for floor in floors)


def _two_cores(setup: Setup) -> list[dict[str, Any]]:
    """Let server and client share two cores; two processes with a core each are what there is without HTTP."""
    os.sched_setaffinity(0, setup.both)
    floors = [in_process(setup, INT8, core) for core in setup.both]
    ways = {"1 process, 2 lanes": [], "2 workers": ["--workers", "2"]}
    servers = {w: qdeploy_server(INT8, setup.both, *more, cwd=setup.folder) for w, more in ways.items()}
    rows = []
    try:
        for server in servers.values():
            server.pause()
        for kind in SEEN:
            wire = setup.requests(kind)
            inside = []
            served: dict[str, dict[int, list[Closed]]] = {w: {c: [] for c in (8, 32)} for w in ways}
            for _ in range(setup.rounds(3)):
                inside.append(_inside(floors, setup.folder / kind))
                for way, blocks in served.items():
                    servers[way].go_on()
                    for connections, found in blocks.items():
                        found.append(closed(servers[way].port, wire, connections, BLOCK_S))
                    servers[way].pause()
            rows += [
                {
                    "images": kind,
                    "server": way,
                    "connections": connections,
                    "in_process_per_s": spread(inside),
                    "served_per_s": spread([b.per_s for b in found]),
                    "of_in_process": ratio([b.per_s for b in found], inside),
                    "p50_ms": spread([b.p50_ms for b in found], 2),
                    "p99_ms": spread([b.p99_ms for b in found], 2),
                    "failed": sum(b.not_2xx + b.broken for b in found),
                }
                for way, blocks in served.items()
                for connections, found in blocks.items()
            ]
    finally:
        for floor in floors:
            floor.end()
        for server in servers.values():
            server.kill()
    return rows


def latency(setup: Setup) -> dict[str, Any]:
    """Measure latencies at 70 % of the saturation, from the time at which a request was to be sent."""
    os.sched_setaffinity(0, setup.client)
    server = qdeploy_server(INT8, setup.server, cwd=setup.folder)
    rows, bars = [], []
    try:
        for kind in SEEN:
            row = _latency(setup, server, kind)
            rows.append(row)
            found = row["constant"]
            bars.append(bar(f"p99 over p50 at 70 %, constant rate, {kind}", found["p99_over_p50"], "<= 2", _met(found)))
            found = row["poisson"]
            what = f"the same, Poisson, {kind}; an ideal server has {row['poisson_ideal']['p99_over_p50']}"
            bars.append(bar(what, found["p99_over_p50"], "<= 2", _met(found)))
    finally:
        server.kill()
    return {"model": INT8.name, "rows": rows, "bars": bars}


def _met(found: dict[str, Any]) -> bool:
    return found["p99_over_p50"] is not None and found["p99_over_p50"] <= 2 and not found["failed"]


def _latency(setup: Setup, server: Process, kind: str) -> dict[str, Any]:
    wire = setup.requests(kind)
    client = Client(server.port, wire)
    client.open(constant(100, 0.5))
    top: list[float] = []
    even: list[list[Answered]] = []
    drawn: list[list[Answered]] = []
    ideal: list[float] = []
    rates = []
    for number in range(setup.rounds(4)):
        top.append(closed(server.port, wire, 32, BLOCK_S).per_s)
        rate = LOAD * top[-1]
        rates.append(rate)
        client.open(constant(rate, LEAD_IN_S))
        even.append(client.open(constant(rate, OPEN_S)))
        schedule = poisson(rate, OPEN_S, seed=number)
        drawn.append(client.open(schedule))
        ideal += ideal_latencies(schedule, 1 / top[-1])
    client.close()
    return {
        "images": kind,
        "saturation_per_s": spread(top),
        "rate_per_s": spread(rates),
        "constant": _summed(even),
        "poisson": _summed(drawn),
        "poisson_ideal": _times(ideal),
    }


def _summed(rounds: Sequence[Sequence[Answered]]) -> dict[str, Any]:
    """Sum up rounds of an open loop."""
    good = [[a.latency_s for a in found if a.status == 200] for found in rounds]
    every = [a for found in rounds for a in found]
    each = [percentile(g, 99) / percentile(g, 50) for g in good if len(g) >= MIN_SAMPLES[99]]
    late = [a.sent_s - a.due_s for a in every]
    return {
        **_times([t for g in good for t in g]),
        "p99_over_p50_of_rounds": spread(each, 2) if each else None,
        "failed": sum(a.status != 200 for a in every),
        "sent_late_p99_ms": round(percentile(late, 99) * 1e3, 3),
    }


def _times(seconds: Sequence[float]) -> dict[str, Any]:
    enough = len(seconds) >= MIN_SAMPLES[99]
    p50, p99 = percentile(seconds, 50) * 1e3, percentile(seconds, 99) * 1e3
    return {
        "n": len(seconds),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3) if enough else None,
        "p99_over_p50": round(p99 / p50, 2) if enough else None,
        "max_ms": round(max(seconds) * 1e3, 2),
    }


def overload(setup: Setup) -> dict[str, Any]:
    """Ask twice as often as can be answered: what is answered all the same, and how soon the rest is refused."""
    os.sched_setaffinity(0, setup.client)
    server = qdeploy_server(INT8, setup.server, cwd=setup.folder)
    rows, bars = [], []
    try:
        for kind in SEEN:
            row = _overload(setup, server, kind)
            rows.append(row)
            share = row["goodput_of_saturation"]
            bars.append(bar(f"goodput at twice the saturation, {kind}", share, ">= 0.90", share["mean"] >= 0.9))
            refused = row["refused"]
            within = refused["within_50_ms"]
            bars.append(bar(f"share refused within 50 ms, {kind}", within, "1", within is not None and within >= 1))
            bars.append(bar(f"other failures, {kind}", row["other_failures"], "0", row["other_failures"] == 0))
    finally:
        server.kill()
    return {"model": INT8.name, "queue": ServeConfig().queue, "rows": rows, "bars": bars}


def _overload(setup: Setup, server: Process, kind: str) -> dict[str, Any]:
    wire = setup.requests(kind)
    client = Client(server.port, wire)
    client.open(constant(100, 0.5))
    top, good = [], []
    every: list[Answered] = []
    for _ in range(setup.rounds(3)):
        before = closed(server.port, wire, 32, BLOCK_S).per_s
        found = client.open(constant(TOO_MUCH * before, OPEN_S))
        every += found
        good.append(sum(a.status == 200 and a.due_s + a.latency_s <= OPEN_S for a in found) / OPEN_S)
        top.append((before + closed(server.port, wire, 32, BLOCK_S).per_s) / 2)
    client.close()
    refused = [a.latency_s for a in every if a.status == 503]
    late = [a.sent_s - a.due_s for a in every]
    return {
        "images": kind,
        "saturation_per_s": spread(top),
        "goodput_per_s": spread(good),
        "goodput_of_saturation": ratio(good, top),
        "answered": _times([a.latency_s for a in every if a.status == 200]),
        "refused": {
            **(_times(refused) if refused else {"n": 0}),
            "within_50_ms": round(sum(t <= REFUSED_WITHIN_S for t in refused) / len(refused), 5) if refused else None,
        },
        "other_failures": sum(a.status not in (200, 503) for a in every),
        "sent_late_p99_ms": round(percentile(late, 99) * 1e3, 3),
    }


def peers(setup: Setup) -> dict[str, Any]:
    """Serve the same fp32 model with what people would take instead, on one core, in turn."""
    assert setup.peers is not None, "the peers need --peers FOLDER"
    os.sched_setaffinity(0, setup.client)
    made = made_environments(setup.peers)
    everyone = contenders(setup.peers)
    starts = {c.name: _starts(setup, c) for c in everyone}
    for _ in range(setup.rounds(4) - 1):
        for contender in everyone:
            starts[contender.name].append(_start(setup, contender))
    running = {c.name: c.start(FP32, setup.server, _own_folder(setup, c)) for c in everyone}
    script = Path(__file__).parent / "peers" / "by_hand.py"
    python = setup.peers / "light" / "bin" / "python"
    floor = InProcess([str(python), str(script), str(FP32), *(str(setup.folder / k) for k in SEEN)], setup.server[0])
    try:
        same = {c.name: _label(running[c.name], c, setup.images("png28")) for c in everyone}
        for server in running.values():
            server.pause()
        speeds = {kind: _compared(setup, everyone, running, floor, kind) for kind in SEEN}
        bombs = {c.name: _bombed(running[c.name], c) for c in everyone}
    finally:
        floor.end()
        for server in running.values():
            server.kill()
    rows = [_peer_row(c.name, starts[c.name], speeds, bombs[c.name], same) for c in everyone]
    return {
        "model": FP32.name,
        "versions": made,
        "rows": rows,
        "bars": _peer_bars(rows, speeds),
        "by_hand": {kind: spread(found["by hand, no HTTP"]) for kind, found in speeds.items()},
    }


def _own_folder(setup: Setup, contender: Contender) -> Path:
    folder = setup.folder / re.sub(r"\W+", "-", contender.name)
    folder.mkdir(exist_ok=True)
    return folder


def _starts(setup: Setup, contender: Contender) -> list[dict[str, Any]]:
    """Start once for the sake of caches, and once to measure."""
    _start(setup, contender, load=False)
    return [_start(setup, contender)]


def _start(setup: Setup, contender: Contender, load: bool = True) -> dict[str, Any]:
    server = contender.start(FP32, setup.server, _own_folder(setup, contender))
    found: dict[str, Any] = {"ready_s": server.ready_s, "ready": server.memory()}
    if load:
        closed(server.port, [contender.wire(d) for d in setup.images("png28")], 8, 1.0)
        found["loaded"] = server.memory()
        found["peak_bytes"] = server.peak_bytes()
    return {**found, "sigterm": server.end()}


def _compared(
    setup: Setup, everyone: Sequence[Contender], running: dict[str, Process], floor: InProcess, kind: str
) -> dict[str, list[float]]:
    """Return requests per second in each round."""
    wires = {c.name: [c.wire(d) for d in setup.images(kind)] for c in everyone}
    found: dict[str, list[float]] = {c.name: [] for c in everyone}
    found["by hand, no HTTP"] = []
    for number in range(setup.rounds(4) + 1):
        for contender in everyone:
            server = running[contender.name]
            server.go_on()
            block = closed(server.port, wires[contender.name], 8, BLOCK_S)
            server.pause()
            assert not block.not_2xx + block.broken, f"{contender.name} fails"
            found[contender.name].append(block.per_s)
        found["by hand, no HTTP"].append(_inside([floor], setup.folder / kind))
        if number == 0:  # warm-up
            for blocks in found.values():
                blocks.clear()
    return found


def _label(server: Process, contender: Contender, images: Sequence[bytes]) -> list[str]:
    """Return the best label of each image, whatever an answer looks like."""
    found = []
    for data in images:
        head, _, body = contender.wire(data).partition(b"\r\n\r\n")
        path, kind = re.match(rb"POST (\S+) ", head), re.search(rb"Content-Type: (.*)", head)
        assert path
        assert kind
        _, answer = post(server.port, path[1].decode(), body, kind[1].decode().strip())
        label = re.search(r'label\\?": ?\\?"([^"\\]+)', answer.decode())
        found.append(label[1] if label else "")
    return found


def _bombed(server: Process, contender: Contender) -> dict[str, Any]:
    """Send 144 megapixels in a small file."""
    server.go_on()
    head, _, body = contender.wire(bomb()).partition(b"\r\n\r\n")
    path, kind = re.match(rb"POST (\S+) ", head), re.search(rb"Content-Type: (.*)", head)
    assert path
    assert kind
    before, begin = server.peak_bytes(), time.perf_counter()
    status, _ = post(server.port, path[1].decode(), body, kind[1].decode().strip())
    took = time.perf_counter() - begin
    growth = server.peak_bytes() - before
    server.pause()
    return {"status": status, "seconds": round(took, 3), "peak_growth_MB": round(growth / 1e6, 1)}


def _peer_row(
    name: str,
    starts: Sequence[dict[str, Any]],
    speeds: dict[str, dict[str, list[float]]],
    bombed: dict[str, Any],
    labels: dict[str, list[str]],
) -> dict[str, Any]:
    ours = "qdeploy serve"
    same = [a == b for a, b in zip(labels[name], labels[ours], strict=True)]
    return {
        "server": name,
        "per_s": {kind: spread(found[name]) for kind, found in speeds.items()},
        "qdeploy_is_faster_by": {kind: ratio(found[ours], found[name]) for kind, found in speeds.items()},
        "ready_s": spread([s["ready_s"] for s in starts], 3),
        "ready_rss_MB": spread([s["ready"]["rss_bytes"] / 1e6 for s in starts]),
        "loaded_rss_MB": spread([s["loaded"]["rss_bytes"] / 1e6 for s in starts]),
        "loaded_pss_MB": spread([s["loaded"]["pss_bytes"] / 1e6 for s in starts]),
        "processes": starts[-1]["loaded"]["processes"],
        "sigterm": [s["sigterm"] for s in starts],
        "bomb_of_144_megapixels": bombed,
        "same_labels": round(statistics.fmean(same), 3),
    }


def _peer_bars(rows: Sequence[dict[str, Any]], speeds: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    ours, others = rows[0], rows[1:]
    bars = []
    for kind in speeds:
        nearest = min((r["qdeploy_is_faster_by"][kind] for r in others), key=lambda r: float(r["mean"]))
        bars.append(bar(f"{kind} per second, of the fastest peer's", nearest, ">= 1", nearest["mean"] >= 1))
    for name, factor in (("FastAPI, raw body, async", 1.0), ("LitServe, 1 worker", 0.5)):
        peer = next(r for r in others if r["server"] == name)
        for figure in ("loaded_rss_MB", "loaded_pss_MB"):
            found, limit = ours[figure]["median"], factor * peer[figure]["median"]
            what = f"{figure} against {name}"
            bars.append(bar(what, found, f"<= {factor:g} x {peer[figure]['median']:g}", found <= limit))
    ready = ours["ready_s"]
    bars.append(bar("start to ready on one core, s", ready, "<= 0.6", ready["median"] <= 0.6))
    left = max(int(s["processes_left_2_s_later"]) for s in ours["sigterm"])
    clean = left == 0 and all(s["exit_code"] == 0 for s in ours["sigterm"])
    bars.append(bar("SIGTERM: exit 0, nothing left", [s["exit_code"] for s in ours["sigterm"]], "0", clean))
    return bars
