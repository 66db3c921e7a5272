"""How refinement moved the cameras: by how much each, and how much of it in the one way that pixels hardly see."""

from __future__ import annotations

from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Movement:
    """What separates two sets of poses of the same cameras, aligned to each other."""

    degrees: Float[Tensor, "num_cameras"]
    """Angle between each camera's two orientations, float64."""
    converging: float
    """Share of these turns, as a sum of squares, by which cameras turn towards each other or apart, each in proportion
    to its place; see `movement`."""


def movement(first: Float[Tensor, "num_cameras 3 4"], second: Float[Tensor, "num_cameras 3 4"]) -> Movement:
    r"""How cameras moved from one set of poses to another.

    Cameras side by side that all turn towards each other, :math:`w_i = k\, p_i \times a_i` for a camera at
    :math:`p_i` from the middle that looks along :math:`a_i`, see the same photographs of a scene at another depth, to
    first order. A field explains either. For cameras around an object :math:`p_i \times a_i` vanishes.

    Args:
        first: poses in any frame.
        second: the same cameras' other poses, aligned to the first ones.
    """
    first, second = first.double().cpu(), second.double().cpu()
    turns = roma.rotmat_to_rotvec(second[:, :, :3] @ first[:, :, :3].mT)
    places, axes = first[:, :, 3] - first[:, :, 3].mean(dim=0), -first[:, :, 2]
    towards = torch.linalg.cross(places, axes)
    towards = towards - towards.mean(dim=0)
    # the ridge: what vanishes but for rounding is no way to turn
    size = towards.square().sum() + 1e-6 * places.square().sum()
    along = (towards * turns).sum().square() / size.clamp(min=1e-30)
    return Movement(torch.rad2deg(turns.norm(dim=-1)), float(along / turns.square().sum().clamp(min=1e-30)))
