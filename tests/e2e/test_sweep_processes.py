"""Sweeps as real processes: Ctrl-C, SIGKILL and resume, halving within a budget, trials spread with Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

QDEPLOY = [sys.executable, "-m", "qdeploy"]
TINY = ["--epochs", "1", "--device", "cpu", "--set", "batch_size=8", "--set", "amp=off"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with 42 images of three classes in it."""
    rng = np.random.default_rng(0)
    for shade, label in enumerate(("apple", "leaf", "stone")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(14):
            pixels = rng.integers(80 * shade, 80 * shade + 90, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.jpg")
    return tmp_path


def started(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*QDEPLOY, "sweep", *arguments], cwd=place, stderr=subprocess.PIPE, text=True)


def wait_until(process: subprocess.Popen[str], reached: Any) -> None:
    for _ in range(2400):
        if reached():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("not reached within two minutes")


def trials_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["steps"]
    return found


def running(folder: Path) -> list[str]:
    """Command lines of processes that work in a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            lines.append(line)
    return lines


def assert_all_end(folder: Path) -> None:
    """A trial ends with its sweep: at once, or as soon as it sees that it is alone."""
    for _ in range(600):
        if not running(folder):
            return
        time.sleep(0.05)
    raise AssertionError(running(folder))


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_interrupted_and_killed_it_goes_on_and_keeps_what_has_ended(place: Path) -> None:
    folder = place / "sweeps" / "s"
    first, second = folder / "trials" / "nano-ar", folder / "trials" / "nano-a"
    process = started(place, "photos", "--models", "nano-ar,nano-a", *TINY, "--out", str(folder))
    wait_until(process, lambda: (first / "train-0.spec.json").exists())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "qdeploy: interrupted"
    assert f"`qdeploy sweep --resume {folder}` goes on" in errors
    assert "Traceback" not in errors
    assert_all_end(folder)

    process = started(place, "--resume", str(folder))
    wait_until(process, lambda: len(trials_of(folder)) == 1 and (second / "run-0" / "run.json").exists())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [(t["kind"], t["model"], t["error"]) for t in trials_of(folder)] == [("train", "nano-ar", None)]
    assert_all_end(folder)
    kept = stamps(first)

    done = subprocess.run([*QDEPLOY, "sweep", "--resume", "--json"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {k: v for k, v in stamps(first).items() if k in kept} == kept
    check_document(done.stdout, folder)


def check_document(output: str, folder: Path) -> None:
    (line,) = output.splitlines()
    document = json.loads(line)
    assert set(document) == {"out", "trials", "pareto"}
    assert [t["name"] for t in document["trials"]] == ["nano-ar", "nano-a"]
    for t in document["trials"]:
        assert t["error"] is None
        assert (t["family"], t["rung"], t["epochs"], t["input_size"]) == ("qonstraint", 1, 1, 64)
        assert t["params"] > 800_000
        assert t["macs"] > 6_000_000
        assert t["test_n"] == 6
        assert t["latency_n"] >= 200
        for p in ("fp32", "int8"):
            assert 0 <= t[f"test_top1_{p}"] <= 100
            assert 0.01 < t[f"latency_{p}_ms"] < 1000
            assert 20e6 < t[f"peak_{p}_bytes"] < 300e6
            file = folder / "trials" / t["name"] / "export" / f"model.{p}.onnx"
            assert t[f"size_{p}_bytes"] == file.stat().st_size
        assert t["int8_speedup_low"] <= t["int8_speedup"] <= t["int8_speedup_high"]
        assert t["epoch_s"] > 0
    # six test images and one epoch: both models may be at chance, and then nobody is on a front
    assert {p["axis"] for p in document["pareto"]} in (set(), {"latency", "size", "params"})
    for point in document["pareto"]:
        assert set(point) == {"axis", "name", "precision", "rung", "epochs", "top1", "cost"}
    # some releases of filelock leave their file
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "sweep.json", "sweep.csv", "sweep.html", "pareto.png", "learning.png", "trials",
    }  # fmt: skip


@pytest.mark.slow
def test_without_a_picture_nothing_else_is_lost(place: Path) -> None:
    """A Matplotlib that breaks, for the sweep and its trials; and a path without the folder that one stands in."""
    (place / "broken" / "matplotlib").mkdir(parents=True)
    (place / "broken" / "matplotlib" / "__init__.py").write_text("raise RuntimeError('fonts are broken')")
    path = os.pathsep.join([str(place / "broken"), *filter(None, [os.environ.get("PYTHONPATH")])])
    (place / "numpy.py").write_text("raise SystemExit('imported from the working folder')")
    folder = place / "s"
    done = subprocess.run(
        [*QDEPLOY, "sweep", "photos", "--models", "nano-ar", *TINY, "--out", str(folder), "--json"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    why = "could not be made (RuntimeError: fonts are broken); the results are written"
    assert [line for line in done.stderr.splitlines() if "fonts" in line] == [
        f"pareto.png {why}", f"learning.png {why}"
    ]  # fmt: skip
    (row,) = json.loads(done.stdout)["trials"]
    assert row["error"] is None
    assert row["latency_int8_ms"] > 0
    document = json.loads((folder / "sweep.json").read_text())
    assert document["complete"] is True
    assert document["trials"] == [row]
    assert "nano-ar" in (folder / "sweep.csv").read_text()
    assert "Front of accuracy against latency" in (folder / "sweep.html").read_text()  # its plots need no fonts
    assert f"curves.png {why}" in (folder / "trials" / "nano-ar" / "train-0.log").read_text()


@pytest.mark.slow
def test_ray_spreads_the_training(place: Path) -> None:
    """Through a real Ray of this machine: the trials' files come back, the rest goes on as without it."""
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    code = (
        "import json, sys; from qdeploy.study import checks, SweepConfig; from qdeploy.study.trial import Spec\n"
        "pool = checks.open_pool(SweepConfig(ray=True, jobs=1))\n"
        "config = dict(kind='train', data=sys.argv[1], settings={'batch_size': 8, 'amp': 'off'}, device='cpu')\n"
        "specs = [Spec(model=m, folder=sys.argv[2] + '/' + m, **config) for m in ('nano-ar', 'no-model')]\n"
        "found = {s.model: (o.result.get('epochs'), o.error) for s, o in pool.run(specs)}\n"
        "pool.close(); print(json.dumps([pool.slots, found]))"
    )
    out = place / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, str(place / "photos"), str(out)],
        cwd=place,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
    )
    assert done.returncode == 0, done.stderr
    slots, found = json.loads(done.stdout.splitlines()[-1])
    assert slots == 1
    assert found["nano-ar"] == [1, None]
    assert "there is no model named 'no-model'" in found["no-model"][1]
    run = out / "nano-ar" / "run-0"
    record = json.loads((run / "run.json").read_text())
    assert (run / record["weights"]).is_file()
    assert (out / "nano-ar" / "train-0.log").read_text().startswith("epoch 1: val ")
    assert str(out) not in (run / "run.json").read_text()
