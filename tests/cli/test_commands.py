"""The commands as a user types them, in process, in a folder that holds one run and one export."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.data.catalog import load_dataset
from qdeploy.export.report.record import ExportReport
from qdeploy.training.learner import Learner
from tests.conftest import MakeImages
from tests.resealed import reseal

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def workplace(
    exported: ExportReport, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of one's own with ./runs and ./exports: other workers look into the shared one meanwhile."""
    root = tmp_path_factory.mktemp("workplace")
    for name in ("runs", "exports"):
        shutil.copytree(Path(exported.out).parents[1] / name, root / name)
    monkeypatch.chdir(root)
    return root


def stdout_json(capsys: pytest.CaptureFixture[str]) -> Any:
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_thousands_of_problems_are_counted_and_the_first_ten_shown(
    image_folder: MakeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder()
    for i in range(30):
        (root / "cat" / f"{i:02}.ogg").write_bytes(b"OggS")
        (root / "cat" / f"{i:02}.txt").touch()
    for i in range(14):
        (root / "dog" / f"broken {i:02}.png").write_bytes(b"x")
    assert run(["data", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("74 problems")
    assert [Path(line.split(": ")[0]).name for line in lines[at + 1 : at + 11]] == [
        f"broken {i:02}.png" for i in range(10)
    ]
    assert lines[at + 11 :] == [
        "  60 files left out (no image): .ogg 30, .txt 30",
        "  ... and 4 more; --all lists every one",
    ]
    assert run(["data", str(root), "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == at + 1 + 74
    assert run(["predict", str(root / "cat"), "--model", "qdeploy/shipped"]) == 0
    assert "60 files left out (no image): .ogg 30, .txt 30" in capsys.readouterr().err


def test_the_first_problems_that_are_told_are_those_of_images(image_folder: MakeImages) -> None:
    root = image_folder()
    for i in range(9):
        (root / "cat" / f"{i:02}.ogg").write_bytes(b"OggS")
    (root / "dog" / "broken.png").write_bytes(b"x")
    (note,) = load_dataset(str(root)).problem_notes()
    assert note.startswith(f"10 problems with the data: {root / 'dog' / 'broken.png'}: not a readable")
    assert note.endswith(f"; 9 files left out (no image): .ogg 9; `qdeploy data {root}` lists them")


def test_train_and_export_by_json(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(count=12)
    monkeypatch.chdir(tmp_path)
    assert run(["train", str(root), "--model", "nano-ar", "--epochs", "1", "--batch-size", "8", "--json"]) == 0
    trained = stdout_json(capsys)
    assert set(trained) >= {
        "run", "model", "params", "epochs", "best_epoch", "val_top1", "val_top5", "seconds", "images_per_s",
        "peak_memory_bytes",
    }  # fmt: skip
    assert Path(trained["run"]).parent == Path("runs")
    assert run(["export", "--json"]) == 0
    report = stdout_json(capsys)
    assert set(report) >= {"out", "artifacts", "verdict"}
    (artifact,) = report["artifacts"]
    assert set(artifact) >= {"path", "precision", "engine", "size_bytes", "sha256", "parity", "accuracy", "latency_ms"}
    assert set(artifact["parity"]) >= {"max_abs", "mean_abs", "cosine", "sqnr_db", "top1_agreement", "flips", "n"}
    assert (tmp_path / artifact["path"]).is_file()
    assert run(["eval", "--json"]) == 0
    out, err = capsys.readouterr()
    assert f"data: {root}, split: test" in err
    assert json.loads(out)["top1"] == artifact["accuracy"]["top1"]
    root.rename(tmp_path / "elsewhere")
    assert run(["eval"]) == 2
    assert (
        "the data set 'images' that the model was made with is not found here; give --data" in capsys.readouterr().err
    )


def test_interrupted_training_is_resumed_by_a_word(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(count=12)
    monkeypatch.chdir(tmp_path)
    start = ["train", str(root), "--model", "nano-ar", "--epochs", "3", "--batch-size", "8"]
    original = Learner.evaluate
    calls: list[int] = []

    def evaluate(*rest: Any) -> Any:
        if not calls:
            signal.raise_signal(signal.SIGINT)
        calls.append(1)
        return original(*rest)

    monkeypatch.setattr(Learner, "evaluate", evaluate)
    assert run(start) == 130
    _, err = capsys.readouterr()
    assert err.splitlines()[-1] == "qdeploy: interrupted"
    (command,) = (line.split("`")[1] for line in err.splitlines() if "--resume" in line)
    assert command.startswith("qdeploy train --resume runs/nano-ar-images-")
    assert run([*command.split()[1:], "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["epochs"] == 3
    assert "going on in epoch 2 of 3, after 1 of its 2 steps" in err
    first, *others = (line for line in err.splitlines() if line.startswith("epoch "))
    assert "ETA" not in first  # none of its steps was seen
    assert all("  ETA " in line for line in others)


def test_dry_run_shows_the_recipe_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [
        "train",
        "tiny-imagenet",
        "--recipe",
        "qonstraint-5.9",
        "--model",
        "nano",
        "--set",
        "swa=off",
        "--dry-run",
    ]
    assert run(options) == 0
    out = capsys.readouterr().out
    assert "nano for 200 classes: 840,892 parameters, 27.0 M MACs at 64 pixels" in out
    lines = {line.split()[0]: line.split()[1] for line in out.splitlines() if len(line.split()) == 2}
    assert lines["augmentation"] == "mid"
    assert lines["boosts"] == "on"
    assert "swa" not in lines
    assert "threads" not in lines
    assert "torch." not in out
    assert lines["epochs"] == "70"
    assert run([*options, "--json"]) == 0
    plan = stdout_json(capsys)
    assert plan["params"] == 840_892
    assert plan["state_bytes"] == 840_892 * 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("recipe", "driven"), [("small", False), ("qonstraint-5.9", True)])
def test_confidence_is_shown_where_it_drives_the_training(
    recipe: str,
    driven: bool,
    image_folder: MakeImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = str(image_folder(count=12))
    monkeypatch.chdir(tmp_path)
    short = ["--recipe", recipe, "--model", "nano-ar", "--epochs", "1", "--batch-size", "8"]
    assert run(["train", root, *short]) == 0
    out, err = capsys.readouterr()
    (line,) = (w for w in err.splitlines() if w.startswith("epoch "))
    assert ("conf 0." in line) == driven
    assert out.splitlines()[1:] == ["next: qdeploy export --int8"]
    if driven:
        return
    assert run(["train", root, *short, "--out", "my run"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["next: qdeploy export 'my run' --int8"]
    assert run(["export", "my run", "--out", "elsewhere"]) == 0
    assert capsys.readouterr().out.endswith("next: qdeploy predict IMAGE --model elsewhere, qdeploy bench elsewhere\n")


def test_a_quiet_training_prints_its_result(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(image_folder(count=12))
    monkeypatch.chdir(tmp_path)
    assert run(["train", root, "--model", "nano-ar", "--epochs", "1", "--batch-size", "8", "-q"]) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith("runs/nano-ar-")
    assert err == ""


def test_set_reaches_every_field(image_folder: MakeImages, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(image_folder())
    settings = [w for s in (f"data={root}", "tensorboard=true", "epochs=3") for w in ("--set", s)]
    assert run(["train", "--model", "nano-ar", *settings, "--dry-run", "--json"]) == 0
    config = stdout_json(capsys)["config"]
    assert (config["data"], config["tensorboard"], config["epochs"]) == (root, True, 3)


def test_predict_prints_a_line_per_image(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(EXAMPLES / "bag.png"), str(EXAMPLES / "trouser.png")]) == 0
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(EXAMPLES / n) for n in ("bag.png", "trouser.png")]
    assert "%" in out
    assert "model: exports" in err


def test_predict_json(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(EXAMPLES / "bag.png"), "--json", "--top", "2"]) == 0
    answer = stdout_json(capsys)
    assert set(answer) == {"image", "predictions", "latency_ms"}
    assert len(answer["predictions"]) == 2
    assert set(answer["predictions"][0]) == {"label", "index", "probability"}
    assert set(answer["latency_ms"]) == {"decode", "preprocess", "infer"}


def test_predict_goes_on_after_a_bad_image_and_exits_2(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    assert run(["predict", str(bad), str(EXAMPLES / "bag.png"), "--json"]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert set(lines[0]) == {"image", "error", "reason"}
    assert "predictions" in lines[1]


def test_bench_table_and_json(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--quick", "--runs", "100"]) == 0
    out = capsys.readouterr().out
    for word in ("int8", "fp32", "top-1 %", "p99", "peak MB", "QUICK", "onnxruntime", "report: exports"):
        assert word in out
    assert re.search(r"int8 is [\d.]+x (fast|slow)er than .* fp32|int8 and .* fp32: no difference beyond noise", out)
    assert run(["bench", "--quick", "--runs", "100", "--json"]) == 0
    report = stdout_json(capsys)
    assert set(report) >= {"environment", "results", "comparisons"}
    assert set(report["environment"]) >= {"cpu", "flags", "threads", "versions"}
    assert set(report["results"][0]) >= {
        "path", "precision", "engine", "batch", "threads", "n", "latency_ms", "throughput_per_s", "peak_rss_bytes",
        "model_bytes", "load_ms", "first_ms",
    }  # fmt: skip


def test_models_lists_all_with_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    models = {m["name"]: m for m in stdout_json(capsys)}
    assert set(models["nano"]) == {"name", "family", "params", "macs", "input_size", "num_classes"}
    assert models["qonstraint-5.9-gap"]["params"] == 96_595_744
    assert run(["models"]) == 0
    assert "96,595,744" in capsys.readouterr().out


def test_data_lists_problems(image_folder: MakeImages, capsys: pytest.CaptureFixture[str]) -> None:
    root = image_folder()
    (root / "cat" / "x.txt").touch()
    assert run(["data", str(root), "--json"]) == 0
    summary = stdout_json(capsys)
    assert set(summary) == {"name", "classes", "splits", "sha256", "problems"}
    assert len(summary["problems"]) == 1
    assert run(["data", str(root)]) == 0
    assert "x.txt: no image, left out" in capsys.readouterr().out


def test_inspect_shows_the_card(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect"]) == 0
    assert "checksum verified" in capsys.readouterr().out
    assert run(["inspect", "--json"]) == 0
    assert stdout_json(capsys)["labels"][9] == "Ankle boot"


def test_inspect_leaves_out_what_had_no_part_in_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"augmentation": "shift", "shift": 4, "crop": 0.875, "teacher": "", "distill_weight": 0.7}
    fields |= {"schedule": "cosine", "warmup_share": 0.03, "warmup_epochs": 1}
    file = reseal(SHIPPED / "model.int8.onnx", tmp_path / "m.onnx", lambda card: card["origin"].update(training=fields))
    assert run(["inspect", str(file)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("training")]
    assert line.split(maxsplit=1)[1] == "augmentation shift, shift 4, schedule cosine, warmup share 0.03"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qdeploy 0.")
    assert run(["--help"]) == 0
    verbs = capsys.readouterr().out
    assert all(v in verbs for v in ("train", "export", "predict", "bench", "sweep", "models", "data", "inspect"))


BAD = [
    (["predict", "x.png", "--model", "no.onnx"], "does not exist"),
    (["predict", "x.png", "--model", "{text}"], "is not an ONNX file"),
    (["predict", "x.png", "--model", "{damaged}"], "checksum does not match"),
    (["predict", "x.png", "--engine", "tensorflow"], "there is no engine"),
    (["predict", "x.png", "--threads", "0"], "--threads"),
    (["predict", "x.png", "--top", "0"], "--top"),
    (["predict", "x.png"], "no such file"),
    (["predict", "{text}"], "not a readable"),
    (["predict", "{empty}"], "holds no image"),
    (["bench", "no.onnx"], "cannot be read"),
    (["bench", "{damaged}"], "is damaged"),
    (["bench", "--runs", "0"], "--runs"),
    (["bench", "--threads", "many"], "--threads"),
    (["train", "{empty}"], "no sub-folders"),
    (["train", "nowhere"], "no data folder or data set named"),
    (["train", "--model", "nanno"], "did you mean 'nano'"),
    (["train", "--recipe", "smal"], "did you mean 'small'"),
    (["train", "--epochs", "0"], "--epochs"),
    (["train", "--epochs", "ten"], "--epochs"),
    (["train", "--lr", "-1"], "--lr"),
    (["train", "--batch-size", "1"], "--batch-size"),
    (["train", "--device", "gpu"], "--device must be"),
    (["train", "--out", "{text}/below"], "is a file, not a folder"),
    (["export", "{empty}"], "is not a run"),
    (["export", "no-such-run"], "does not exist"),
    (["export", "--target", "tensort"], "did you mean 'tensorrt'"),
    (["export", "--int8", "--max-drop", "-3"], "--max-drop"),
    (["export", "--out", "{text}/below"], "is a file, not a folder"),
    (["data", "nowhere/at/all"], "does not exist"),
    (["inspect", "{text}"], "is not an ONNX file"),
    (["trian"], "did you mean 'train'"),
    (["train", "--epoch", "3"], "--epoch"),
    (["predict"], "Missing argument"),
    (["train", ""], "an argument is empty"),
    (["export", "--out", "."], "the folder you are in"),
    (["export", "--out", "runs"], "would be replaced"),
    (["train", "--out", "exports"], "already holds files"),
    (["train", "--batch-size", "100000"], "between 2 and 65536"),
    (["train", "--set", "swa"], "field=value"),
    (["train", "--set", "mixupp=on"], "did you mean 'mixup'"),
    (["train", "--set", "augmentation=huge"], "augmentation must be none, shift, crop, low, mid or high"),
    (["train", "--resume", "nowhere"], "nowhere does not exist; give a folder below ./runs"),
    (["train", "--resume"], "is complete (3 epochs)"),
    (["train", "--resume", "--epochs", "3"], "has 3 epochs already"),
    (["train", "--resume", "--epochs", "9", "--seed", "1"], "--resume takes everything from the run"),
    (["train", "--dry-run", "--model", "micrro"], "did you mean 'micro'"),
    (["train", "nowhere", "--dry-run"], "no data folder or data set named"),
    (["train", "--epochs", "2", "--set", "epochs=1"], "epochs is given twice"),
    (["train", "one", "--set", "data=two"], "data is given twice"),
    (["train", "--tensorboard", "--set", "tensorboard=off"], "tensorboard is given twice"),
    (["train", "--recipe", "qonstraint-5.9", "--set", "schedule=cosine"], "set boosts=off"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_bad_input_is_one_line_exit_code_2_and_writes_nothing(
    arguments: list[str],
    text: str,
    workplace: Path,
    int8_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text").write_text("some text that is neither model nor image")
    (tmp_path / "empty").mkdir()
    data = bytearray(int8_file.read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "damaged").write_bytes(data)
    places = {name: str(tmp_path / name) for name in ("text", "empty", "damaged")}
    before = sorted(workplace.rglob("*"))
    assert run([a.format(**places) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    complaint = [line for line in err.splitlines() if line.startswith("qdeploy: ")]
    assert len(complaint) == 1
    assert text in complaint[0]
    assert "Traceback" not in err
    assert sorted(workplace.rglob("*")) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged", "empty", "text"]


def test_export_without_a_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", "--int8"]) == 2
    assert "train one first with `qdeploy train`" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert run(["export", "--out", str(tmp_path / "x")]) == 2
    assert "no permission" in capsys.readouterr().err


def test_a_verdict_is_exit_code_1(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qdeploy.export.graph import parity

    monkeypatch.setattr(parity, "INT8_MIN_SQNR_DB", 500.0)
    before = sorted((workplace / "exports").rglob("*"))
    assert run(["export", "--int8", "--float-layers", "none", "--out", "exports/rejected"]) == 1
    assert "parity failed at 'fp32 to INT8 for " in capsys.readouterr().err
    assert sorted((workplace / "exports").rglob("*")) == before


def test_rejected_int8_is_exit_code_1_and_fp32_is_kept(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--int8", "--calibration", "minmax", "--max-drop", "0", "--strict", "--search-seconds", "2"]
    assert run(["export", *words, "--out", "exports/coarse"]) == 1
    out = capsys.readouterr().out
    assert "INT8 REJECTED: " in out
    assert "keep INT8 with --allow-drop" in out
    assert "model.fp32.onnx: top-1" in out
    assert sorted(p.name for p in Path("exports/coarse").glob("*.onnx")) == ["model.fp32.onnx"]
    shutil.rmtree("exports/coarse")
