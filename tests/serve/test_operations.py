"""A server under load, with changing files, slow clients and a signal to stop."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qdeploy.cli.main import run
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.machine import usable_cores
from qdeploy.runtime.session import Rows, Session
from qdeploy.serve import ServeConfig
from qdeploy.serve.logs import Log
from qdeploy.serve.memory import settle, settle_again
from qdeploy.serve.models import Opened
from tests.resealed import with_noise, with_reversed_labels
from tests.serve.running import FP32, INT8, Running, in_process, in_thread, until

BAG = (Path(__file__).parents[2] / "examples" / "bag.png").read_bytes()


def post(running: Running) -> int:
    return running.send("POST", "/predict", BAG).status


class Slow(Session):
    """A model that takes its time: lets a test fill the queue of a real server."""

    def __init__(self, opened: Opened, gate: threading.Event) -> None:
        self._inner = opened.session
        self._gate = gate
        self.entered = 0
        self.engine, self.note = self._inner.engine, None
        self.size, self.classes = self._inner.size, self._inner.classes

    def infer_bytes(self, images: bytes, count: int) -> tuple[Rows, Rows]:
        self.entered += 1
        self._gate.wait(30)
        return self._inner.infer_bytes(images, count)

    def _infer(self, opened: Any, images_BSSC: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self._inner.close()


def held(running: Running) -> tuple[threading.Event, Slow]:
    """Let the model of a running server wait until the event is set."""
    from dataclasses import replace

    assert running.service is not None
    (served,) = running.service.models.all
    assert served.opened is not None
    gate = threading.Event()
    slow = Slow(served.opened, gate)
    served.opened = replace(served.opened, session=slow, run_ms=1e3)
    return gate, slow


def test_a_full_queue_refuses_at_once_and_health_is_never_queued() -> None:
    with in_thread(queue=4) as server, ThreadPoolExecutor(32) as pool:
        assert server.service is not None
        lanes = server.service.lanes.count
        gate, slow = held(server)
        waiting = [pool.submit(server.send, "POST", "/predict", BAG) for _ in range(lanes)]
        until("the lanes work", lambda: slow.entered == lanes)
        waiting += [pool.submit(server.send, "POST", "/predict", BAG) for _ in range(4)]
        until("the queue is full", lambda: server.service is not None and server.service.waiting == 4)
        begin = time.perf_counter()
        refused = server.send("POST", "/predict", BAG)
        assert time.perf_counter() - begin < 0.5
        assert (refused.status, refused.json["reason"], refused.headers["retry-after"]) == (503, "busy", "1")
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/report", "/"):
            begin = time.perf_counter()
            assert server.get(path).status == 200, path
            assert time.perf_counter() - begin < 1.0
        gate.set()
        assert {w.result().status for w in waiting} == {200}
        statuses = server.get("/report").json["since_start"]["statuses"]
        assert statuses == {"200": 4 + lanes, "503": 1}


def test_an_answer_that_is_late_is_refused() -> None:
    with in_thread(deadline_s=0.3) as server:
        gate, _ = held(server)
        reply = server.send("POST", "/predict", BAG)
        assert (reply.status, reply.json["reason"]) == (504, "deadline")
        gate.set()
        assert post(server) == 200


@pytest.mark.parametrize("waiting", [3, 8])
def test_waiting_requests_are_answered_together_where_that_is_wished(waiting: int) -> None:
    with in_thread(max_batch=4) as server, ThreadPoolExecutor(16) as pool:
        assert server.service is not None
        lanes = server.service.lanes.count
        gate, slow = held(server)
        first = []
        for lane in range(lanes):
            first.append(pool.submit(post, server))
            until("a lane has it", lambda lane=lane: slow.entered == lane + 1)
        others = [pool.submit(server.send, "POST", "/predict", BAG) for _ in range(waiting)]
        until("all wait", lambda: server.service is not None and server.service.waiting == waiting)
        gate.set()
        answers = [o.result() for o in others]
        assert {a.json["predictions"][0]["label"] for a in answers} == {"Bag"}
        assert {f.result() for f in first} == {200}
        report = server.get("/report").json["since_start"]
        assert report["images"] == lanes + waiting
        assert report["inferences"] < report["images"]


def swapped(running: Running, times: int) -> bool:
    return bool(running.get("/report").json["models"][0]["swaps"] == times)


def test_a_changed_file_is_taken_without_a_lost_request(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    shutil.copy(FP32, file)
    other = with_reversed_labels(FP32, tmp_path / "other.onnx")
    stop = threading.Event()
    codes: Counter[int] = Counter()

    with in_thread([f"m={file}"]) as server:

        def ask() -> None:
            while not stop.is_set():
                codes[post(server)] += 1

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        try:
            before = server.get("/report").json["models"][0]["sha256"]
            for i, source in enumerate([other, FP32, other], 1):
                copy = tmp_path / "copy.onnx"
                shutil.copy(source, copy)
                os.replace(copy, file)
                until("the new file serves", partial(swapped, server, i))
        finally:
            stop.set()
            for asker in askers:
                asker.join()
        model = server.get("/report").json["models"][0]
        assert model["sha256"] != before
        assert model["problem"] is None
        assert set(codes) == {200}
        assert codes[200] > 50
        assert server.send("POST", "/predict", BAG).json["predictions"][0]["index"] == 1, "of the labels in reverse"


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def other_answers(file: Path) -> None:
    from tests.resealed import change_logits, reseal

    reseal(FP32, file, lambda card: change_logits(card, lambda rows: rows[::-1]))


@pytest.mark.parametrize("spoil", [damage, cut, other_answers, Path.unlink], ids=["bit", "cut", "goldens", "gone"])
def test_a_bad_file_leaves_the_old_one_serving_and_says_so(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    file = tmp_path / "model.onnx"
    shutil.copy(FP32, file)
    with in_thread([f"m={file}"]) as server:
        before = server.get("/report").json["models"][0]["sha256"]
        spoil(file)
        until("the file is refused", lambda: server.seen("model-refused"))
        time.sleep(0.5)
        (told,) = server.seen("model-refused")
        assert told["model"] == "m"
        model = server.get("/report").json["models"][0]
        assert (model["sha256"], model["state"]) == (before, "READY")
        assert model["problem"] == told["why"]
        assert post(server) == 200
        shutil.copy(FP32, file)
        until("the good file serves", lambda: server.get("/report").json["models"][0]["problem"] is None)


def test_load_and_unload(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    shutil.copy(FP32, file)
    with in_thread([f"m={file}", INT8]) as server:
        assert server.send("POST", "/v2/repository/models/m/unload").status == 200
        reply = server.send("POST", "/predict?model=m", BAG)
        assert (reply.status, reply.json["reason"]) == (503, "not-ready")
        assert server.get("/v2/health/ready").status == 503
        assert server.get("/v2/models/m/ready").status == 503
        assert server.send("POST", "/predict?model=nano-fashion-mnist-int8", BAG).status == 200
        index = server.send("POST", "/v2/repository/index", b'{"ready": true}').json
        assert [m["name"] for m in index] == ["nano-fashion-mnist-int8"]
        time.sleep(0.3)
        assert server.get("/v2/models/m/ready").status == 503, "unloaded stays unloaded"
        assert server.send("POST", "/v2/repository/models/m/load", b"{}").status == 200
        assert server.send("POST", "/predict?model=m", BAG).status == 200
        for parameters in ({"config": "{}"}, {"file:1/model.onnx": "AAAA"}, [1]):
            reply = server.send("POST", "/v2/repository/models/m/load", json.dumps({"parameters": parameters}).encode())
            assert (reply.status, reply.json["reason"]) == (400, "bad-request"), "it is not what would be served"
        damage(file)
        reply = server.send("POST", "/v2/repository/models/m/load")
        assert (reply.status, reply.json["reason"]) == (400, "load-failed")
        assert server.send("POST", "/predict?model=m", BAG).status == 200
        assert server.send("POST", "/v2/repository/index", b'{"ready": 1}').status == 400


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_100_requests_in_flight_end(tmp_path: Path, number: int) -> None:
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    stop = threading.Event()

    def ask(running: Running) -> None:
        connection = HTTPConnection(*running.address, timeout=30)
        while not stop.is_set():
            fresh = connection.sock is None
            try:
                connection.request("POST", "/predict", BAG)
                reply = connection.getresponse()
                whole = json.loads(reply.read())
                outcome = str(reply.status) if reply.status != 200 or whole["predictions"] else "empty"
            except ConnectionRefusedError:
                outcome = "not accepted"
            except (HTTPException, OSError) as error:
                # the system had taken a new connection that the server never saw
                unseen = fresh and isinstance(error, ConnectionResetError)
                outcome = "not accepted" if unseen else type(error).__name__
            with lock:
                outcomes[outcome] += 1
            if outcome != "200":
                break
        connection.close()

    report = tmp_path / "report.json"
    with in_process(INT8, "--queue", 200, "--report", report, cwd=tmp_path) as server:
        with ThreadPoolExecutor(100) as pool:
            for _ in range(100):
                pool.submit(ask, server.running)
            until("100 requests are answered", lambda: outcomes["200"] > 100)
            code = server.end(number)
            stop.set()
        assert code == 0
        # the last two: a kept connection that was closed when idle, found before or after a request was sent
        clean = {"200", "503", "not accepted", "RemoteDisconnected", "BrokenPipeError"}
        assert set(outcomes) <= clean, outcomes
        counted = json.loads(report.read_text())["since_start"]
        assert counted["statuses"]["200"] == outcomes["200"]
        assert server.events("stopped")
    gone = subprocess.run(["pgrep", "-f", str(report)], capture_output=True)
    assert gone.returncode == 1, gone.stdout


@pytest.mark.slow
def test_a_load_balancer_sees_the_end_before_it_comes(tmp_path: Path) -> None:
    with in_process(INT8, "--drain-delay", 1.5, cwd=tmp_path) as server:
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 1.0
        until("not ready", lambda: server.running.get("/v2/health/ready").status == 503)
        while time.monotonic() < end:  # each time over a connection of its own
            assert server.running.get("/v2/health/live").status == 200
            assert post(server.running) == 200
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with in_process(INT8, "--drain-delay", 60, cwd=tmp_path) as server:
        server.process.send_signal(signal.SIGTERM)
        until("not ready", lambda: server.running.get("/v2/health/ready").status == 503)
        begin = time.perf_counter()
        assert server.end() == 0
        assert time.perf_counter() - begin < 5


def test_a_body_that_comes_slowly_is_dropped() -> None:
    with in_thread(header_timeout_s=30, body_timeout_s=0.4) as server:
        begin = time.perf_counter()
        received = server.raw(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nabc", wait_s=5)
        assert time.perf_counter() - begin < 3
        assert received.split(b" ")[1] == b"408"


def test_clients_that_send_slowly_are_dropped() -> None:
    with in_thread(header_timeout_s=0.4, body_timeout_s=0.6) as server:
        for begin, status in (
            (b"POST /predict HTT", b"408"),
            (b"POST /predict HTTP/1.1\r\nHost: x\r\n", b"408"),
            (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nabc", b"408"),
            (b"", b""),
        ):
            start = time.perf_counter()
            received = server.raw(begin, wait_s=5)
            assert time.perf_counter() - start < 3
            assert received.split(b" ")[1:2] == ([status] if status else []), received
        assert post(server) == 200


def test_large_bodies_together_have_a_limit() -> None:
    """Many clients send at the same time: eight bodies of the largest size fit, of the rest not a byte is kept."""
    most, last = 10**6, b"x"
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % most
    with in_thread(max_body_bytes=most) as server, ExitStack() as stack:
        senders = [stack.enter_context(socket.create_connection(server.address, timeout=10)) for _ in range(12)]
        for sender in senders:
            sender.sendall(head + bytes(most - len(last)))
        assert server.get("/v2/health/live").status == 200
        time.sleep(0.3)  # until the server has read what came
        answers = []
        for sender in senders:
            sender.sendall(last)
            answers.append(b"".join(iter(partial(sender.recv, 65536), b"")))
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
        assert 1 <= len(refused) <= 4
        assert all(b"\r\nretry-after: 1\r\n" in answer for answer in refused)
        assert sum(answer.startswith(b"HTTP/1.1 415 ") for answer in answers) == 12 - len(refused)
        assert [post(server), server.send("POST", "/predict", bytes(most)).status] == [200, 415]  # all is given back


def test_a_client_that_drips_its_headers_is_dropped() -> None:
    with in_thread(header_timeout_s=0.5) as server, socket.create_connection(server.address, timeout=5) as drip:
        begin = time.perf_counter()

        def send() -> None:
            for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
                drip.sendall(bytes([byte]))
                time.sleep(0.02)

        with pytest.raises((ConnectionError, TimeoutError)):
            send()
        assert time.perf_counter() - begin < 4


def test_a_client_that_goes_away_harms_nobody() -> None:
    with in_thread() as server:
        for data in (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nabc", b"POST /pre"):
            with socket.create_connection(server.address) as connection:
                connection.sendall(data)
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BAG)
        for _ in range(20):  # before their answers
            with socket.create_connection(server.address) as connection:
                connection.sendall(head + BAG)
        assert post(server) == 200
        assert not [e for e in server.events if e["level"] == "error"], server.events


def test_bad_requests_between_good_ones_change_nothing() -> None:
    bad = [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50), BAG[:200]]
    with in_thread() as server, ThreadPoolExecutor(8) as pool:
        bodies = [BAG if i % 2 else bad[i // 2 % 4] for i in range(200)]
        replies = list(pool.map(lambda b: server.send("POST", "/predict?top=1", b), bodies))
    for body, reply in zip(bodies, replies, strict=True):
        assert (reply.status == 200) == (body is BAG)
        if body is BAG:
            assert reply.json["predictions"][0]["label"] == "Bag"


def test_a_token_is_asked_for_where_one_is_set() -> None:
    secret = "correct-horse-battery"
    with in_thread(token=secret) as server:
        for path in ("/", "/favicon.ico", "/page/app.js", "/v2/health/live", "/v2/health/ready"):
            assert server.get(path).status in (200, 404)
        for method, path in (
            ("GET", "/report"),
            ("GET", "/metrics"),
            ("GET", "/v2"),
            ("POST", "/predict"),
            ("GET", "/x"),
        ):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": secret}):
                reply = server.send(method, path, BAG, headers)
                assert (reply.status, reply.json["reason"]) == (401, "unauthorized"), (path, headers)
                assert reply.headers["www-authenticate"] == "Bearer"
        for scheme in ("Bearer", "bearer", "BEARER "):
            assert server.send("POST", "/predict", BAG, {"Authorization": f"{scheme} {secret}"}).status == 200
        assert secret not in json.dumps(server.events)


def test_another_sites_page_is_not_answered() -> None:
    with in_thread() as server:
        for origin, status in (
            (server.url, 200),
            ("http://evil.example", 403),
            ("null", 403),
            ("https://" + server.host, 200),
        ):
            reply = server.send("POST", "/predict", BAG, {"Origin": origin})
            assert reply.status == status, origin
        assert server.send("POST", "/v2/repository/models/x/unload", b"", {"Origin": "http://x"}).status == 403


def test_other_machines_are_let_in_only_with_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(InputError, match="everybody there could use the server"):
            ServeConfig(host=host)
    assert run(["serve", "--host", "0.0.0.0"]) == 2
    assert "give a --token" in capsys.readouterr().err
    secret = tmp_path / "secret"
    secret.write_text("correct-horse-battery\n")
    with in_process(INT8, "--host", "0.0.0.0", "--token-file", secret, cwd=tmp_path) as server:
        port = server.running.address[1]
        reply = Running(f"http://127.0.0.1:{port}").send(
            "POST", "/predict", BAG, {"Authorization": "Bearer correct-horse-battery"}
        )
        assert reply.status == 200
        assert "correct-horse" not in server.log.read_text()


@pytest.mark.parametrize(
    "settings",
    [
        {"port": -1},
        {"port": 70000},
        {"workers": 0},
        {"queue": 0},
        {"deadline_s": 0},
        {"max_batch": 0},
        {"threads": 0},
        {"workers": 10_000},
        {"workers": 200, "threads": 200},
        {"token": "short"},
        {"token": "with a space in the middle"},
        {"max_body_bytes": 3},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"`\w+`"):
        ServeConfig(**settings)


def test_the_address_as_json(tmp_path: Path) -> None:
    with in_process(INT8, "--json", cwd=tmp_path) as server:
        assert set(json.loads(server.first_line)) == {"url"}
        assert post(server.running) == 200


def test_what_cannot_be_served_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match="does not exist"), in_thread([tmp_path / "none.onnx"]):
        pass
    with pytest.raises(InputError, match="cannot be a model's name"), in_thread([f"a/b={INT8}"]):
        pass
    with in_thread() as server, pytest.raises(InputError, match="cannot listen on"), in_thread(port=server.address[1]):
        pass
    assert run(["serve", str(tmp_path / "none.onnx"), "--port", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-body", "inf"], "--max-body must be between 0.001 and 2048 MiB"),
        (["--max-body", "nan"], "--max-body must be between 0.001 and 2048 MiB"),
        (["--max-body", "0"], "--max-body must be between 0.001 and 2048 MiB"),
        (["--deadline", "nan"], "--deadline must be between"),
        (["--drain-delay", "-1"], "--drain-delay must be between"),
        (["--token-file", "/dev/zero"], "--token must have at least 16 printable"),
        (["--token-file", "none"], "token file none cannot be read"),
        (["--host", "a..b", "--token", "0123456789abcdef"], "cannot listen on a..b"),
        (["--report", "none/report.json"], "there is no folder none"),
        (["--report", "."], "it is a folder"),
        (["--report", "/proc/none/report.json"], "there is no folder"),
    ],
)
def test_an_option_that_cannot_be_is_said_in_one_line_before_anything_is_served(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["serve", str(INT8), "--port", "0", *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("qdeploy: ")
    assert said in last


def test_threads_never_exceed_the_cores() -> None:
    cores = usable_cores()
    for threads in range(1, cores + 1):
        with in_thread(threads=threads) as server:
            report = server.get("/report").json
            assert report["server"]["lanes"] * report["models"][0]["threads"] <= cores


def test_what_was_tuned_for_this_machine_is_used(tmp_path: Path) -> None:
    from qdeploy.core.files import sha256_of, write_json
    from qdeploy.runtime.device import DEVICE_FILE, DeviceRecord, this_machine

    shutil.copy(FP32, tmp_path)
    shutil.copy(INT8, tmp_path)
    shutil.copy(FP32.parent / "report.json", tmp_path)
    record = DeviceRecord(
        file=FP32.name, sha256=sha256_of(FP32.read_bytes()), engine="ort", threads=1, batch=1, machine=this_machine()
    )
    with in_thread([tmp_path]) as server:
        assert server.get("/report").json["models"][0]["precision"] == "int8"
        write_json(tmp_path / DEVICE_FILE, record.to_dict())
        until("the tuned file serves", lambda: server.get("/report").json["models"][0]["precision"] == "fp32")
        assert "as tuned" in server.get("/report").json["models"][0]["note"]


def test_the_metrics_are_what_prometheus_reads() -> None:
    with in_thread() as server:
        for _ in range(7):
            post(server)
        server.send("POST", "/predict", b"hello")
        text = server.get("/metrics").body.decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    samples = {(s.name, s.labels.get("code")): s.value for s in families["qdeploy_requests"].samples}
    assert samples == {("qdeploy_requests_total", "200"): 7, ("qdeploy_requests_total", "415"): 1}
    duration = families["qdeploy_request_duration_seconds"].samples
    assert next(s.value for s in duration if s.labels.get("le") == "+Inf") == 7
    assert next(s.value for s in duration if s.name.endswith("_count")) == 7
    counts = [s.value for s in duration if s.name.endswith("_bucket")]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 7)
    assert families["qdeploy_resident_memory_bytes"].samples[0].value > 20e6
    assert families["qdeploy_model_info"].samples[0].labels["precision"] == "int8"


def test_every_request_has_an_id_in_answer_and_log() -> None:
    with in_thread(log_requests=True) as server:
        mine = server.send("POST", "/predict", BAG, {"X-Request-Id": "abc-123"})
        assert mine.headers["x-request-id"] == "abc-123"
        others = [server.send("POST", "/predict", b"x", {"X-Request-Id": bad}) for bad in ("a" * 65, "", "tab\there")]
        ids = {o.headers["x-request-id"] for o in others}
        assert len(ids) == 3
        until("all are logged", lambda: len(server.seen("request")) == 4)
        logged = server.seen("request")
        assert {e["request_id"] for e in logged} == {"abc-123", *ids}
        assert [e["status"] for e in logged] == [200, 415, 415, 415]


@pytest.mark.slow
@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_workers_share_a_port_and_are_replaced(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with in_process(INT8, "--workers", 2, "--report", report, cwd=tmp_path) as server:
        running = server.running
        for _ in range(40):
            assert post(running) == 200
        until("the report has all", lambda: running.get("/report").json["since_start"]["requests"] == 40)
        before = running.get("/report").json
        assert before["server"]["workers"] == 2
        assert before["memory"]["all_workers"]["resident_bytes"] > 1.5 * before["memory"]["resident_bytes"]
        assert running.send("POST", "/v2/repository/models/x/load").status in (400, 404)
        children = worker_processes(server.process.pid)
        assert len(children) == 2
        os.kill(children[0], signal.SIGKILL)
        until("the dead worker is told of", lambda: server.events("worker-died"))
        until("another is ready", lambda: len(server.events("ready")) == 4)
        for _ in range(20):
            assert post(running) == 200
        assert server.end() == 0
        assert json.loads(report.read_text())["server"]["workers"] == 2
        until("no process is left", lambda: not any(Path(f"/proc/{c}").exists() for c in children))


@pytest.mark.slow
@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_workers_that_die_at_the_same_time_are_each_replaced_once(tmp_path: Path) -> None:
    with in_process(INT8, "--workers", 2, cwd=tmp_path) as server:
        for child in worker_processes(server.process.pid):
            os.kill(child, signal.SIGKILL)
        until("others are ready", lambda: len(server.events("ready")) >= 5)
        assert post(server.running) == 200
        assert server.end() == 0
        assert [e["exit_code"] for e in server.events("worker-died")] == [-signal.SIGKILL] * 2
        assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_why_a_worker_cannot_be_replaced_is_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(INT8, path)
    with in_process(path, "--workers", 2, cwd=tmp_path) as server:
        path.write_bytes(b"no model")
        os.kill(worker_processes(server.process.pid)[0], signal.SIGKILL)
        until("it is told", lambda: server.events("worker-failed"))
        assert "is not an ONNX file" in server.events("worker-failed")[0]["why"]


def worker_processes(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", "spawn_main"], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def test_a_line_of_the_log_is_written_at_once() -> None:
    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            lines.append(text)
            return len(text)

    lines: list[str] = []
    Log(Stream())("something", detail="more")
    assert [json.loads(line)["event"] for line in lines] == ["something"]
    assert lines[0].endswith("\n")


@pytest.mark.slow
@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    with in_process(INT8, "--workers", 2, cwd=tmp_path) as server:
        address = server.running.address
        server.process.kill()
        server.process.wait()

        def refused() -> bool:
            try:
                socket.create_connection(address, timeout=1).close()
            except OSError:
                return True
            return False

        until("nobody listens", refused)


@pytest.mark.slow
def test_the_log_is_json_and_a_closed_stream_stops_nothing(tmp_path: Path) -> None:
    with in_process(INT8, "--log-requests", cwd=tmp_path) as server:
        post(server.running)
        server.running.send("POST", "/predict", b"secret bytes of an image")
        server.running.raw(b"GARBAGE\r\n\r\n")
        server.end()
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    names = ["model-loaded", "ready", "request", "request", "http", "stopping", "model-unloaded", "stopped"]
    assert [e["event"] for e in lines] == names
    assert all({"time", "level", "event"} <= set(e) for e in lines)
    assert "secret bytes" not in json.dumps(lines)
    command = [sys.executable, "-m", "qdeploy", "serve", "--port", "0", str(INT8), "--log-requests"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    url = process.stdout.readline().split()[-1]
    process.stderr.close()
    try:
        assert [post(Running(url)) for _ in range(3)] == [200] * 3
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(30) == 0


def test_a_worse_model_can_be_told_apart(tmp_path: Path) -> None:
    """The same name twice: versions 1 and 2, each with its own answers."""
    worse = with_noise(FP32, tmp_path / "worse.onnx")
    with in_thread([f"m={FP32}", f"m={worse}"]) as server:
        answers = [server.send("POST", f"/predict?model=m&version={v}&top=all", BAG).json for v in (1, 2)]
        assert answers[0]["predictions"] != answers[1]["predictions"]
        assert [a["version"] for a in answers] == ["1", "2"]


FROZEN = """
import gc
from qdeploy.serve import ServeConfig, Server

def started(service, url):
    print(gc.get_freeze_count())
    server.stop()

server = Server([], ServeConfig(port=0), event=lambda *_, **__: None, started=started)
server.run()
"""


def test_what_starting_leaves_is_not_collected_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert int(done.stdout) > 10_000, done.stderr


def test_what_a_swap_leaves_is_collected_once() -> None:
    class Former: ...

    former = Former()
    former.__dict__["itself"] = former
    left = weakref.ref(former)
    settle()
    try:
        del former
        gc.collect()
        assert left() is not None
        settle_again()
        assert left() is None
    finally:
        gc.unfreeze()
    settle_again()
    assert not gc.get_freeze_count(), "only where the start was settled"
