"""The curriculum over grid levels, r_l(t) of Eq. 14-15, and the ways it can act."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Literal, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.errors import HashPoseError
from hashpose_ns.host import sent


@dataclass
class CurriculumConfig:
    """Coarse-to-fine curriculum over the levels of the hash grid."""

    mode: Literal["lr", "mask", "repeat", "none"] = "lr"
    """What the weight r_l of a level scales.
    - lr: its table's learning rate (the paper).
    - mask: its features (BARF).
    - repeat: as mask, and what is masked is filled with the finest open level (BAA-NGP).
    - none: all levels train at once."""
    window: Tuple[float, float] = (0.1, 0.5)
    """Start and end of the curriculum as fractions of training."""
    indexing: Literal["anchored", "literal", "barf", "baa-ngp"] = "anchored"
    """How levels are counted.
    - anchored: from 0; the coarsest is always on, the finest fully on at the window's end.
    - literal: from 1, as Eq. 15 is printed; nothing trains before the window, the finest level never.
    - barf: as anchored, but nothing is always on (BARF's network also sees plain coordinates).
    - baa-ngp: the coarsest is always on, and the others share the whole window."""

    def validate(self) -> None:
        """Raises HashPoseError where the window is no window."""
        start, end = self.window
        if not 0 <= start < end <= 1:
            raise HashPoseError(
                f"The curriculum's window is {start} to {end}; it needs two fractions of training with "
                "0 <= start < end <= 1, such as --pipeline.model.curriculum.window 0.1 0.5."
            )


class Curriculum:
    """Weights r_l(t) in [0, 1] of each level l at step t.

    Args:
        config: settings.
        num_levels: number of levels L.
        total_steps: length of training in steps, of which the window is a fraction.
    """

    def __init__(self, config: CurriculumConfig, num_levels: int, total_steps: int) -> None:
        config.validate()
        self.config = config
        self.num_levels = num_levels
        self.total_steps = total_steps

    def weights(self, step: float, num_levels: Optional[int] = None) -> List[float]:
        """r_l at a step, coarsest level first: (1 - cos(pi * clamp(alpha - l, 0, 1))) / 2 with
        alpha = L (t - t_s) / (t_e - t_s), at most L (Eq. 14-15).

        Args:
            step: step of training; a fraction lies between two.
            num_levels: another number of levels L that is opened over the same window.
        """
        levels = self.num_levels if num_levels is None else num_levels
        if self.config.mode == "none":
            return [1.0] * levels
        indexing = self.config.indexing
        first = {"literal": 1, "baa-ngp": -1}.get(indexing, 0)
        opening = levels - 1 if indexing == "baa-ngp" else levels
        start, end = (fraction * self.total_steps for fraction in self.config.window)
        alpha = min(opening * (step - start) / (end - start), opening)
        weights = [
            (1 - math.cos(math.pi * min(max(alpha - level, 0.0), 1.0))) / 2 for level in range(first, first + levels)
        ]
        if indexing in ("anchored", "baa-ngp"):
            weights[0] = 1.0
        return weights

    def learning_rate_weights(self, step: int) -> List[float]:
        """Factors on the learning rate of each level's table."""
        return self.weights(step) if self.config.mode == "lr" else [1.0] * self.num_levels

    def mask_features(
        self, features: Float[Tensor, "*batch levels features"], step: int
    ) -> Float[Tensor, "*batch levels features"]:
        """Scales each level's features by its weight, in the two modes that act on features; else returns them as is.

        Args:
            features: [..., L, F] features, coarsest level first, for any number of levels L.
            step: the step of training they are used at.
        """
        if self.config.mode not in ("mask", "repeat"):
            return features
        weights = self.weights(step, features.shape[-2])
        if all(weight == 1.0 for weight in weights):
            return features
        scale = sent(torch.tensor(weights, dtype=features.dtype), features.device)[:, None]
        masked = features * scale
        if self.config.mode == "repeat":
            open_levels = [level for level, weight in enumerate(weights) if weight > 0]
            finest = open_levels[-1] if open_levels else 0
            masked = masked + (1 - scale) * features[..., finest : finest + 1, :]
        return masked
