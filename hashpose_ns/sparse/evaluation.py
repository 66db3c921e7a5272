"""How well cameras are found: turns between all pairs of views, and centres after a fit, chance beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.sparse.geometry import angles, pair_rotations
from hashpose_ns.sparse.network import Cameras, SparsePoseNet
from hashpose_ns.sparse.scenes import Scenes, random_scenes
from hashpose_ns.sparse.settings import CaptureConfig, Family

ANGLES = (5, 15, 30)
"""Degrees within which pairs are counted."""
DISTANCES = (0.1, 0.2)
"""Of the scene's scale, within which centres are counted."""
FEWEST_FOR_CENTERS = 5
"""Views from which on centres are compared; of three or four a similarity fits most."""
HELD_OUT = 1 << 40
"""Added to the seeds of objects that no training sees."""


@dataclass
class Score:
    """Of a stage, over scenes with one number of views."""

    median_deg: float
    """Median angle between true and estimated turns of pairs of views."""
    within_deg: dict[int, float]
    """Share of the pairs within some degrees."""
    within_center: dict[float, float] | None
    """Share of the camera centres within parts of the scene's scale, after the best similarity."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        row: dict[str, Any] = {"median_deg": round(self.median_deg, 2)}
        row |= {f"within_{degrees}_deg": round(share, 4) for degrees, share in self.within_deg.items()}
        if self.within_center is not None:
            row |= {f"centre_within_{part}": round(share, 4) for part, share in self.within_center.items()}
        return row


def score(cameras: Cameras, scenes: Scenes) -> Score:
    """Compares cameras with the true ones.

    Pairs of views of all scenes count alike. A centre's error is its distance from the true one after the similarity
    that fits the scene's centres best (Umeyama), over the distance of the farthest true centre from their mean.
    """
    errors = angles(pair_rotations(cameras.rotations), pair_rotations(scenes.rotations)).flatten()
    centers = None
    if scenes.tangents.shape[1] >= FEWEST_FOR_CENTERS:
        found, true = (
            camera_centers(r.double(), t.double())
            for r, t in ((cameras.rotations, cameras.centers), (scenes.rotations, scenes.unit_centers))
        )
        scale = (true - true.mean(1, keepdim=True)).norm(dim=-1).amax(1, keepdim=True)
        distances = (fitted(found, true) - true).norm(dim=-1) / scale
        centers = {part: float((distances < part).double().mean()) for part in DISTANCES}
    within = {limit: float((errors < limit).double().mean()) for limit in ANGLES}
    return Score(float(errors.quantile(0.5)), within, centers)


def camera_centers(
    rotations: Float[Tensor, "*batch 3 3"], centers: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """Where cameras are, -R^T T."""
    return -(rotations.transpose(-1, -2) @ centers[..., None])[..., 0]


def fitted(source: Float[Tensor, "scenes n 3"], target: Float[Tensor, "scenes n 3"]) -> Float[Tensor, "scenes n 3"]:
    """Points after the similarity that brings them closest to others in the least-squares sense (Umeyama 1991)."""
    a, b = source - source.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    u, s, vh = torch.linalg.svd(b.transpose(1, 2) @ a)
    sign = torch.ones_like(s)
    sign[:, 2] = torch.linalg.det(u @ vh).sign()
    rotation = u @ (sign[..., None] * vh)
    scale = (s * sign).sum(-1) / a.square().sum((1, 2)).clamp_min(1e-12)
    return scale[:, None, None] * a @ rotation.transpose(1, 2) + target.mean(1, keepdim=True)


def chance(scenes: Scenes) -> Score:
    """What true cameras of the next scene score: poses from the same distribution that know nothing of the pictures."""
    order = torch.arange(len(scenes), device=scenes.tangents.device).roll(1)
    return score(Cameras(scenes.rotations[order], scenes.unit_centers[order]), scenes)


def held_out_scenes(
    family: Family, count: int, views: int, size: int, config: CaptureConfig, seed: int, device: torch.device
) -> Scenes:
    """Scenes of objects that training never draws."""
    generator = torch.Generator(device).manual_seed(HELD_OUT + seed)
    return random_scenes(family, count, views, size, config, generator)


@torch.no_grad()
def estimates(network: SparsePoseNet, scenes: Scenes, steps: int, seed: int = 0, batch: int = 16) -> list[Cameras]:
    """Coarse estimate and the ones after every step, of all scenes, in evaluation mode and single precision."""
    was_training = network.training
    network.eval()
    stages: list[list[Cameras]] = []
    generator = torch.Generator(scenes.tangents.device).manual_seed(seed)
    for i in range(0, len(scenes), batch):
        images, tangents = scenes.images[i : i + batch], scenes.tangents[i : i + batch]
        stages.append(network(images, tangents, steps=steps, generator=generator))
    network.train(was_training)
    return [
        Cameras(torch.cat([c.rotations for c in stage]), torch.cat([c.centers for c in stage]))
        for stage in zip(*stages)
    ]


def score_families(
    network: SparsePoseNet,
    families: Sequence[Family],
    views: Sequence[int],
    scenes: int,
    steps: int,
    seed: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Scores a network on objects that training never draws.

    Args:
        network: on the device.
        families: of the objects.
        views: numbers of views of a scene.
        scenes: of each family and number of views.
        steps: of refinement.
        seed: of objects, cameras and points.
        device: where pictures are rendered.

    Returns:
        For each family and number of views `chance` and `stages`: the coarse estimate and the one after every step.
    """
    rows = []
    for family in families:
        for count in views:
            held = held_out_scenes(family, scenes, count, network.config.size, CaptureConfig(), seed, device)
            stages = [score(cameras, held).as_dict() for cameras in estimates(network, held, steps, seed)]
            row = {
                "family": family,
                "views": count,
                "scenes": scenes,
                "chance": chance(held).as_dict(),
                "stages": stages,
            }
            rows.append(row)
    return rows


def results_table(row: dict[str, Any]) -> Any:
    """A rich table of one of `score_families`' rows."""
    from rich.table import Table

    table = Table(title=f"{row['family']}, {row['views']} views, {row['scenes']} held-out scenes")
    table.add_column("")
    names = list(row["chance"])
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    labels = ["chance", "coarse", *(f"step {i}" for i in range(1, len(row["stages"])))]
    for label, values in zip(labels, [row["chance"], *row["stages"]]):
        table.add_row(label, *(f"{values[n]:.1f}" if n == "median_deg" else f"{values[n]:.1%}" for n in names))
    return table
