"""``qdeploy sweep`` as a user types it: what is refused, and what is shown. Real trials run in tests/e2e."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from qdeploy.cli.main import run
from qdeploy.core.machine import environment
from qdeploy.study.record import Model, Record, Rung, Step
from qdeploy.study.settings import SweepConfig
from tests.conftest import MakeImages

BAD = [
    (["--models", "nano,nanno"], "did you mean 'nano'"),
    (["--models", "mobilevit-standart-mha-v1"], "did you mean 'mobilevit-standard-mha-v1'"),
    (["--models", " , "], "--models names no model"),
    (["--models", "nano,nano"], "names 'nano' twice"),
    (["--models", "nano", "--budget-minutes", "0"], "--budget-minutes must be positive"),
    (["--models", "nano", "--budget-minutes", "-5"], "--budget-minutes must be positive"),
    (["--models", "nano", "--budget-minutes", "soon"], "--budget-minutes"),
    (["--models", "nano", "--epochs", "0"], "--epochs"),
    (["--models", "nano", "--jobs", "0"], "--jobs"),
    (["--models", "nano", "--recipe", "smal"], "did you mean 'small'"),
    (["--models", "nano", "--device", "gpu"], "--device must be"),
    (["--models", "nano", "--set", "mixupp=on"], "did you mean 'mixup'"),
    (["--models", "nano", "--set", "epochs=3"], "the settings of a sweep cannot change 'epochs'"),
    (["nowhere", "--models", "nano"], "no data folder or data set named"),
    (["{empty}", "--models", "nano"], "no sub-folders"),
    (["--models", "nano", "--out", "{full}"], "already holds files"),
    (["--models", "nano", "--out", "{sweep}"], "already holds a sweep"),
    (["--models", "nano", "--out", "{text}/below"], "is a file, not a folder"),
    (["--resume"], "there is no sweep below ./sweeps"),
    (["--resume", "{empty}"], "is not a sweep"),
    (["--resume", "nowhere"], "does not exist"),
    (["--resume", "{sweep}"], "is complete"),
    (["--resume", "{damaged}"], "is damaged"),
    (["--resume", "{torn}"], "not valid JSON"),
    (["--resume", "{sweep}", "--epochs", "3"], "--resume takes everything from the sweep"),
    (["--resume", "{sweep}", "--ray"], "--resume takes everything from the sweep"),
    (["--models", "nano", "--max-params", "many"], "--max-params must be a number such as 1M"),
    (
        ["--models", "nano", "--max-ram", "96 kB"],
        "--max-ram must be bytes such as 1M, 256K (of 1024) or 262144, found '96 kB'",
    ),
    (["--models", "nano", "--max-flash", "256K"], "no model fits --max-flash of 262,144 bytes; the model made for"),
    (["--models", "nano", "--max-params", "600k"], "no model has at most 600,000 parameters"),
    (["--models", "nano", "--max-drop", "1"], "give --baseline MODEL too"),
    (["--models", "nano", "--baseline", "nanno"], "did you mean 'nano'"),
    (["--models", "nano", "--retry-failed"], "--retry-failed goes with --resume"),
]


def record_of(folder: Path, *, complete: bool) -> Record:
    """A sweep of two models, one of which has failed."""
    models = {
        n: Model(name=n, family="qonstraint", params=9, macs=10**6, input_size=64) for n in ("nano", "torchvision/x")
    }
    config = SweepConfig(models=tuple(models), data="fashion-mnist-mini", epochs=1, seed=0)
    step = Step(kind="train", rung=0, model="torchvision/x", wall_s=1.0, error="RuntimeError: <no> luck", result=None)
    return Record(
        folder=folder,
        config=config,
        models=models,
        most_epochs=1,
        environment=environment("qdeploy"),
        complete=complete,
        planned=(1,),
        rungs=(Rung(epochs=1, models=tuple(models)),),
        steps=(step,),
    )


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    for name in ("empty", "full", "sweep", "damaged", "torn"):
        (tmp_path / name).mkdir()
    (tmp_path / "text").write_text("no folder")
    (tmp_path / "full" / "x").touch()
    record_of(tmp_path / "sweep", complete=True).save()
    values = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    del values["plan"]["models"]
    (tmp_path / "damaged" / "sweep.json").write_text(json.dumps(values))
    (tmp_path / "torn" / "sweep.json").write_text('{"schema": 1, ')
    return {p.name: str(p) for p in tmp_path.iterdir()}


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_bad_input_is_one_line_exit_code_2_and_writes_nothing(
    arguments: list[str],
    text: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(["sweep", *(a.format(**places) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [text in line for line in err.splitlines() if line.startswith("qdeploy: ")] == [True]
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert run(["sweep", "--models", "nano", "--out", str(tmp_path / "x")]) == 2
    assert "no permission" in capsys.readouterr().err


def test_a_sweep_that_another_process_works_at_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qdeploy.core.files import locked

    record_of(tmp_path, complete=False).save()
    before = (tmp_path / "sweep.json").read_bytes()
    with locked(tmp_path / ".lock", wait=False):
        assert run(["sweep", "--resume", str(tmp_path)]) == 2
    assert "another process works at the sweep" in capsys.readouterr().err
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_nothing_but_failures_is_exit_code_1_with_the_reasons(
    image_folder: MakeImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is left of this sweep is to write its table: both models have failed."""
    record = record_of(tmp_path, complete=False)
    rung = Rung(epochs=1, models=("torchvision/x",))
    replace(record, failed={"nano": "too large"}, rungs=(rung,)).save()
    assert run(["sweep", "--resume", str(tmp_path), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"out", "trials", "pareto"}
    assert [t["error"] for t in document["trials"]] == ["probe: too large", "train: RuntimeError: <no> luck"]
    assert document["pareto"] == []
    page = (tmp_path / "sweep.html").read_text()
    assert "RuntimeError: &lt;no&gt; luck" in page
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
