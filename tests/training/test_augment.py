"""Crop, mirror, jitter and erasing beside torchvision and formulas. Array names as in the module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from qdeploy.core.errors import InputError
from qdeploy.training import augment as module
from qdeploy.training.augment import (
    REGIMES,
    Strength,
    augment,
    crop_and_flip,
    crop_and_mirror,
    crop_boxes,
    erase,
    erase_boxes,
    flip_and_shift,
    normalise,
    strength_of,
)

STRONGEST = REGIMES["high"][1]
STRENGTHS = [strength for phases in REGIMES.values() for strength in phases]


def images(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planar(pixels_BSSC: Tensor) -> Tensor:
    return pixels_BSSC.permute(0, 3, 1, 2) / 255.0


def test_regimes_are_those_of_the_table() -> None:
    table = {
        "low": ((0.95, 0.1, 0.05, (0.01, 0.1), False), (0.90, 0.2, 0.10, (0.02, 0.15), True)),
        "mid": ((0.90, 0.2, 0.10, (0.01, 0.1), False), (0.80, 0.3, 0.15, (0.02, 0.15), True)),
        "high": ((0.80, 0.2, 0.15, (0.01, 0.1), False), (0.65, 0.4, 0.30, (0.02, 0.15), True)),
    }
    found = {
        name: tuple((s.crop_scale, s.jitter, s.erase_probability, s.erase_scale, s.randaugment) for s in phases)
        for name, phases in REGIMES.items()
    }
    assert found == table
    assert {(s.num_ops, s.magnitude) for s in STRENGTHS} == {(2, 9)}


def test_a_regime_has_two_phases() -> None:
    early, late = REGIMES["mid"]
    assert [strength_of("mid", phase) for phase in (1, 2)] == [early, late]
    assert strength_of("mid", 2, randaugment=False) == replace(late, randaugment=False)
    with pytest.raises(InputError, match="did you mean 'high'"):
        strength_of("hihg", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": 0.0},
        {"crop_scale": 1.1},
        {"jitter": 1.5},
        {"erase_probability": -0.1},
        {"erase_scale": (0.2, 0.1)},
        {"magnitude": 31},
        {"num_ops": -1},
    ],
)
def test_strength_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Strength(**wrong)


@pytest.mark.parametrize("size", [1, 17, 32, 64, 65, 224])
@pytest.mark.parametrize("strength", [REGIMES["low"][0], STRONGEST, Strength()])
def test_shape_range_and_layout(size: int, strength: Strength) -> None:
    pixels = images(5, size)
    before = pixels.clone()
    out = augment(pixels, strength, seeded(1))
    assert out.shape == (5, 3, size, size)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_values_stay_between_0_and_1(strength: Strength) -> None:
    out = augment(images(300, 20), strength, seeded(2))
    assert 0 <= out.min() <= out.max() <= 1


def test_a_seed_means_the_same_and_another_does_not() -> None:
    pixels = images(70, 24)
    assert torch.equal(augment(pixels, STRONGEST, seeded(5)), augment(pixels, STRONGEST, seeded(5)))
    assert not torch.equal(augment(pixels, STRONGEST, seeded(5)), augment(pixels, STRONGEST, seeded(6)))


def test_draws_do_not_depend_on_data_or_strength() -> None:
    states = set()
    for pixels in (images(9, 16), torch.zeros(9, 33, 33, 3, dtype=torch.uint8)):
        for strength in (*STRENGTHS, Strength()):
            generator = seeded(7)
            augment(pixels, strength, generator)
            states.add(bytes(generator.get_state().tolist()))
    assert len(states) == 1


def test_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    augment(images(4, 16), STRONGEST, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_of_a_batch_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = images(50, 16)
    whole = augment(pixels, STRONGEST, seeded(3))
    monkeypatch.setattr(module, "CPU_PART", 7)
    assert torch.allclose(augment(pixels, STRONGEST, seeded(3)), whole, atol=1e-6)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_images_of_a_batch_get_different_choices(strength: Strength) -> None:
    pixels = images(1, 64).expand(40, -1, -1, -1)
    out = augment(pixels, strength, seeded(4)).flatten(1)
    assert (torch.cdist(out, out) + torch.eye(40) > 0.1).all()


def test_strength_of_nothing_only_mirrors_and_keeps_every_bit() -> None:
    pixels = images(400, 15)
    out = augment(pixels, Strength(), seeded(8))
    same = (out == planar(pixels)).flatten(1).all(1)
    mirrored = (out == planar(pixels).flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250  # five standard deviations of a binomial with 400 and 1/2


@pytest.mark.parametrize("size", [32, 63, 64])
def test_crop_is_that_of_torchvision(size: int) -> None:
    functional: Any = pytest.importorskip("torchvision.transforms.v2.functional")
    pixels = images(6, size)
    s = float(size)
    boxes = torch.tensor(
        [[0, 0, s, s], [3, 5, 20, 24], [0, 7, s, s - 7], [s - 9, s - 13, 9, 13], [1, 1, 1, 1], [2, 0, s - 5, 30]]
    )
    flip = torch.tensor([[False], [True], [False], [True], [False], [True]])
    out = crop_and_flip(pixels, boxes, flip)
    for i, (top, left, height, width) in enumerate(boxes.int().tolist()):
        image = planar(pixels)[i]
        expected = functional.resized_crop(image, top, left, height, width, [size, size], antialias=False)
        expected = expected.flip(2) if flip[i] else expected
        assert (out[i] - expected).abs().max() < 1e-4, i  # a fortieth of a 255th


def test_crops_have_the_right_area_ratio_and_place() -> None:
    generator = seeded(9)
    boxes = crop_boxes(torch.rand(20_000, 22, generator=generator), 0.65, 64)
    top, left, height, width = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert (torch.stack([top, left]) >= 0).all()
    assert (top + height).max() == (left + width).max() == 64
    share, ratio = height * width / 64**2, width / height
    assert share.min() > 0.65 - 0.02
    assert ratio.min() > 3 / 4 - 0.03
    assert ratio.max() < 4 / 3 + 0.03
    assert ratio.log().mean().abs() < 0.01
    assert (top / (64 - height).clamp(min=1))[height < 60].mean() == pytest.approx(0.5, abs=0.02)


def test_boxes_are_distributed_as_those_of_torchvision() -> None:
    transforms: Any = pytest.importorskip("torchvision.transforms")
    image, draws = torch.zeros(3, 64, 64), torch.rand(4000, 22, generator=seeded(10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crops = [transforms.RandomResizedCrop.get_params(image, [0.65, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
        erased = [transforms.RandomErasing.get_params(image, (0.02, 0.15), (0.3, 3.3), [0.0])[:4] for _ in range(4000)]
    for found, expected in (
        (crop_boxes(draws, 0.65, 64), torch.tensor(crops).float()),
        (erase_boxes(draws, (0.02, 0.15), 64), torch.tensor(erased).float()),
    ):
        error = (found.var(0) / 4000 + expected.var(0) / 4000).sqrt()
        assert ((found.mean(0) - expected.mean(0)).abs() < 4.5 * error).all()
        assert torch.allclose(found.std(0), expected.std(0), rtol=0.08)


def test_boxes_that_never_fit() -> None:
    """Whole image for a crop, nothing for erasing, as in torchvision."""
    draws = torch.zeros(1, 22)
    draws[:, :10] = 0.999
    assert crop_boxes(draws, 1.0, 64).tolist() == [[0, 0, 64, 64]]
    assert erase_boxes(draws, (0.9, 1.0), 64)[0, 2:].tolist() == [0, 0]


def test_first_box_that_fits_is_taken() -> None:
    draws = torch.full((1, 22), 0.5)
    draws[:, :2], draws[:, 10:12] = 0.99, 0.0  # nearly the whole area at a ratio of 3/4: too high
    assert crop_boxes(draws, 0.25, 64)[0, 2:].tolist() == [51, 51]  # sqrt(0.625) * 64 = 50.6


def test_jitter_is_that_of_torchvision() -> None:
    functional: Any = pytest.importorskip("torchvision.transforms.v2.functional")
    pixels, strength = images(30, 24), Strength(jitter=0.4)
    uniform = torch.rand(30, module._FIXED_DRAWS + 4, generator=seeded(11))
    out = augment(pixels, strength, seeded(11))
    start = 2 * 22
    factors = 1 + 0.4 * (2 * uniform[:, start + 1 : start + 4] - 1)
    assert 0.6 <= factors.min() < 0.7 < 1.3 < factors.max() <= 1.4
    for i, (brightness, contrast, saturation) in enumerate(factors.tolist()):
        image = planar(pixels)[i].flip(2) if uniform[i, start] < 0.5 else planar(pixels)[i]
        image = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
        assert torch.allclose(out[i], functional.adjust_saturation(image, saturation), atol=1e-5)


def test_erased_boxes_are_black_and_as_many_as_said() -> None:
    pixels = images(2000, 32).clamp(min=1)
    out = augment(pixels, Strength(erase_probability=0.3, erase_scale=(0.02, 0.15)), seeded(12))
    black = (out == 0).all(1)
    share = black.float().mean((1, 2))
    assert (share > 0).float().mean() == pytest.approx(0.3, abs=5 * 0.0103)
    assert 0.01 < share[share > 0].min() < 0.03
    assert 0.14 < share.max() < 0.17
    rows, columns = black.any(2).sum(1), black.any(1).sum(1)
    assert torch.equal(rows * columns, black.sum((1, 2)))  # each is one full box
    assert not out.permute(0, 2, 3, 1)[~black].eq(0).any()


def test_erase_of_chosen_boxes() -> None:
    out = erase(torch.ones(2, 3, 8, 8), torch.tensor([[1.0, 2, 3, 4], [5, 5, 0, 0]]))
    expected = torch.ones(2, 3, 8, 8)
    expected[0, :, 1:4, 2:6] = 0
    assert torch.equal(out, expected)


def test_grey_images_stay_grey() -> None:
    pixels = images(100, 32)[..., :1].expand(-1, -1, -1, 3)
    out = augment(pixels, STRONGEST, seeded(13))
    assert (out.amax(1) - out.amin(1)).max() < 1e-5


def test_mixed_precision_changes_nothing() -> None:
    pixels = images(40, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(pixels, STRONGEST, seeded(14))
    assert torch.equal(inside, augment(pixels, STRONGEST, seeded(14)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strength", [*STRENGTHS, Strength()])
def test_gpu_gives_the_same_without_being_waited_for(strength: Strength) -> None:
    pixels = images(200, 64)
    expected = augment(pixels, strength, seeded(15))
    on_gpu = pixels.cuda()
    augment(on_gpu, strength, seeded(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = augment(on_gpu, strength, seeded(15))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Posterize, Solarize and the nearest pixel turn a last bit into a step
    assert ((out.cpu() - expected).abs() > 1e-3).float().mean() < 0.01


def test_images_are_moved_and_mirrored_and_nothing_else() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
    out = flip_and_shift(pixels, flip=True, max_shift=2, generator=torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(pixels.permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="replicate")
    seen = set()
    for i in range(40):
        for mirrored in (False, True):
            for dy in range(5):
                for dx in range(5):
                    crop = padded[i, :, dy : dy + 16, dx : dx + 16]
                    crop = crop.flip(2) if mirrored else crop
                    if torch.equal(crop.permute(1, 2, 0).to(torch.uint8), out[i]):
                        seen.add((i, mirrored, dy, dx))
    assert len({i for i, *_ in seen}) == 40
    assert {m for _, m, *_ in seen} == {False, True}
    assert len({(dy, dx) for _, _, dy, dx in seen}) > 10


def test_a_seed_means_the_same_images() -> None:
    pixels = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    a, b = (flip_and_shift(pixels, flip=True, max_shift=4, generator=torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(a, b)


def test_no_augmentation_is_identity() -> None:
    pixels = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(flip_and_shift(pixels, flip=False, max_shift=0, generator=torch.Generator()), pixels)


def test_normalise() -> None:
    mean, std = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.25, 0.5, 1.0])
    out = normalise(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), mean, std)
    assert out.shape == (1, 3, 2, 2)
    assert out[0, :, 0, 0].tolist() == [2.0, 1.0, 0.5]


def test_every_crop_is_a_square_of_its_image_as_it_is_or_mirrored() -> None:
    pixels = images(40, 6, seed=1)
    out = crop_and_mirror(pixels, 4, seeded(0))
    assert out.shape == (40, 4, 4, 3)
    seen = set()
    for image, found in zip(pixels, out, strict=True):
        places = {
            (y, x, mirrored)
            for y in range(3)
            for x in range(3)
            for mirrored in (False, True)
            if torch.equal(found, image[y : y + 4, x : x + 4].flip(1) if mirrored else image[y : y + 4, x : x + 4])
        }
        assert len(places) == 1
        seen |= places
    assert len(seen) > 12  # of 18
    assert torch.equal(out, crop_and_mirror(pixels, 4, seeded(0)))


def test_randaugment_comes_first_and_erasing_last() -> None:
    """The paper's order: no operation moves or inverts an erased box."""
    count = 64
    strength = Strength(jitter=0.3, erase_probability=1.0, erase_scale=(0.05, 0.1), randaugment=True, magnitude=29)
    uniform = torch.rand(count, module._FIXED_DRAWS + 4, generator=seeded(5))
    boxes = erase_boxes(uniform[:, 22:44], strength.erase_scale, 32)
    out = augment(images(count, 32, 3).clamp(min=60), strength, seeded(5))
    for image, (top, left, height, width) in zip(out, boxes.int().tolist(), strict=True):
        assert not image[:, top : top + height, left : left + width].any()


def test_squares_reach_beyond_the_border_where_the_image_is_reflected() -> None:
    """All places that torchvision's pad and crop can give, and no other."""
    functional: Any = pytest.importorskip("torchvision.transforms.v2.functional")
    pixels = images(400, 6, seed=1)
    out = crop_and_mirror(pixels, 6, seeded(0), pad=2)
    padded = functional.pad(pixels.permute(0, 3, 1, 2), [2, 2, 2, 2], padding_mode="reflect").permute(0, 2, 3, 1)
    seen = set()
    for image, found in zip(padded, out, strict=True):
        windows = {(y, x): image[y : y + 6, x : x + 6] for y in range(5) for x in range(5)}
        places = {
            (y, x, mirrored)
            for (y, x), window in windows.items()
            for mirrored in (False, True)
            if torch.equal(found, window.flip(1) if mirrored else window)
        }
        assert len(places) == 1
        seen |= places
    assert len(seen) == 50
