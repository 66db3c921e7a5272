"""Settings of the network, of captures to learn from, and of training. Light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hashpose_ns.errors import HashPoseError

Family = Literal["articulated", "blobs"]
POOL_VIEWS = 8
"""Pictures that are rendered of every object."""


@dataclass
class NetworkConfig:
    """Sizes of the network."""

    size: int = 48
    """Pixels of a side of a picture, a multiple of 16."""
    width: int = 128
    """Channels of a token."""
    layers: int = 4
    """Layers of the transformer."""
    heads: int = 4
    """Attention heads."""
    hidden: int = 256
    """Hidden channels of the transformer's MLPs."""
    map_channels: int = 32
    """Channels of the feature map that points are sampled from."""
    map_stride: Literal[2, 4] = 4
    """Pixels of a picture to a cell of the feature map."""
    surface: bool = True
    """Let the map tell which point of the family's frame is seen, and refinement use the step that fits it.
    Without it, the map is learned from the poses' error alone, as in SparsePose."""
    points: int = 96
    """Points that are drawn in every refinement step."""
    steps: int = 5
    """Most refinement steps; training draws a number of them, from 1 on."""


@dataclass
class CaptureConfig:
    """How cameras stand about an object."""

    azimuth_spread: float = 360.0
    """Width of the sector that azimuths are drawn from, in degrees."""
    lowest: float = 0.0
    """Lowest elevation of a camera, in degrees."""
    highest: float = 60.0
    """Highest elevation of a camera, in degrees."""
    roll: float = 15.0
    """Largest turn of a camera about its optical axis, in degrees."""


@dataclass
class TrainSettings:
    """What decides the result of training."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Sizes of the network."""
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    """How cameras stand about objects."""
    family: Literal["articulated", "blobs", "both"] = "articulated"
    """Objects to learn from. both: by turns."""
    steps: int = 3600
    """Steps of the optimizer."""
    images: int = 80
    """Pictures in a step, in as many scenes as the step's number of views allows."""
    fewest: int = 3
    """Fewest views of a scene."""
    most: int = 6
    """Most views of a scene."""
    lr: float = 1.5e-3
    """Learning rate of AdamW."""
    warmup: float = 0.01
    """Share of training over which the learning rate rises."""
    weight_decay: float = 0.02
    """Weight decay of matrices; biases and norms have none."""
    refine_from: float = 0.45
    """Share of training after which refinement is trained as well."""
    freeze_from: float = 0.45
    """Share of training after which refinement alone is trained.
    The coarse estimate then stays as it is, and refinement's learning rate restarts."""
    disturbed: float = 0.3
    """Share of scenes whose refinement starts from the true poses, disturbed, and not from the coarse estimate."""
    blind: float = 0.5
    """Share of scenes whose refinement gets sampled features only.
    With the pictures' vectors it learns nothing that the coarse estimate does not know."""
    disturbed_deg: tuple[float, float] = (5.0, 40.0)
    """Least and largest angle by which they are disturbed."""
    widen_until: float = 0.0
    """Share of training over which the sector of azimuths widens from 60 degrees to its full width."""
    absolute: float = 1.0
    """Weight of the loss of poses in the family's frame, beside that of turns between views."""
    surface: float = 0.5
    """Weight of the loss of the surface's points that the map tells."""
    pool: int = 800
    """Scenes in the pool."""
    fresh: int = 2
    """Scenes of the pool that are renewed in a step."""
    average: float = 0.998
    """Decay of the running average of weights, which is what is evaluated and written."""
    seed: int = 0
    """Seed of all random numbers."""

    def validate(self) -> None:
        """Raises HashPoseError where settings contradict each other."""
        if not 2 <= self.fewest <= self.most <= POOL_VIEWS:
            raise HashPoseError(f"Views of a scene are 2 to {POOL_VIEWS}; give --fewest and --most in this order.")
        if self.network.size % 16 or self.network.size < 32:
            raise HashPoseError(
                f"Pictures of {self.network.size} pixels do not divide into tokens; give a multiple of 16."
            )
        if min(self.steps, self.fresh) < 1 or self.images < self.most or self.pool < max(self.fresh, 2):
            raise HashPoseError(
                "Steps, pictures, pool and fresh scenes must be positive, and the pool not the smallest."
            )
