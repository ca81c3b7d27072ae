"""A server under attack: requests that hypothesis makes up, slow clients, hang-ups, bombs, with good ones between them.

Throughout, good requests are answered rightly and health answers soon; no request is answered with a defect.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from qdeploy.core.files import sha256_of
from tests.serve.running import FP32, INT8, Running, in_process, until
from tests.torture.report import Report

GOOD = (Path(__file__).parents[2] / "examples" / "bag.png").read_bytes()
DEFECTS = range(500, 503)
"""503 and 504 are refusals: busy, not ready, too late."""
NAME = "model"
TENSOR = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3]}

paths = st.one_of(
    st.sampled_from(
        [
            *("/", "/predict", "/report", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"),
            *(f"/v2/models/{NAME}{end}" for end in ("", "/infer", "/ready", "/config", "/stats", "/versions/1/infer")),
            *("/v2/repository/index", f"/v2/repository/models/{NAME}/load", "/page/../../etc/passwd", "/%00", "//"),
        ]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40).map(lambda text: "/" + text),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([2**31, 2**63, 10**400])
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner)),
    max_leaves=9,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.just("image"), scalars),
        "datatype": st.one_of(st.sampled_from(["UINT8", "BYTES", "FP32"]), scalars),
        "shape": st.one_of(st.lists(st.one_of(st.integers(-1, 70), scalars), max_size=5), values),
        "data": st.one_of(st.lists(st.one_of(st.integers(-9, 300), scalars), max_size=9), values),
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "classification", "x"]), values, max_size=2),
    },
)
infers = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(st.one_of(tensors, st.just(TENSOR)), max_size=2), values)},
    optional={"id": values, "parameters": values, "outputs": st.one_of(st.lists(tensors, max_size=2), values)},
)
bodies = st.one_of(
    st.binary(max_size=400),
    infers.map(lambda document: json.dumps(document).encode()),
    values.map(lambda value: json.dumps(value).encode()),
    st.just(GOOD),
    st.builds(lambda at, byte: GOOD[:at] + byte + GOOD[at + 1 :], st.integers(0, len(GOOD) - 1), st.binary(max_size=3)),
    st.builds(lambda data: gzip.compress(data), st.binary(max_size=200)),
)
tokens = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=12)
headers = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [
                *("Content-Type", "Content-Encoding", "Inference-Header-Content-Length", "Expect", "X-Request-Id"),
                *("Transfer-Encoding", "Origin", "Authorization", "Range", "Connection", "Upgrade", "Accept-Encoding"),
            ]
        ),
        tokens,
    ),
    st.one_of(
        st.sampled_from(
            [
                *(
                    "gzip",
                    "deflate",
                    "br",
                    "chunked",
                    "100-continue",
                    "application/json",
                    "multipart/form-data; boundary=x",
                ),
                *("0", "-1", "99999999999999999999", "websocket", "null", "close", "bytes=0-"),
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
    ),
    max_size=3,
)
methods = st.sampled_from(["GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "get", "X"])


def written(method: str, path: str, more: dict[str, str], body: bytes, length: int | None) -> bytes:
    """Return a request as it goes over the line; its length may be another than it says."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in more.items()]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


requests = st.builds(
    written, methods, paths, headers, bodies, st.one_of(st.none(), st.none(), st.none(), st.integers(0, 500))
)


