"""Which pixels of a photograph tell most about its camera: interest points and the regions around them (iNeRF)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hashpose_ns.photometry.pixels import ImagePixels
from hashpose_ns.photometry.search_config import Strategy

KERNEL, DILATIONS = 5, 3
"""Edge of the square that interest points are dilated with, and how often: iNeRF's interest regions."""


def interest_points(
    image: Float[Tensor, "height width 3"], allowed: Bool[Tensor, "height width"]
) -> Bool[Tensor, "height width"]:
    """Pixels with a keypoint of SIFT.

    Args:
        image: colours in [0, 1], on the CPU.
        allowed: where keypoints may be.
    """
    import cv2

    picture = (image.clamp(0.0, 1.0) * 255.0).round().byte().numpy()
    gray = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    found = cv2.SIFT_create().detect(gray, np.ascontiguousarray(allowed.numpy().astype(np.uint8)))  # type: ignore[attr-defined]
    points = torch.zeros_like(allowed)
    for keypoint in found:
        column, row = (int(coordinate) for coordinate in keypoint.pt)
        points[row, column] = True
    return points & allowed


def interest_region(
    image: Float[Tensor, "height width 3"], allowed: Bool[Tensor, "height width"], strategy: Strategy
) -> Bool[Tensor, "height width"]:
    """The pixels that a strategy draws from.

    Args:
        image: colours in [0, 1], on the CPU.
        allowed: which pixels count.
        strategy: `random` takes all of them, `points` those with a keypoint, `regions` those around a keypoint.
    """
    if strategy == "random":
        return allowed
    points = interest_points(image, allowed)
    if strategy == "points":
        return points
    import cv2

    kernel = np.ones((KERNEL, KERNEL), np.uint8)
    dilated = cv2.dilate(points.numpy().astype(np.uint8), kernel, iterations=DILATIONS)
    return torch.from_numpy(dilated > 0) & allowed


def pixels_of_interest(image: ImagePixels, strategy: Strategy, at_least: int) -> ImagePixels:
    """An image of which only the pixels of a strategy count, filled up with random ones where they are too few.

    Args:
        image: without alpha.
        strategy: as in `interest_region`.
        at_least: how many pixels are to count.
    """
    if strategy == "random":
        return image
    return image.within(interest_region(image.image, image.allowed, strategy), at_least)
