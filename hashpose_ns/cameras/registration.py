"""Rigid registration: the pose of a camera that best explains how each of its rays has moved."""

from __future__ import annotations

from typing import Optional, Tuple

import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

COLLINEAR = 1e-5
"""Points lie on a line when the sum of the products of their variances along two axes is below this fraction of the
squared total. Seen from a camera's centre this is an angle of about a tenth of a degree."""


def register(
    source: Float[Tensor, "points 3"],
    target: Float[Tensor, "points 3"],
    cameras: Int[Tensor, "points"],
    num_cameras: int,
    weights: Optional[Float[Tensor, "points"]] = None,
) -> Tuple[Float[Tensor, "num_cameras 3 4"], Bool[Tensor, "num_cameras"]]:
    r"""Rigid motions [R | t] of each camera that minimise :math:`\sum_j w_j |R x_j + t - y_j|^2` over its points.

    The rotation is that of the weighted covariance (Kabsch), with roma's derivative: planar sets, symmetric grids and
    repeated singular values have finite gradients, where autograd through an SVD has none (SVD derivatives divide by
    differences of singular values, this one by sums).

    The minimum's derivative drops out of the sum itself. A loss that is this sum can take the motion detached, and has
    the same gradient.

    Args:
        source: points x.
        target: points y that they go to.
        cameras: which camera each point belongs to; any number of points a camera, in any order.
        num_cameras: N.
        weights: of the points, above 0; equal by default.
    Returns:
        Motions [N, 3, 4] from source to target, and whether each is determined: a camera needs three points that are
        not on a line. The motion of one that is not has the identity as its rotation.
    """
    weights = torch.ones_like(source[:, 0]) if weights is None else weights

    def totals(values: Tensor) -> Tensor:
        return values.new_zeros(num_cameras, *values.shape[1:]).index_add(0, cameras, values)

    total = totals(weights).clamp(min=torch.finfo(source.dtype).tiny)
    shares = weights / total[cameras]
    source_mean, target_mean = totals(shares[:, None] * source), totals(shares[:, None] * target)
    centred, moved = source - source_mean[cameras], target - target_mean[cameras]
    weighted = shares[:, None, None] * centred[:, None, :]
    known = _off_a_line(totals(centred[:, :, None] * weighted).detach())
    covariances = totals(moved[:, :, None] * weighted)
    identity = torch.eye(3, dtype=source.dtype, device=source.device)
    rotations = roma.special_procrustes(torch.where(known[:, None, None], covariances, identity))
    # Summed by hand: mixed precision would round a matrix product.
    translations = target_mean - (rotations * source_mean[:, None, :]).sum(-1)
    return torch.cat([rotations, translations[..., None]], dim=-1), known


def _off_a_line(scatters: Float[Tensor, "num_cameras 3 3"]) -> Bool[Tensor, "num_cameras"]:
    """Whether points of these scatter matrices span a plane: the second invariant is the sum of the products of two
    eigenvalues, and vanishes with the second largest of them."""
    trace = scatters.diagonal(dim1=-2, dim2=-1).sum(-1)
    second = 0.5 * (trace.square() - scatters.square().sum((-2, -1)))
    return second > COLLINEAR * trace.square()
