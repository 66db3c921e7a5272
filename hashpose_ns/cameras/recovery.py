"""Where a lost camera may be: settings of the search for it, and poses to try. The search itself is
`hashpose_ns.photometry.recovery`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, corrections_to_world
from hashpose_ns.errors import HashPoseError
from nerfstudio.utils import poses as pose_utils

MAD_TO_STD = 1 / 0.6745
"""A normal distribution's standard deviation over its median absolute deviation."""

NEAR_SHIFT = 0.03
"""Standard deviation of the shifts of poses close to a camera, as a fraction of its distance from the focus."""

WIDENING = 1.5
"""Factor on the spread of the other cameras' motions, so that hypotheses cover lost ones too."""


@dataclass
class RecoveryConfig:
    """Search for better poses of the cameras that the field explains worst."""

    at: Tuple[float, ...] = ()
    """Fractions of training at which lost cameras are searched for; empty disables the search."""
    late_at: Tuple[float, ...] = ()
    """Fractions of training at which cameras are searched for close to where they are.
    Those lost beyond doubt, which are not found there, are tried at other poses than before."""
    cameras: float = 0.2
    """Fraction of the cameras that are tried at most, those of the largest loss."""
    suspicion: float = 3.0
    """How many times the median over cameras makes a camera suspect.
    Counted is the share of its photograph's variance that the field does not explain."""
    late_suspicion: float = 2.5
    """The same for `late_at`, by when most cameras fit well."""
    beyond_doubt: float = 10.0
    """The same for cameras that `late_at` searches for far away as well."""
    hypotheses: int = 128
    """Poses a suspect camera is tried at.
    A third is drawn around its initial pose, as widely as the other cameras have moved.
    At most a third is where other cameras are.
    The rest is turned about the point that all cameras look at."""
    angle: float = 0.6
    """Largest angle in radians of these turns."""
    near: int = 64
    """Poses close to where a camera is, turned and shifted a little, in late searches."""
    near_angle: float = 0.3
    """Largest angle in radians of the turns of these; half of them are turned half as far."""
    rays: int = 192
    """Rays that a pose is judged by."""
    steps: int = 30
    """Steps of photometric optimisation from every hypothesis, with a sixth of the rays.
    The best twelve take as many with half of the rays, and the best three of them once more."""
    lr: float = 2e-2
    """Adam's rate in the first of these steps; half of it in the others.
    From close by it is halved once more, and decays."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if not all(0 < fraction < 1 for fraction in (*self.at, *self.late_at)):
            raise HashPoseError("recovery.at and recovery.late-at hold fractions of training, between 0 and 1.")
        if min(self.hypotheses, self.near, self.steps) < 3 or self.rays < 6:
            raise HashPoseError(
                "recovery.hypotheses, recovery.near and recovery.steps are at least 3, recovery.rays at least 6."
            )


def focus(camera_to_worlds: Float[Tensor, "num_cameras 3 4"]) -> Float[Tensor, "3"]:
    """The point nearest to all optical axes, by least squares."""
    axes, centers = camera_to_worlds[:, :, 2].double(), camera_to_worlds[:, :, 3].double()
    across = torch.eye(3, dtype=torch.float64, device=axes.device) - axes[:, :, None] * axes[:, None, :]
    system, right = across.sum(0), (across @ centers[..., None]).sum(0)[:, 0]
    # Parallel axes meet nowhere: the ridge then takes the cameras' mean.
    ridge = 1e-6 * len(axes) * torch.eye(3, dtype=torch.float64, device=axes.device)
    return torch.linalg.solve(system + ridge, right + ridge @ centers.mean(0)).to(camera_to_worlds)


def turned(
    pose: Float[Tensor, "3 4"], pivot: Float[Tensor, "3"], count: int, angle: float, generator: torch.Generator
) -> Float[Tensor, "count 3 4"]:
    """A pose turned about a point by random rotations of up to an angle (radians)."""
    axes = torch.randn(count, 3, generator=generator)
    angles = angle * torch.rand(count, 1, generator=generator)
    rotations = exp_map_SE3(
        torch.cat([torch.zeros(count, 3), angles * axes / axes.norm(dim=-1, keepdim=True)], dim=-1)
    ).to(pose)[..., :3]
    center = pivot + (rotations @ (pose[:, 3] - pivot)[:, None])[..., 0]
    return torch.cat([rotations @ pose[:, :3], center[..., None]], dim=-1)


def hypotheses(
    optimizer: PoseOptimizer, index: int, config: RecoveryConfig, seed: int = 0
) -> Float[Tensor, "count 3 4"]:
    """Poses where a camera may be, see `RecoveryConfig.hypotheses`. Other ones with another seed."""
    generator = torch.Generator().manual_seed(index + optimizer.num_cameras * seed)
    twists, base = optimizer.current_twists(), optimizer.base_camera_to_worlds[index]
    poses = optimizer.refined_camera_to_worlds().detach()
    # The median absolute deviation is robust to lost cameras; widening covers them.
    reach = WIDENING * MAD_TO_STD * twists.abs().median(dim=0).values
    third = config.hypotheses // 3
    drawn = reach * torch.randn(third, 6, generator=generator).to(twists)
    around = corrections_to_world(exp_map_SE3(drawn), base.expand(third, 3, 4), optimizer.config.side)
    others = torch.randperm(len(poses), generator=generator)[:third]
    rest, pivot = config.hypotheses - third - len(others), focus(poses)
    return torch.cat(
        [pose_utils.multiply(around, base.expand(third, 3, 4)), poses[others]]
        + [
            turned(pose, pivot, count, config.angle, generator)
            for pose, count in ((poses[index], rest // 2), (base, rest - rest // 2))
        ]
    )


def near_hypotheses(optimizer: PoseOptimizer, index: int, config: RecoveryConfig) -> Float[Tensor, "count 3 4"]:
    """Poses close to where a camera is, see `RecoveryConfig.near`: turned about the point that all cameras look at. A
    camera that has turned towards the object instead of moving across it has come to rest there, in a minimum that
    steps of its own do not leave."""
    generator = torch.Generator().manual_seed(index)
    poses = optimizer.refined_camera_to_worlds().detach()
    pose, pivot = poses[index], focus(poses)
    half = config.near // 2
    near = torch.cat(
        [
            turned(pose, pivot, half, config.near_angle / 2, generator),
            turned(pose, pivot, config.near - half, config.near_angle, generator),
        ]
    )
    deviation = NEAR_SHIFT * (pose[:, 3] - pivot).norm()
    near[:, :, 3] += deviation * torch.randn(config.near, 3, generator=generator).to(near)
    return near
