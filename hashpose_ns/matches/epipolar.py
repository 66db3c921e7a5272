"""Matches as a term of the training loss: how far they lie from each other's epipolar lines at the refined poses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hashpose_ns.errors import HashPoseError
from hashpose_ns.matches.matches import Matches

ALONG_BASELINE = 0.02
"""Sine of the angle to the baseline below which a ray's epipolar line is softened: at the epipole it has no direction,
and a short way from it a small turn of the camera turns it far."""


@dataclass
class MatchTermConfig:
    """The term of matches in the training loss."""

    weight: float = 1e-3
    """Weight of the term at the start of training, beside the photometric loss; 0 leaves it out."""
    fade: float = 0.5
    """Fraction of training at which the term has faded out. It falls linearly from the start."""
    per_step: int = 4096
    """Matches that are drawn for a step; all of them where there are no more."""
    scale: float = 0.5
    """Distance in pixels from which matches pull less the further they are away, as wrong ones are."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if self.weight < 0 or self.per_step < 1 or self.scale <= 0:
            raise HashPoseError(
                "--pipeline.model.matches.weight must not be negative, .per-step must be at least 1 and .scale above 0."
            )
        if not 0 <= self.fade <= 1:
            raise HashPoseError(f"--pipeline.model.matches.fade is a fraction of training, not {self.fade}.")

    def weight_at(self, progress: float) -> float:
        """The term's weight at a fraction of training."""
        return self.weight * max(1.0 - progress / self.fade, 0.0) if self.fade > 0 else 0.0


def epipolar_distances(
    matches: Matches, camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
) -> Float[Tensor, "matches 2"]:
    r"""Signed distances in pixels of both points of each match from the epipolar line of the other.

    With rays :math:`d_1, d_2` in world axes and the unit baseline :math:`b` from the first centre to the second, the
    second point lies :math:`f_2 \, d_2 \cdot (b \times d_1) / |(R_2^T (b \times d_1))_{xy}|` from its line, and the
    first one likewise. Poses that share a centre have no epipolar lines: their distances are 0, with no gradient.

    Args:
        matches: N cameras' matches, on the device of the poses.
        camera_to_worlds: OpenGL axes, any units.

    Returns:
        The distance in the first image and in the second; finite, also in their gradients.
    """
    # to OpenCV's axes, whose y points down and z forwards
    rotations = torch.cat([camera_to_worlds[..., :1], -camera_to_worlds[..., 1:3]], dim=-1)
    # index_select gathers with a gradient that needs no sorting
    first, second = matches.images.unbind(-1)
    rotations_1, rotations_2 = rotations.index_select(0, first), rotations.index_select(0, second)
    centers = camera_to_worlds[..., 3]
    baselines = centers.index_select(0, second) - centers.index_select(0, first)
    squares = baselines.square().sum(-1, keepdim=True)
    # relative to where the cameras are: what the rounding of their centres leaves is no baseline
    rounding = 16 * torch.finfo(centers.dtype).eps * centers.detach().abs().amax()
    apart = squares > rounding.square().clamp(min=torch.finfo(centers.dtype).tiny)
    baselines = baselines * torch.where(apart, squares, torch.ones_like(squares)).rsqrt()

    points_1, points_2 = functional.pad(matches.points, (0, 1), value=1.0).to(rotations).unbind(-2)
    # products and sums in place of matmul, which mixed precision would round
    rays_1, rays_2 = (rotations_1 * points_1[..., None, :]).sum(-1), (rotations_2 * points_2[..., None, :]).sum(-1)
    normals_1, normals_2 = torch.linalg.cross(baselines, rays_1), torch.linalg.cross(baselines, rays_2)
    triple = (rays_2 * normals_1).sum(-1)
    # the epipolar line of the first point in the second image, and the other way round: a x + b y + c = 0
    line_2 = (rotations_2[..., :2] * normals_1[..., None]).sum(-2)
    line_1 = (rotations_1[..., :2] * normals_2[..., None]).sum(-2)
    lengths = torch.stack([line_1, line_2], dim=-2).square().sum(-1)
    focals = matches.focals.to(rotations)[matches.images]
    distances = triple[..., None] * focals * (lengths + ALONG_BASELINE**2).rsqrt()
    return torch.where(apart, distances, torch.zeros_like(distances))


def match_loss(
    matches: Matches, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], config: MatchTermConfig
) -> Float[Tensor, ""]:
    r"""Mean over matches of :math:`\frac{s^2}{2} \log(1 + (e / s)^2)`, in squared pixels, for both distances e of each.

    This is Cauchy's loss with the scale s. Verified matches hold whole pairs of images that are wrong in agreement (a
    tenth of all on a symmetric object): under a loss that grows with the distance they alone would turn cameras by
    degrees. Its tail still pulls cameras that are far off.

    Args:
        matches: at least one; some are drawn where there are more than `config.per_step`.
        camera_to_worlds: OpenGL axes, any units.
        config: settings.
    """
    if len(matches) > config.per_step:
        chosen = torch.randint(len(matches), (config.per_step,), device=matches.images.device)
        matches = Matches(matches.images[chosen], matches.points[chosen], matches.focals)
    relative = epipolar_distances(matches, camera_to_worlds) / config.scale
    return 0.5 * config.scale**2 * torch.log1p(relative.square()).mean()
