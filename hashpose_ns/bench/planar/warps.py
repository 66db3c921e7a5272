"""Homographies of the plane as exponentials of sl(3), and how far apart two sets of them are.

Image coordinates are BARF's: x to the right and y down, the image's centre at the origin, its longer side from -1 to 1.
A warp maps a patch's own coordinates (those of the crop in the image's middle) to where its pixels lie in the image.
"""

from __future__ import annotations

from typing import Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.errors import HashPoseError

# Columns of a twist: x and y translation, shear xy and yx, the diagonal's two degrees of freedom, the perspective row.
_GENERATORS = torch.tensor(
    [
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 0, 0]],
        [[0, 1, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [1, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [0, -1, 0], [0, 0, 0]],
        [[0, 0, 0], [0, -1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 1, 0]],
    ]
)


def homographies(twists: Float[Tensor, "*batch 8"]) -> Float[Tensor, "*batch 3 3"]:
    """exp(sum_k h_k G_k), of determinant 1, with generators in the order of BARF's planar experiment (Lin et al. 2021):
    the twist h1 .. h8 is the matrix ``[[h5, h3, h1], [h4, -h5 - h6, h2], [h7, h8, h6]]``."""
    generators = _GENERATORS.to(twists)
    return torch.linalg.matrix_exp(torch.einsum("...k,kij->...ij", twists, generators))


def warp_points(
    matrices: Float[Tensor, "*batch 3 3"], points: Float[Tensor, "*batch num 2"]
) -> Float[Tensor, "*batch num 2"]:
    """Points under homographies."""
    warped = points @ matrices[..., :, :2].transpose(-2, -1) + matrices[..., None, :, 2]
    return warped[..., :2] / warped[..., 2:]


def patch_corners(side: int, longer: int) -> Float[Tensor, "4 2"]:
    """Outer corners of the middle crop of ``side`` pixels, in turn, for an image whose longer side has ``longer``."""
    half = side / longer
    return torch.tensor([[-half, -half], [half, -half], [half, half], [-half, half]])


def patch_grid(side: int, longer: int) -> Float[Tensor, "pixels 2"]:
    """Centres of the middle crop's pixels, row by row."""
    line = (2 * torch.arange(side) + 1 - side) / longer
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def anchored(
    recovered: Float[Tensor, "patches 3 3"], true: Float[Tensor, "patches 3 3"]
) -> Float[Tensor, "patches 3 3"]:
    """The recovered warps in the true image's frame: moved together, so that those of the first patch agree.

    The colours of the patches say nothing about where the picture lies as a whole: warps ``G T_i`` with any homography
    G fit as well as the true ``T_i``.
    """
    return true[0] @ torch.linalg.inv(recovered[0]) @ recovered


def corner_errors(
    recovered: Float[Tensor, "patches 3 3"], true: Float[Tensor, "patches 3 3"], side: int, longer: int
) -> Float[Tensor, "others"]:
    """Mean distance of a patch's four corners from where they belong, in pixels, for every patch but the anchor.

    Args:
        recovered: warps of the patches, the anchor first, in any common frame.
        true: the warps they were cut with.
        side: pixels along a patch's side.
        longer: pixels along the image's longer side.
    """
    recovered, true = recovered.double(), true.double()
    corners = patch_corners(side, longer).double().expand(len(true), 4, 2)
    gaps = warp_points(anchored(recovered, true), corners) - warp_points(true, corners)
    return gaps.norm(dim=-1).mean(dim=-1)[1:] * longer / 2


def sample_twists(
    noise: float, translation: float, side: int, size: Tuple[int, int], generator: torch.Generator
) -> Float[Tensor, "5 8"]:
    """The warps of BARF's planar experiment: an anchor that stays and four patches towards the image's corners.

    Every twist is normal with deviation ``noise``; the four are then moved by ``translation`` along both axes, each
    into its quadrant. A twist that takes a corner out of the image is drawn again.

    Args:
        noise: standard deviation of the twist.
        translation: distance along each axis, in units of half the image's longer side.
        side: pixels along a patch's side.
        size: width and height of the image in pixels.
        generator: source of randomness.

    Raises:
        HashPoseError: if no draw of a thousand stays within the image.
    """
    longer = max(size)
    corners, limit = patch_corners(side, longer), torch.tensor(size) / longer
    twists = torch.zeros(5, 8)
    for patch, quadrant in enumerate([(-1, -1), (-1, 1), (1, -1), (1, 1)], start=1):
        for _ in range(1000):
            twist = noise * torch.randn(8, generator=generator)
            twist[:2] += translation * torch.tensor(quadrant)
            if bool((warp_points(homographies(twist), corners).abs() <= limit).all()):
                break
        else:
            raise HashPoseError("Such warps take patches out of the photograph; lower --noise or --translation.")
        twists[patch] = twist
    return twists
