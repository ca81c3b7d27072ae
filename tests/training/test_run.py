"""What moves a run besides its steps: returns to earlier weights, SWA, the guard, interruptions."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qdeploy.core.errors import InputError, MissingDependencyError, VerdictError
from qdeploy.core.run_folder import RunRecord, read_run
from qdeploy.training import TrainConfig, config_from_recipe, resume, train
from qdeploy.training import run as run_module
from qdeploy.training.batches import Batch
from qdeploy.training.learner import Learner, Score, Tally
from qdeploy.training.progress import Silent
from qdeploy.training.run_files import save_weights
from qdeploy.training.schedule import Settings
from tests.conftest import MakeImages


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def quick(image_folder: MakeImages) -> dict[str, Any]:
    """Two classes of 12 images, two steps an epoch."""
    return {"data": str(image_folder(count=12)), "model": "nano-ar", "epochs": 7, "batch_size": 8}


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Let the raw weights validate as given, epoch by epoch; the averaged ones are worse."""
    original, calls = Learner.evaluate, iter(accuracies)

    def evaluate(self: Learner, model: torch.nn.Module, split: Any) -> Score:
        original(self, model, split)
        top1 = next(calls) if model is self.model else 1.0
        return Score(loss=1.0, top1=top1, top5=100.0)

    monkeypatch.setattr(Learner, "evaluate", evaluate)


def test_reloads_happen_at_their_scaled_epochs(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [50.0, 60.0, 70.0, 65.0, 64.0, 63.0, 62.0])
    progress = Notes()
    train(config_from_recipe("qonstraint-5.9", **quick), tmp_path / "run", progress)
    starts = [n for n in progress.notes if "starts from the best" in n]
    assert starts == [f"epoch {e} starts from the best weights (epoch 3)" for e in (4, 5, 7)]  # 3, 4.5, 6 of 7


def test_without_reloads_there_are_none(quick: dict[str, Any], tmp_path: Path) -> None:
    progress = Notes()
    train(config_from_recipe("qonstraint-5.9", **quick, reloads=False), tmp_path / "run", progress)
    assert not [n for n in progress.notes if "starts from" in n]


@pytest.mark.parametrize("guard", [True, False])
def test_a_collapse_goes_back_to_the_best_weights(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: bool
) -> None:
    scripted(monkeypatch, [50.0, 60.0, 3.0, 55.0])
    progress = Notes()
    seen: list[dict[str, Tensor]] = []
    original = Learner.load

    def load(self: Learner, weights: dict[str, Tensor]) -> None:
        seen.append(weights)
        original(self, weights)

    monkeypatch.setattr(Learner, "load", load)
    config = config_from_recipe("qonstraint-5.9", **{**quick, "epochs": 4}, reloads=False, guard=guard)
    result = train(config, tmp_path / "run", progress)
    falls = [n for n in progress.notes if "validation fell" in n]
    assert falls == (["validation fell to 3.00 %; back to the weights of epoch 2"] if guard else [])
    assert len(seen) == guard
    assert result.best_epoch == 2


@pytest.mark.slow
def test_swa_is_offered_at_the_end_and_kept_if_it_validates_best(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [50.0, 40.0, 30.0, 40.0, 40.0, 40.0, 40.0])
    progress = Notes()
    result = train(config_from_recipe("qonstraint-5.9", **quick), tmp_path / "run", progress)
    assert "SWA of 1 epoch: 1.00 %, not kept" in progress.notes
    assert result.best_weights == "raw"
    monkeypatch.setattr(Learner, "evaluate", lambda self, model, split: Score(loss=0.0, top1=99.0, top5=100.0))
    result = train(config_from_recipe("qonstraint-5.9", **quick), tmp_path / "swa")
    assert (result.best_weights, result.best_epoch) == ("swa", 7)
    plain = train(config_from_recipe("qonstraint-5.9", **quick, swa=False), tmp_path / "plain")
    assert plain.best_weights != "swa"


