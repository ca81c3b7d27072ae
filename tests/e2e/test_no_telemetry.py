"""No command writes outside its folders and our cache, and none says a word to the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest

from qdeploy.checks.doctor import telemetry_finding
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.telemetry import SWITCHES
from tests.quiet import namespace, quiet_environment, run_quietly, strange_files

QDEPLOY = (sys.executable, "-c", "from qdeploy.cli.main import main; main()")
BAG = Path(__file__).parents[2] / "examples" / "bag.png"
LONG = f"""
import pathlib, sys, time, qdeploy
from tests.quiet import sent
over, allowed = pathlib.Path(sys.argv[1]), sys.argv[2] == "allowed"
classifier = qdeploy.load(engine="ort")
for _ in range(60):
    label = classifier({str(BAG)!r}).label
    time.sleep(1)
    if over.exists() or (allowed and sent()):
        over.touch()
        break
print(label)
"""
"""Runs until events were sent, in the process that may: some ten seconds after it opened a model."""
TELLS = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32)

long = pytest.mark.xdist_group("long processes")
needs_namespace = pytest.mark.skipif(namespace() is None, reason="this system makes no network namespaces for us")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.slow
@needs_namespace
@pytest.mark.parametrize(
    "words",
    [
        ["predict", str(BAG)],
        ["predict", str(BAG), "--engine", "openvino", "--model", str(SHIPPED / "model.fp32.onnx")],
        ["bench", "--seconds", "1", "--quick"],
        ["verify", str(SHIPPED)],
        ["doctor"],
        ["eval"],
        ["train", "--model", "nano-ar", "--epochs", "1"],
    ],
    ids=lambda words: "-".join(w for w in words if "/" not in w and "--" not in w),
)
def test_a_command_is_quiet(words: list[str], home: Path, tmp_path: Path) -> None:
    done, sent = run_quietly([*QDEPLOY, *words], home, tmp_path)
    assert done.returncode == 0, done.stderr
    assert sent == {}
    assert strange_files(home) == []


@pytest.fixture(scope="module")
def long_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, int], list[str]]]:
    """What three processes printed, sent and left in their home folders; they end when the third has sent something.

    The first uses ONNX Runtime's C library, the second its Python binding, because there is no such library, and in the
    third the user has allowed usage events.
    """
    root = tmp_path_factory.mktemp("long")
    package = Path(onnxruntime.__file__).parent
    shutil.copytree(package, root / "p" / "onnxruntime", ignore=shutil.ignore_patterns("libonnxruntime.*"))
    ours = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    binding = os.pathsep.join([str(root / "p"), ours])
    ways = {
        "library": {"PYTHONPATH": ours},
        "binding": {"PYTHONPATH": binding},
        "allowed": {"PYTHONPATH": ours, "ORT_DISABLE_TELEMETRY": "0"},
    }

    def run(way: str) -> tuple[str, dict[str, int], list[str]]:
        home = root / way / "home"
        home.mkdir(parents=True)
        done, sent = run_quietly([sys.executable, "-c", LONG, root / "over", way], home, root, ways[way])
        return done.stdout + done.stderr, sent, strange_files(home)

    with ThreadPoolExecutor(len(ways)) as pool:
        return dict(zip(ways, pool.map(run, ways), strict=True))


@long
@needs_namespace
@pytest.mark.parametrize("way", ["library", "binding"])
def test_a_long_process_is_quiet(way: str, long_processes: dict[str, tuple[str, dict[str, int], list[str]]]) -> None:
    assert long_processes[way] == ("Bag\n", {}, [])


@long
@needs_namespace
@pytest.mark.skipif(not TELLS, reason="this ONNX Runtime sends nothing in any case")
def test_what_the_user_has_set_is_kept_and_these_tests_would_see_it(
    long_processes: dict[str, tuple[str, dict[str, int], list[str]]],
) -> None:
    printed, sent, files = long_processes["allowed"]
    assert printed == "Bag\n"
    assert sent
    assert any("onnxruntime" in file for file in files)


def test_the_variables_reach_worker_processes_and_are_the_users(home: Path) -> None:
    code = "import os, qdeploy; print([os.environ.get(n) for n in {}])"
    names = [name for variables in SWITCHES.values() for name in variables]
    for extra, expected in (
        ({}, ["1", "1", "0"]),
        ({"ORT_TELEMETRY_DISABLED": "no"}, [None, "no", "0"]),
        ({"RAY_USAGE_STATS_ENABLED": "1"}, ["1", "1", "1"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(names)],
            capture_output=True,
            text=True,
            check=True,
            env={**quiet_environment(home), **extra},
        )
        assert done.stdout.strip() == str(expected)


def test_doctor_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    found = telemetry_finding()
    assert "ONNX Runtime and Ray send no usage events: ORT_DISABLE_TELEMETRY=1" in found.detail
    assert found.fix == ""
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    found = telemetry_finding()
    assert "ONNX Runtime: ORT_DISABLE_TELEMETRY=0" in found.detail
    assert found.fix == "to send none: unset ORT_DISABLE_TELEMETRY ORT_TELEMETRY_DISABLED"
