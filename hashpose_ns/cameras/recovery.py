"""Lost cameras: found by their loss, tried at many other poses against the field as it is, and put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.lie_groups import exp_map_SE3

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline


@dataclass
class RecoveryConfig:
    """Search for better poses of the cameras that the field explains worst."""

    at: Tuple[float, ...] = ()
    """Fractions of training at which lost cameras are looked for; empty never looks."""
    cameras: float = 0.05
    """Fraction of the cameras that are tried at most, those of the largest loss."""
    suspicion: float = 1.5
    """A camera is tried when its loss is this many times the median over cameras."""
    hypotheses: int = 48
    """Poses a camera is tried at."""
    angle: float = 0.6
    """Largest angle in radians by which hypotheses turn about the point that the cameras look at."""
    rays: int = 192
    """Rays that a pose is judged by."""
    steps: int = 40
    """Steps of photometric optimisation from each of the three best hypotheses."""
    lr: float = 1e-2
    """Adam's rate in these steps."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if not all(0 < fraction < 1 for fraction in self.at) or self.hypotheses < 3 or self.rays < 1:
            raise HashPoseError(
                "recovery.at holds fractions of training between 0 and 1; there are at least 3 hypotheses and 1 ray."
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


class PoseJudge:
    """Photometric losses of a training camera at given poses, against the field as it is.

    Args:
        pipeline: in evaluation mode.
        index: the training camera.
        rays: random pixels that poses are judged by, always the same ones.
    """

    def __init__(self, pipeline: "HashPosePipeline", index: int, rays: int) -> None:
        manager = pipeline.datamanager
        self.model = pipeline.model
        self.camera = manager.train_dataset.cameras[index : index + 1].to(self.model.device)
        self.image = manager.train_dataset[index]["image"]
        height, width = self.image.shape[:2]
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(height * width, (rays,), generator=generator)
        self.coordinates = torch.stack([pixels // width, pixels % width], dim=-1)
        self.colors = self.image[self.coordinates[:, 0], self.coordinates[:, 1]].to(self.model.device)

    def at(self, pose: Float[Tensor, "3 4"]):
        """The camera at a pose."""
        self.camera.camera_to_worlds = pose[None].to(self.model.device)
        return self.camera

    @torch.no_grad()
    def loss(self, pose: Float[Tensor, "3 4"]) -> float:
        """Mean squared colour error."""
        coordinates = (self.coordinates + 0.5).to(self.model.device)
        outputs = self.model(self.at(pose).generate_rays(camera_indices=0, coords=coordinates))
        truth = self.model.renderer_rgb.blend_background(self.colors)
        return float((outputs["rgb"] - truth).square().mean())


def recover_cameras(pipeline: "HashPosePipeline", config: RecoveryConfig) -> List[int]:
    """Looks for lost cameras and puts those back whose loss becomes clearly smaller elsewhere.

    Returns:
        The cameras that were moved.
    """
    from hashpose_ns.evaluation import optimize_cameras

    optimizer = pipeline.model.camera_optimizer
    poses = optimizer.refined_camera_to_worlds().detach()
    pivot = focus(poses)
    candidates = [i for i in range(len(poses)) if bool(optimizer.trainable[i]) and i not in optimizer.held]
    judges = {i: PoseJudge(pipeline, i, config.rays) for i in candidates}
    losses = {i: judges[i].loss(poses[i]) for i in candidates}
    limit = config.suspicion * sorted(losses.values())[len(losses) // 2] if losses else 0.0
    suspects = sorted((i for i in candidates if losses[i] > limit), key=lambda i: -losses[i])
    moved = []
    for index in suspects[: max(round(config.cameras * len(poses)), 1)]:
        judge = judges[index]
        generator = torch.Generator().manual_seed(index)
        half = config.hypotheses // 2
        starts = (poses[index], optimizer.initial_camera_to_worlds[index])
        tried = torch.cat([turned(start, pivot, half, config.angle, generator) for start in starts])
        best = sorted(tried, key=judge.loss)[:3]
        at_best = pipeline.datamanager.train_dataset.cameras[torch.tensor([index] * len(best))].to(pipeline.device)
        at_best.camera_to_worlds = torch.stack(best)
        refined = optimize_cameras(
            pipeline.model, at_best, [judge.image] * len(best), config.steps, max(config.rays // 2, 1), config.lr
        )
        pose = min(refined, key=judge.loss)
        if judge.loss(pose) < 0.8 * losses[index]:
            optimizer.set_refined(index, pose)
            moved.append(index)
    return moved
