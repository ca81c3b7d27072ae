"""Cross-validation: no image is judged by a model that has seen it, and planted errors are found."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.checks.suspects import find_suspects
from qdeploy.cli.main import run
from qdeploy.core.errors import DataError, InputError
from qdeploy.training import config_from_recipe
from qdeploy.training.folds import cross_validated, fold_numbers
from qdeploy.training.progress import Silent
from tests.conftest import MakeImages

CLASSES = ("dark", "grey", "light")


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """A folder of three classes of noise, 20 images each, that any model tells apart."""
    rng = np.random.default_rng(0)
    for shade, label in enumerate(CLASSES):
        (tmp_path / "shades" / label).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(90 * shade, 90 * shade + 70, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "shades" / label / f"{i:02}.png")
    return tmp_path / "shades"


def test_parts_have_equal_shares_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 7, 31])
    numbers = fold_numbers(labels, 4, seed=3)
    sizes = np.bincount(numbers)
    assert sizes.max() - sizes.min() <= 1
    for k in range(3):
        own = np.bincount(numbers[labels == k], minlength=4)
        assert own.max() - own.min() <= 1
    assert (fold_numbers(labels, 4, seed=3) == numbers).all()
    assert (fold_numbers(labels, 4, seed=4) != numbers).any()


class Counting(Silent):
    """Keeps the numbers of the epochs that it is told of."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def epoch(self, row: dict[str, object]) -> None:
        self.epochs.append(int(str(row["epoch"])))


@pytest.mark.slow
def test_planted_errors_are_found(shades: Path) -> None:
    planted = {"light/wrong.png": "dark/04.png", "dark/wrong.png": "light/11.png", "grey/wrong.png": "light/03.png"}
    for place, image in planted.items():
        shutil.move(shades / image, shades / place)
    config = config_from_recipe(model="nano-ar", data=str(shades), epochs=24, batch_size=8, input_size=32)
    progress = Counting()
    judged = cross_validated(config, 2, progress)
    assert progress.epochs == list(range(1, 49))
    assert Counter(judged.labels.tolist()) == {0: 20, 1: 21, 2: 19}
    assert judged.probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert all(Path(name).parent.name == CLASSES[k] for name, k in zip(judged.names, judged.labels, strict=True))
    found = find_suspects(judged)
    listed = [str(Path(s.image).relative_to(shades)) for s in found.suspects]
    assert set(listed[:3]) == set(planted)
    assert {s.likely for s in found.suspects[:3]} == {"dark", "light"}


@pytest.mark.slow
def test_a_model_has_not_seen_what_it_judges(tmp_path: Path) -> None:
    """Labels by chance cannot be learnt: whoever has not seen an image is right half the time, not always."""
    rng = np.random.default_rng(0)
    for label in ("heads", "tails"):
        (tmp_path / "coins" / label).mkdir(parents=True)
        for i in range(30):
            blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(blocks).save(tmp_path / "coins" / label / f"{i}.png")
    config = config_from_recipe(
        model="nano-ar",
        data=str(tmp_path / "coins"),
        epochs=6,
        batch_size=8,
        augmentation="none",
        input_size=32,
    )
    assert find_suspects(cross_validated(config, 2)).top1 < 75


def test_what_cannot_be_is_refused(image_folder: MakeImages) -> None:
    with pytest.raises(InputError, match="`folds` must be between 2 and 20, found 21"):
        cross_validated(config_from_recipe(), 21)
    with pytest.raises(InputError, match="all_images"):
        cross_validated(config_from_recipe("qonstraint-5.9"), 2)
    root = image_folder()
    (root / "train").mkdir()
    for label in ("cat", "dog"):
        shutil.move(root / label, root / "train" / label)
    for image in sorted((root / "train" / "cat").iterdir())[1:]:
        image.unlink()
    for split in ("val", "test"):
        (root / split / "dog").mkdir(parents=True)
        shutil.move(root / "train" / "dog" / f"{len(split)}.png", root / split / "dog")
    with pytest.raises(DataError, match="class 'cat' of images has a single image"):
        cross_validated(config_from_recipe(data=str(root)), 2)


@pytest.mark.slow
def test_the_command_trains_and_lists(shades: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(shades / "dark" / "04.png", shades / "light" / "wrong.png")
    words = ["data", str(shades), "--suspects", "--model", "nano-ar", "--folds", "2", "--epochs", "12", "--json"]
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out)["suspects"]
    assert "2 models (nano-ar, 12 epochs)" in found["by"]
    assert Path(found["suspects"][0]["image"]).name == "wrong.png"