class Poisoned:
    """Makes the loss of chosen steps (from 1 over the run) NaN, as an overflow would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
        self.count, self.steps, self.original = 0, steps, Learner.step
        monkeypatch.setattr(Learner, "step", lambda learner, *rest: self.step(learner, *rest))

    def step(self, learner: Learner, batch: Batch, settings: Settings, tally: Tally) -> Tensor:
        self.count += 1
        if self.count in self.steps:
            batch = Batch(image=batch.image * float("nan"), target=batch.target, labels=batch.labels)
        return self.original(learner, batch, settings, tally)


def test_a_loss_that_is_no_number_goes_back_to_the_best_weights(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poisoned(monkeypatch, {4})
    progress = Notes()
    result = train(config_from_recipe("small", **{**quick, "epochs": 3}), tmp_path / "run", progress)
    events = [n for n in progress.notes if not n.startswith("note: ")]
    assert events == ["the loss is not finite at step 2 of epoch 2; back to the weights of epoch 1"]
    assert result.epochs == 3
    (weights,) = (tmp_path / "run").glob("best-*.safetensors")
    assert all(t.isfinite().all() for t in load_file(weights).values())
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert all(float(r["train_loss"]) < 100 for r in rows)
    accuracies = [0.0, *(float(r["val_top1"]) for r in rows)]
    expected = [max(-5.0, min(5.0, b - a)) for a, b in itertools.pairwise(accuracies)]
    assert [float(r["reward"]) for r in rows] == pytest.approx(expected, abs=1e-5)
    assert all(float(r["feature_std"]) > 0 for r in rows)
    assert all(0 < float(r["drop_path"]) <= 0.3 for r in rows)


@pytest.mark.parametrize(
    ("steps", "fields", "words"),
    [
        ({1}, {}, "step 1 of epoch 1"),  # nothing to go back to
        ({4}, {"guard": False}, "step 2 of epoch 2"),
        ({3, 4, 5, 6}, {}, "step 2 of epoch 3"),  # the fourth time
    ],
)
def test_it_stops_where_no_return_helps(
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: set[int],
    fields: dict[str, Any],
    words: str,
) -> None:
    Poisoned(monkeypatch, steps)
    with pytest.raises(VerdictError, match=f"training diverged: the loss is not finite at {words}; lower `lr`"):
        train(config_from_recipe("small", **quick, **fields), tmp_path / "run")
    assert (tmp_path / "run").exists() is (steps != {1})
    if steps != {1}:
        assert read_run(tmp_path / "run")[0].interrupted


@pytest.mark.parametrize("foreign", [False, True])
def test_a_run_that_diverges_at_once_leaves_only_what_is_not_its_own(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    class Writes(Silent):
        def started(self, record: RunRecord, folder: Path) -> None:
            if foreign:
                (folder / "notes.txt").write_text("mine")

    Poisoned(monkeypatch, {1})
    with pytest.raises(VerdictError, match="training diverged"):
        train(config_from_recipe("small", **quick, tensorboard=True), tmp_path / "run", Writes())
    assert (tmp_path / "run" / "notes.txt").exists() is foreign
    assert (tmp_path / "run").exists() is foreign


def test_without_a_compiler_one_line_says_so(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def step(*_: Any) -> Tensor:
        raise InvalidCxxCompiler

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(
        MissingDependencyError, match=r"compile: torch.compile failed .*No working C\+\+ compiler.*leave compile out"
    ):
        train(config_from_recipe("small", **quick), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unchanged_weights_are_not_written_again(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [50.0, 40.0, 60.0, 30.0, 30.0, 30.0, 30.0])
    monkeypatch.setattr(run_module, "SAVING_SHARE", 1e9)  # a checkpoint after every epoch
    digests: list[str] = []

    def save(folder: Path, record: RunRecord, weights: dict[str, Tensor]) -> RunRecord:
        saved = save_weights(folder, record, weights)
        digests.append(str(saved.weights_sha256))
        return saved

    monkeypatch.setattr(run_module, "save_weights", save)
    train(config_from_recipe("qonstraint-5.9", **quick, reloads=False, guard=False, swa=False), tmp_path / "run")
    assert len(digests) == len(set(digests)) == 2  # epochs 1 and 3
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"]["epochs"] == 7


class SignalAt(Silent):
    """Sends this process a signal after some batch."""

    def __init__(self, epoch: int, step: int, number: signal.Signals) -> None:
        self.at, self.number = (epoch, step), number

    def batch(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == self.at:
            signal.raise_signal(self.number)


def same_run(one: Path, other: Path) -> None:
    (first,), (second,) = one.glob("best-*.safetensors"), other.glob("best-*.safetensors")
    assert first.name == second.name  # the name is the hash
    logs = [list(csv.DictReader((p / "log.csv").read_text().splitlines())) for p in (one, other)]
    timings = {"train_s", "data_s", "all_s", "images_per_s"}
    assert [{k: v for k, v in r.items() if k not in timings} for r in logs[0]] == [
        {k: v for k, v in r.items() if k not in timings} for r in logs[1]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["small", "qonstraint-5.9"])
@pytest.mark.parametrize(
    ("epoch", "step", "number"), [(0, 1, signal.SIGINT), (3, 2, signal.SIGTERM), (6, 1, signal.SIGINT)]
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    quick: dict[str, Any], tmp_path: Path, recipe: str, epoch: int, step: int, number: signal.Signals
) -> None:
    config = config_from_recipe(recipe, **quick, device="cpu")
    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", SignalAt(epoch, step, number))
    record, _ = read_run(tmp_path / "cut")
    assert record.interrupted
    assert record.results is not None
    assert record.results.seconds > 0
    assert (tmp_path / "cut" / "checkpoints").is_dir()
    with pytest.raises(KeyboardInterrupt):  # twice
        resume(tmp_path / "cut", SignalAt(6, 2, number))
    resume(tmp_path / "cut")
    assert not (tmp_path / "cut" / "checkpoints").exists()
    same_run(tmp_path / "whole", tmp_path / "cut")
    rows = list(csv.DictReader((tmp_path / "cut" / "log.csv").read_text().splitlines()))
    assert all(float(r["all_s"]) > float(r["train_s"]) for r in rows)  # it includes the validation
    with pytest.raises(InputError, match="is complete"):
        resume(tmp_path / "cut")


def test_a_run_cut_after_an_epochs_last_step_logs_the_same(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a row tells is in the checkpoint: no step is left to set it again."""
    config = config_from_recipe("qonstraint-5.9", **{**quick, "epochs": 3}, device="cpu", threads=1)
    for name in ("whole", "cut"):
        with monkeypatch.context() as patch:
            scripted(patch, [50.0, 90.0, 95.0, 96.0])
            if name == "cut":
                cut(config, tmp_path / name)
                resume(tmp_path / name)
            else:
                train(config, tmp_path / name)
    same_run(tmp_path / "whole", tmp_path / "cut")
    rows = list(csv.DictReader((tmp_path / "cut" / "log.csv").read_text().splitlines()))
    assert float(rows[-1]["drop_path"]) > 0.02  # it follows the confidence


