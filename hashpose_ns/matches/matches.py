"""Matches between training images, as plain tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Matches:
    """Geometrically verified point matches between training images.

    A point is given where its ray meets the camera's plane at depth 1: distortion is taken out, x points right and y
    down, the camera looks along +z (OpenCV's axes). Times the focal length this is pixels from the principal point.
    """

    images: Int[Tensor, "matches 2"]
    """Indices of the two training images of each match; the first is the smaller one."""
    points: Float[Tensor, "matches 2 2"]
    """Where the match is seen in either image."""
    focals: Float[Tensor, "num_images"]
    """Mean focal length of each training camera, in pixels of its image."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_images(self) -> int:
        """Number of training images, matched or not."""
        return len(self.focals)

    def to(self, device: torch.device | str) -> Matches:
        """The same on another device."""
        return Matches(self.images.to(device), self.points.to(device), self.focals.to(device))
