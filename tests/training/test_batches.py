from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Dataset, Split
from qdeploy.training.batches import Batches, training_split
from qdeploy.training.distributed import World
from qdeploy.training.recipes import TrainConfig, config_from_recipe

COUNT = 37


def split() -> Split:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 64, 64, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(COUNT)  # says which image it is
    return Split(pixels=pixels, labels=np.arange(COUNT) % 5, hashes=("",) * COUNT)


def made(rank: int = 0, size: int = 1, **fields: Any) -> Batches:
    config = TrainConfig(**{"batch_size": 8, "augmentation": "none", **fields})
    world = World(device=torch.device("cpu"), rank=rank, size=size)
    return Batches(split(), 5, Preprocessing(), config, world)


def identities(batches: Batches, epoch: int, step: int) -> list[int]:
    image = batches.batch(epoch, step, 0.5).image
    return [round(v) for v in ((image[:, 0, 0, 0] * batches.std[0] + batches.mean[0]) * 255).tolist()]


def test_an_epoch_sees_each_image_at_most_once_in_an_order_of_its_own() -> None:
    batches = made()
    assert (batches.steps, batches.images_per_epoch) == (4, 32)
    first = [i for step in range(4) for i in identities(batches, 0, step)]
    second = [i for step in range(4) for i in identities(batches, 1, step)]
    assert len(set(first)) == len(set(second)) == 32
    assert first != second
    other = [i for step in range(4) for i in identities(made(seed=1), 0, step)]
    assert other != first
    batch = batches.batch(0, 0, 0.5)
    assert batch.labels.tolist() == [i % 5 for i in first[:8]]
    assert torch.equal(batch.target.argmax(1), batch.labels)


def test_a_batch_is_a_function_of_seed_epoch_and_step() -> None:
    fields = config_from_recipe("qonstraint-5.9", epochs=10, batch_size=8).to_dict()
    one, other = made(**fields), made(**fields)
    for _ in range(5):  # whatever was drawn before
        other.batch(3, 1, 0.5)
    for epoch, step in ((9, 2), (0, 0)):
        a, b = one.batch(epoch, step, 0.7), other.batch(epoch, step, 0.7)
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.target, b.target)
    assert not torch.equal(one.batch(9, 2, 0.7).image, one.batch(8, 2, 0.7).image)


def test_processes_share_the_batch_of_a_single_one() -> None:
    alone = identities(made(), 2, 1)
    shares = [identities(made(rank, 2), 2, 1) for rank in (0, 1)]
    assert [len(s) for s in shares] == [4, 4]
    assert shares[0] + shares[1] == alone[0::2] + alone[1::2]


def test_mixing_starts_moderate_and_grows_in_the_second_half() -> None:
    def share(epoch: int, **fields: Any) -> float:
        batches = made(epochs=200, mixup=True, cutmix=True, **fields)
        mixed = [bool((batches.batch(epoch + e, s, 0.5).target.amax(1) < 1).any()) for e in range(60) for s in range(4)]
        return sum(mixed) / len(mixed)

    assert 0.1 < share(0) < 0.3  # 0.2 of the batches
    assert 0.3 < share(100) < 0.5  # 0.4
    assert made(epochs=4).batch(3, 0, 0.5).target.amax(1).min() == 1.0


def test_the_paper_s_augmentation_is_used_and_gives_normalised_images() -> None:
    plain, strong = made(), made(augmentation="high")
    a, b = plain.batch(0, 0, 0.5).image, strong.batch(0, 0, 0.5).image
    assert a.shape == b.shape == (8, 3, 64, 64)
    assert b.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(a, b)
    low, high = (0 - 0.485) / 0.229, (1 - 0.406) / 0.225
    assert low - 0.2 < b.min() < b.max() < high + 0.1


@pytest.mark.parametrize("one_table", [True, False])
def test_all_images_are_those_of_train_and_val(one_table: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 10)}
    splits = {
        name: Split(
            pixels=pixels[where] if one_table else pixels[where].copy(),
            labels=np.arange(10)[where],
            hashes=tuple("abcdefghij"[where]),
        )
        for name, where in parts.items()
    }
    dataset = Dataset(name="d", classes=("a", "b"), preprocessing=Preprocessing(), splits=splits, problems=())
    found = training_split(dataset, TrainConfig(all_images=True))
    assert np.array_equal(found.pixels, pixels[:9])
    assert np.shares_memory(found.pixels, pixels) == one_table
    assert found.labels.tolist() == list(range(9))
    assert "".join(found.hashes) == "abcdefghi"
    assert training_split(dataset, TrainConfig()) is splits["train"]
