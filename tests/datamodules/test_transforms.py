"""Augmentation: what it does to an image, and that only seed, epoch and index decide it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import AugmentedImages, BatchSource

N = 64
ALL = torch.arange(N)
# Every pixel of every channel of every image is told from the others in its image.
IMAGES = (torch.arange(3 * 32 * 32) % 251).to(torch.uint8).view(1, 3, 32, 32).repeat(N, 1, 1, 1)


def epoch(number: int = 0, indices: Tensor = ALL, **options: Any) -> Tensor:
    augmented = AugmentedImages(IMAGES, **options)
    augmented.set_epoch(number)
    return augmented[indices]


def shifted(down: int, right: int, pixels: int) -> Tensor:
    """The image moved by as much, with its reflection at the borders, done the long way."""
    rows = [reflect(i + down - pixels) for i in range(32)]
    columns = [reflect(j + right - pixels) for j in range(32)]
    return IMAGES[0][:, rows][:, :, columns]


def reflect(i: int) -> int:
    return -i if i < 0 else 62 - i if i > 31 else i


def test_a_crop_is_a_shift_with_reflected_borders() -> None:
    pixels = 2
    every = {(d, r): shifted(d, r, pixels) for d in range(5) for r in range(5)}
    seen = set()
    for number in range(5):
        for image in epoch(number, crop=pixels):
            seen |= {shift for shift, expected in every.items() if torch.equal(image, expected)}
            assert any(torch.equal(image, expected) for expected in every.values())
    assert seen == set(every)  # all 25 occur


def test_random_flips_are_drawn_anew_in_every_epoch() -> None:
    mirrored = [
        [torch.equal(image, IMAGES[0].flip(2)) for image in epoch(number, flip="random")]
        for number in range(2)
    ]
    assert mirrored[0] != mirrored[1]
    assert all(N / 4 < sum(found) < N * 3 / 4 for found in mirrored)


def test_alternating_flips_show_every_image_both_ways_in_two_epochs() -> None:
    first, second, third = (epoch(number, flip="alternating") for number in range(3))
    assert torch.equal(second, first.flip(3))
    assert torch.equal(third, first)
    assert 0 < sum(torch.equal(image, IMAGES[0]) for image in first) < N


@pytest.mark.parametrize("side", [1, 4, 7])
def test_cutout_paints_a_square(side: int) -> None:
    fill = torch.tensor([252, 253, 254], dtype=torch.uint8).view(3, 1, 1)
    whole = 0
    for image in epoch(cutout=side, fill=fill):
        painted = (image == fill).all(0)
        assert torch.equal(image[:, ~painted], IMAGES[0][:, ~painted])
        rows, columns = painted.any(1).sum(), painted.any(0).sum()
        assert painted.sum() == rows * columns  # a rectangle, cut off at the border
        assert 0 < rows <= side
        whole += bool(rows == columns == side)
    assert whole > N / 4


def test_everything_off_changes_nothing() -> None:
    assert torch.equal(epoch(), IMAGES)


@pytest.mark.parametrize(
    "options", [{"crop": 4}, {"flip": "random"}, {"flip": "alternating"}, {"cutout": 8}]
)
def test_an_image_depends_on_seed_epoch_and_index_alone(options: dict[str, Any]) -> None:
    whole = epoch(3, seed=5, **options)
    chosen = torch.tensor([7, 3, 60])
    torch.manual_seed(1)
    assert torch.equal(epoch(3, chosen, seed=5, **options), whole[chosen])
    assert not torch.equal(epoch(4, seed=5, **options), whole)
    assert not torch.equal(epoch(3, seed=6, **options), whole)


def test_batch_source_augments_and_announces_the_epoch() -> None:
    def images_of(number: int) -> dict[int, Tensor]:
        augmented = AugmentedImages(IMAGES, crop=2, flip="random", seed=1)
        source = BatchSource(augmented, ALL, batch_size=10, shuffle_seed=1)
        source.sampler.set_epoch(number)
        return {
            int(i): x for images, indices in source for x, i in zip(images, indices, strict=True)
        }

    found = images_of(2)
    whole = epoch(2, crop=2, flip="random", seed=1)
    assert sorted(found) == [*range(N)]
    assert all(torch.equal(image, whole[i]) for i, image in found.items())


def test_processes_share_one_augmented_epoch() -> None:
    augmented = AugmentedImages(IMAGES, crop=2, seed=1)
    whole = augmented[ALL]
    seen: list[int] = []
    for rank in range(2):
        source = BatchSource(augmented, ALL, batch_size=8, shuffle_seed=1, rank=rank, world_size=2)
        for images, indices in source:
            assert torch.equal(images, whole[indices])
            seen += indices.tolist()
    assert sorted(seen) == [*range(N)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": -1}, "data.crop must be 0 to 31 pixels, got -1"),
        ({"crop": 32}, "data.crop must be 0 to 31 pixels, got 32"),
        ({"cutout": 33}, "data.cutout must be 0 to 32 pixels, got 33"),
        ({"flip": "up"}, "data.flip must be none, random or alternating, got up"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentedImages(IMAGES, **options)
