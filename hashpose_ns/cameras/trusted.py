"""The schedule after a trusted start, whose poses are off by tenths of a degree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from hashpose_ns.errors import HashPoseError


@dataclass
class TrustedStartConfig:
    """Schedule where training starts at poses that are trusted, in place of the one for poses that are far off."""

    start: float = 0.2
    """Fraction of training before which photographs do not move poses."""
    warmup: float = 0.05
    """Fraction of training, from `start` on, during which the poses' learning rate rises linearly from 0."""
    rate: float = 0.1
    """Factor on the poses' learning rate."""
    window: Tuple[float, float] = (0.0, 0.1)
    """The curriculum's window, in fractions of training.
    Fine levels may open before poses move: they are right."""

    direction_start: float = 0.2
    """Fraction of training before which colour ignores the view direction.
    The decoder's own fraction holds where that is smaller."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if not (0 <= self.start and 0 <= self.warmup and self.start + self.warmup <= 1):
            raise HashPoseError(
                "camera-optimizer.trusted.start and .warmup are fractions of training; their sum is at most 1."
            )
        if not 0 <= self.direction_start <= 1:
            raise HashPoseError("camera-optimizer.trusted.direction-start is a fraction of training.")
        if self.rate < 0:
            raise HashPoseError(f"camera-optimizer.trusted.rate is a factor, not {self.rate}.")
