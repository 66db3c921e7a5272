"""Detects poses that oscillate around an optimum, and decays their learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hashpose_ns.errors import HashPoseError


@dataclass
class SettlingConfig:
    """Learning rate of poses by their motion instead of the clock."""

    decay: float = 1.0
    """Factor on the poses' learning rate each time that they are found settled; 1 never looks."""
    window: float = 0.05
    """Fraction of training between looks."""
    threshold: float = -0.25
    """Poses have settled below this cosine between a camera's motions in successive windows.
    The mean over cameras counts: moving cameras score above 0, oscillating ones near -0.5."""
    freeze: float = 0.03
    """Poses freeze when the factor falls below this.
    The rest of training belongs to the field."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if not (0 < self.decay <= 1 and 0 < self.window < 1 and 0 <= self.freeze < 1):
            raise HashPoseError(
                "camera-optimizer.settling.decay and .window are fractions between 0 and 1, .freeze is below 1."
            )


class Settling(nn.Module):
    """Looks at the corrections once a window. What it remembers is part of checkpoints.

    Args:
        config: settings.
        num_cameras: number of training cameras N.
    """

    looks: Int[Tensor, "2"]
    """Number of checks, and number of checks that found the poses settled."""
    corrections: Float[Tensor, "2 num_cameras 6"]
    """Those of the last two looks."""

    def __init__(self, config: SettlingConfig, num_cameras: int) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.register_buffer("looks", torch.zeros(2, dtype=torch.long))
        self.register_buffer("corrections", torch.zeros(2, num_cameras, 6))
        # The counts once more as numbers: they are asked for every step, and reading a GPU's buffer waits for it.
        self.count, self.settled = 0, 0
        self.register_load_state_dict_post_hook(lambda module, _: module._restore())

    def forget(self) -> None:
        """Forgets all checks, as at the start of training."""
        self.looks.zero_()
        self._restore()

    def _restore(self) -> None:
        self.count, self.settled = self.looks.tolist()

    @property
    def factor(self) -> float:
        """Factor on the poses' learning rate; 0 if they are frozen."""
        factor = self.config.decay**self.settled
        return factor if factor >= self.config.freeze else 0.0

    @torch.no_grad()
    def look(self, corrections: Float[Tensor, "num_cameras 6"], moving: Bool[Tensor, "num_cameras"]) -> Optional[float]:
        """Compares the motion since the last look with the one before it.

        Args:
            corrections: twists as they are now.
            moving: cameras that are refined.
        Returns:
            The mean cosine between the two, from the third look on.
        """
        cosine = None
        if self.count >= 2 and bool(moving.any()):
            before, after = self.corrections[1] - self.corrections[0], corrections - self.corrections[1]
            cosine = float(torch.cosine_similarity(before[moving], after[moving], dim=-1).mean())
            if cosine < self.config.threshold:
                self.settled += 1
        self.corrections.copy_(torch.stack([self.corrections[1], corrections.to(self.corrections)]))
        self.count += 1
        self.looks.copy_(torch.tensor([self.count, self.settled]))
        return cosine
