from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qdeploy.core.errors import InputError
from qdeploy.core.run_folder import read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.training import TrainResult, train
from qdeploy.training.device import choose_precision
from qdeploy.training.normalisation import colour_statistics
from qdeploy.training.progress import Silent
from qdeploy.training.recipes import config_from_recipe
from qdeploy.training.run_files import free_folder
from tests.conftest import MakeImages


def test_a_run_learns_and_leaves_everything(trained: TrainResult) -> None:
    run = Path(trained.run)
    assert trained.epochs == 3
    assert trained.params == 828_542
    assert trained.test_top1 is not None
    assert trained.test_top1 > 60  # chance is 10
    record, _ = read_run(run)
    assert sorted(p.name for p in run.iterdir()) == [record.weights, "curves.png", "log.csv", "run.json"]
    assert record.labels[0] == "T-shirt/top"
    assert record.dataset.images == {"train": 2000, "val": 500, "test": 1000}
    assert not record.interrupted
    rows = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
    assert [r["epoch"] for r in rows] == ["1", "2", "3"]
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])
    values = [max(float(r["val_top1"]), float(r["ema_val_top1"])) for r in rows]
    share = max(values) / 100
    close = max(values) - 100 * (share * (1 - share) / 500) ** 0.5
    assert trained.best_epoch == max(i + 1 for i, v in enumerate(values) if v >= close)
    assert trained.val_top1 == pytest.approx(values[trained.best_epoch - 1], abs=1e-4)
    with Image.open(run / "curves.png") as picture:
        assert picture.size[0] > 800


def weights_of(result: TrainResult) -> dict[str, torch.Tensor]:
    (path,) = Path(result.run).glob("best-*.safetensors")
    return load_file(path)


@pytest.mark.parametrize("recipe", ["small", "qonstraint-5.9"])
def test_the_same_seed_gives_the_same_weights(image_folder: MakeImages, tmp_path: Path, recipe: str) -> None:
    root = image_folder(count=12)
    config = config_from_recipe(recipe, data=str(root), model="nano-ar", epochs=2, batch_size=8, device="cpu")
    first, second = (weights_of(train(config, tmp_path / n)) for n in "ab")
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = config_from_recipe(recipe, data=str(root), model="nano-ar", epochs=2, batch_size=8, device="cpu", seed=1)
    third = weights_of(train(other, tmp_path / "c"))
    assert not all(torch.equal(first[k], third[k]) for k in first)


def test_the_log_has_the_paper_s_columns_with_the_paper_s_meaning(image_folder: MakeImages, tmp_path: Path) -> None:
    """The rate is the one used in the epoch; confidence, momentum and EMA stand after its update (paper, tables)."""
    config = config_from_recipe(
        "qonstraint-5.9", data=str(image_folder(count=12)), model="nano-ar", epochs=3, batch_size=8
    )
    run = Path(train(config, tmp_path / "run").run)
    rows = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
    paper = ["epoch", "lr", "confidence", "momentum", "ema", "train_top1", "train_top5", "val_top1", "val_top5"]
    assert list(rows[0])[:9] == paper
    assert float(rows[0]["lr"]) == 5e-4
    reward = min(5.0, float(rows[0]["val_top1"]))
    confidence = 1 / (1 + 2.718281828 ** (-0.5 * reward))
    assert float(rows[0]["confidence"]) == pytest.approx(confidence, abs=1e-4)
    assert float(rows[0]["momentum"]) == pytest.approx(min(0.98, 0.9 + 0.02 * reward), abs=1e-5)
    assert float(rows[0]["ema"]) == pytest.approx(0.96 + 0.02 * confidence, abs=1e-5)


class _Interrupt(Silent):
    def __init__(self, epoch: int) -> None:
        self.at = epoch

    def batch(self, epoch: int, done: int, total: int) -> None:
        if epoch == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [0, 1])
def test_ctrl_c_leaves_a_usable_run(image_folder: MakeImages, tmp_path: Path, epoch: int) -> None:
    config = config_from_recipe("small", data=str(image_folder(count=12)), model="nano-ar", epochs=3, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", _Interrupt(epoch))
    record, weights = read_run(tmp_path / "run")
    assert record.interrupted
    assert record.results is not None
    assert record.results.epochs == epoch
    assert len(weights) > 800_000 * 4


def test_a_run_is_never_overwritten_and_bad_input_writes_nothing(
    trained: TrainResult, tmp_path: Path, image_folder: MakeImages
) -> None:
    with pytest.raises(InputError, match="already holds a run"):
        train(config_from_recipe("small", epochs=1), Path(trained.run))
    for bad in ({"model": "nanno"}, {"data": "nowhere"}, {"device": "tpu"}, {"amp": "fp16"}):
        with pytest.raises(InputError):
            train(config_from_recipe("small", **bad), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_a_kill_left_before_its_first_record_is_free(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".run.json.0badcafe.part"):
        (run / name).touch()
    config = config_from_recipe("small", data="fashion-mnist-mini", model="nano-ar", epochs=1, batch_size=8)
    assert free_folder(config, run) == run
    (run / ".mine").touch()
    with pytest.raises(InputError, match="already holds files"):
        free_folder(config, run)


@pytest.mark.parametrize("missing", ["labels", "dataset", "model", "preprocessing", "created"])
def test_an_incomplete_record_is_refused(trained: TrainResult, tmp_path: Path, missing: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained.run, copy)
    record = json.loads((copy / "run.json").read_text())
    del record[missing]
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"'{missing}.*is missing"):
        read_run(copy)


def test_a_damaged_run_is_refused(trained: TrainResult, tmp_path: Path) -> None:
    run = Path(trained.run)
    copy = tmp_path / "run"
    copy.mkdir()
    name = read_run(run)[0].weights
    assert name is not None
    data = bytearray((run / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    (copy / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text())))
    with pytest.raises(InputError, match="is damaged"):
        read_run(copy)
    with pytest.raises(InputError, match="is not a run"):
        read_run(tmp_path)


@pytest.mark.gpu
def test_cuda_training_uses_mixed_precision() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    assert choose_precision("auto", "auto").autocast_dtype is not None


def test_all_images_are_trained_on_and_nothing_chooses(image_folder: MakeImages, tmp_path: Path) -> None:
    root = image_folder(count=20)
    fields = {"data": str(root), "model": "nano-ar", "epochs": 2, "batch_size": 8, "device": "cpu", "ema_decay": 0.0}
    result = train(config_from_recipe("small", **fields, all_images=True, normalisation="data"), tmp_path / "run")
    record, _ = read_run(tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    counts = record.dataset.images
    per_epoch = float(rows[0]["images_per_s"]) * float(rows[0]["train_s"])
    assert per_epoch == pytest.approx((counts["train"] + counts["val"]) // 8 * 8, rel=1e-3)
    assert (result.best_epoch, result.best_weights) == (2, "raw")
    assert result.test_top1 == pytest.approx(float(rows[1]["val_top1"]), abs=1e-4)  # the log shows the test images
    assert result.epoch_s == pytest.approx(sum(float(r["train_s"]) for r in rows) / 2, rel=1e-3)
    data = load_dataset(str(root))
    mean, std = colour_statistics(data.splits["train"].pixels)
    assert (record.preprocessing.mean, record.preprocessing.std) == (mean, std)
    assert mean != data.preprocessing.mean
