"""Pictures of procedural objects by closed-form intersection of rays with ellipsoids and boxes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hashpose_ns.sparse.objects import Objects, Parts

FAR = 1e4
CHUNK = 8
"""Pictures rendered at once on a CPU, so that intermediate results stay in its cache."""


def pixel_grid(size: int, device: torch.device | str = "cpu") -> Float[Tensor, "3 pixels"]:
    """(x, y, 1) of the pixel centres of a square picture, row by row, x to the right and y down, edges at -1 and 1."""
    line = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)]).reshape(3, -1)


def _local(parts: Parts, index: Tensor, rays: Tensor, origins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rays in frames in which each part is a unit ball or the cube [-1, 1]^3.

    Args:
        index: object of each picture [pictures].
        rays: direction per pixel coordinate [pictures, 3, 3].
        origins: camera centres [pictures, 3].
    Returns:
        The matrices into the parts' frames [pictures, parts, 3, 3], origins there [pictures, parts, 3] and the rays'
        matrices there [pictures, parts, 3, 3].
    """
    into = (parts.rotations / parts.half_sizes[..., None, :]).transpose(-1, -2)[index]
    start = (into @ (origins[:, None] - parts.centers[index])[..., None])[..., 0]
    return into, start, into @ rays[:, None]


def _hits(start: Tensor, way: Tensor, boxes: bool) -> Float[Tensor, "pictures parts pixels"]:
    """Distance along rays (origins [pictures, parts, 3], directions [pictures, parts, 3, pixels]) to the first hit
    from outside, `FAR` where there is none."""
    if boxes:
        inverse = 1 / torch.where(way.abs() < 1e-9, torch.full_like(way, 1e-9), way)
        middle, half = -start[..., None] * inverse, inverse.abs()
        near, far = (middle - half).amax(2), (middle + half).amin(2)
        return torch.where((near <= far) & (near > 0), near, torch.full_like(near, FAR))
    a = (way * way).sum(2)
    b = (way * start[..., None]).sum(2)
    inside = b * b - a * ((start * start).sum(-1, keepdim=True) - 1)
    near = (-b - inside.clamp_min(0).sqrt()) / a
    return torch.where((inside > 0) & (near > 0), near, torch.full_like(near, FAR))


@torch.no_grad()
def render(
    objects: Objects,
    index: Int[Tensor, "pictures"],
    world_to_cameras: Float[Tensor, "pictures 3 4"],
    tangents: Float[Tensor, "pictures"],
    lights: Float[Tensor, "pictures 3"],
    backgrounds: Float[Tensor, "pictures 3"],
    size: int,
) -> tuple[Float[Tensor, "pictures 3 size size"], Float[Tensor, "pictures 3 size size"]]:
    """Square pictures of objects on a plain background under one distant light.

    Args:
        objects: the objects.
        index: which object each picture shows.
        world_to_cameras: OpenCV's axes (x right, y down, z forwards), the world being the object's frame.
        tangents: of half the angle of view; the principal point is the middle.
        lights: unit vectors towards the light, in the world.
        backgrounds: linear colours.
        size: pixels of a side.

    Returns:
        Colours in [0, 1], and the points that are seen, in the object's frame, NaN on the background.
    """
    step = CHUNK if world_to_cameras.device.type == "cpu" else max(len(index), 1)
    per_picture = (index, world_to_cameras, tangents, lights, backgrounds)
    chunks = zip(*(value.split(step) for value in per_picture))
    colors, points = zip(*(_render(objects, size, *chunk) for chunk in chunks))
    return torch.cat(colors), torch.cat(points)


def _render(
    objects: Objects,
    size: int,
    index: Tensor,
    world_to_cameras: Tensor,
    tangents: Tensor,
    lights: Tensor,
    backgrounds: Tensor,
) -> tuple[Tensor, Tensor]:
    """`render` of pictures that fit into memory at once."""
    grid = pixel_grid(size, index.device)
    to_world = world_to_cameras[:, :, :3].transpose(1, 2)
    origins = -(to_world @ world_to_cameras[:, :, 3:])[..., 0]
    rays = to_world * torch.stack([tangents, tangents, torch.ones_like(tangents)], -1)[:, None]
    found = []
    for parts, boxes in ((objects.ellipsoids, False), (objects.boxes, True)):
        into, start, matrix = _local(parts, index, rays, origins)
        found.append((into, start, matrix, _hits(start, matrix @ grid, boxes)))
    number = objects.ellipsoids.centers.shape[1]
    depth, nearest = torch.cat([hits for *_, hits in found], 1).min(1)
    hit = depth < FAR
    into, start, matrix = (torch.cat([kind[i] for kind in found], 1) for i in range(3))
    # Pixels that hit something, as one list.
    picture, pixel = hit.nonzero(as_tuple=True)
    part, distance = nearest[picture, pixel], depth[picture, pixel]
    way = torch.einsum("nij,nj->ni", matrix[picture, part], grid.T[pixel])
    point = start[picture, part] + distance[:, None] * way
    face = point.abs().argmax(-1, keepdim=True)
    flat = torch.zeros_like(point).scatter(1, face, point.gather(1, face).sign())
    normal = torch.where((part >= number)[:, None], flat, point)
    normal = torch.einsum("nij,ni->nj", into[picture, part], normal)
    normal = torch.nn.functional.normalize(normal, dim=-1)
    joined = [
        torch.cat([getattr(objects.ellipsoids, n), getattr(objects.boxes, n)], 1)
        for n in ("half_sizes", "colors", "waves")
    ]
    half_sizes, colors, waves = (value[index[picture], part] for value in joined)
    phase = (point * half_sizes * waves[:, :3]).sum(-1) + waves[:, 3]
    mixed = torch.lerp(colors[:, 0], colors[:, 1], (0.5 + 0.5 * phase.sin())[:, None])
    lambert = (normal * lights[picture]).sum(-1, keepdim=True).clamp_min(0)
    pictures = backgrounds[:, None].repeat(1, grid.shape[1], 1)
    pictures[picture, pixel] = mixed * (0.45 + 0.55 * lambert)
    points = torch.full_like(pictures, torch.nan)
    points[picture, pixel] = origins[picture] + distance[:, None] * torch.einsum(
        "nij,nj->ni", rays[picture], grid.T[pixel]
    )
    colors, points = (
        value.transpose(1, 2).reshape(len(index), 3, size, size).contiguous() for value in (pictures, points)
    )
    return colors, points
