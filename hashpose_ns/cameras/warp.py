"""A motion for every ray: the network that L2G-NeRF moves rays by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hashpose_ns.errors import HashPoseError

LAYERS, SKIP = 7, 4
"""Linear layers, and the one, counted from 0, that sees the input again."""


@dataclass
class WarpConfig:
    """Local-to-global registration: every ray moves by itself, and a camera's rays are tied to one rigid motion."""

    init: Literal["default", "zero"] = "default"
    """How the network starts.
    - default: torch's initialisation, as in L2G-NeRF; it turns cameras by 5 to 7 degrees before the first step.
    - zero: nothing moves at first."""
    width: int = 256
    """Width of the network's hidden layers."""
    embedding: int = 128
    """Numbers that the network knows of each camera."""
    weight: float = 100.0
    """Weight of the distance between rays and their camera's rigid motion.
    0 lets rays go where they like."""
    until: float = 1.0
    """Fraction of training at which cameras switch to a twist each."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if self.width < 1 or self.embedding < 1:
            raise HashPoseError("camera-optimizer.warp.width and .embedding must be at least 1.")
        if self.weight < 0:
            raise HashPoseError(f"camera-optimizer.warp.weight must not be negative, but is {self.weight}.")
        if not 0 < self.until <= 1:
            raise HashPoseError("camera-optimizer.warp.until is a fraction of training, above 0 and at most 1.")


class Warp(nn.Module):
    """Seven linear layers from a ray's place in the picture and its camera's embedding to a twist.

    Args:
        config: settings.
        num_cameras: number of training cameras.
    """

    def __init__(self, config: WarpConfig, num_cameras: int) -> None:
        super().__init__()
        config.validate()
        inputs = 2 + config.embedding
        sizes = [inputs] + [config.width] * (LAYERS - 1)
        sizes[SKIP] += inputs
        self.embedding = nn.Embedding(num_cameras, config.embedding)  # N(0, 1)
        layers = [nn.Linear(*size) for size in zip(sizes, [config.width] * (LAYERS - 1) + [6])]
        if config.init == "zero":
            nn.init.zeros_(layers[-1].weight)
            nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, places: Float[Tensor, "rays 2"], cameras: Int[Tensor, "rays"]) -> Float[Tensor, "rays 6"]:
        """Twists [translation, rotation] (scene units, radians) of rays.

        Args:
            places: x and y of rays where they are one unit in front of the camera, OpenGL axes.
            cameras: training camera of each ray.
        """
        inputs = torch.cat([places, self.embedding(cameras)], dim=-1)
        hidden = inputs
        for index, layer in enumerate(self.layers):
            if index > 0:
                hidden = hidden.relu()
            if index == SKIP:
                hidden = torch.cat([hidden, inputs], dim=-1)
            hidden = layer(hidden)
        return hidden.float()
