"""Pictures of one object, brought upon each other before training."""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.centering import CenteringConfig, centred
from hashpose_ns.cameras.perturbation import identity_poses
from hashpose_ns.photometry.pixels import ImagePixels, pixel_rays, posed_cameras
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.strategy import PoseStrategy, Say

PIXELS = 4096
"""Pixels that a silhouette is measured by."""

SEEN = (0.002, 0.8)
"""Shares of a picture that an object on a background can take."""

CUT, STANDS_OUT = 0.02, 0.1
"""Share of a picture's outermost pixels that may differ from the background by so much. More of them are an object that
the frame cuts, whose centre is not that of what is seen, or no plain background."""


class CentrePictures(PoseStrategy):
    """Shifts cameras before training, where an object's pictures lie far beside each other. Turns and shifts then have
    little left to take each other's place in. Cameras that are near the truth, whose pictures agree, stay.

    Args:
        config: settings.
    """

    def __init__(self, config: CenteringConfig) -> None:
        self.config = config

    def validate(self) -> None:
        self.config.validate()

    def prepare(self, scene: PosedScene, resumed: bool, say: Say) -> None:
        poses = scene.poses
        if self.config.mode == "off" or resumed or poses.config.mode == "off" or poses.is_trusted:
            return
        if getattr(scene.model_config, "scene", None) != "none":
            return
        found = silhouettes(scene)
        seen = [index for index, silhouette in enumerate(found) if silhouette is not None]
        if 2 * len(seen) < len(found) or len(seen) < 3:
            return
        start = poses.base_camera_to_worlds.detach().cpu()
        centres, areas = (torch.stack(parts) for parts in zip(*(found[index] for index in seen)))  # type: ignore[misc]
        moved, apart = centred(start[seen], centres, areas)
        if not apart > self.config.threshold:
            return
        start[seen] = moved
        poses.rebase(start, trusted=False)
        say(
            f"centering: cameras are shifted first, as their pictures lie {apart:.2g} of the object's radius apart "
            "(--centering.mode off leaves them)"
        )


def silhouettes(scene: PosedScene) -> List[Optional[Tuple[Float[Tensor, "2"], Float[Tensor, ""]]]]:
    """Centre (x, y) and area of what stands out from the background in each training image, one unit in front of the
    camera, OpenGL axes; None for an image that shows no object, not all of it, or no background."""
    generator = torch.Generator().manual_seed(0)
    return [_silhouette(scene, index, generator) for index in range(len(scene.train))]


def _silhouette(
    scene: PosedScene, index: int, generator: torch.Generator
) -> Optional[Tuple[Float[Tensor, "2"], Float[Tensor, ""]]]:
    image = ImagePixels(scene.train, index)
    if image.count == 0:
        return None
    background = {"white": 1.0, "black": 0.0}.get(scene.model_config.background_color, math.nan)
    if image.image.shape[-1] != 4 and math.isnan(background):
        return None

    def standing_out(colors: Float[Tensor, "pixels channels"]) -> Float[Tensor, "pixels"]:
        return colors[:, 3] if colors.shape[-1] == 4 else (colors - background).abs().amax(dim=-1)

    outermost = torch.ones_like(image.allowed)
    outermost[1:-1, 1:-1] = False
    border = standing_out(image.image[outermost & image.allowed])
    if len(border) == 0 or float((border > STANDS_OUT).float().mean()) > CUT:
        return None
    pixels = image.draw(PIXELS, generator)
    weights = standing_out(pixels.colors)
    share = weights.mean()
    if not SEEN[0] < float(share) < SEEN[1]:
        return None
    camera = posed_cameras(scene.train, identity_poses(1), torch.device("cpu"), [index])
    rays = pixel_rays(camera, pixels, torch.zeros_like(pixels.images))
    places = rays.directions[:, :2] / -rays.directions[:, 2:]
    area = share * image.count / (camera.fx[0, 0] * camera.fy[0, 0])
    return (weights[:, None] * places).sum(0) / weights.sum(), area
