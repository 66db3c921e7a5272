"""Settings of the search for photographs; light, because hashpose-localize's flags are these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from hashpose_ns.errors import HashPoseError

Strategy = Literal["regions", "points", "random"]


@dataclass
class SearchConfig:
    """How photographs are searched for in a trained field."""

    strategy: Strategy = "regions"
    """Which pixels are compared.
    - regions: those around SIFT's keypoints.
    - points: the keypoints alone.
    - random: any."""
    hypotheses: int = 64
    """Poses the search for a photograph starts from; 1 is iNeRF.
    In rounds they become fewer."""
    attempts: int = 2
    """How often a photograph is searched for until it is found.
    Every attempt starts from other hypotheses."""
    matches: bool = True
    """Also starts from poses by matches with the training images (SIFT, PnP on the field's surface).
    The search ends with these where they explain the photograph."""
    rays: int = 131_072
    """Rays per photograph followed with gradients, in all rounds together.
    More take longer and find more."""
    lr: tyro.conf.Suppress[float] = 0.02
    """Adam's learning rate in the first round.
    In radians, and in distances from the camera to the point all cameras look at."""
    loss: Literal["huber", "mse"] = "huber"
    """Error of colours that is made small."""
    side: Literal["orbit", "camera", "world"] = "orbit"
    """What a hypothesis is turned about.
    - orbit: the point that all cameras look at.
    - camera: its own centre.
    - world: the world's origin."""
    angle: float = 40.0
    """Largest angle in degrees between a rough pose and the hypotheses around it."""
    images: tyro.conf.Suppress[int] = 2
    """Photographs searched for at once; the result is the same up to rounding."""
    seed: int = 0
    """Seed of hypotheses and pixels."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if min(self.hypotheses, self.attempts, self.images) < 1 or self.rays < 1024:
            raise HashPoseError(
                "search.hypotheses, search.attempts and search.images are at least 1, search.rays at least 1024."
            )
        if not (self.lr > 0 and 0 <= self.angle <= 180):
            raise HashPoseError("search.lr is above 0, and search.angle an angle in degrees up to 180.")
