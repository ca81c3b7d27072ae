"""The base install, in an environment of its own: no torch, small, and it predicts, benches and inspects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qdeploy.core.artifact import SHIPPED
from qdeploy.export import write_kits

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("base install")]
ROOT = Path(__file__).parents[2]
PEAK = (
    "import sys; from qdeploy.cli.main import run; from qdeploy.core.machine import peak_memory_bytes; "
    "code = run(sys.argv[1:]); print(peak_memory_bytes(), file=sys.stderr); sys.exit(code)"
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that holds the base install alone."""
    home = tmp_path_factory.mktemp("base") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = home / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(ROOT)], check=True, capture_output=True)
    return python


def call(python: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-c", PEAK, *arguments], cwd=cwd, capture_output=True, text=True)


def test_it_is_small_and_has_no_torch(python: Path) -> None:
    packages = next((python.parents[1] / "lib").glob("python*/site-packages"))
    names = {p.name for p in packages.iterdir()}
    assert {"qdeploy", "onnxruntime", "numpy", "PIL", "typer", "rich"} <= names
    assert not names & {"torch", "torchvision", "onnx", "matplotlib", "scipy", "sympy", "pydantic"}
    brought_by_venv = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
    engine = ("onnxruntime", "numpy", "PIL", "pillow", "google", "protobuf", "flatbuffers")  # grow as they please
    own = [p for p in packages.iterdir() if not p.name.startswith((*brought_by_venv, *engine))]
    files = [f for p in own for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 26e6


def test_predict_runs_the_shipped_model_in_little_memory(python: Path, tmp_path: Path) -> None:
    images = sorted(map(str, (ROOT / "examples").glob("*.png")))
    done = call(python, tmp_path, "predict", *images, "--json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    names = [Path(a["image"]).stem for a in answers]
    found = [a["predictions"][0]["label"].lower().replace("/", "-").replace(" ", "-") for a in answers]
    assert sum(a == b for a, b in zip(names, found, strict=True)) >= 9
    assert int(done.stderr.splitlines()[-1]) <= 100e6


def test_bench_data_and_inspect_run(python: Path, tmp_path: Path) -> None:
    done = call(python, tmp_path, "bench", "--runs", "100", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"]
    assert call(python, tmp_path, "inspect").returncode == 0
    assert call(python, tmp_path, "data").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_eval_verify_diff_and_doctor_run(python: Path, tmp_path: Path) -> None:
    fp32, int8 = (str(ROOT / "qdeploy" / "shipped" / f"model.{p}.onnx") for p in ("fp32", "int8"))
    explained = ["explain", str(ROOT / "examples" / "bag.png"), "--out", os.devnull]
    for arguments in (["eval"], ["verify"], ["diff", fp32, int8], ["doctor"], explained):
        done = call(python, tmp_path, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
    assert list(tmp_path.iterdir()) == []


def test_kits_are_made(python: Path, tmp_path: Path) -> None:
    """As this checkout makes them: a file that the package lacks would be missing."""
    names = ["c", "triton", "kserve", "ray", "docker"]
    done = call(python, tmp_path, "kit", ",".join(names), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["kits"]
    for name, folder in write_kits(SHIPPED, names, tmp_path / "here").items():
        assert (tmp_path / found[name] / "SHA256SUMS").read_text() == (folder / "SHA256SUMS").read_text()


@pytest.mark.parametrize("verb", ["train", "export", "models", "sweep"])
def test_what_needs_torch_says_what_to_install(python: Path, tmp_path: Path, verb: str) -> None:
    done = call(python, tmp_path, verb)
    assert done.returncode == 2
    assert "pip install 'qdeploy[train]'" in done.stderr
    assert "Traceback" not in done.stderr
