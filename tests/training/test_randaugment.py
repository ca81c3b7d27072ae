"""Every operation beside torchvision's. Array names as in the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qdeploy.training import randaugment
from qdeploy.training.randaugment import GEOMETRIC, OPS, SIGNED, amount_of, rand_augment

TOLERANCE = {
    **dict.fromkeys(("Identity", *GEOMETRIC, "Posterize", "Solarize", "Equalize"), 0.001),
    # torchvision cuts the result to a whole 255th
    **dict.fromkeys(("Brightness", "AutoContrast"), 1.001),
    # and the grey or blurred image before it
    **dict.fromkeys(("Color", "Contrast", "Sharpness"), 2.0),
}
"""Largest difference to torchvision in 255ths."""


def uniform(op: str, count: int, negative: bool = False) -> Tensor:
    """Draws that choose one operation and sign for all images."""
    choice = torch.full((count, 1, 1), (OPS.index(op) + 0.5) / len(OPS))
    return torch.cat([choice, torch.full((count, 1, 1), 0.25 if negative else 0.75)], dim=2)


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """uint8 images [B, 3, S, S] of smooth and of random content, of full and of narrow range."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator).float()
    smooth = torch.nn.functional.avg_pool2d(pixels, 5, stride=1, padding=2)
    pixels[::2] = smooth[::2]
    return pixels.round().to(torch.uint8)


@pytest.mark.parametrize("size", [33, 64])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("op", OPS)
def test_operation_is_that_of_torchvision(op: str, magnitude: int, size: int) -> None:
    reference: Any = pytest.importorskip("torchvision.transforms.autoaugment")
    pixels = images(6, size)
    table, signed = reference.RandAugment()._augmentation_space(31, (size, size))[op]
    amount = float(table[magnitude]) if table.ndim else 0.0
    for negative in (False, True) if signed else (False,):
        nearest = reference.InterpolationMode.NEAREST
        expected = reference._apply_op(pixels, op, -amount if negative else amount, nearest, None)
        found = rand_augment(pixels / 255.0, uniform(op, 6, negative), magnitude)
        differs = (found * 255 - expected.float()).abs() > TOLERANCE[op]
        # a sampling point between two pixels goes to either, by the last bit of the arithmetic
        assert differs.float().mean() <= (0.002 if op in GEOMETRIC else 0), f"{differs.sum()} of {differs.numel()}"


def test_set_and_magnitudes_are_those_of_torchvision() -> None:
    reference: Any = pytest.importorskip("torchvision.transforms.autoaugment")
    for size in (32, 64, 224, 331):
        space = reference.RandAugment()._augmentation_space(31, (size, size))
        assert tuple(space) == OPS
        assert tuple(op for op, (_, signed) in space.items() if signed) == SIGNED
        for op, (table, _) in space.items():
            for magnitude in range(31):
                expected = float(table[magnitude]) if table.ndim else 0.0
                expected = {"TranslateX": int(expected), "TranslateY": int(expected), "Solarize": expected / 255}.get(
                    op, expected
                )
                assert amount_of(op, magnitude, size) == pytest.approx(expected, abs=1e-4), (op, magnitude, size)


def test_the_papers_magnitude_in_numbers() -> None:
    amounts = {op: amount_of(op, 9, 64) for op in OPS}
    assert amounts["ShearX"] == amounts["ShearY"] == pytest.approx(0.09)
    assert amounts["TranslateX"] == amounts["TranslateY"] == 8  # 150/331 * 64 * 0.3 = 8.7
    assert amounts["Rotate"] == pytest.approx(9.0)
    assert amounts["Brightness"] == pytest.approx(0.27)
    assert amounts["Posterize"] == 7
    assert amounts["Solarize"] == pytest.approx(0.7)


def test_move_is_by_whole_pixels_and_black_comes_in() -> None:
    image = images(2, 64) / 255.0
    out = rand_augment(image.clone(), uniform("TranslateX", 2), 9)
    assert torch.equal(out[..., 8:], image[..., :-8])
    assert not out[..., :8].any()
    out = rand_augment(image.clone(), uniform("TranslateY", 2, negative=True), 9)
    assert torch.equal(out[..., :-8, :], image[..., 8:, :])


def test_every_image_gets_its_own_operation() -> None:
    """A batch in which each image draws another operation equals each image alone."""
    image = images(2 * len(OPS), 33) / 255.0
    draws = torch.cat([uniform(op, 1, negative) for op in reversed(OPS) for negative in (False, True)])
    together = rand_augment(image.clone(), draws, 9)
    alone = [rand_augment(image[i : i + 1].clone(), draws[i : i + 1], 9) for i in range(len(draws))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_operations_follow_each_other() -> None:
    image = images(3, 33) / 255.0
    first, second = uniform("Rotate", 3), uniform("Equalize", 3)
    both = rand_augment(image.clone(), torch.cat([first, second], dim=1), 20)
    assert torch.equal(both, rand_augment(rand_augment(image.clone(), first, 20), second, 20))


def test_operations_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(randaugment, "apply_round", lambda image, op, amount: seen.append(torch.stack([op, amount])))
    draws = torch.rand(14_000, 2, 2, generator=torch.Generator().manual_seed(1))
    rand_augment(torch.zeros(1, 3, 64, 64), draws, 9)
    ops, amounts = torch.cat(seen, dim=1)
    counts = torch.bincount(ops.long(), minlength=14)
    assert ((counts - 2000).abs() < 5 * 43).all()  # five standard deviations of a binomial with 28,000 and 1/14
    for op in SIGNED:
        negative = (amounts[ops == OPS.index(op)] < 0).float().mean()
        assert 0.44 < negative < 0.56
    assert (amounts[ops == OPS.index("Posterize")] > 0).all()


@pytest.mark.parametrize("magnitude", [9, 30])
@pytest.mark.parametrize("size", [1, 2, 3, 32, 65])
def test_values_stay_between_0_and_1(size: int, magnitude: int) -> None:
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(140, 3, size, size, generator=generator)
    out = rand_augment(image, torch.rand(140, 3, 2, generator=generator), magnitude)
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("op", ["AutoContrast", "Equalize", "Contrast", "Sharpness"])
def test_image_of_one_colour_keeps_it(op: str) -> None:
    image = torch.tensor([100, 100, 100]).div(255).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    assert torch.allclose(rand_augment(image.clone(), uniform(op, 1), 9), image, atol=2e-4)


def test_layout_does_not_matter() -> None:
    draws = torch.rand(60, 2, 2, generator=torch.Generator().manual_seed(4))
    image = images(60, 17) / 255.0
    channels_last = image.clone(memory_format=torch.channels_last)
    assert torch.allclose(rand_augment(image, draws, 9), rand_augment(channels_last, draws, 9), atol=1e-6)
