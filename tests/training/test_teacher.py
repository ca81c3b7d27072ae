"""Distillation: the teachers' answers, how they reach a step, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch.nn import functional as F

from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.models.registry import create_model
from qdeploy.training import TrainResult, config_from_recipe, train
from qdeploy.training.batches import Batches
from qdeploy.training.distributed import World
from qdeploy.training.loss import distillation_loss
from qdeploy.training.teacher import absolute, teacher_targets
from tests.conftest import MakeImages

FILE = SHIPPED / "model.fp32.onnx"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def few(dataset: Dataset, count: int = 100) -> Any:
    return dataset.splits["train"].take(np.arange(count))


def test_a_model_file_answers_and_is_asked_once(own_cache: Path) -> None:
    dataset = load_dataset()
    split = few(dataset)
    soft, sharp = (teacher_targets(str(FILE), t, dataset, split) for t in (4.0, 1.0))
    assert soft.shape == (100, 10)
    assert torch.allclose(soft.sum(1), torch.ones(100), atol=1e-5)
    assert soft.max(1).values.mean() < sharp.max(1).values.mean()
    assert (sharp.argmax(1).numpy() == split.labels).mean() > 0.8
    (kept,) = (own_cache / "teachers").iterdir()
    before = kept.stat().st_mtime_ns
    assert torch.equal(teacher_targets(str(FILE), 1.0, dataset, split), sharp)
    assert kept.stat().st_mtime_ns == before
    teacher_targets(str(FILE), 1.0, dataset, few(dataset, 50))
    assert len(list((own_cache / "teachers").iterdir())) == 2


def test_a_run_answers_as_its_model_and_several_teachers_are_averaged(trained: TrainResult, own_cache: Path) -> None:
    dataset = load_dataset()
    split = few(dataset)
    state = torch.get_rng_state()
    found = teacher_targets(trained.run, 2.0, dataset, split)
    assert torch.equal(torch.get_rng_state(), state)
    record, weights = read_run(Path(trained.run))
    model = create_model(record.model.name, 10)
    model.load_state_dict(load(weights))
    rules = record.preprocessing
    image = (torch.from_numpy(split.pixels) / 255 - torch.tensor(rules.mean)) / torch.tensor(rules.std)
    with torch.inference_mode():
        expected = (model.eval()(image.permute(0, 3, 1, 2)) / 2.0).softmax(1)
    assert torch.allclose(found, expected, atol=1e-4)
    both = teacher_targets(f"{trained.run}, {FILE}", 2.0, dataset, split)
    assert torch.allclose(both, (found + teacher_targets(str(FILE), 2.0, dataset, split)) / 2, atol=1e-6)


def test_answers_go_with_their_images_and_are_mixed_as_they_are() -> None:
    dataset = load_dataset()
    split = replace(few(dataset, 64), labels=np.arange(64) % 10)  # the set's own are in order
    answers = torch.rand(64, 10).softmax(1)
    config = config_from_recipe("small", batch_size=16, augmentation="none", mixup=True)
    batches = Batches(split, 10, Preprocessing(), config, World(device=torch.device("cpu")), answers)
    plain = {tuple(answers[i].tolist()): int(split.labels[i]) for i in range(64)}
    kinds = {"plain": 0, "mixed": 0}
    for epoch in range(6):
        for step in range(4):
            batch = batches.batch(epoch, step, 0.5)
            assert batch.teacher is not None
            assert batch.target.shape == batch.teacher.shape == (16, 10)
            rows = [plain.get(tuple(row)) for row in batch.teacher.tolist()]
            assert all(row in (None, label) for row, label in zip(rows, batch.labels.tolist(), strict=True))
            kinds["mixed" if None in rows else "plain"] += 1  # a mixed batch may mix an image with itself
            assert torch.allclose(batch.teacher.sum(1), torch.ones(16), atol=1e-5)
    assert min(kinds.values()) > 0


def test_the_loss_is_the_divergence_at_the_temperature() -> None:
    logits, teacher = torch.randn(5, 3), torch.randn(5, 3).softmax(1)
    student = (logits / 3).softmax(1)
    expected = 9 * (teacher * (teacher.log() - student.log())).sum(1).mean()
    assert distillation_loss(logits, teacher, 3.0) == pytest.approx(float(expected), rel=1e-4)
    assert distillation_loss(teacher.log() * 3, teacher, 3.0) == pytest.approx(0.0, abs=1e-5)
    assert F.kl_div(student.log(), student, reduction="batchmean") == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_a_student_follows_its_teacher(own_cache: Path, tmp_path: Path) -> None:
    """With the teacher's answers alone, a run's loss is theirs; and it repeats, asked or kept."""
    fields = {"model": "nano-ar", "epochs": 1, "batch_size": 64, "device": "cpu", "teacher": str(FILE)}
    config = config_from_recipe("small", **fields, distill_weight=1.0)
    asked, kept = train(config, tmp_path / "a"), train(config, tmp_path / "b")
    assert asked.val_top1 == kept.val_top1 > 40
    record, _ = read_run(tmp_path / "a")
    assert record.config["teacher"] == str(FILE.resolve())


def test_teachers_that_do_not_fit_are_refused(image_folder: MakeImages, tmp_path: Path) -> None:
    root = str(image_folder(("cat", "cow", "dog"), count=8))
    fields = {"model": "nano-ar", "epochs": 1, "batch_size": 8, "device": "cpu"}
    for data, more, words in (
        (root, {"teacher": str(FILE)}, "knows other classes than the data"),
        ("fashion-mnist-mini", {"teacher": str(FILE), "input_size": 96}, "takes images of size 64, the student of 96"),
        (root, {"teacher": str(tmp_path)}, "is not a run"),
    ):
        with pytest.raises(InputError, match=words):
            train(config_from_recipe("small", data=data, **fields, **more), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert absolute("") == ""
    assert absolute("a, b") == f"{Path('a').resolve()},{Path('b').resolve()}"
