"""Rotations, cameras and points as the network sees them.

A camera is a rotation R and the centre T of the object in the camera's frame, x_c = R x + T, in OpenCV's axes (x right,
y down, z forwards). The frame that R starts from has the object's centre as its origin; its axes are the network's
choice, for only the cameras' rotations to each other are compared and written.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotation_from_6d(six: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """The first two rows of a rotation, made orthonormal by Gram-Schmidt (Zhou et al., CVPR 2019); the third is their
    cross product."""
    first = torch.nn.functional.normalize(six[..., :3], dim=-1)
    second = six[..., 3:] - (first * six[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -2)


def exp_map_SO3(turns: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation vectors in radians to rotations (Rodrigues); the gradient is right at 0 as well."""
    squared = (turns * turns).sum(-1)
    tiny = squared < 1e-8
    safe = torch.where(tiny, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    sine = torch.where(tiny, 1 - squared / 6, angle.sin() / angle)[..., None, None]
    versine = torch.where(tiny, 0.5 - squared / 24, (1 - angle.cos()) / safe)[..., None, None]
    x, y, z = turns.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=turns.dtype, device=turns.device) + sine * skew + versine * (skew @ skew)


def left_update(
    rotations: Float[Tensor, "*batch 3 3"], centers: Float[Tensor, "*batch 3"], update: Float[Tensor, "*batch 6"]
) -> tuple[Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3"]]:
    """R <- exp(u) R and T <- T + v, for an update [u, v]. A turn is about the object's centre, seen from the camera."""
    return exp_map_SO3(update[..., :3]) @ rotations, centers + update[..., 3:]


def project(
    points: Float[Tensor, "scenes points 3"],
    rotations: Float[Tensor, "scenes views 3 3"],
    centers: Float[Tensor, "scenes views 3"],
    tangents: Float[Tensor, "scenes views"],
) -> tuple[Float[Tensor, "scenes views points 3"], Float[Tensor, "scenes views points 2"]]:
    """Points about the object's centre in every camera.

    Returns:
        Points in the cameras' frames, and where they lie in the pictures, -1 and 1 being the edges. Points nearer than
        a tenth of the unit are projected as if they were there.
    """
    return project_seen(torch.einsum("svij,spj->svpi", rotations, points), centers, tangents)


def project_seen(
    turned: Float[Tensor, "scenes views points 3"],
    centers: Float[Tensor, "scenes views 3"],
    tangents: Float[Tensor, "scenes views"],
) -> tuple[Float[Tensor, "scenes views points 3"], Float[Tensor, "scenes views points 2"]]:
    """`project` of points about the object's centre that are turned into the cameras' axes already."""
    seen = turned + centers[:, :, None]
    depth = seen[..., 2:].clamp_min(0.1)
    return seen, seen[..., :2] / (depth * tangents[:, :, None, None])


def pair_rotations(rotations: Float[Tensor, "*batch views 3 3"]) -> Float[Tensor, "*batch pairs 3 3"]:
    """R_i R_j^T of all pairs i < j."""
    i, j = torch.triu_indices(rotations.shape[-3], rotations.shape[-3], 1, device=rotations.device)
    return rotations[..., i, :, :] @ rotations[..., j, :, :].transpose(-1, -2)


def angles(rotations: Float[Tensor, "*batch 3 3"], others: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Geodesic distance in degrees, computed in double precision."""
    difference = rotations.double() - others.double()
    return torch.rad2deg(2 * torch.asin((difference.flatten(-2).norm(dim=-1) / 8**0.5).clamp(max=1)))


def balls(count: int, points: int, generator: torch.Generator | None, device) -> Float[Tensor, "count points 3"]:
    """Points uniform in the unit ball."""
    directions = torch.randn(count, points, 3, generator=generator, device=device)
    radii = torch.rand(count, points, 1, generator=generator, device=device) ** (1 / 3)
    return torch.nn.functional.normalize(directions, dim=-1) * radii
