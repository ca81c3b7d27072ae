"""MixUp and CutMix beside formulas and statistics. Array names as in the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qdeploy.core.errors import InputError
from qdeploy.training.mixing import Choice, choose_mix, cut_box, mix, mix_probabilities


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 12, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images filled with their place in the batch, and one-hot targets that say it too."""
    image = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 3, size, size)
    return image.contiguous(memory_format=torch.channels_last), torch.eye(count)


def test_probabilities_of_both_phases() -> None:
    assert mix_probabilities(False, 0.5, True, True) == pytest.approx((0.1, 0.1))
    assert mix_probabilities(True, 0.5, True, True) == pytest.approx((0.2, 0.2))
    assert mix_probabilities(True, 1.0, True, True) == pytest.approx((0.24, 0.24))
    assert mix_probabilities(False, 0.0, True, True) == pytest.approx((0.08, 0.08))
    assert mix_probabilities(False, 0.75, True, True) == pytest.approx((0.11, 0.11))
    assert mix_probabilities(True, 9.0, True, True) == pytest.approx((0.24, 0.24))
    assert mix_probabilities(True, -9.0, True, True) == pytest.approx((0.16, 0.16))


def test_what_is_off_has_no_probability() -> None:
    assert mix_probabilities(True, 0.5, True, False) == pytest.approx((0.2, 0.0))
    assert mix_probabilities(True, 0.5, False, True) == pytest.approx((0.0, 0.2))
    assert mix_probabilities(True, 1.0, False, False) == (0.0, 0.0)


def test_choices_come_as_often_as_said() -> None:
    generator = seeded(0)
    choices = [choose_mix((0.1, 0.2), generator) for _ in range(5000)]
    assert choices.count("mixup") / 5000 == pytest.approx(0.1, abs=5 * 0.0042)
    assert choices.count("cutmix") / 5000 == pytest.approx(0.2, abs=5 * 0.0057)
    assert {choose_mix((0.0, 0.0), generator) for _ in range(100)} == {"none"}
    assert {choose_mix((0.0, 1.0), generator) for _ in range(100)} == {"cutmix"}


def test_none_returns_the_input() -> None:
    image, target = batch()
    mixed, soft = mix(image, target, "none", seeded(0))
    assert mixed is image
    assert soft is target


def test_mixup_blends_image_and_target_alike() -> None:
    image, target = batch()
    for seed in range(20):
        mixed, soft = mix(image, target, "mixup", seeded(seed))
        assert torch.allclose(soft.sum(1), torch.ones(12))
        assert (soft > 0).sum(1).max() <= 2
        expected = soft @ torch.arange(12.0)  # an image's value is its class
        assert torch.allclose(mixed, expected[:, None, None, None].expand_as(mixed), atol=1e-5)


def test_cutmix_label_is_the_area() -> None:
    image, target = batch()
    seen = set()
    for seed in range(60):
        mixed, soft = mix(image, target, "cutmix", seeded(seed))
        own = (mixed == image)[:, 0].float().mean((1, 2))
        moved = soft.diagonal() < 1
        assert torch.allclose(soft.diagonal()[moved], own[moved], atol=1e-6)
        assert torch.allclose(soft.sum(1), torch.ones(12))
        partner = (soft - torch.diag(soft.diagonal())).argmax(1)
        is_pasted = (mixed != image)[:, 0]
        for i in moved.nonzero().flatten().tolist():
            assert (mixed[i, 0][is_pasted[i]] == partner[i]).all()
            rows, columns = is_pasted[i].any(1).sum(), is_pasted[i].any(0).sum()
            assert rows * columns == is_pasted[i].sum()
        if moved.any():
            seen.add(float(own[moved][0]))
    assert len(seen) > 25
    assert min(seen) < 0.3 < 0.9 < max(seen)


def test_box_of_cutmix() -> None:
    assert cut_box(0.75, (8, 8), 16, 16) == (4, 12, 4, 12)  # a quarter of the area
    assert cut_box(0.75, (0, 15), 16, 16) == (0, 4, 11, 16)  # cut at the border
    assert cut_box(1.0, (3, 3), 16, 16) == (3, 3, 3, 3)
    assert cut_box(0.0, (8, 16), 16, 32) == (0, 16, 0, 32)


def test_box_is_that_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    v2: Any = pytest.importorskip("torchvision.transforms.v2")
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda _, shape: torch.tensor([0.4]))
    transform = v2.CutMix(num_classes=2)
    for seed in range(20):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            parameters = transform.make_params([torch.zeros(2, 3, 20, 30)])
            torch.manual_seed(seed)
            column, row = int(torch.randint(30, (1,))), int(torch.randint(20, (1,)))
        left, top, right, bottom = (int(v) for v in parameters["box"])
        own = 0.4
        assert cut_box(own, (row, column), 20, 30) == (top, bottom, left, right)
        share = 1 - (bottom - top) * (right - left) / 600
        assert share == pytest.approx(parameters["lam_adjusted"])


@pytest.mark.parametrize(("choice", "alpha"), [("mixup", 0.2), ("cutmix", 1.0)])
def test_share_is_beta_distributed(choice: Choice, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean 1/2 and variance 1 / (4 * (2 alpha + 1)); CutMix's box is centred, so that no border cuts it."""
    monkeypatch.setattr("qdeploy.training.mixing.cut_box", lambda own, *_: cut_box(own, (50, 50), 100, 100))
    image, target = torch.zeros(2, 1, 100, 100), torch.eye(2)
    generator = seeded(1)
    shares: list[float] = []
    while len(shares) < 1500:
        own = float(mix(image, target, choice, generator)[1][0, 0])
        if own < 1:  # the partner is the other image
            shares.append(own)
    share = torch.tensor(shares)
    variance = 1 / (4 * (2 * alpha + 1))
    assert share.mean() == pytest.approx(0.5, abs=5 * (variance / 1500) ** 0.5 + 0.01)
    assert share.var() == pytest.approx(variance, rel=0.12)


@pytest.mark.parametrize("choice", ["mixup", "cutmix"])
def test_input_seed_and_layout_are_kept(choice: Choice) -> None:
    image, target = batch()
    before = image.clone(), target.clone()
    first, again, other = (mix(image, target, choice, seeded(seed)) for seed in (3, 3, 5))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(image, before[0])
    assert torch.equal(target, before[1])
    assert first[0].is_contiguous(memory_format=torch.channels_last)


def test_draws_do_not_depend_on_the_choice() -> None:
    states = set()
    choices: tuple[Choice, ...] = ("none", "mixup", "cutmix")
    for choice in choices:
        generator = seeded(4)
        mix(*batch(), choice, generator)
        states.add(bytes(generator.get_state().tolist()))
    assert len(states) == 1


def test_global_generators_are_not_touched() -> None:
    before = torch.get_rng_state()
    mix(*batch(), "cutmix", seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(InputError, match="no mixing named 'cutup'"):
        mix(*batch(), "cutup", seeded(0))  # type: ignore[arg-type]
