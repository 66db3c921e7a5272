"""Settings of the guard; light, because the trainer's configuration holds them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Tuple

from hashpose_ns.errors import HashPoseError

FRACTION, FEWEST_STEPS, MOST_STEPS = 0.05, 200, 2000
"""Steps by default: this fraction of training's, within these bounds."""


@dataclass
class GuardConfig:
    """Configuration of the guard."""

    mode: Literal["off", "report"] = "off"
    """Whether to judge the refined poses after training.
    - report: compare them with the initial poses on held-out pixels, and write the verdict to guard.json.
    - off: do not judge.
    Default: on for `hashpose`, `hashpose-small` and `hashpose-object`; off for the benchmark protocols."""
    fallback_at: Tuple[float, ...] = ()
    """Fractions of training at which poses are judged on the way.
    If refined poses fit held-out pixels worse than the initial ones, cameras go back and are refined more gently.
    At the last fraction they also go back if they fit no better, and then stay.
    Empty never looks."""
    keep_rebased: bool = False
    """At the last look, keep poses that started from matches if they fit no worse.
    What is left to gain there, hundredths of a degree, is less than held-out pixels can tell.
    For fields finer than what matches see."""
    fallback_rate: float = 0.1
    """Factor on the poses' learning rate each time that cameras have gone back, but for the last."""
    steps: int = 0
    """Steps of the judging field on both sets of poses together; 0 takes 5 % of training's.
    Half as many follow on each set alone. 0 takes at least 200 and at most 2000."""
    rays: int = 512
    """Rays a step."""
    held_out: float = 0.15
    """Fraction of each image that the judging field is not trained on."""
    block: float = 0.08
    """Side of the square blocks of held-out pixels, as a fraction of the image's shorter side."""
    coarse: int = 10
    """Size in pixels of photographs that are too small to judge poses by.
    It is the shorter side, and at most a quarter of it is taken.
    Poses are not called better if the judging field explains held-out pixels no better than such photographs do."""
    coarse_alone: int = 14
    """The same where matches between the images cannot tell, as there are none or too few."""
    converging: float = 0.5
    """Share of the cameras' turning that may be towards each other or apart.
    A share of the sum of squares, of turns in proportion to the cameras' places.
    Above it poses are not called better: pixels take such turns for a scene at another depth."""
    stray: float = 30.0
    """Angle in degrees from which a camera that turned so far has to fit clearly better.
    If it does not it is doubtful, and where such cameras did most of all turning, poses are not said to be better."""
    seed: int = 0
    """Seed of blocks, rays and field."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if self.steps < 0 or self.rays < 2:
            raise HashPoseError("The guard needs at least 2 rays, and no negative steps: --guard.steps, --guard.rays.")
        if not (0 < self.held_out < 1 and 0 < self.block < 1):
            raise HashPoseError("The guard's held-out and block are fractions between 0 and 1.")
        if self.coarse < 1 or self.coarse_alone < 1 or self.stray < 0:
            raise HashPoseError(
                "guard.coarse and guard.coarse-alone are numbers of pixels, at least 1, and guard.stray an angle."
            )
        if not 0 <= self.converging <= 1:
            raise HashPoseError("guard.converging is a share between 0 and 1.")
        if not all(0 < fraction < 1 for fraction in self.fallback_at):
            raise HashPoseError("guard.fallback-at holds fractions of training, between 0 and 1.")
        if not 0 <= self.fallback_rate <= 1:
            raise HashPoseError("guard.fallback-rate is a factor between 0 and 1.")

    def with_matches(self, tell: bool) -> GuardConfig:
        """Settings for a comparison in which matches tell, or do not."""
        return self if tell else dataclasses.replace(self, coarse=self.coarse_alone)

    def steps_for(self, training_steps: int) -> int:
        """Steps on both sets of poses, where training took so many."""
        return self.steps or min(max(round(FRACTION * training_steps), FEWEST_STEPS), MOST_STEPS)
