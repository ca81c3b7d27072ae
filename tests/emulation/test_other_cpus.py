"""qdeploy on older x86 CPUs: its files are right there, and it says which are made for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qdeploy.core.artifact import SHIPPED
from qdeploy.core.machine import native_target
from qdeploy.export import ExportConfig, ExportReport, export
from qdeploy.training import TrainResult
from tests.conftest import once
from tests.emulation.disguise import disguise, disguise_program
from tests.emulation.test_disguise import NO_VNNI, playable
from tests.ort_header import runtime_folder

ROOT = Path(__file__).parents[2]
QDEPLOY = "from qdeploy.cli.main import main; main()"
LEAST_DB = 40.0
OLD = ("nehalem", "haswell", "skylake-x")
TARGETS = ("x86", "x86-avx2", "arm", "portable")
CONFIG = ExportConfig(
    int8=True, target=",".join(TARGETS), float_layers=("stem",), calibration="mse", allow_drop=True, allow_slower=True
)
GOLDENS = """
import json, sys
from pathlib import Path
from qdeploy.core.artifact import read_artifact
from qdeploy.runtime.session import open_session
for file in map(Path, sys.argv[1:]):
    artifact = read_artifact(file)
    goldens = artifact.card.goldens
    with open_session(artifact, threads=1, selftest=False) as session:
        rows, _ = session.infer_bytes(goldens.pixels, len(goldens.rows))
    print(json.dumps([file.name, artifact.card.target, goldens.sqnr_db(rows), session.engine, session.note]))
