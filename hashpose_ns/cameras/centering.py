"""Cameras shifted so that their pictures of one object lie upon each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.recovery import focus
from hashpose_ns.errors import HashPoseError

SHARE = 0.5
"""Share of the way to the distance that a silhouette's size asks for: from other sides an object has another size."""


@dataclass
class CenteringConfig:
    """Shifts cameras before training, where their pictures of an object lie beside each other."""

    mode: Literal["off", "auto"] = "off"
    """Whether cameras are shifted before training.
    `auto` shifts them where pictures are far from each other, for an object on a plain background."""
    threshold: float = 0.88
    """How far pictures lie beside each other for cameras to be shifted.
    In radii of the object. At the true poses silhouettes' centres are 0.15 apart.
    Up to here cameras find home by themselves."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if not self.threshold > 0:
            raise HashPoseError(f"centering.threshold must be above 0, not {self.threshold}.")


def centred(
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    centres: Float[Tensor, "num_cameras 2"],
    areas: Float[Tensor, "num_cameras"],
) -> Tuple[Float[Tensor, "num_cameras 3 4"], float]:
    """Cameras shifted so that the rays through their silhouettes' centres meet in the point nearest to all of them, and
    moved along these rays half of the way to the distance that the silhouettes' areas ask for. Orientations stay.

    Args:
        camera_to_worlds: poses, OpenGL axes.
        centres: silhouettes' centres (x, y) one unit in front of each camera, OpenGL axes.
        areas: silhouettes' areas there, above 0.
    Returns:
        The poses, and the root mean square distance of the rays from that point before, in radii of the object.
    """
    poses = camera_to_worlds.double()
    directions = torch.cat([centres.double(), -torch.ones_like(centres[:, :1]).double()], dim=-1)
    rays = torch.nn.functional.normalize((poses[:, :, :3] * directions[:, None, :]).sum(-1), dim=-1)
    # `focus` takes third columns for the rays, whichever way they point.
    point = focus(torch.cat([poses[:, :, :2], rays[:, :, None], poses[:, :, 3:]], dim=-1))
    to_point = point - poses[:, :, 3]
    along = (to_point * rays).sum(-1)
    across = to_point - along[:, None] * rays
    sizes = (areas.double() / math.pi).sqrt() / directions.norm(dim=-1)
    radius = (along * sizes).median()
    forward = SHARE * (along - radius / sizes)
    moved = poses.clone()
    moved[:, :, 3] += across + forward[:, None] * rays
    apart = float(across.square().sum(-1).mean().sqrt() / radius.abs())
    return moved.to(camera_to_worlds), apart
