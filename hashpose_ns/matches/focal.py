"""Focal lengths from matches: bundle adjustment of poses, points and a focal length for each lens."""

from __future__ import annotations

import dataclasses
from typing import Callable, Optional

import numpy as np
import torch
from jaxtyping import Float, Int

from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.gate import support
from hashpose_ns.matches.sfm import focal_scales, structure_from_given
from hashpose_ns.matches.start import best_structure
from nerfstudio.cameras.cameras import Cameras

ROUNDS = 3
"""How often matches are looked for, with the focal lengths found so far."""
ADJUSTMENTS = 6
"""How often poses, points and focal lengths are adjusted by the same matches."""
SETTLED = 5e-4
"""Relative change of focal lengths that ends this."""
LARGEST = 3.0
"""Most that a focal length may be wrong, as a factor. Beyond it, bundle adjustment has run away."""


def lenses(cameras: Cameras) -> Int[np.ndarray, "num_images"]:
    """Which images have a lens in common: those of equal size and equal intrinsics."""
    numbers = [cameras.width, cameras.height, cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.camera_type]
    rows = [values.reshape(len(cameras), -1).double() for values in numbers]
    if cameras.distortion_params is not None:
        rows.append(cameras.distortion_params.reshape(len(cameras), -1).double())
    return torch.unique(torch.cat(rows, dim=1), dim=0, return_inverse=True)[1].numpy()


def refine_focal_lengths(
    cameras: Cameras,
    matched: Callable[[], MatchedImages],
    camera_to_worlds: Float[np.ndarray, "num_images 3 4"],
    config: MatchConfig,
    known: bool,
) -> Optional[Float[np.ndarray, "num_images"]]:
    """Multiplies the cameras' focal lengths, in both directions alike, by what bundle adjustment finds.

    Images with the same intrinsics share a lens. Principal points and distortion stay. Matches depend on the
    intrinsics, so they are found anew until the focal lengths settle.

    Args:
        cameras: of the images; changed in place.
        matched: finds the matches by the cameras as they are.
        camera_to_worlds: given poses, OpenGL axes.
        config: settings.
        known: whether the given poses say anything.

    Returns:
        What each focal length was multiplied by; None, and the cameras as they were, where matches determine none.
    """
    groups = lenses(cameras)
    fx, fy = cameras.fx.clone(), cameras.fy.clone()
    total = np.ones(len(groups))
    for _ in range(ROUNDS):
        scales = _settled(matched(), camera_to_worlds, config, known, groups)
        if scales is None or (np.abs(np.log(total * scales)) > np.log(LARGEST)).any():
            cameras.fx, cameras.fy = fx, fy
            return None
        if np.abs(scales - 1).max() < SETTLED:
            break  # the matches that were just found are those of the cameras as they are
        total *= scales
        factor = torch.from_numpy(total).to(fx)[:, None]
        cameras.fx, cameras.fy = fx * factor, fy * factor
    return total


def _settled(
    images: MatchedImages,
    camera_to_worlds: Float[np.ndarray, "num_images 3 4"],
    config: MatchConfig,
    known: bool,
    groups: Int[np.ndarray, "num_images"],
) -> Optional[Float[np.ndarray, "num_images"]]:
    """What focal lengths are to be multiplied by, from the same matches over and over."""
    best = best_structure(images, camera_to_worlds, support(images, camera_to_worlds), config, known)
    if best is None:
        return None
    structure, total = best[0], np.ones(len(groups))
    for _ in range(ADJUSTMENTS):
        scales = focal_scales(images, structure, groups)
        if scales is None:
            return None
        total *= scales
        if np.abs(scales - 1).max() < SETTLED:
            break
        # Exact without distortion, and near enough with it.
        points = [seen / scale for seen, scale in zip(images.points, scales)]
        images = dataclasses.replace(images, points=points, focals=images.focals * scales)
        structure = structure_from_given(images, structure.camera_to_worlds, angles=()) or structure
    return total
