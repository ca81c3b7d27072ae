"""The servers of other people that ``serving.py`` compares with, and the environments that they run in."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdeploy.core.machine import versions
from serving_bench.load import request
from serving_bench.process import Process, free_port, qdeploy_server

HERE = Path(__file__).parent / "peers"
ENVIRONMENTS = {
    "light": ("fastapi", "uvicorn", "httptools", "uvloop", "python-multipart", "litserve"),
    "mlserver": ("mlserver",),
}
SHOWN = ("fastapi", "uvicorn", "starlette", "litserve", "mlserver", "onnxruntime", "numpy", "pillow")
BOUNDARY = "a-boundary-that-no-image-holds"
VERSIONS = """
import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to put the model behind HTTP."""

    name: str
    start: Callable[[Path, Sequence[int], Path], Process]
    """Takes the model, the cores and a folder for what it needs."""
    wire: Callable[[bytes], bytes]
    """Turns an image file into a request."""


def contenders(home: Path) -> list[Contender]:
    """Return qdeploy and its peers; the peers' environments are below a folder."""
    light, mlserver = home / "light" / "bin", home / "mlserver" / "bin"

    def fastapi(model: Path, cores: Sequence[int], folder: Path) -> Process:
        port = free_port()
        command = [str(light / "python"), "-m", "uvicorn", "with_fastapi:app", "--port", str(port), "--no-access-log"]
        return Process(command, port, "/health", cores, {"MODEL": str(model), "PYTHONPATH": str(HERE)}, folder)

    def litserve(model: Path, cores: Sequence[int], folder: Path) -> Process:
        port = free_port()
        env = {"MODEL": str(model), "PORT": str(port), "PYTHONPATH": str(HERE)}
        return Process([str(light / "python"), str(HERE / "with_litserve.py")], port, "/health", cores, env, folder)

    def seldon(model: Path, cores: Sequence[int], folder: Path) -> Process:
        port = free_port()
        settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "debug": False}))
        own = {"name": "clf", "implementation": "with_mlserver.Classify"}
        (folder / "model-settings.json").write_text(json.dumps(own))
        env = {"MODEL": str(model), "PYTHONPATH": str(HERE), "PATH": f"{mlserver}:/usr/bin:/bin"}
        return Process([str(mlserver / "mlserver"), "start", "."], port, "/v2/models/clf/ready", cores, env, folder)

    def ours(model: Path, cores: Sequence[int], folder: Path) -> Process:
        return qdeploy_server(model, cores, cwd=folder)

    return [
        Contender(name="qdeploy serve", start=ours, wire=lambda d: request("/predict", d)),
        Contender(name="FastAPI, raw body, async", start=fastapi, wire=lambda d: request("/predict", d)),
        Contender(name="FastAPI, UploadFile", start=fastapi, wire=lambda d: _form("/upload", d)),
        Contender(name="LitServe, 1 worker", start=litserve, wire=lambda d: _form("/predict", d)),
        Contender(name="MLServer, parallel_workers 0", start=seldon, wire=_open_inference),
    ]


def made_environments(home: Path) -> dict[str, dict[str, str]]:
    """Make the environments that are not there yet, and return the versions in each."""
    same = versions("onnxruntime", "pillow", "numpy")
    found = {}
    for name, packages in ENVIRONMENTS.items():
        python = home / name / "bin" / "python"
        if not python.is_file():
            print(f"making {home / name}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(home / name)], check=True)
            fixed = [f"{p}=={same[p]}" for p in ("onnxruntime", "pillow")]
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages, *fixed, "numpy"], check=True)
        told = subprocess.run([str(python), "-c", VERSIONS, *SHOWN], capture_output=True, text=True, check=True)
        found[name] = json.loads(told.stdout)
    return found


def _form(path: str, data: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    body = head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()
    return request(path, body, f"multipart/form-data; boundary={BOUNDARY}")


def _open_inference(data: bytes) -> bytes:
    text = base64.b64encode(data).decode()
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [text],
    }
    return request("/v2/models/clf/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json")