def cut(config: TrainConfig, folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, SignalAt(1, 2, signal.SIGINT))
    return folder


def test_resuming_refuses_other_data(quick: dict[str, Any], tmp_path: Path, image_folder: MakeImages) -> None:
    run = cut(config_from_recipe("small", **quick), tmp_path / "run")
    photo = next(Path(quick["data"]).glob("cat/*.png"))
    photo.unlink()
    with pytest.raises(InputError, match="have changed since the run began"):
        resume(run)
    extra = image_folder(classes=("cow",), count=6, name="extra", seed=5) / "cow"
    extra.rename(Path(quick["data"]) / "cow")
    with pytest.raises(InputError, match="knows 2 classes, the data has 3"):
        resume(run)


@pytest.mark.parametrize(("field", "value"), [("device", "cuda"), ("amp", "torch.bfloat16")])
def test_resuming_refuses_another_device_or_precision(
    quick: dict[str, Any], tmp_path: Path, field: str, value: str
) -> None:
    run = cut(config_from_recipe("small", **quick, device="cpu", amp="off"), tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, field: value}))
    with pytest.raises(InputError, match=f"began on .*{value}.*, here it would go on on cpu with amp off"):
        resume(run)


@pytest.mark.parametrize("field", ["processes", "labels", "dataset", "device", "amp"])
def test_resuming_refuses_an_incomplete_record(quick: dict[str, Any], tmp_path: Path, field: str) -> None:
    run = cut(config_from_recipe("small", **quick), tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    del record[field]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"is damaged: '{field}' is missing"):
        resume(run)


