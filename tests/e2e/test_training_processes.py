"""Training as real processes: SIGKILL and resume, several processes under torchrun, memory that does not suffice."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.test_run import same_run

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TIMINGS = {"train_s", "data_s", "all_s", "images_per_s"}


def command(*arguments: str, processes: int = 1) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "qdeploy", *arguments]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, "-m", "qdeploy", *arguments]


def started(call: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(call, cwd=folder, env=ENV, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finished(folder: Path, *arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    call = command(*arguments, processes=processes)
    return subprocess.run(call, cwd=folder, env=ENV, capture_output=True, text=True)


def rows_of(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "log.csv").read_text().splitlines()))


def wait_for(found: Path, pattern: str, process: subprocess.Popen[str], count: int = 1) -> None:
    for _ in range(1200):
        if len(list(found.glob(pattern))) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {found} after a minute")


def wait_for_rows(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    wait_for(run, "log.csv", process)
    for _ in range(1200):
        if len(rows_of(run)) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("the run does not go on")


QUICK = ["--model", "nano-ar", "--epochs", "5", "--batch-size", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 540 images in three classes: an epoch takes a second."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data") / "photos"
    for shade, label in enumerate(("apple", "leaf", "stone")):
        (root / label).mkdir(parents=True)
        for i in range(180):
            pixels = rng.integers(80 * shade, 80 * shade + 90, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return str(root)


@pytest.mark.slow
def test_a_killed_run_ends_as_the_uninterrupted_one(tmp_path: Path, photos: str) -> None:
    """SIGKILL within the first epoch and again after some epochs, wherever it falls."""
    arguments = ["train", photos, *QUICK, "--recipe", "qonstraint-5.9", "--set", "checkpoint_seconds=0"]
    assert finished(tmp_path, *arguments, "--out", "whole").returncode == 0
    cut = tmp_path / "cut"
    call = command(*arguments, "--out", "cut")
    for kill in range(2):
        process = subprocess.Popen(
            call, cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if kill == 0:
            wait_for(cut, "checkpoints/*.json", process)
        else:
            wait_for_rows(cut, 2, process)
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert json.loads((cut / "run.json").read_text())["interrupted"] is True
        call = command("train", "--resume", "cut")
    done = finished(tmp_path, "train", "--resume", "cut", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 5
    same_run(tmp_path / "whole", cut)


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    """The same global batch: what differs is that each process normalises and drops out its own half."""
    arguments = [
        "train",
        *QUICK,
        "--epochs",
        "3",
        "--batch-size",
        "256",
        "--lr",
        "1e-3",
        "--set",
        "augmentation=none",
        "--json",
    ]
    one = finished(tmp_path, *arguments, "--out", "one")
    two = finished(tmp_path, *arguments, "--out", "two", processes=2)
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert len(two.stdout.splitlines()) == 1  # process 0 alone prints
    assert "Warning" not in two.stderr
    first, second = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [float(r["lr"]) for r in first] == [float(r["lr"]) for r in second]
    for a, b in zip(first, second, strict=True):
        assert float(b["train_loss"]) == pytest.approx(float(a["train_loss"]), rel=0.04)
        assert float(b["train_top1"]) == pytest.approx(float(a["train_top1"]), abs=1.5)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert len(list((tmp_path / "two").glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_it_goes_on(tmp_path: Path, photos: str) -> None:
    arguments = ["train", photos, *QUICK, "--set", "checkpoint_seconds=0"]
    run = tmp_path / "run"
    process = started(command(*arguments, "--out", "run", processes=2), tmp_path)
    wait_for_rows(run, 2, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another process of this run ended" in errors or "SIGTERM" in errors
    assert "gloo" not in errors.lower() or "another process" in errors
    alone = finished(tmp_path, "train", "--resume", "run")
    assert alone.returncode == 2
    assert "began with 2 process(es), now there are 1" in alone.stderr
    done = finished(tmp_path, "train", "--resume", "run", "--json", processes=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 5
    assert [r["epoch"] for r in rows_of(run)] == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
def test_too_little_memory_names_a_smaller_batch(tmp_path: Path) -> None:
    """A real limit on the address space, in a process of its own."""
    code = (
        "import resource, sys, torch\n"
        "from qdeploy.cli.main import run\n"
        "torch.set_num_threads(1)\n"
        "from qdeploy.training import start\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 900_000_000, used + 900_000_000))\n"
        "sys.exit(run(['train', '--model', 'nano', '--batch-size', '2000', '--epochs', '1', '--amp', 'off']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "not enough memory for nano at batch size 2000; try --batch-size 1000" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "runs").glob("*")) == []


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, photos: str) -> None:
    """A real limit on the size of files: less than a checkpoint, more than everything else."""
    code = (
        "import resource, sys\n"
        "from qdeploy.cli.main import run\n"
        "import qdeploy.training\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        "options = ['--model', 'nano-ar', '--epochs', '2', '--batch-size', '200', '--out', 'run']\n"
        "sys.exit(run(['train', sys.argv[1], *options]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, photos], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    resumed = finished(tmp_path, "train", "--resume")
    assert resumed.returncode == 2  # not below ./runs
    resumed = finished(tmp_path, "train", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
