"""Which image is explained how well: a running mean of the squared colour error, per image and over all."""

from __future__ import annotations

from typing import Optional

import torch
from jaxtyping import Float, Int
from torch import Tensor

MEMORY = 0.99
"""Weight of a step's sums in the next step's: a memory of about 100 steps."""


class ImageLosses:
    """Running means of squared colour errors. Adding to them waits for no device.

    Args:
        num_images: number of training images.
        device: where the batches are.
    """

    def __init__(self, num_images: int, device: torch.device) -> None:
        # rows: sum of squared errors per image, and how many rays they come from; the last column is over all images
        self.sums = torch.zeros(2, num_images + 1, device=device)

    @torch.no_grad()
    def add(self, images: Int[Tensor, "rays"], errors: Float[Tensor, "rays 3"]) -> None:
        """Takes in a step's rays.

        Args:
            images: index of each ray's image.
            errors: predicted minus true colours.
        """
        squares = errors.detach().square().mean(-1).float()
        values = torch.stack([squares, torch.ones_like(squares)])
        self.sums.mul_(MEMORY).index_add_(1, images.to(squares.device), values)
        self.sums[:, -1] += values.sum(-1)

    def overall(self) -> Float[Tensor, ""]:
        """Mean squared error over all images, still on the device."""
        return self.sums[0, -1] / self.sums[1, -1]

    @staticmethod
    def means(sums: Optional[Float[Tensor, "2 columns"]]) -> Optional[Float[Tensor, "columns"]]:
        """Mean squared errors of each image, and last of all together, from a copy of `sums`; NaN where no ray came
        from an image yet."""
        return None if sums is None else sums[0] / sums[1]
