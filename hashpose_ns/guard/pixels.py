"""Pixels of the training images, divided into those that judging fields train on and blocks that they never see."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import List, Tuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from hashpose_ns.data.pixel_sampler import edge_density
from hashpose_ns.errors import HashPoseError
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.photometry.pixels import ImagePixels, Pixels
from nerfstudio.data.datasets.base_dataset import InputDataset

EDGE_FRACTION = 0.5
"""Share of pixels, and of blocks, that are drawn where images have structure: flat regions tell poses little."""
EDGE_RADIUS = 0.03
"""Smoothing of that structure, as a fraction of the image's width."""
PIXELS_PER_BLOCK = 32
"""Pixels that are scored per held-out block."""


@dataclass(frozen=True, eq=False)
class SplitPixels:
    """Pixels to train on, and others to judge by."""

    train: Pixels
    """In random order."""
    held_out: Pixels
    """`PIXELS_PER_BLOCK` from each held-out block, block by block."""
    coarse: Pixels
    """The same pixels as photographs show them that are shrunk to `GuardConfig.coarse` pixels on their shorter side."""
    block_cameras: Int[Tensor, "num_blocks"]
    """Index of each held-out block's image."""


def split_pixels(dataset: InputDataset, num_train: int, config: GuardConfig) -> SplitPixels:
    """Chooses blocks of every image to hold out, and draws the pixels to train on from the rest.

    Both follow the images alone, half evenly and half where they have structure, so no set of poses is favoured.

    Args:
        dataset: images, and masks where it has some.
        num_train: number of pixels to train on, of all images together.
        config: fraction and size of the blocks, seed.
    Raises:
        HashPoseError: an image is too small, or its mask leaves too little, to hold a block out.
    """
    generator = torch.Generator().manual_seed(config.seed)
    parts: List[Pixels] = []
    held: List[Pixels] = []
    coarse: List[Pixels] = []
    block_cameras: List[int] = []
    for index in range(len(dataset)):
        image = ImagePixels(dataset, index)
        allowed = image.allowed
        weights = _weights(image.image, allowed)
        blocks, chosen = _choose_blocks(weights, config, generator)
        if len(chosen) == 0 or not bool((allowed & ~torch.isin(blocks, chosen)).any()):
            raise HashPoseError(
                f"The training image {index} is too small, or its mask leaves too little of it, for the guard to hold "
                "out pixels of it; switch it off with --guard.mode off."
            )
        shrunk = _shrunk(image.image, config.coarse)
        for block in chosen:
            held.append(image.at(_draw(weights * (blocks == block), PIXELS_PER_BLOCK, generator)))
            coarse.append(dataclasses.replace(held[-1], colors=_looked_up(shrunk, image.image, held[-1].coordinates)))
            block_cameras.append(index)
        count = num_train * (index + 1) // len(dataset) - num_train * index // len(dataset)
        parts.append(image.at(_draw(weights * ~torch.isin(blocks, chosen), count, generator)))
    order = torch.randperm(num_train, generator=generator)
    return SplitPixels(Pixels.cat(parts)[order], Pixels.cat(held), Pixels.cat(coarse), torch.tensor(block_cameras))


def _weights(image: Float[Tensor, "height width channels"], allowed: Bool[Tensor, "height width"]) -> Tensor:
    """Probabilities, up to a factor, of drawing each pixel."""
    edges = edge_density(image[None], EDGE_RADIUS)[None]
    edges = functional.interpolate(edges, size=image.shape[:2])[0, 0].double() * allowed
    even = allowed.double()
    return (1 - EDGE_FRACTION) * even / even.sum().clamp(min=1) + EDGE_FRACTION * edges / edges.sum().clamp(min=1e-30)


def _shrunk(image: Float[Tensor, "height width channels"], side: int) -> Float[Tensor, "1 channels rows columns"]:
    """The image averaged over square cells, so many of them along its shorter side, but none below 4 pixels."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    side = max(min(side, shorter // 4), 1)
    size = [max(round(side * length / shorter), 1) for length in (height, width)]
    return functional.interpolate(image.permute(2, 0, 1)[None], size=size, mode="area")


def _looked_up(
    shrunk: Float[Tensor, "1 channels rows columns"],
    image: Float[Tensor, "height width channels"],
    coordinates: Float[Tensor, "count 2"],
) -> Float[Tensor, "count channels"]:
    """Colours of a shrunk image at rows and columns of the image it was, between cells by bilinear interpolation."""
    at = 2 * coordinates / torch.tensor(image.shape[:2]) - 1
    grid = at.flip(-1)[None, None].to(shrunk)
    return functional.grid_sample(shrunk, grid, padding_mode="border", align_corners=False)[0, :, 0].T


def _choose_blocks(
    weights: Float[Tensor, "height width"], config: GuardConfig, generator: torch.Generator
) -> Tuple[Int[Tensor, "height width"], Int[Tensor, "chosen"]]:
    """Number of the block that each pixel lies in, and the numbers of those that are held out."""
    height, width = weights.shape
    side = max(2, round(config.block * min(height, width)))
    columns = math.ceil(width / side)
    blocks = (torch.arange(height)[:, None] // side) * columns + torch.arange(width)[None] // side
    sums = torch.zeros(int(blocks.max()) + 1, dtype=torch.float64)
    sums.index_add_(0, blocks.flatten(), weights.flatten())
    count = min(max(1, round(config.held_out * len(sums))), int((sums > 0).sum()) - 1)
    if count < 1:
        return blocks, torch.zeros(0, dtype=torch.long)
    return blocks, torch.multinomial(sums, count, generator=generator)


def _draw(weights: Float[Tensor, "height width"], count: int, generator: torch.Generator) -> Int[Tensor, "count 2"]:
    """Rows and columns of pixels, drawn with replacement. `torch.multinomial` takes 2^24 categories at most."""
    cumulative = weights.flatten().cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    flat = torch.searchsorted(cumulative, drawn, right=True).clamp(max=weights.numel() - 1)
    return torch.stack([flat // weights.shape[1], flat % weights.shape[1]], dim=-1)