def test_a_run_that_is_going_on_is_not_resumed(quick: dict[str, Any], tmp_path: Path) -> None:
    class Intruder(Silent):
        refused = 0

        def batch(self, epoch: int, done: int, total: int) -> None:
            if not self.refused:
                with pytest.raises(InputError, match="is going on in another process"):
                    resume(tmp_path / "run")
                self.refused += 1
            if epoch == 1:
                signal.raise_signal(signal.SIGINT)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # left by a run that was killed before it began
    intruder = Intruder()
    with pytest.raises(KeyboardInterrupt):
        train(config_from_recipe("small", **quick), tmp_path / "run", intruder)
    assert intruder.refused == 1
    assert resume(tmp_path / "run").epochs == 7
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("owner", "death"), [(Learner, "confusion"), (run_module, "write_rendered"), (run_module, "remove_checkpoints")]
)
def test_a_run_killed_at_its_very_end_is_finished_all_the_same(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, death: str
) -> None:
    def die(*_: Any) -> None:
        raise SystemExit

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, death, die)
        with pytest.raises(SystemExit):
            train(config_from_recipe("small", **quick), run)
    assert (run / "checkpoints").is_dir()
    if death == "confusion":
        resume(run)
    else:
        with pytest.raises(InputError, match=r"is complete \(7 epochs\)"):
            resume(run)
    assert not (run / "checkpoints").exists()
    assert (run / "curves.png").exists() == (death != "write_rendered")


def test_a_picture_that_cannot_be_made_is_a_note(quick: dict[str, Any], tmp_path: Path) -> None:
    class Obstacle(Notes):
        def started(self, record: RunRecord, folder: Path) -> None:
            (folder / "curves.png").mkdir()

    progress = Obstacle()
    result = train(config_from_recipe("small", **{**quick, "epochs": 1}), tmp_path / "run", progress)
    assert progress.notes[-1] == "curves.png could not be made (Is a directory); the results are written"
    record, _ = read_run(tmp_path / "run")
    assert not record.interrupted
    assert record.results is not None
    assert record.results.test_top1 == result.test_top1


def test_resuming_refuses_what_is_no_run_and_other_versions(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no run below \./runs"):
        resume()
    with pytest.raises(InputError, match="is not a run"):
        resume(tmp_path)
    run = cut(config_from_recipe("small", **quick), tmp_path / "runs" / "one")
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"checkpoint_seconds"', '"checkpoint_minutes"'))
    with pytest.raises(InputError, match="another version of qdeploy"):
        resume()
    (run / "run.json").write_text(text)
    assert resume().epochs == 7


def test_a_checkpoint_of_another_recipe_is_refused(quick: dict[str, Any], tmp_path: Path) -> None:
    run = cut(config_from_recipe("small", **quick), tmp_path / "run")
    other = cut(config_from_recipe("small", **quick, weight_decay=0.1), tmp_path / "other")
    shutil.rmtree(run / "checkpoints")
    (other / "checkpoints").rename(run / "checkpoints")
    with pytest.raises(InputError, match="is of another run"):
        resume(run)


def test_a_damaged_checkpoint_falls_back_and_still_ends_the_same(quick: dict[str, Any], tmp_path: Path) -> None:
    config = config_from_recipe("small", **quick, device="cpu")
    train(config, tmp_path / "whole")
    run = cut(config, tmp_path / "cut")
    newest = max((run / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    progress = Notes()
    resume(run, progress)
    assert "is damaged and passed over" in progress.notes[0]
    same_run(tmp_path / "whole", run)


def test_one_label_for_all_and_few_images_are_said(
    quick: dict[str, Any], tmp_path: Path, image_folder: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_folder(count=60, name="more")
    original = Learner._answers

    def first_label(self: Learner, model: torch.nn.Module, split: Any) -> Any:
        for logits, labels in original(self, model, split):
            yield torch.eye(2)[torch.zeros(len(labels), dtype=torch.long)] + 0 * logits, labels

    monkeypatch.setattr(Learner, "_answers", first_label)
    progress = Notes()
    fields = {**quick, "data": str(data), "batch_size": 64, "epochs": 3}
    train(config_from_recipe("small", **fields), tmp_path / "run", progress)
    said = [n for n in progress.notes if "get one label" in n]
    assert len(said) == 1
    assert said[0].startswith("after epoch 2 all ")
    (last,) = (n for n in progress.notes if "test images are answered 'cat'" in n)
    assert last.startswith("note: all ")
    record, _ = read_run(tmp_path / "run")
    assert record.results is not None
    assert record.results.chance == 50.0
