"""Lost cameras: found by their loss, tried at many other poses against the field as it is, and put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, corrections_to_world
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils import poses as pose_utils
from nerfstudio.utils.rich_utils import get_progress

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline


GAIN = 0.6
"""A camera is moved where its loss falls below this part of what it was; a lost one's right pose takes more away."""


@dataclass
class RecoveryConfig:
    """Search for better poses of the cameras that the field explains worst."""

    at: Tuple[float, ...] = ()
    """Fractions of training at which lost cameras are looked for; empty never looks."""
    cameras: float = 0.2
    """Fraction of the cameras that are tried at most, those of the largest loss."""
    suspicion: float = 3.0
    """A camera is tried when the share of its photograph's variance that the field does not explain is this many times
    the median over cameras."""
    hypotheses: int = 128
    """Poses a camera is tried at: a third drawn around its initial pose as widely as the other cameras have moved, at
    most a third where other cameras are, and the rest turned about the point that all cameras look at, from where it is
    and from where it began."""
    angle: float = 0.6
    """Largest angle in radians of these turns."""
    rays: int = 192
    """Rays that a pose is judged by."""
    steps: int = 30
    """Steps of photometric optimisation from every hypothesis, with a sixth of the rays. The best twelve go on for as
    many with half of the rays, and the best three of them once more."""
    lr: float = 2e-2
    """Adam's rate in the first of these steps; half of it in the others."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if not all(0 < fraction < 1 for fraction in self.at):
            raise HashPoseError("recovery.at holds fractions of training, between 0 and 1.")
        if min(self.hypotheses, self.steps) < 3 or self.rays < 6:
            raise HashPoseError("recovery.hypotheses and recovery.steps are at least 3, recovery.rays at least 6.")


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


class PoseJudge:
    """Photometric losses of a training camera at given poses, against the field as it is.

    Args:
        pipeline: in evaluation mode.
        index: the training camera.
        rays: random pixels that poses are judged by, outside of masks and always the same ones; none where the mask
            leaves none.
    """

    def __init__(self, pipeline: "HashPosePipeline", index: int, rays: int) -> None:
        manager = pipeline.datamanager
        self.model = pipeline.model
        self.camera = manager.train_dataset.cameras[index : index + 1].to(self.model.device)
        data = manager.train_dataset[index]
        self.image = data["image"]
        height, width = self.image.shape[:2]
        mask = data["mask"][..., 0] > 0 if "mask" in data else torch.ones(height, width, dtype=torch.bool)
        allowed = torch.nonzero(mask)
        generator = torch.Generator().manual_seed(index)
        pixels = allowed[torch.randint(len(allowed), (rays,), generator=generator)] if len(allowed) else allowed
        self.coordinates = (pixels + 0.5).to(self.model.device)
        self.colors = self.image[pixels[:, 0], pixels[:, 1]].to(self.model.device)

    def cameras_at(self, poses: Float[Tensor, "count 3 4"]) -> Cameras:
        """The camera, once at each pose."""
        cameras = self.camera[torch.zeros(len(poses), dtype=torch.long)]
        cameras.camera_to_worlds = poses.to(self.model.device)
        return cameras

    @torch.no_grad()
    def losses(self, poses: Float[Tensor, "count 3 4"]) -> Float[Tensor, "count"]:
        """Mean squared colour error at each pose, over the variance of the pixels' colours."""
        model, rays = self.model, len(self.coordinates)
        truth = model.renderer_rgb.blend_background(self.colors)
        variance = truth.var(dim=0).mean().clamp(min=1e-4)
        found = []
        for some in poses.split(max(model.rays_per_chunk() // rays, 1)):
            cameras = self.cameras_at(some)
            bundle = cameras.generate_rays(
                camera_indices=torch.arange(len(some), device=model.device).repeat_interleave(rays)[:, None],
                coords=self.coordinates.repeat(len(some), 1),
            )
            errors = model(bundle)["rgb"].clamp(0.0, 1.0).view(len(some), rays, 3) - truth
            found.append(errors.square().mean(dim=(1, 2)) / variance)
        return torch.cat(found)

    def optimized(
        self, poses: Float[Tensor, "count 3 4"], steps: int, rays: int, lr: float
    ) -> Tuple[Float[Tensor, "count 3 4"], Float[Tensor, "count"]]:
        """Poses after photometric optimisation, and their losses, the least first."""
        from hashpose_ns.evaluation import optimize_cameras

        images = [self.image] * len(poses)
        poses = optimize_cameras(self.model, self.cameras_at(poses), images, steps, rays, lr)
        losses, order = self.losses(poses).sort()
        return poses[order], losses


def hypotheses(optimizer: PoseOptimizer, index: int, config: RecoveryConfig) -> Float[Tensor, "count 3 4"]:
    """Poses where a camera may be, see `RecoveryConfig.hypotheses`."""
    generator = torch.Generator().manual_seed(index)
    twists, initial = optimizer.pose_adjustment.detach(), optimizer.initial_camera_to_worlds[index]
    poses = optimizer.refined_camera_to_worlds().detach()
    # The median does not hear those that are lost, and half as much again reaches those that are.
    reach = 1.5 * twists.abs().median(dim=0).values / 0.6745
    third = config.hypotheses // 3
    drawn = reach * torch.randn(third, 6, generator=generator).to(twists)
    around = corrections_to_world(exp_map_SE3(drawn), initial.expand(third, 3, 4), optimizer.config.side)
    others = torch.randperm(len(poses), generator=generator)[:third]
    rest, pivot = config.hypotheses - third - len(others), focus(poses)
    return torch.cat(
        [pose_utils.multiply(around, initial.expand(third, 3, 4)), poses[others]]
        + [
            turned(pose, pivot, count, config.angle, generator)
            for pose, count in ((poses[index], rest // 2), (initial, rest - rest // 2))
        ]
    )


def recover_cameras(pipeline: "HashPosePipeline", config: RecoveryConfig) -> List[int]:
    """Looks for lost cameras and puts those back whose loss becomes clearly smaller elsewhere.

    Returns:
        The cameras that were moved.
    """
    optimizer = pipeline.model.camera_optimizer
    poses = optimizer.refined_camera_to_worlds().detach()
    candidates = [i for i in range(len(poses)) if bool(optimizer.trainable[i]) and i not in optimizer.held]
    judges = {i: PoseJudge(pipeline, i, config.rays) for i in candidates}
    losses = {i: float(judge.losses(poses[i : i + 1])) for i, judge in judges.items() if len(judge.coordinates)}
    limit = config.suspicion * sorted(losses.values())[len(losses) // 2] if losses else 0.0
    suspects = sorted((i for i in losses if losses[i] > limit), key=lambda i: -losses[i])
    suspects = suspects[: max(round(config.cameras * len(poses)), 1)]
    if not suspects:
        return []
    moved, right = [], 0
    with get_progress("Looking for lost cameras", suffix="cameras") as progress:
        for index in progress.track(suspects):
            judge, tried = judges[index], hypotheses(optimizer, index, config)
            # Losses of poses ten degrees off say little; where optimisation takes them says much.
            tried, _ = judge.optimized(tried, config.steps, config.rays // 6, config.lr)
            tried, _ = judge.optimized(tried[:12], config.steps, config.rays // 2, config.lr / 2)
            tried, found = judge.optimized(tried[:3], config.steps, config.rays // 2, config.lr / 2)
            if float(found[0]) < GAIN * losses[index]:
                optimizer.set_refined(index, tried[0])
                moved.append(index)
            else:
                right += 1
                if right == 2:  # whoever follows is less suspicious still
                    break
    return moved
