"""Procedural objects: ellipsoids and boxes with sine textures, drawn at random from a seed.

Two families. `articulated` is an animal-like thing with a body, head, four legs, a tail and a bag on its left side:
its parts stand in known relations, which can be learned, as those of a category of CO3D can. `blobs` are ellipsoids and
boxes at random places: nothing about them can be learned but matching. Axes of an object: x forwards, y to the left, z
up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.sparse.settings import Family

ABSENT = 1e-4
"""Half size of a part that an object does not have."""
RADIUS = 0.5
"""Radius of the ball about the origin that every object is scaled to fill."""


@dataclass
class Parts:
    """Parts of one kind of a batch of objects. A part's own frame has its axes along the part's."""

    centers: Float[Tensor, "objects parts 3"]
    rotations: Float[Tensor, "objects parts 3 3"]
    """From the part's frame to the object's."""
    half_sizes: Float[Tensor, "objects parts 3"]
    colors: Float[Tensor, "objects parts 2 3"]
    """The two colours that the texture mixes, linear, in [0, 1]."""
    waves: Float[Tensor, "objects parts 4"]
    """Frequencies along the part's axes in radians per unit, and a phase."""

    def __getitem__(self, objects: Tensor | slice) -> "Parts":
        return Parts(**{name: value[objects] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> "Parts":
        return Parts(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass
class Objects:
    """A batch of objects."""

    ellipsoids: Parts
    boxes: Parts

    def __len__(self) -> int:
        return len(self.boxes.centers)

    def __getitem__(self, objects: Tensor | slice) -> "Objects":
        return Objects(self.ellipsoids[objects], self.boxes[objects])

    def to(self, device: torch.device | str) -> "Objects":
        return Objects(self.ellipsoids.to(device), self.boxes.to(device))


def random_objects(family: Family, count: int, generator: torch.Generator) -> Objects:
    """Draws objects of a family.

    Args:
        family: which.
        count: how many.
        generator: of random numbers, on the device on which the objects shall lie. Its state decides everything.
    """
    return _scaled({"articulated": _articulated, "blobs": _blobs}[family](count, _Draw(count, generator)))


class _Draw:
    """Random numbers for a batch of objects."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator, self.device = count, generator, generator.device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[objects, *shape] in [low, high)."""
        drawn = torch.rand(self.count, *shape, generator=self.generator, device=self.device)
        return low + (high - low) * drawn

    def chance(self, probability: float) -> Tensor:
        """[objects], bool."""
        return self.uniform(0, 1) < probability

    def vector(self, *ranges: tuple[float, float]) -> Tensor:
        """[objects, 3]."""
        return torch.stack([self.uniform(low, high) for low, high in ranges], -1)

    def colors(self, parts: int) -> Tensor:
        """[objects, parts, 2, 3]: a colour and a darker or lighter or altogether different one."""
        first = self.uniform(0.05, 1, parts, 3)
        other = self.uniform(0.05, 1, parts, 3)
        mixed = first * self.uniform(0.3, 1.0, parts, 1)
        return torch.stack([first, torch.where(self.uniform(0, 1, parts, 1) < 0.6, mixed, other)], -2)

    def waves(self, parts: int) -> Tensor:
        """[objects, parts, 4]: stripes along a random axis mostly, sometimes of all three."""
        frequencies = self.uniform(-40, 40, parts, 3) * (self.uniform(0, 1, parts, 3) < 0.6)
        return torch.cat([frequencies, self.uniform(0, 2 * math.pi, parts, 1)], -1)


def _turn(yaw: Tensor, pitch: Tensor, roll: Tensor | None = None) -> Tensor:
    """Rotations [..., 3, 3] about z, then y, then x."""
    roll = torch.zeros_like(yaw) if roll is None else roll
    return roma.euler_to_rotmat("ZYX", torch.stack([yaw, pitch, roll], -1))


class _Assembly:
    """Collects the parts of a batch of objects."""

    def __init__(self, draw: _Draw) -> None:
        self.draw = draw
        self.parts: dict[str, list[tuple[Tensor, ...]]] = {"ellipsoids": [], "boxes": []}

    def add(self, kind: str, center: Tensor, rotation: Tensor, size: Tensor, hue: Tensor, wave: Tensor, has: Tensor):
        size = torch.where(has[:, None], size, torch.full_like(size, ABSENT))
        center = torch.where(has[:, None], center, torch.zeros_like(center))
        self.parts[kind].append((center, rotation, size, hue, wave))

    def objects(self) -> Objects:
        return Objects(**{kind: Parts(*(torch.stack(c, 1) for c in zip(*p))) for kind, p in self.parts.items()})


def _articulated(count: int, draw: _Draw) -> Objects:
    assembly = _Assembly(draw)
    everyone = torch.ones(count, dtype=torch.bool, device=draw.device)
    identity = torch.eye(3, device=draw.device).expand(count, 3, 3)
    # Colours: body, head, legs, tail, bag, saddle. Half of the animals have one coat all over.
    hues, waves = draw.colors(6), draw.waves(6)
    coat = draw.chance(0.5)[:, None, None, None]
    hues = torch.cat([torch.where(coat, hues[:, :1].expand(-1, 4, -1, -1), hues[:, :4]), hues[:, 4:]], 1)
    body_hue, head_hue, leg_hue, tail_hue, bag_hue, saddle_hue = hues.unbind(1)
    body_wave, head_wave, leg_wave, tail_wave, bag_wave, saddle_wave = waves.unbind(1)

    body = draw.vector((0.26, 0.40), (0.11, 0.20), (0.11, 0.20))
    boxy = draw.chance(0.35)
    origin = torch.zeros_like(body)
    assembly.add("ellipsoids", origin, identity, body, body_hue, body_wave, ~boxy)
    assembly.add("boxes", origin, identity, body * 0.88, body_hue, body_wave, boxy)

    rise, yaw = draw.uniform(0.2, 1.1), draw.uniform(-0.5, 0.5)
    neck_length = draw.uniform(0.08, 0.20)
    neck_turn = _turn(yaw * 0.5, -rise)
    neck_base = body * torch.tensor([0.85, 0.0, 0.4], device=draw.device)
    neck_center = neck_base + (neck_turn[..., 0] * (neck_length * 0.7)[:, None])
    width = draw.uniform(0.05, 0.085)
    neck = torch.stack([neck_length, width, width], -1)
    assembly.add("ellipsoids", neck_center, neck_turn, neck, body_hue, body_wave, everyone)
    head_turn = _turn(yaw, draw.uniform(-0.3, 0.5))
    head = draw.vector((0.10, 0.16), (0.08, 0.13), (0.08, 0.13))
    head_center = neck_base + neck_turn[..., 0] * (neck_length * 1.6)[:, None] + head_turn[..., 0] * head[:, :1] * 0.4
    cubic = draw.chance(0.3)
    assembly.add("ellipsoids", head_center, head_turn, head, head_hue, head_wave, ~cubic)
    assembly.add("boxes", head_center, head_turn, head * 0.85, head_hue, head_wave, cubic)
    snout = head * draw.vector((0.5, 0.8), (0.4, 0.6), (0.35, 0.55))
    snout_center = (
        head_center + (head_turn @ (head * torch.tensor([1.1, 0, -0.3], device=draw.device))[..., None])[..., 0]
    )
    assembly.add("boxes", snout_center, head_turn, snout, head_hue.flip(1), head_wave, everyone)
    ear = draw.vector((0.02, 0.035), (0.03, 0.05), (0.06, 0.13))
    ear_tilt = draw.uniform(0.0, 0.7)
    for side in (1.0, -1.0):
        place = head * torch.tensor([-0.3, 0.6 * side, 0.9], device=draw.device)
        center = head_center + (head_turn @ place[..., None])[..., 0]
        turn = head_turn @ _turn(torch.zeros_like(yaw), torch.zeros_like(yaw), -side * ear_tilt)
        center = center + turn[..., 2] * ear[:, 2:] * 0.5
        assembly.add("ellipsoids", center, turn, ear, head_hue.flip(1), head_wave, everyone)

    length, thick = draw.uniform(0.14, 0.26), draw.uniform(0.035, 0.06)
    for front in (1.0, -1.0):
        for side in (1.0, -1.0):
            turn = _turn(torch.zeros_like(yaw), draw.uniform(-0.5, 0.5), side * draw.uniform(-0.05, 0.2))
            hip = body * torch.tensor([0.68 * front, 0.6 * side, -0.5], device=draw.device)
            center = hip - turn[..., 2] * (length * 0.85)[:, None]
            leg = torch.stack([thick, thick, length], -1)
            assembly.add("ellipsoids", center, turn, leg, leg_hue, leg_wave, everyone)

    tail_length, tail_width = draw.uniform(0.10, 0.20), draw.uniform(0.015, 0.035)
    turn = _turn(draw.uniform(-0.6, 0.6), draw.uniform(-0.4, 1.0))
    center = body * torch.tensor([-0.92, 0, 0.4], device=draw.device) - turn[..., 0] * (tail_length * 0.8)[:, None]
    tail = torch.stack([tail_length, tail_width, tail_width], -1)
    assembly.add("ellipsoids", center, turn, tail, tail_hue, tail_wave, everyone)

    bag = torch.stack([draw.uniform(0.07, 0.13), draw.uniform(0.03, 0.06), draw.uniform(0.06, 0.11)], -1)
    place = torch.stack([draw.uniform(-0.3, 0.4) * body[:, 0], body[:, 1] * 0.9 + bag[:, 1], 0.1 * body[:, 2]], -1)
    assembly.add(
        "boxes", place, _turn(draw.uniform(-0.1, 0.1), draw.uniform(-0.2, 0.2)), bag, bag_hue, bag_wave, everyone
    )
    saddle = torch.stack([draw.uniform(0.08, 0.14), body[:, 1] * 0.7, draw.uniform(0.02, 0.05)], -1)
    place = torch.stack([draw.uniform(-0.2, 0.2) * body[:, 0], torch.zeros_like(yaw), body[:, 2]], -1)
    assembly.add("boxes", place, identity, saddle, saddle_hue, saddle_wave, draw.chance(0.5))
    return assembly.objects()


def _blobs(count: int, draw: _Draw) -> Objects:
    assembly = _Assembly(draw)
    for kind, number in (("ellipsoids", 6), ("boxes", 4)):
        hues, waves = draw.colors(number), draw.waves(number)
        for part in range(number):
            center = draw.uniform(-0.32, 0.32, 3)
            quaternion = torch.nn.functional.normalize(draw.uniform(-1, 1, 4), dim=-1)
            size = draw.uniform(0.06, 0.2, 3)
            has = draw.chance(0.8) if part else torch.ones(count, dtype=torch.bool, device=draw.device)
            turn = roma.unitquat_to_rotmat(quaternion)
            assembly.add(kind, center, turn, size, hues[:, part], waves[:, part], has)
    return assembly.objects()


def extents(
    parts: Parts, directions: Float[Tensor, "objects ways 3"], boxes: bool
) -> Float[Tensor, "objects ways parts"]:
    """How far each part reaches from its own centre along unit vectors."""
    local = torch.einsum("owi,opij->owpj", directions, parts.rotations) * parts.half_sizes[:, None]
    return local.abs().sum(-1) if boxes else local.norm(dim=-1)


def _scaled(objects: Objects) -> Objects:
    """The objects with the middle of their bounding box at the origin and within the ball of `RADIUS`."""
    axes = torch.eye(3, device=objects.boxes.centers.device).expand(len(objects), 3, 3)
    low, high = [], []
    for parts, boxes in ((objects.ellipsoids, False), (objects.boxes, True)):
        reach = extents(parts, axes, boxes).transpose(1, 2)
        absent = (parts.half_sizes <= ABSENT).all(-1, keepdim=True)
        low.append((parts.centers - reach).masked_fill(absent, math.inf).amin(1))
        high.append((parts.centers + reach).masked_fill(absent, -math.inf).amax(1))
    lowest, highest = torch.minimum(*low), torch.maximum(*high)
    middle, half = (lowest + highest) / 2, (highest - lowest) / 2
    scale = RADIUS / half.norm(dim=-1)
    for parts in (objects.ellipsoids, objects.boxes):
        absent = (parts.half_sizes <= ABSENT).all(-1, keepdim=True)
        parts.centers = torch.where(absent, parts.centers, (parts.centers - middle[:, None]) * scale[:, None, None])
        parts.half_sizes = torch.where(absent, parts.half_sizes, parts.half_sizes * scale[:, None, None])
        frequencies = parts.waves[..., :3] / scale[:, None, None]
        parts.waves = torch.cat([frequencies, parts.waves[..., 3:]], -1)
    return objects
