"""How one camera's rays move by themselves (local-to-global registration), as a grid over its photograph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ContextManager, Optional

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hashpose_ns.cameras.local_to_global import GRID, LocalToGlobal
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.viewer.colors import SELECTED, START
from hashpose_ns.viewer.matching import photograph

LARGEST = 0.5
"""Length of the longest motion in the picture, in steps of the grid."""

MOST = 10_000.0
"""Factor on motions at most: beyond are roundings."""


@dataclass(frozen=True, eq=False)
class WarpField:
    """Where a camera's rays pass a photograph, and where they go."""

    before: Float[np.ndarray, "points 2"]
    """Column and row of each ray of the grid, in pixels of the training image, without distortion."""
    after: Float[np.ndarray, "points 2"]
    """The same of the ray as it has moved, seen by the camera at its registered pose: what is not rigid is left."""

    @property
    def largest(self) -> float:
        """Longest motion, in pixels."""
        return float(np.linalg.norm(self.after - self.before, axis=1).max())

    @property
    def factor(self) -> float:
        """By how much motions are drawn larger, 1, 2 or 5 times a power of ten."""
        step = np.abs(np.diff(self.before.reshape(GRID, GRID, 2), axis=0)).max()
        wanted = min(LARGEST * float(step) / max(self.largest, 1e-12), MOST)
        power = 10.0 ** math.floor(math.log10(wanted))
        return max(factor for factor in (power, 2 * power, 5 * power) if factor <= wanted * (1 + 1e-9))


def rays_move(poses: PoseOptimizer) -> bool:
    """Whether rays move by themselves now."""
    return isinstance(poses, LocalToGlobal) and poses.warping


def warp_field(scene: PosedScene, index: int, lock: ContextManager) -> Optional[WarpField]:
    """How a training camera's rays move; None where cameras move and not their rays.

    Args:
        scene: the run.
        index: the camera.
        lock: held while poses are read, so that no training step is under way.
    """
    poses = scene.poses
    camera = scene.train.cameras[index]
    lens = torch.cat([camera.fx, -camera.fy]).cpu().double(), torch.cat([camera.cx, camera.cy]).cpu().double()

    def pixels(places: Float[Tensor, "points 2"]) -> np.ndarray:
        return (places.cpu().double() * lens[0] + lens[1]).numpy()

    with lock:
        if not isinstance(poses, LocalToGlobal) or not poses.warping:
            return None
        before, after = poses.warped_places(index)
    return WarpField(pixels(before), pixels(after))


def warp_picture(scene: PosedScene, index: int, field: WarpField) -> UInt8[np.ndarray, "height width 3"]:
    """A photograph with the grid of rays in grey, and in colour where they have moved, `field.factor` times as far.

    Args:
        scene: the run.
        index: the training camera that `field` is of.
        field: how its rays move.
    """
    from PIL import Image, ImageDraw

    image = Image.fromarray(photograph(scene, index))
    pen = ImageDraw.Draw(image)
    scale = image.width / float(scene.train.cameras[index].width)
    moved = field.before + field.factor * (field.after - field.before)
    for places, color in ((field.before, START), (moved, SELECTED)):
        grid = scale * places.reshape(GRID, GRID, 2)
        for line in (*grid, *grid.swapaxes(0, 1)):
            pen.line([(float(x), float(y)) for x, y in line], fill=tuple(color), width=2)
    return np.asarray(image)


def warp_text(field: WarpField) -> str:
    """What the picture shows."""
    return f"Rays off their camera's motion by {field.largest:.2g} px at most, drawn {field.factor:g} times as large."
