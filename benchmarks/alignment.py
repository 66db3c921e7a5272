"""How far is the frame off that an alignment of noisy poses finds, by centres, by orientations, and by both?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/alignment.py --output benchmarks/results/alignment.json

Captures of known poses get independent errors and a random frame; the alignments must find that frame. Noted are the
RMS and the worst angle between the frame found and the true one, and how far the cameras that are not lost are from
where the true frame puts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import roma
import torch
import tyro
from record import Output, show, write_record

from hashpose_ns.cameras.alignment import Similarity, align_centers, align_poses, rotation_angle

Poses = torch.Tensor
"""Camera-to-world poses [N, 3, 4], float64."""


@dataclass
class Args(Output):
    """Settings."""

    draws: int = 40
    """Random captures of each kind."""


@dataclass
class Case:
    """A kind of capture, and what is wrong with its poses."""

    cameras: Callable[[], Poses]
    degrees: float
    """Standard deviation of each component of the orientations' errors."""
    distance: float
    """Standard deviation of each component of the centres' errors, in scene units."""
    about: float = 0.0
    """Distance of the point ahead that a camera turns about, so that it stays in sight."""
    lost: int = 0
    """Cameras whose poses are arbitrary."""


def looking_at(centers: torch.Tensor, target: torch.Tensor) -> Poses:
    """Cameras at some places that look at a point each."""
    back = torch.nn.functional.normalize(centers - target, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) + 1e-3 * normal(len(centers), 3)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, centers], dim=-1)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def line(count: int, play: float) -> Poses:
    """4 units long, with lateral play as a fraction of that."""
    sideways = 4 * play * normal(count, 2)
    centers = torch.cat([torch.linspace(-2, 2, count, dtype=torch.float64)[:, None], sideways], dim=-1)
    return looking_at(centers, centers + torch.tensor([0.1, 3.0, 0.0]) + 0.2 * normal(count, 3))


def plane(count: int, far: bool = False) -> Poses:
    """Two units wide, facing forward; with one camera 180 units away."""
    centers = torch.rand(count, 3, dtype=torch.float64) * torch.tensor([2.0, 0.06, 1.0]) - torch.tensor([1, 0.03, 0.5])
    poses = looking_at(centers, torch.tensor([0.0, 4.0, 0.0]) + 0.3 * normal(count, 3))
    if far:
        poses[0, :, 3] = torch.tensor([150.0, 100.0, 0.0])
    return poses


def ball(count: int) -> Poses:
    """On a sphere of radius 4, looking in."""
    return looking_at(4 * torch.nn.functional.normalize(normal(count, 3), dim=-1), 0.1 * normal(count, 3))


def ring(count: int) -> Poses:
    """On a circle of radius 4, looking in."""
    angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    centers = torch.stack([4 * angle.cos(), 4 * angle.sin(), torch.ones_like(angle)], dim=-1)
    return looking_at(centers, 0.1 * normal(count, 3))


CASES = {
    **{f"line of 24, play {play:.1%}": Case(lambda play=play: line(24, play), 0.6, 0.02) for play in (0, 0.001, 0.01)},
    "line of 24, play 5.0%": Case(lambda: line(24, 0.05), 0.6, 0.02),
    "three views on a line": Case(lambda: line(3, 0.01), 0.6, 0.02),
    "forward-facing, 20": Case(lambda: plane(20), 0.4, 0.01, about=4.0),
    "forward-facing, 20, centres exact": Case(lambda: plane(20), 2.0, 0.0),
    "forward-facing, 12, one far away": Case(lambda: plane(12, far=True), 0.4, 0.005, about=4.0),
    "ring of 20": Case(lambda: ring(20), 0.3, 0.02),
    "ring of 20, one lost": Case(lambda: ring(20), 0.3, 0.02, lost=1),
    "ring of 20, five lost": Case(lambda: ring(20), 0.3, 0.02, lost=5),
    "ball of 100, noise 0.15": Case(lambda: ball(100), math.degrees(0.15), 0.15),
    "ball of 30": Case(lambda: ball(30), 0.3, 0.005, about=4.0),
    "ball of 20, centres exact": Case(lambda: ball(20), 3.0, 0.0),
    "ball of 20, orientations exact": Case(lambda: ball(20), 0.0, 0.1),
    **{f"ball of {count}": Case(lambda count=count: ball(count), 0.3, 0.02) for count in (2, 3, 4)},
}


def spoilt(poses: Poses, case: Case) -> Poses:
    """Poses with a case's errors; its lost cameras come first."""
    turn = roma.rotvec_to_rotmat(math.radians(case.degrees) * normal(len(poses), 3))
    ahead = poses[:, :, 3] - case.about * poses[:, :, 2]
    centers = ahead + case.about * (turn @ poses[:, :, 2:3])[..., 0] + case.distance * normal(len(poses), 3)
    rotations = turn @ poses[:, :, :3]
    rotations[: case.lost] = roma.random_rotmat(case.lost, dtype=torch.float64)
    centers[: case.lost] += 7 * normal(case.lost, 3)
    return torch.cat([rotations, centers[..., None]], dim=-1)


def by_orientations(source: Poses, target: Poses) -> Similarity:
    """The chordal mean of the rotations; scale and translation as by centres."""
    rotation = roma.special_procrustes((target[:, :, :3] @ source[:, :, :3].mT).sum(dim=0))
    scale = align_centers(source, target).scale
    moved = scale * rotation @ source[:, :, 3].mean(dim=0)
    return Similarity(scale, rotation, target[:, :, 3].mean(dim=0) - moved)


ALIGNMENTS = {"centres": align_centers, "orientations": by_orientations, "both": align_poses}


def measure(name: str, case: Case, draws: int) -> dict:
    torch.manual_seed(0)
    angles: dict[str, list[float]] = {kind: [] for kind in ALIGNMENTS}
    distances: dict[str, list[float]] = {kind: [] for kind in ALIGNMENTS}
    for _ in range(draws):
        truth = case.cameras()
        wrong = spoilt(truth, case)
        frame = Similarity(normal().exp(), roma.random_rotmat(dtype=torch.float64), 3 * normal(3))
        learned = frame.apply_to_poses(wrong)
        for kind, align in ALIGNMENTS.items():
            found = align(learned, truth)
            angles[kind].append(math.degrees(float(rotation_angle(found.rotation @ frame.rotation))))
            moved = found.apply_to_poses(learned)[case.lost :, :, 3] - wrong[case.lost :, :, 3]
            distances[kind].append(float(moved.norm(dim=-1).median()))
    row: dict = {"capture": name}
    for kind in ALIGNMENTS:
        row[f"{kind} [deg]"] = round(float(np.sqrt(np.mean(np.square(angles[kind])))), 4)
        row[f"{kind}, worst"] = round(max(angles[kind]), 3)
        row[f"{kind}, centres"] = round(float(np.mean(distances[kind])), 5)
    return row


def main(args: Args) -> None:
    rows = [measure(name, case, args.draws) for name, case in CASES.items()]
    show("Angle between the frame found and the true one (RMS, worst), and distance of centres", rows)
    write_record(args.output, draws=args.draws, captures=rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
