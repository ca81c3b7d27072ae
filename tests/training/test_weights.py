"""Training that begins with trained weights, and runs that get more epochs."""

from __future__ import annotations

import csv
import importlib
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdeploy.cli.main import run
from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.models.registry import create_model
from qdeploy.training import TrainConfig, config_from_recipe, resume, train
from qdeploy.training.progress import Silent
from qdeploy.training.weights import fields_of, load_weights
from tests.conftest import MakeImages


class Notes(Silent):
    """Remembers notes; may interrupt the run after a batch."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        self.notes, self.stop = list[str](), stop

    def note(self, text: str) -> None:
        self.notes.append(text)

    def batch(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == self.stop:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over one epoch, of a narrower model, on a cat and a dog."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("data") / "pets"
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(root / label / f"{i}.png")
    out = tmp_path_factory.mktemp("runs") / "first"
    config = config_from_recipe("small", **FIELDS, data=str(root), model_fields={"depths": "1,1,1"}, epochs=2)
    train(config, out)
    return out


FIELDS: dict[str, Any] = {"model": "nano-ar", "batch_size": 8, "device": "cpu", "threads": 1}


def loaded(config: TrainConfig, data: Path) -> tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the note, the weights before, and those after loading."""
    dataset = load_dataset(str(data), Preprocessing())
    torch.manual_seed(5)
    model = create_model(config.model, len(dataset.classes), config.input_size, config.model_changes)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    note = load_weights(model, config, dataset)
    return note, before, model.state_dict()


def test_the_same_classes_keep_the_head_others_have_a_new_one(first: Path, image_folder: MakeImages) -> None:
    record, _ = read_run(first)
    (file,) = first.glob("best-*.safetensors")
    trained = load_file(file)
    config = config_from_recipe("small", **FIELDS | fields_of(str(first)), weights=str(first))
    assert config.model_fields == {"depths": "1,1,1"}
    note, _, after = loaded(config, Path(record.dataset.source))
    assert note == f"starting from the weights of {first}, head included"
    assert all(torch.equal(after[k], trained[k]) for k in trained)
    cases = [(("cat", "cow", "dog"), "other classes"), (("bee", "cow"), "other classes")]
    for i, (classes, why) in enumerate(cases):
        data = image_folder(classes=classes, name=f"other{i}")
        note, before, after = loaded(replace(config, weights=str(file)), data)
        assert note.startswith(f"starting from the weights of {file}; the head starts anew, since it knows {why}")
        new = (
            {k for k in after if torch.equal(after[k], before[k]) and not torch.equal(before[k], trained[k])}
            if (len(classes) == 2)
            else {k for k in after if after[k].shape != trained[k].shape}
        )
        rest = after.keys() - new
        assert new
        assert all("head" in name for name in new)
        assert all(torch.equal(after[k], trained[k]) for k in rest)


def test_files_from_elsewhere(tmp_path: Path, image_folder: MakeImages) -> None:
    models: Any = importlib.import_module("torchvision.models")
    data = image_folder()
    network = models.squeezenet1_1(num_classes=7)
    save_file(network.state_dict(), tmp_path / "theirs.safetensors")
    config = TrainConfig(model="torchvision/squeezenet1_1", weights=str(tmp_path / "theirs.safetensors"))
    note, _, after = loaded(config, data)
    assert "has another number of classes (2 tensors)" in note
    assert torch.equal(after["network.features.0.weight"], network.state_dict()["features.0.weight"])
    save_file({**network.state_dict(), "features.0.weight": torch.ones(3)}, tmp_path / "theirs.safetensors")
    with pytest.raises(InputError, match=r"'network.features.0.weight' is 3 there and 64x3x3x3 here"):
        loaded(config, data)
    save_file({"other": torch.ones(3)}, tmp_path / "theirs.safetensors")
    with pytest.raises(InputError, match="of another model than torchvision/squeezenet1_1: .* is not there"):
        loaded(config, data)
    (tmp_path / "theirs.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read"):
        loaded(config, data)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=r"holds no weights to train from; give a run's folder"):
        loaded(replace(config, weights=str(tmp_path / "model.onnx")), data)


def test_the_command_takes_the_model_from_the_run(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--weights", str(first), "--dry-run", "--json"]) == 0
    out = capsys.readouterr().out
    assert '"model": "nano-ar"' in out
    assert '"depths": "1,1,1"' in out
    assert run(["train", "--weights", "nowhere/x", "--dry-run"]) == 2
    assert "there are no weights in nowhere/x: it does not exist" in capsys.readouterr().err


def rows_of(folder: Path) -> list[dict[str, str]]:
    timings = {"train_s", "data_s", "all_s", "images_per_s"}
    rows = csv.DictReader((folder / "log.csv").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in timings} for row in rows]


def test_a_complete_run_gets_more_epochs_and_can_be_interrupted_in_them(first: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        shutil.copytree(first, folder)
    shown = Notes()
    result = resume(folders[0], shown, epochs=4)
    note, *rest = shown.notes
    assert all(n.startswith("note: ") for n in rest)
    assert "2 more epochs after 2, from the best weights (epoch " in note
    assert note.endswith("runs anew over them: one cosine from a learning rate of 0.002 to 0")
    assert result.epochs == 4
    rows, before = rows_of(folders[0]), rows_of(first)
    assert rows[:2] == before
    assert [float(r["lr"]) for r in rows[2:]] == [float(r["lr"]) for r in before]  # the same cosine again
    record, _ = read_run(folders[0])
    assert (record.config["epochs"], record.config["continued"], record.interrupted) == (4, 2, False)
    with pytest.raises(KeyboardInterrupt):
        resume(folders[1], Notes(stop=(3, 1)), epochs=4)
    assert read_run(folders[1])[0].interrupted
    resume(folders[1])
    assert rows_of(folders[1]) == rows
    (one,), (other,) = (folder.glob("best-*.safetensors") for folder in folders)
    assert one.name == other.name


def test_what_cannot_get_more_epochs(first: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 2 epochs already, found `epochs=2`; give more"):
        resume(first, epochs=2)
    shutil.copytree(first, tmp_path / "run")
    log = tmp_path / "run" / "log.csv"
    log.write_text("\n".join(log.read_text().splitlines()[:2]))
    with pytest.raises(InputError, match="is needed to give the run more epochs, and is damaged"):
        resume(tmp_path / "run", epochs=3)
    record, _ = read_run(tmp_path / "run")
    assert (record.config["epochs"], record.interrupted) == (2, False)  # nothing was changed
