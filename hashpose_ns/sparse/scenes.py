"""Scenes to learn from: an object, cameras about it, pictures of it cropped to the object, and the true poses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hashpose_ns.sparse.objects import Objects, extents, random_objects
from hashpose_ns.sparse.render import render
from hashpose_ns.sparse.settings import CaptureConfig, Family


@dataclass
class Scenes:
    """A batch of scenes, each with the same number of views."""

    images: Float[Tensor, "scenes views 3 size size"]
    """Colours in [0, 1]."""
    tangents: Float[Tensor, "scenes views"]
    """Tangent of half the angle of view; the principal point is in the middle."""
    rotations: Float[Tensor, "scenes views 3 3"]
    """From the object's frame to each camera's, OpenCV's axes."""
    centers: Float[Tensor, "scenes views 3"]
    """The object's centre in each camera's frame, in units of the object (its ball has a radius of .5)."""
    surface: Float[Tensor, "scenes views 3 half half"]
    """The points that are seen, in the object's frame, at half the pictures' resolution; NaN where four pixels are not
    all of the object."""
    canonical: Bool[Tensor, "scenes"]
    """Whether the object's frame is that of a family, which a picture shows, and not an arbitrary one."""

    @property
    def unit_centers(self) -> Float[Tensor, "scenes views 3"]:
        """`centers` with the first camera's distance as the unit."""
        return self.centers / self.centers[:, :1].norm(dim=-1, keepdim=True)

    def views(self, which: Tensor, views: Tensor) -> "Scenes":
        """Some scenes [n] with some of their views [n, views]."""
        values = {name: value[which[:, None], views] for name, value in vars(self).items() if name != "canonical"}
        return Scenes(canonical=self.canonical[which], **values)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which) -> "Scenes":
        return Scenes(**{name: value[which] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> "Scenes":
        return Scenes(**{name: value.to(device) for name, value in vars(self).items()})


def look_at(directions: Float[Tensor, "*batch 3"], rolls: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """World-to-camera rotations of cameras that look along unit vectors, z of the world up, then turned about their
    axes by angles in radians."""
    up = torch.zeros_like(directions)
    up[..., 2] = 1
    right = torch.nn.functional.normalize(torch.linalg.cross(directions, up), dim=-1)
    down = torch.linalg.cross(directions, right)
    c, s = rolls.cos()[..., None], rolls.sin()[..., None]
    return torch.stack([c * right + s * down, c * down - s * right, directions], -2)


def random_scenes(
    family: Family, count: int, views: int, size: int, config: CaptureConfig, generator: torch.Generator
) -> Scenes:
    """Draws objects and cameras and renders them.

    Args:
        family: of the objects.
        count: scenes.
        views: pictures of each.
        size: pixels of a side of a picture.
        config: how cameras stand.
        generator: of random numbers; its device is where everything is computed.
    """
    objects = random_objects(family, count, generator)
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator, device=device)

    azimuth = uniform(0, 2 * math.pi, 1) + math.radians(config.azimuth_spread) * uniform(0, 1, views)
    elevation = torch.deg2rad(uniform(config.lowest, config.highest, views))
    outwards = torch.stack([azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin()], -1)
    distance = uniform(1.5, 2.6, 1) * uniform(0.8, 1.25, views)
    rolls = math.radians(config.roll) * uniform(-1, 1, views)
    positions = outwards * distance[..., None]
    rotations = look_at(-outwards, rolls)
    rotations, tangents = _framed(
        objects, rotations, positions, uniform(1.05, 1.3, views), uniform(-0.08, 0.08, views, 2)
    )
    centers = -(rotations @ positions[..., None])[..., 0]
    light = torch.nn.functional.normalize(torch.stack([uniform(-1, 1), uniform(-1, 1), uniform(0.3, 1.5)], -1), dim=-1)
    background = uniform(0, 1, 1).expand(count, 3) * 0.5 + uniform(0, 1, 3) * 0.5

    def repeat(value: Tensor) -> Tensor:
        return value.repeat_interleave(views, 0)

    images, points = render(
        objects,
        repeat(torch.arange(count, device=device)),
        torch.cat([rotations, centers[..., None]], -1).flatten(0, 1),
        tangents.flatten(),
        repeat(light),
        repeat(background),
        size,
    )
    canonical = torch.full((count,), family == "articulated", device=device)
    surface = torch.nn.functional.avg_pool2d(points, 2)  # NaN spreads
    images, surface = (value.unflatten(0, (count, views)) for value in (images, surface))
    return Scenes(images, tangents, rotations, centers, surface, canonical)


def _framed(
    objects: Objects, rotations: Tensor, positions: Tensor, margins: Tensor, shifts: Tensor
) -> tuple[Tensor, Tensor]:
    """Turns cameras towards the middle of what they see of the object, as a crop with a box about the object does.

    Args:
        rotations: world-to-camera [scenes, views, 3, 3].
        positions: of the cameras [scenes, views, 3].
        margins: sides of the box over those of the object [scenes, views].
        shifts: error of the box's middle, over half its sides [scenes, views, 2].
    Returns:
        World-to-camera rotations and tangents of half the angle of view.
    """
    low, high = [], []
    for parts, boxes in ((objects.ellipsoids, False), (objects.boxes, True)):
        seen = torch.einsum("svij,svpj->svpi", rotations, parts.centers[:, None] - positions[:, :, None])
        reach = torch.stack([extents(parts, rotations[:, :, axis], boxes) for axis in (0, 1)], -1)
        absent = (parts.half_sizes < 1e-3).all(-1)[:, None, :, None]
        low.append(((seen[..., :2] - reach) / seen[..., 2:]).masked_fill(absent, math.inf).amin(2))
        high.append(((seen[..., :2] + reach) / seen[..., 2:]).masked_fill(absent, -math.inf).amax(2))
    lowest, highest = torch.minimum(*low), torch.maximum(*high)
    tangents = (highest - lowest).amax(-1) / 2 * margins
    middle = (lowest + highest) / 2 + shifts * tangents[..., None]
    return turn_towards(middle) @ rotations, tangents


def turn_towards(points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 3 3"]:
    """The smallest rotations that take (x, y, 1) to the optical axis: from a camera's frame to that of a camera at the
    same place that looks at the point."""
    z = torch.nn.functional.normalize(torch.cat([points, torch.ones_like(points[..., :1])], -1), dim=-1)
    x, y, c = z.unbind(-1)
    k = 1 / (1 + c)
    rows = [torch.stack([1 - k * x * x, -k * x * y, -x], -1), torch.stack([-k * x * y, 1 - k * y * y, -y], -1), z]
    return torch.stack(rows, -2)
