"""Where a trained field is empty, so that rendering need not look there."""

from __future__ import annotations

from typing import Callable, Tuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from nerfstudio.cameras.rays import RayBundle

RESOLUTION = 64
"""Cells along each axis of the unit cube."""
LOOKS = 2
"""Points along each axis of a cell at which the field is asked."""
LEAST_DENSITY = 1.0
"""Density, per scene unit, of something. What is thinner, mostly where no camera looked, is left out: on chair and lego
that changes 0.1 dB at most, either way."""
PLACES = 96
"""Places along a ray: closer to each other than an occupied region is thick, which is three cells at least."""
POINTS_AT_ONCE = 1 << 16

DensityAt = Callable[[Float[Tensor, "points 3"]], Float[Tensor, "points"]]


class OccupiedSpace:
    """Cells of the unit cube in which, or beside which, a field has any density.

    Args:
        density_at: the field's densities at points of the unit cube.
        device: the field's.
    """

    def __init__(self, density_at: DensityAt, device: torch.device) -> None:
        side = RESOLUTION * LOOKS
        axis = (torch.arange(side, device=device) + 0.5) / side
        largest = torch.cat(
            [density_at(part) for part in torch.cartesian_prod(axis, axis, axis).split(POINTS_AT_ONCE)]
        ).view(1, 1, side, side, side)
        cells = functional.max_pool3d(largest, LOOKS)
        self.occupied: Bool[Tensor, "cells"] = (
            functional.max_pool3d(cells, 3, stride=1, padding=1) > LEAST_DENSITY
        ).flatten()

    def contains(self, unit: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Whether points of the unit cube lie in occupied cells."""
        x, y, z = (unit * RESOLUTION).int().clamp_(0, RESOLUTION - 1).unbind(-1)
        return self.occupied[(x * RESOLUTION + y) * RESOLUTION + z]

    def spans(
        self,
        rays: RayBundle,
        to_unit: Callable[[Float[Tensor, "*batch 3"]], Tuple[Float[Tensor, "*batch 3"], Bool[Tensor, "*batch"]]],
    ) -> Tuple[Bool[Tensor, "rays"], Float[Tensor, "rays 1"], Float[Tensor, "rays 1"]]:
        """Where rays meet anything.

        Args:
            rays: [rays], with near and far planes.
            to_unit: takes positions to the unit cube, and tells which are inside.
        Returns:
            Which rays do, and their near and far planes drawn together to it; those of the others stay.
        """
        assert rays.nears is not None and rays.fars is not None
        with torch.no_grad():
            length = (rays.fars - rays.nears) / PLACES
            distances = rays.nears + length * (torch.arange(PLACES, device=rays.nears.device) + 0.5)
            unit, inside = to_unit(rays.origins[:, None] + rays.directions[:, None] * distances[..., None])
            met = (self.contains(unit) & inside).float()
            some = met.amax(dim=-1) > 0
            first, last = met.argmax(dim=-1, keepdim=True), PLACES - met.flip(-1).argmax(dim=-1, keepdim=True)
            near = torch.where(some[:, None], rays.nears + length * first, rays.nears)
            return some, near, torch.where(some[:, None], rays.nears + length * last, rays.fars)
