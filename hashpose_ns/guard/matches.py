"""What matches between the images say about two sets of poses: a second opinion beside held-out pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.sfm import epipolar_errors

FEWEST = 20
"""Matches that a camera must have for its median to count."""
FARTHEST = 1000.0
"""Pixels that count for matches beyond that, and for those behind a camera."""


@dataclass(frozen=True, eq=False)
class Disagreement:
    """How far matches are from their epipolar lines at two sets of poses."""

    first: Float[np.ndarray, "num_cameras"]
    """Median over each camera's matches at the first poses, in pixels; NaN where it has too few."""
    second: Float[np.ndarray, "num_cameras"]
    """The same at the second poses."""
    focal: float = math.inf
    """Median focal length of the images, in pixels."""

    @property
    def median_deg(self) -> float:
        """Median over cameras of the distances at the second poses, as an angle in degrees; NaN without any."""
        known = self.second[np.isfinite(self.second)]
        return math.degrees(math.atan(float(np.median(known)) / self.focal)) if len(known) else math.nan

    @property
    def log_ratios(self) -> Float[np.ndarray, "num_matched"]:
        """log(second / first) of the cameras that have matches."""
        known = np.isfinite(self.first) & np.isfinite(self.second)
        # a hundredth of a pixel is less than any keypoint is sure of
        return np.log((self.second[known] + 0.01) / (self.first[known] + 0.01))


def disagreement(
    images: MatchedImages, first: Float[Tensor, "num_cameras 3 4"], second: Float[Tensor, "num_cameras 3 4"]
) -> Disagreement:
    """Compares two sets of poses by matches. The frame of neither matters.

    Args:
        images: keypoints and verified matches.
        first: poses, OpenGL axes.
        second: the same cameras' other poses.
    """
    return Disagreement(_medians(images, first), _medians(images, second), float(np.median(images.focals)))


def _medians(
    images: MatchedImages, camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
) -> Float[np.ndarray, "num_cameras"]:
    poses = camera_to_worlds.detach().to("cpu", torch.float64).numpy()
    of_camera: List[List[Float[np.ndarray, "n"]]] = [[] for _ in range(images.num_images)]
    for (first, second), errors in zip(images.pairs.tolist(), epipolar_errors(images, poses)):
        of_camera[first].append(errors)
        of_camera[second].append(errors)
    together = [np.minimum(np.concatenate(lists), FARTHEST) if lists else np.zeros(0) for lists in of_camera]
    return np.array([np.median(errors) if len(errors) >= FEWEST else np.nan for errors in together])
