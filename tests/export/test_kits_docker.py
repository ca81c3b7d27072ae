"""The kit for Docker, without Docker: what the Dockerfile installs is installed into an empty folder, and run."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from qdeploy.export import write_kits
from qdeploy.export.report.record import ExportReport

ROOT = Path(__file__).parents[2]
MOST_BYTES = 200e6
TOKEN = "a-token-of-this-test-alone"
START_S = 30.0


@pytest.fixture(scope="module")
def kit(exported: ExportReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kits(Path(exported.out), ["docker"], tmp_path_factory.mktemp("docker"))["docker"]


def instructions(kit: Path) -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with what follows it."""
    text = (kit / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_small_and_without_root(kit: Path, exported: ExportReport) -> None:
    steps = instructions(kit)
    assert [rest.split(" ")[0] for word, rest in steps if word == "FROM"] == ["python:3.12-slim"] * 2
    last = [word for word, _ in steps][::-1].index("FROM")
    final = dict(steps[-last:])
    assert final["USER"] == "10001"
    assert final["EXPOSE"] == "8000"
    command = json.loads(final["ENTRYPOINT"]) + json.loads(final["CMD"])
    assert command[:4] == ["python", "-m", "qdeploy", "serve"]
    assert command[4].endswith(f"=/model/{exported.recommended}")
    assert command[5:7] == ["--host", "0.0.0.0"]
    assert "--token-file" in command
    health = json.loads(final["HEALTHCHECK"].partition("CMD ")[2])
    compile(health[2], "health check", "exec")
    assert "http://127.0.0.1:8000/v2/health/ready" in health[2]
    assert "torch" not in (kit / "Dockerfile").read_text().partition("FROM")[2]


def test_what_is_copied_is_there_and_not_ignored(kit: Path) -> None:
    ignored = (kit / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    kept = [line[1:] for line in ignored if line.startswith("!")]
    copied = [name for word, rest in instructions(kit) if word == "COPY" for name in rest.split()[:-1]]
    files = [name for name in copied if not name.startswith(("--from", "/"))]
    assert files
    assert all(any(fnmatch(name, pattern) for pattern in kept) for name in files)
    assert [name for name in files if "*" not in name and not (kit / name).is_file()] == []


@pytest.fixture(scope="module")
def packages(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile installs, from a wheel of this checkout beside it."""
    (install,) = [rest for word, rest in instructions(kit) if word == "RUN" and rest.startswith("pip install")]
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("image") / "packages"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)], check=True)
    words = [{"/wheels": str(wheels), "/packages": str(target)}.get(word, word) for word in shlex.split(install)]
    assert {str(wheels), str(target)} < set(words)
    subprocess.run([*pip, *words[1:], "--quiet"], check=True)
    return target


@pytest.fixture(scope="module")
def url(kit: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server started as the image starts it, by a Python that sees those packages alone."""
    steps = dict(instructions(kit))
    token = tmp_path_factory.mktemp("secret") / "token"
    token.write_text(f"{TOKEN}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = {"8000": str(port), "0.0.0.0": "127.0.0.1", "/run/secrets/qdeploy-token": str(token)}
    words = [
        here.get(w, w).replace("/model/", f"{kit}/") for w in json.loads(steps["ENTRYPOINT"]) + json.loads(steps["CMD"])
    ]
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen([sys.executable, "-S", *words[1:]], cwd=token.parent, env=environment)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/v2/health/ready", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(timeout=START_S) == 0


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"not ready after {START_S:.0f} s")


@pytest.mark.slow
@pytest.mark.xdist_group("docker")
def test_what_is_installed_is_small(packages: Path) -> None:
    size = sum(f.stat().st_size for f in packages.rglob("*") if f.is_file())
    print(f"{size / 1e6:.1f} MB")
    assert size <= MOST_BYTES
    assert not {p.name for p in packages.iterdir()} & {"torch", "torchvision", "onnx", "pydantic", "fastapi", "ray"}


@pytest.mark.slow
@pytest.mark.xdist_group("docker")
def test_what_is_installed_serves(url: str) -> None:
    image = (ROOT / "examples" / "bag.png").read_bytes()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/predict", image)
    request = urllib.request.Request(f"{url}/predict", image, {"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as response:
        assert json.load(response)["predictions"][0]["label"] == "Bag"
