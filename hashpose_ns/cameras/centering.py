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

TRUE_SPREAD = 0.15
"""Root mean square distance, in radii of the object, of silhouettes' central rays from their common point at the true
poses: from other sides an object has another centre."""
MOST_ALONG = 0.5
"""Largest share of the way along the rays: some silhouettes' sizes are far from the others', which Wiener's filter does
not expect."""


@dataclass
class CenteringConfig:
    """Shifts cameras before training, where their pictures of an object lie beside each other."""

    mode: Literal["off", "auto"] = "off"
    """Whether cameras are shifted before training.
    `auto` shifts them where pictures are far from each other, for an object on a plain background."""
    threshold: float = 0.5
    """How far pictures lie beside each other for cameras to be shifted.
    In radii of the object. At true poses silhouettes' centres are 0.15 apart.
    Where frames cut objects they are 0.42 apart at most."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if not self.threshold > 0:
            raise HashPoseError(f"centering.threshold must be above 0, not {self.threshold}.")


def centred(
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    centres: Float[Tensor, "num_cameras 2"],
    areas: Float[Tensor, "num_cameras"],
) -> Tuple[Float[Tensor, "num_cameras 3 4"], float]:
    """Cameras shifted towards where the rays through their silhouettes' centres meet in the point nearest to all of
    them, and along these rays towards the distance that the silhouettes' areas ask for. Orientations stay.

    Neither a silhouette's centre nor its area is the same from all sides, so cameras go a part of the way: the share
    of the variance that is the cameras' own (Wiener's, for errors that are alike along all axes), and at most half of
    the way along the rays. Their variance is that of the rays beyond what they have at true poses.

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
    radius = float((along * sizes).median().abs())
    forward = along - radius / sizes
    spread = float(across.square().sum(-1).mean())
    error = max(spread - (TRUE_SPREAD * radius) ** 2, 0.0)  # of two axes
    share_across = error / max(spread, 1e-12)
    share_along = min(error / 2 / max(float((forward - forward.median()).square().mean()), 1e-12), MOST_ALONG)
    moved = poses.clone()
    moved[:, :, 3] += share_across * across + (share_along * forward)[:, None] * rays
    return moved.to(camera_to_worlds), spread**0.5 / radius