"""
EXPORT = """
import sys
from pathlib import Path
from tests.emulation.test_other_cpus import CONFIG
from qdeploy.export import export
print(export(Path(sys.argv[1]), CONFIG, Path(sys.argv[2])).environment["flags"])
"""


@pytest.fixture(scope="module")
def made(trained: TrainResult, shared: Path) -> ExportReport:
    """An export of four targets on this computer."""
    return once(shared, "four-targets", lambda: export(Path(trained.run), CONFIG, shared / "cpus" / "four"))


def run(cpu: str, disguises: Path, code: str, *words: str | Path, cwd: Path = ROOT) -> str:
    environment = os.environ | disguise(cpu, disguises)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("cpu", playable(*OLD, "alderlake"))
def test_shipped_and_fresh_files_are_right(cpu: str, made: ExportReport, disguises: Path) -> None:
    files = [*SHIPPED.glob("model.*.onnx"), *(Path(a.path) for a in made.artifacts)]
    lines = [json.loads(line) for line in run(cpu, disguises, GOLDENS, *files).splitlines()]
    assert len(lines) == 2 + 1 + len(TARGETS)
    for name, target, db, engine, note in lines:
        assert db >= LEAST_DB, name
        exact = cpu in OLD and target not in ("float", "x86-avx2")
        assert ("exact products" in engine) is exact, name
        assert (note is not None) is (exact and cpu in NO_VNNI), name
        assert note is None or "`target=x86-avx2`" in note


@pytest.mark.slow
@pytest.mark.parametrize("cpu", playable("haswell"))
def test_what_is_exported_there_is_as_good_as_here(
    cpu: str, made: ExportReport, trained: TrainResult, disguises: Path, tmp_path: Path
) -> None:
    run(cpu, disguises, EXPORT, Path(trained.run), tmp_path / "there")
    report = json.loads((tmp_path / "there" / "report.json").read_text())
    here = {a.target: a for a in made.artifacts}
    for row in report["artifacts"]:
        assert row["parity"]["sqnr_db"] is None or row["parity"]["sqnr_db"] >= here[row["target"]].parity.sqnr_db - 1
        accuracy = here[row["target"]].accuracy
        assert accuracy is not None
        assert row["accuracy"]["top1"] == pytest.approx(accuracy.top1, abs=1.0)
    assert [i["target"] for i in report["int8"] if i["native"]] == ["x86-avx2"]
    files = sorted((tmp_path / "there").glob("*.onnx"))
    for line in run("icelake", disguises, GOLDENS, *files).splitlines():
        name, _, db, *_ = json.loads(line)
        assert db >= LEAST_DB, name  # goldens made there hold on right hardware


@pytest.mark.slow
@pytest.mark.parametrize("cpu", playable("haswell", "alderlake"))
def test_the_file_for_the_cpu_is_taken_with_a_note(cpu: str, made: ExportReport, disguises: Path) -> None:
    if native_target() != "x86":
        pytest.skip("the export was made for another CPU than x86 with VNNI")
    environment = os.environ | disguise(cpu, disguises)
    command = [sys.executable, "-c", QDEPLOY, "predict", str(ROOT / "examples" / "bag.png"), "--model", made.out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ": Bag " in done.stdout or "%" in done.stdout
    taken = "model.int8.x86-avx2.onnx is taken, which was made for this kind of CPU (x86-avx2), instead of "
    assert (taken in done.stderr) is (cpu == "haswell")


@pytest.mark.slow
@pytest.mark.parametrize("cpu", playable("haswell", "icelake"))
def test_the_c_kit_is_right(cpu: str, made: ExportReport, disguises: Path, tmp_path: Path) -> None:
    from qdeploy.export import write_kits

    home = runtime_folder(tmp_path / "onnxruntime")
    kit = write_kits(SHIPPED, ["c"], tmp_path)["c"]
    subprocess.run(["make", f"ORT_HOME={home}"], cwd=kit, check=True, capture_output=True)
    disguise_program(kit / "classify")
    variables = disguise(cpu, disguises)
    copy = variables.get("PYTHONPATH", "").split(os.pathsep)[0]
    if copy:  # the rewritten library in place of the one that it was linked with
        for link in (home / "lib").iterdir():
            link.unlink()
            link.symlink_to(next(Path(copy).glob("onnxruntime/capi/libonnxruntime.so.*")))
    command = ["./classify", "--selftest", "model.int8.onnx", "model.int8.goldens"]
    done = subprocess.run(command, cwd=kit, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("passed, ")[1].split(" dB")[0]) >= LEAST_DB, done.stdout


def test_a_wrong_answer_names_the_target_to_export(
    made: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU of another kind than the file was made for, if no cure were known."""
    from qdeploy.core import machine
    from qdeploy.core.artifact import read_artifact
    from qdeploy.core.errors import ArtifactError
    from qdeploy.runtime import session

    file = shutil.copy(next(a.path for a in made.artifacts if a.target == "arm"), tmp_path)
    artifact = read_artifact(Path(file))
    wrong = replace(artifact.card.goldens, rows=tuple(row[::-1] for row in artifact.card.goldens.rows))
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(ArtifactError, match="use a file exported with `target=x86-avx2`, the fp32 file"):
        session.open_session(replace(artifact, card=replace(artifact.card, goldens=wrong)))


@pytest.mark.slow
@pytest.mark.parametrize("cpu", playable("haswell"))
def test_openvino_refuses_what_it_computes_wrongly(cpu: str, made: ExportReport, disguises: Path) -> None:
    """It takes 8-bit weights for what they are with VNNI: 27 dB without."""
    code = """
import sys
from pathlib import Path
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import ArtifactError
from qdeploy.runtime.session import open_session
for file in map(Path, sys.argv[1:]):
    artifact = read_artifact(file)
    try:
        with open_session(artifact, "openvino", 1, selftest=False) as session:
            goldens = artifact.card.goldens
            print(artifact.card.target, goldens.sqnr_db(session.infer_bytes(goldens.pixels, len(goldens.rows))[0]))
    except ArtifactError as error:
        print(artifact.card.target, error)
"""
    files = [Path(a.path) for a in made.artifacts if a.target in ("float", "x86", "x86-avx2")]
    environment = os.environ | disguise(cpu, disguises, ("onnxruntime", "openvino"))
    done = subprocess.run([sys.executable, "-c", code, *files], env=environment, capture_output=True, text=True)
    answers = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert float(answers["float"]) >= LEAST_DB
    assert float(answers["x86-avx2"]) >= 30
    assert "OpenVINO computes it wrongly on this CPU" in answers["x86"]
    assert "`engine=ort`, or a file exported with `target=x86-avx2`" in answers["x86"]
