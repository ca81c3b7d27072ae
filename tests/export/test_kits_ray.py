"""The kit for Ray Serve, run by a real Ray Serve of this machine."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

import qdeploy
from qdeploy.core.artifact import SHIPPED
from qdeploy.export import write_kits

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray serve")]
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
OTHER_PYTHON = "QDEPLOY_RAY_SERVE_PYTHON"
START_S = 120.0
SERVING = """
import sys
import app, ray
from ray import serve
ray.init(num_cpus=2, include_dashboard=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(app.app, blocking=True)
"""
PICKLING = """
import sys
import app
from ray import cloudpickle
sys.stdout.buffer.write(cloudpickle.dumps(app.ImageClassifier.func_or_class))
"""
UNPICKLING = """
import sys
from ray import cloudpickle
print(cloudpickle.loads(sys.stdin.buffer.read()).refusal(400, "why", "what").body.decode())
"""
"""In another folder, as on another machine."""


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has Ray Serve."""
    python = os.environ.get(OTHER_PYTHON, sys.executable)
    if subprocess.run([python, "-c", "import ray.serve, starlette"], capture_output=True).returncode:
        pytest.skip(
            f"{python} has no Ray Serve; give one in {OTHER_PYTHON} that has 'ray[serve]' and what qdeploy needs"
        )
    return python


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kits(SHIPPED, ["ray"], tmp_path_factory.mktemp("ray"))["ray"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def url(python: str, kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "ray.log"
    with log.open("wb") as out:
        command = [python, "-c", SERVING, str(port)]
        process = subprocess.Popen(command, cwd=kit, env=environment(), stdout=out, stderr=out)
    try:
        wait_until_answered(f"http://127.0.0.1:{port}/", process, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=START_S)


def wait_until_answered(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if ask(url, b"")[0] == 400:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no answer after {START_S:.0f} s\n{log.read_text()}")


def ask(url: str, body: bytes | None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        body = error.read()
        # Before the application is deployed, Ray's own proxy answers in plain text.
        is_json = error.headers.get_content_type() == "application/json"
        return error.code, json.loads(body) if is_json else body.decode()


def test_ray_serve_gives_our_answers(url: str, kit: Path, tmp_path: Path) -> None:
    for path in EXAMPLES.glob("*.png"):
        image = Image.open(path).convert("RGB")
        image.save(tmp_path / path.name)
        ImageOps.invert(image).save(tmp_path / f"inverted {path.name}")
    images = sorted(tmp_path.iterdir())
    with qdeploy.load(kit / "model.onnx") as classifier:
        predictions = classifier([*images])
        assert {p.unknown for p in predictions} == {True, False}
        for path, prediction in zip(images, predictions, strict=True):
            status, found = ask(url, path.read_bytes())
            assert status == 200
            assert (found["label"], found["unknown"]) == (prediction.label, prediction.unknown)
            assert found["score"] == pytest.approx(prediction.score, abs=1e-3)
            expected = prediction.top(5)
            assert [(p["label"], p["index"]) for p in found["predictions"]] == [(r.label, r.index) for r in expected]
            probabilities = [p["probability"] for p in found["predictions"]]
            assert probabilities == pytest.approx([r.probability for r in expected], abs=2e-6)
            assert set(found["latency_ms"]) == {"decode", "infer"}


def of_floats() -> bytes:
    """Return a TIFF whose pixels have no known range."""
    stream = io.BytesIO()
    Image.new("F", (8, 8)).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "empty"),
        (b"hello", 415, "unsupported-format"),
        ((EXAMPLES / "bag.png").read_bytes()[:200], 400, "truncated"),
        (of_floats(), 400, "unsupported-mode"),
        (bytes(33 * 2**20), 413, "too-large"),
        (None, 405, "method"),
    ],
    ids=["empty", "text", "cut", "floats", "large", "get"],
)
def test_ray_serve_refuses_what_is_no_image(url: str, body: bytes | None, status: int, reason: str) -> None:
    found = ask(url, body)
    assert (found[0], found[1]["reason"]) == (status, reason)
    assert ask(url, (EXAMPLES / "bag.png").read_bytes())[0] == 200


def test_other_machines_need_no_file_of_the_kit(python: str, kit: Path, tmp_path: Path) -> None:
    pickled = subprocess.run(
        [python, "-c", PICKLING], cwd=kit, env=environment(), capture_output=True, check=True
    ).stdout
    command = [python, "-c", UNPICKLING]
    loaded = subprocess.run(command, cwd=tmp_path, env=environment(), input=pickled, capture_output=True, check=True)
    assert json.loads(loaded.stdout) == {"error": "what", "reason": "why"}
