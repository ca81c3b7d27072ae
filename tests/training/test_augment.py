from __future__ import annotations

import torch

from qdeploy.training.augment import flip_and_shift, normalise


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
