"""Matches as a term of the training loss: how far they lie from each other's epipolar lines at the refined poses."""

from __future__ import annotations

from typing import Any, Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hashpose_ns.matches.config import MatchTermConfig
from hashpose_ns.matches.matches import Matches

ALONG_BASELINE = 0.02
"""Sine of the angle to the baseline below which a ray's epipolar line is softened: at the epipole it has no direction,
and a short way from it a small turn of the camera turns it far."""


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


class MatchTerm:
    """The term of matches, as a `PoseTerm`.

    Args:
        matches: at least one.
        config: settings.
    """

    loss: Callable[[Any, Tensor, MatchTermConfig], Tensor] = staticmethod(match_loss)
    """Of what it is given, the poses and the settings."""

    def __init__(self, matches: Any, config: MatchTermConfig) -> None:
        self.matches = matches
        self.config = config

    @property
    def until(self) -> float:
        """Fraction of training at which it has faded out."""
        return self.config.fade if self.config.weight > 0 else 0.0

    def __call__(self, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], progress: float) -> Float[Tensor, ""]:
        """The weighted loss, of some matches drawn after all that the step's rays and samples are drawn from.

        Args:
            camera_to_worlds: all refined poses, OpenGL axes.
            progress: fraction of training.
        """
        if self.matches.images.device != camera_to_worlds.device:
            self.matches = self.matches.to(camera_to_worlds.device)
        return self.config.weight_at(progress) * self.loss(self.matches, camera_to_worlds, self.config)