class Watched:
    """A server, with a client that asks for its health, and another that sends good images, all the time."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.health_ms: list[float] = []
        self.good = 0
        self.faults: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._ask_health, self._send_good)]

    def __enter__(self) -> Watched:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _ask_health(self) -> None:
        while not self._over.wait(0.1):
            begin = time.perf_counter()
            try:
                status = self.server.get("/v2/health/live").status
            except (OSError, HTTPException) as error:
                self.faults.append(f"health is not answered: {error!r}")
                continue
            self.health_ms.append((time.perf_counter() - begin) * 1e3)
            if status != 200:
                self.faults.append(f"health is {status}")

    def _send_good(self) -> None:
        while not self._over.wait(0.05):
            try:
                reply = self.server.send("POST", "/predict", GOOD)
                if reply.status != 200 or reply.json["predictions"][0]["label"] != "Bag":
                    self.faults.append(f"a good image is answered by {reply.status} {reply.body[:100]!r}")
            except (OSError, HTTPException) as error:
                self.faults.append(f"a good image is not answered: {error!r}")
            self.good += 1


def sent(server: Running, data: bytes, wait_s: float = 1.0) -> int | None:
    """Send bytes, wait a while and return the status of the answer, or None if there is none."""
    with socket.create_connection(server.address, timeout=wait_s) as connection, suppress(OSError):
        connection.sendall(data)
        parts = connection.recv(4096).split(b" ", 2)
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None
    return None


def fuzz(server: Running, number: int, examples: int) -> tuple[Counter[str], list[str]]:
    """Send so many requests that hypothesis makes up of a seed; gives the statuses and what is wrong."""
    statuses: Counter[str] = Counter()
    faults: list[str] = []

    def attack(data: bytes) -> None:
        status = sent(server, data)
        statuses[str(status)] += 1
        if status in DEFECTS:
            faults.append(f"status {status} for {data[:600]!r}")

    made: Callable[[], None] = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(seed(number)(given(requests)(attack)))
    made()
    return statuses, faults


@dataclass(frozen=True)
class Target:
    """What is attacked: a server, and the file of its model."""

    server: Running
    file: Path


def bomb(target: Target, dice: random.Random) -> None:
    """A body that unpacks to a gigabyte."""
    packed = gzip.compress(bytes(1 << 26)) * 16
    path = dice.choice(["/predict", f"/v2/models/{NAME}/infer"])
    status = sent(target.server, written("POST", path, {"Content-Encoding": "gzip"}, packed, None), 30)
    if status != 413:
        raise AssertionError(f"a bomb is answered by {status}")


def hang_up(target: Target, dice: random.Random) -> None:
    """A client that goes away in the middle of its request or before its answer."""
    data = written("POST", "/predict", {}, GOOD, None)
    with socket.create_connection(target.server.address) as connection:
        connection.sendall(data[: dice.randrange(len(data) + 1)])


def drip(target: Target, dice: random.Random) -> None:
    """A client that sends a byte now and then."""
    with socket.create_connection(target.server.address, timeout=5) as connection, suppress(OSError):
        for byte in written("POST", "/predict", {}, GOOD, None)[: dice.randrange(5, 60)]:
            connection.sendall(bytes([byte]))
            time.sleep(0.01)


def idle(target: Target, dice: random.Random) -> None:
    """Connections that say nothing."""
    held = [socket.create_connection(target.server.address) for _ in range(30)]
    time.sleep(0.2)
    for connection in held:
        connection.close()


def pipelined(target: Target, dice: random.Random) -> None:
    """Several requests at once, a broken one among them."""
    data = written("POST", "/predict", {}, GOOD, None)
    sent(target.server, data * 3 + bytes(dice.randrange(256) for _ in range(50)) + data)


def reload(target: Target, dice: random.Random) -> None:
    """A writer of the model's file that is killed half-way, or removes it; then a whole one, which must serve."""
    data = dice.choice([INT8, FP32]).read_bytes()
    if dice.random() < 0.3:
        target.file.unlink()
    else:
        target.file.write_bytes(data[: dice.randrange(len(data))])
    time.sleep(dice.uniform(0, 3))
    whole = target.file.with_name("whole.onnx")
    whole.write_bytes(data)
    os.replace(whole, target.file)

    def serves() -> bool:
        return bool(target.server.get("/report").json["models"][0]["sha256"] == sha256_of(data))

    until("the whole file serves", serves, 60)


ATTACKS = (bomb, hang_up, drip, idle, pipelined, reload)


def resident_mb(pid: int) -> float:
    """Return a process's resident size in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 1e3


def torture(root: Path, number: int, minutes: float) -> Report:
    """Attack a server in a process of its own until the time is over."""
    report, dice, statuses = Report(), random.Random(number), Counter[str]()
    file = root / "model.onnx"
    shutil.copy(INT8, file)
    arguments = (f"{NAME}={file}", "--max-body", "4")
    end = time.monotonic() + minutes * 60
    with in_process(*arguments, cwd=root) as process, Watched(process.running) as watched:
        sent(process.running, written("POST", "/predict", {}, GOOD, None))
        before = resident_mb(process.process.pid)
        rounds = 0
        while time.monotonic() < end or not rounds:
            examples = 100 if minutes < 1 else 400
            found, faults = fuzz(process.running, number * 1000 + rounds, examples)
            statuses.update(found)
            report.add("fuzz", "requests", faults, sum(found.values()))
            for attack in ATTACKS:
                try:
                    attack(Target(process.running, file), dice)
                    report.add("attack", attack.__name__, [])
                except AssertionError as error:
                    report.add("attack", attack.__name__, [str(error)])
            rounds += 1
        after = resident_mb(process.process.pid)
        faults = [] if process.process.poll() is None else [f"the server ended with {process.process.poll()}"]
    faults += [json.dumps(e)[:300] for e in process.events("defect")]
    report.add("between", "good images", [*faults, *watched.faults], watched.good)
    slow = sorted(watched.health_ms)
    report.facts = {
        "statuses": dict(statuses.most_common()),
        "health_ms": {"n": len(slow), "p50": slow[len(slow) // 2], "p99": slow[len(slow) * 99 // 100], "max": slow[-1]},
        "resident_mb": {"before": before, "after": after},
    }
    return report
