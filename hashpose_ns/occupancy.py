"""Where the field is known to be empty, so that samples there need not be computed."""

from __future__ import annotations

from typing import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class OccupancyGrid(nn.Module):
    """Running maxima of the density over cells of the grid's unit cube.

    A sample whose opacity is next to nothing adds nothing to a colour, and its gradient, which exp and softplus scale
    with the density itself, is next to nothing too. Leaving such samples out therefore changes neither the image nor
    what poses feel, unlike samplers that move samples to surfaces. Neighbouring cells count as occupied, so that a
    surface may move.

    Args:
        resolution: cells per axis.
    """

    density: Float[Tensor, "resolution resolution resolution"]

    def __init__(self, resolution: int = 32) -> None:
        super().__init__()
        self.resolution = resolution
        # Everything counts as occupied until it was looked at.
        self.register_buffer("density", torch.full((resolution,) * 3, 1e10))

    @torch.no_grad()
    def update(self, density_at: Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n 1"]], step: int, parts: int = 4) -> None:
        """Looks at a random point in each cell of one slab of the grid; `parts` calls look at all of them.

        Args:
            density_at: densities of points of the unit cube.
            step: counts the calls, and so says which slab.
            parts: number of slabs.
        """
        flat = self.density.flatten()
        cells = torch.arange(step % parts, len(flat), parts, device=flat.device)
        n = self.resolution
        corners = torch.stack([cells // (n * n), cells // n % n, cells % n], dim=-1)
        points = (corners + torch.rand(len(cells), 3, device=flat.device)) / n
        seen = density_at(points)[:, 0]
        first = flat[cells] >= 1e10
        flat[cells] = torch.where(first, seen, torch.maximum(0.8 * flat[cells], seen))
        self.density = flat.view_as(self.density)

    def upper_bound(self) -> Float[Tensor, "resolution resolution resolution"]:
        """Per cell, the largest density seen in it and the cells around it."""
        return functional.max_pool3d(self.density[None, None], 3, stride=1, padding=1)[0, 0]

    def occupied(
        self, unit: Float[Tensor, "*batch 3"], deltas: Float[Tensor, "*batch 1"], opacity: float
    ) -> Bool[Tensor, "*batch"]:
        """Which samples may be more opaque than `opacity`.

        Args:
            unit: positions in the unit cube.
            deltas: lengths of the samples along their rays.
            opacity: threshold on density times length.
        """
        cells = (unit.detach() * self.resolution).long().clamp(0, self.resolution - 1)
        bound = self.upper_bound()[cells[..., 0], cells[..., 1], cells[..., 2]]
        return bound * deltas[..., 0] > opacity
