"""Thousands of damaged requests: each is answered or refused, none is a defect."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from qdeploy.serve.body import decompressed
from qdeploy.serve.config import ServeConfig
from qdeploy.serve.images import PredictTask, form_files
from qdeploy.serve.lanes import Task
from qdeploy.serve.models import Models, Opened, Served
from qdeploy.serve.oip import InferTask
from qdeploy.serve.refusal import RefusedError
from tests.serve.running import INT8
from tests.serve.test_images import EXAMPLES, form

ROUNDS = 500
SIZE = 64 * 64 * 3
ODD: list[Any] = [None, True, 0, 1, 2**31, 2**63, 1e308, "", "image", "é", [], {}, [[]], [None], {"a": []}, "x" * 5000]


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[Served, Opened]]:
    models = Models([str(INT8)], ServeConfig(), lambda *_, **__: None)
    models.open_all()
    yield models.get(None)
    models.close()


def outcome(task: Task[Any]) -> str:
    """Do with a task what a lane does; anything but an answer or a refusal fails the test."""
    try:
        pixels = task.prepare()
        logits, probabilities = task.opened.session.infer_bytes(pixels, task.count)
        assert task.finish(logits, probabilities).body
    except RefusedError as error:
        refused = error
    else:
        return "answered"
    assert 400 <= refused.status < 500
    return refused.reason


def refusal(work: Callable[[], object]) -> int | None:
    """Return the status with which something is refused, or None."""
    try:
        work()
    except RefusedError as refused:
        return refused.status
    return None


def odd_value(value: Any, dice: random.Random) -> Any:
    """Change one thing somewhere in a JSON value."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(list(value))
        choice = dice.random()
        if choice < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if choice < 0.25:
            return {**value, dice.choice(["name", "shape", "x"]): dice.choice(ODD)}
        return {**value, key: odd_value(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        at = dice.randrange(len(value))
        return [*value[:at], odd_value(value[at], dice), *value[at + 1 :]]
    return dice.choice(ODD)


def bent(data: bytes, dice: random.Random) -> bytes:
    """Flip, drop, repeat or cut bytes."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(len(changed) + 1)
        kind = dice.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del changed[at : at + dice.choice([1, 4, 100])]
        elif kind == 2:
            changed[at:at] = changed[at : at + 20]
        elif kind == 3:
            changed[at:at] = bytes(dice.randrange(256) for _ in range(4))
        else:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


TENSOR = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "parameters": {"binary_data_size": SIZE}}
BASE = {
    "id": "a",
    "parameters": {"binary_data_output": True},
    "inputs": [TENSOR],
    "outputs": [{"name": "logits", "parameters": {"classification": 2}}, {"name": "probabilities"}],
}  # fmt: skip


def test_odd_json(model: tuple[Served, Opened]) -> None:
    dice = random.Random(1)
    found: Counter[str] = Counter()
    for _ in range(ROUNDS):
        text = json.dumps(odd_value(BASE, dice)).encode()
        headers = {b"inference-header-content-length": str(len(text)).encode()}
        found[outcome(InferTask(*model, headers, text + bytes(SIZE), 2**20, 16))] += 1
    assert {"answered", "bad-request", "bad-tensor", "bad-binary"} <= set(found), found


@pytest.mark.parametrize("make", ["tensor", "files", "json"])
def test_bent_bytes(model: tuple[Served, Opened], make: str) -> None:
    dice = random.Random(make)
    image = EXAMPLES[0].read_bytes()
    found: Counter[str] = Counter()
    for _ in range(ROUNDS):
        given: dict[str, Any] = dict(TENSOR)
        binary = bytes(SIZE)
        if make == "files":
            binary = len(image).to_bytes(4, "little") + image
            given |= {"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(binary)}}
            binary = bent(binary, dice)[: len(binary)].ljust(len(binary), b"\0")
        elif make == "json":
            given = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [7] * SIZE}
            binary = b""
        text = json.dumps({**BASE, "inputs": [given]}).encode()
        if make != "files":
            text = bent(text, dice)
        headers = {b"inference-header-content-length": str(len(text)).encode()} if binary else {}
        found[outcome(InferTask(*model, headers, text + binary, 2**20, 16))] += 1
    assert len(found) >= 3, found


@pytest.mark.parametrize("multipart", [False, True])
def test_bent_files_and_forms(model: tuple[Served, Opened], multipart: bool) -> None:
    dice = random.Random(multipart)
    found: Counter[str] = Counter()
    files = {p.name: p.read_bytes() for p in EXAMPLES[:2]}
    for _ in range(ROUNDS):
        body, more = form(files) if multipart else (files[EXAMPLES[0].name], {})
        headers = {b"content-type": more.get("Content-Type", "image/png").encode()}
        if multipart and dice.random() < 0.2:
            headers = {b"content-type": bent(headers[b"content-type"], dice)}
        else:
            body = bent(body, dice)
        found[outcome(PredictTask(*model, headers, body, 2**20, 16, 5))] += 1
    assert {"answered", "damaged"} <= set(found), found


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_bent_compression(encoding: bytes) -> None:
    import gzip
    import zlib

    pack: Callable[[bytes], bytes] = gzip.compress if encoding == b"gzip" else zlib.compress
    dice = random.Random(5)
    whole = pack(json.dumps(BASE).encode() * 20)
    for _ in range(ROUNDS):
        data = bent(whole, dice)
        assert refusal(partial(decompressed, data, {b"content-encoding": encoding}, 10_000)) in (None, 400, 413)


def test_forms_of_odd_bytes() -> None:
    dice = random.Random(7)
    pieces = [b"--x", b"--x--", b"\r\n", b"\n", b"Content-Disposition: form-data", b"; name=a", b"\0", b":", b'"']
    for _ in range(ROUNDS):
        body = b"".join(dice.choice(pieces) for _ in range(dice.randrange(30)))
        assert refusal(partial(form_files, b"multipart/form-data; boundary=x", body, 4)) in (None, 400)
