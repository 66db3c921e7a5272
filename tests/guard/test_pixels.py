"""Held-out pixels: blocks that the judging field never sees, chosen by the images alone."""

from __future__ import annotations

import pytest
import torch

from hashpose_ns.errors import HashPoseError
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.pixels import PIXELS_PER_BLOCK, split_pixels

pytestmark = pytest.mark.usefixtures("unchecked")  # lists stand in for datasets
SIZES = [(40, 60), (40, 60), (75, 50)]


@pytest.fixture(scope="module")
def images():
    """Pictures that say in their first two channels which row and column a pixel is, with a flat left third."""
    generator = torch.Generator().manual_seed(0)
    data = []
    for height, width in SIZES:
        image = torch.rand(height, width, 3, generator=generator)
        image[..., 0], image[..., 1] = torch.arange(height)[:, None] / 100, torch.arange(width) / 100
        image[:, : width // 3, 2] = 0.5
        data.append({"image": image})
    return data


def block_of(pixels, config: GuardConfig) -> set:
    """(image, block row, block column) of every pixel."""
    sides = torch.tensor([max(2, round(config.block * min(size))) for size in SIZES])
    blocks = pixels.coordinates.long() // sides[pixels.images, None]
    return set(map(tuple, torch.cat([pixels.images[:, None], blocks], dim=1).tolist()))


def test_no_block_is_both_seen_and_held_out(images):
    config = GuardConfig()
    split = split_pixels(images, 20_000, config)
    seen, held_out = block_of(split.train, config), block_of(split.held_out, config)
    assert not seen & held_out
    for index, size in enumerate(SIZES):
        of_image = {block for block in held_out if block[0] == index}
        share = len(of_image) / (len(of_image) + sum(block[0] == index for block in seen))
        assert share == pytest.approx(config.held_out, abs=0.04)
        assert int((split.block_cameras == index).sum()) == len(of_image)
        assert int((split.train.images == index).sum()) in (6666, 6667), "every image has its share of rays"


def test_colours_are_those_of_the_pixels(images):
    split = split_pixels(images, 999, GuardConfig())
    for pixels in (split.train, split.held_out):
        torch.testing.assert_close(pixels.colors[:, :2], (pixels.coordinates - 0.5) / 100)
        sizes = torch.tensor(SIZES)[pixels.images]
        assert bool((pixels.coordinates > 0).all() and (pixels.coordinates < sizes).all())
    assert len(split.held_out.images) == PIXELS_PER_BLOCK * len(split.block_cameras)
    assert torch.equal(split.held_out.images, split.block_cameras.repeat_interleave(PIXELS_PER_BLOCK))
    assert not torch.equal(split.train.images, split.train.images.sort().values), "training sees images in disorder"


def test_coarse_colours_are_those_of_shrunk_images(images):
    """Ramps survive shrinking, noise and edges do not; one pixel is the mean."""
    split = split_pixels(images, 999, GuardConfig(coarse=10))
    assert torch.equal(split.coarse.coordinates, split.held_out.coordinates)
    sizes = torch.tensor(SIZES)[split.coarse.images]
    inside = ((split.coarse.coordinates > 5) & (split.coarse.coordinates < sizes - 5)).all(dim=1)
    ramps = split.coarse.colors[inside, :2], split.held_out.colors[inside, :2]
    torch.testing.assert_close(*ramps, atol=1e-3, rtol=0)
    right = split.held_out.coordinates[:, 1] > sizes[:, 1] / 2
    assert float(split.coarse.colors[right, 2].std()) < 0.4 * float(split.held_out.colors[right, 2].std())

    mean = split_pixels(images, 999, GuardConfig(coarse=1)).coarse
    square = mean.images == 0  # 40 x 60: one row, of two columns
    assert len(mean.colors[square, 0].unique()) == 1
    assert float(mean.colors[square, 0][0]) == pytest.approx(0.195, abs=1e-6)


def test_structure_is_looked_at_more_often_than_flat_regions(images):
    train = split_pixels(images, 30_000, GuardConfig()).train
    widths = torch.tensor([size[1] for size in SIZES])[train.images]
    flat = (train.coordinates[:, 1] < 0.25 * widths).double().mean()
    assert 0.08 < float(flat) < 0.2, "a quarter of the area; half of the pixels are drawn evenly"


def test_the_seed_decides_and_the_number_of_rays_does_not(images):
    first, again, longer = (split_pixels(images, count, GuardConfig(seed=1)) for count in (100, 100, 5000))
    other = split_pixels(images, 100, GuardConfig(seed=2))
    assert torch.equal(first.train.coordinates, again.train.coordinates)
    assert block_of(first.held_out, GuardConfig()) != block_of(other.held_out, GuardConfig())
    of_first_image = [split.held_out.coordinates[split.held_out.images == 0] for split in (first, longer)]
    assert torch.equal(*of_first_image)


def test_masked_pixels_are_neither_seen_nor_scored(images):
    masked = [dict(data, mask=torch.ones(*data["image"].shape[:2], 1, dtype=torch.bool)) for data in images]
    for data in masked:
        data["mask"][:, : data["mask"].shape[1] // 2] = False
    split = split_pixels(masked, 5000, GuardConfig())
    for pixels in (split.train, split.held_out):
        widths = torch.tensor([size[1] for size in SIZES])[pixels.images]
        assert bool((pixels.coordinates[:, 1] > widths // 2).all())


def test_an_image_without_room_is_named(images):
    masked = [*images, {"image": torch.rand(20, 20, 3), "mask": torch.zeros(20, 20, 1, dtype=torch.bool)}]
    with pytest.raises(HashPoseError, match="training image 3 is too small, or its mask"):
        split_pixels(masked, 100, GuardConfig())
