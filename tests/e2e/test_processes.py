"""Real processes: start-up budgets, Ctrl-C, pipes, and the machine-kept import rule."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdeploy.training import TrainResult

ROOT = Path(__file__).parents[2]
QDEPLOY = [sys.executable, "-m", "qdeploy"]


def test_help_and_predict_load_nothing_heavy() -> None:
    code = (
        "import sys; from qdeploy.cli.main import run; run(sys.argv[1:]); "
        "print([m for m in ('torch', 'onnx', 'rich', 'numpy', 'onnxruntime') if m in sys.modules], file=sys.stderr)"
    )
    helped = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert helped.stderr.splitlines()[-1] == "[]"
    example = str(ROOT / "examples" / "bag.png")
    predicted = subprocess.run([sys.executable, "-c", code, "predict", example], capture_output=True, text=True)
    assert predicted.stdout.startswith(f"{example}: Bag ")
    assert predicted.stderr.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_ctrl_c_at_any_time_ends_a_prediction() -> None:
    command = [*QDEPLOY, "predict", str(ROOT / "examples" / "bag.png")]
    for delay_ms in range(40, 240, 10):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(delay_ms / 1000)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode in (0, 130, -signal.SIGINT) or "init_import_site" in errors, errors


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_exports(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*QDEPLOY, "train", "--model", "nano-ar", "--epochs", "50"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch   1/50"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("qdeploy:")] == ["qdeploy: interrupted"]
    assert "Traceback" not in err
    done = subprocess.run([*QDEPLOY, "export", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["artifacts"][0]["accuracy"]["n"] == 1000


def test_a_closed_pipe_is_no_error() -> None:
    examples = " ".join([str(ROOT / "examples")] * 30)
    command = f"set -o pipefail; {sys.executable} -m qdeploy predict {examples} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_an_image_from_standard_input() -> None:
    with (ROOT / "examples" / "bag.png").open("rb") as stream:
        done = subprocess.run(
            [*QDEPLOY, "predict", "-", "--json"], stdin=stream, capture_output=True, text=True, check=True
        )
    assert json.loads(done.stdout)["predictions"][0]["label"] == "Bag"


@pytest.mark.parametrize("command", [["predict", "x\ny.png"], ["predict", "-x.png"], ["inspect", "\n"]])
def test_odd_names_give_one_line(command: list[str]) -> None:
    done = subprocess.run([*QDEPLOY, *command], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if not line.startswith(("model:", "model.int8"))]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("interrupts", [1, 2])
def test_ctrl_c_during_the_search_takes_the_best_so_far_and_twice_stops(
    interrupts: int, trained: TrainResult, tmp_path: Path
) -> None:
    command = [*QDEPLOY, "export", trained.run, "--int8", "--allow-slower", "--allow-drop", "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("float search: ") and "interrupted" not in line:
            process.send_signal(signal.SIGINT)
        if "interrupted; the best choice so far is taken" in line and interrupts == 2:
            process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "interrupted; the best choice so far is taken" in "".join(lines)
    if interrupts == 1:
        assert process.returncode == 0, lines
        assert "INT8 accepted" in out
        assert (tmp_path / "out" / "model.int8.onnx").exists()
    else:
        assert process.returncode == 130, lines
        assert lines[-1] == "qdeploy: interrupted\n"
        assert list(tmp_path.iterdir()) == []
