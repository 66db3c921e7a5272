"""What a patch feels when it is moved across a picture that is known: the loss and its gradient against displacement.

A hash grid and its decoder are fitted to the photograph once, and then stand still. The four readings have the same
features and so the same loss; they differ in the gradient alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashpose_ns.bench.planar.alignment import Problem, sample_colors
from hashpose_ns.bench.planar.images import HashImage, encoding_config
from hashpose_ns.bench.planar.settings import Planar
from hashpose_ns.bench.planar.warps import warp_points
from hashpose_ns.encoding.grid import READINGS
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig

LEVELS: Dict[str, int] = {"coarse level": 8, "fine level": 64}
"""Grids of one level each, and their cells along the longer side."""
FIT_STEPS, FIT_BATCH = 300, 2048
"""Steps of the fit, at most, and points in each."""
RANGE, SPACING = 12.0, 0.1
"""How far patches are moved to either side, and by how much at a time, in pixels."""
CLOSE_RANGE, CLOSE_SPACING = 2.5, 0.01
"""The same for a single pixel; the range in cells."""
COUNTS = (1, 4, 16, 64, 256, 1024)
"""Pixels that share one displacement, for the roughness of their common gradient."""
DRAWS = 20
"""How often each number of pixels is drawn."""


@dataclass
class LevelSweeps:
    """Displacements along x across one fitted grid. Gradients are per pixel of displacement."""

    name: str
    cells: int
    """Cells of the finest level along the photograph's longer side."""
    longer: int
    """Pixels there."""
    psnr: float
    """Of the fit, in dB."""
    close: Float[Tensor, "steps"]
    """Displacements of a single pixel, in pixels."""
    close_faces: Float[Tensor, "faces"]
    """Where it crosses a face of a cell of the finest level."""
    brightness_gradients: Dict[str, Float[Tensor, "steps"]]
    """Reading -> gradient of the brightness there, with the decoder replaced by its linear part at displacement 0: what
    the encoding alone does."""
    displacements: Float[Tensor, "num"]
    """Displacements of the patches, in pixels; 0 is where they belong."""
    losses: Float[Tensor, "patches num"]
    """Mean squared error of each patch but the anchor, whose pixels fall on the photograph's own."""
    gradients: Dict[str, Float[Tensor, "patches num pixels"]]
    """Reading -> gradient of each pixel's squared error."""

    @property
    def cell(self) -> float:
        """Pixels along a cell."""
        return self.longer / self.cells

    def statistics(self) -> Dict[str, Any]:
        """Means over the patches, per reading: how rough the gradient is, and where it leads.

        `roughness`: for each of `pixels` that share a displacement, the root mean square change of their common
        gradient over 0.1 pixels, over its own root mean square. `bias`: distance from 0 of the nearest displacement
        where the whole patch's force vanishes between one to the right and one to the left, in pixels. `capture`: width
        of the range from which the force leads there, in pixels, at most 24.
        """
        counts = [count for count in COUNTS if count <= self.gradients["linear"].shape[-1]]
        table = {}
        for reading, gradients in self.gradients.items():
            rests = [_resting_place(self.displacements, gradient.mean(-1)) for gradient in gradients]
            table[reading] = {
                "roughness": [self._roughness(gradients, count) for count in counts],
                "bias": _mean([abs(place) for place, _ in rests]),
                "capture": _mean([width for _, width in rests]),
            }
        return {
            "name": self.name,
            "cells": self.cells,
            "cell_pixels": self.cell,
            "psnr": self.psnr,
            "pixels": counts,
            "readings": table,
        }

    def _roughness(self, gradients: Float[Tensor, "patches num pixels"], count: int) -> float:
        generator = torch.Generator().manual_seed(0)  # the same pixels for every reading
        values = []
        for gradient in gradients:
            for _ in range(DRAWS):
                chosen = torch.randperm(gradient.shape[-1], generator=generator)[:count]
                common = gradient[:, chosen].mean(-1)
                values.append(float((common.diff().square().mean() / common.square().mean()).sqrt()))
        return _mean(values)


def sweep_levels(problem: Problem, settings: Planar) -> List[LevelSweeps]:
    """Fits grids of one coarse level, of one fine level and of all levels, and moves the patches across each."""
    grids = {name: {"num_levels": 1, "base_resolution": n, "max_resolution": n} for name, n in LEVELS.items()}
    grids["all levels"] = {}
    return [_sweep_level(name, changes, problem, settings) for name, changes in grids.items()]


def _sweep_level(name: str, changes: Dict[str, int], problem: Problem, settings: Planar) -> LevelSweeps:
    torch.manual_seed(0)
    config = encoding_config(settings, gradient="linear", **changes)
    curriculum = Curriculum(CurriculumConfig(mode="none"), config.num_levels, FIT_STEPS)
    image = HashImage(config, curriculum, settings.decoder_width, settings.hash_rate)
    psnr = _fit(image, problem.photograph, min(FIT_STEPS, settings.steps))
    unit = 2 / problem.longer  # a pixel
    cell = problem.longer / config.max_resolution

    # a pixel next to the strongest edge of the middle row, so that there is something to see
    width = problem.photograph.shape[1]
    row = problem.photograph[problem.photograph.shape[0] // 2].mean(-1)
    column = int((row[2:] - row[:-2])[width // 4 : -width // 4].abs().argmax()) + width // 4 + 1
    point = torch.tensor([[(2 * column + 1 - width) / problem.longer, 0.01]])
    close = torch.arange(-CLOSE_RANGE * cell, CLOSE_RANGE * cell, CLOSE_SPACING * cell)
    features = image.encoding((point + 1) / 2).detach().requires_grad_()
    (direction,) = torch.autograd.grad(image.decoder(features).mean(), features)
    moved = point + torch.stack([close * unit, torch.zeros_like(close)], dim=-1)
    brightness = _reading_gradients(image, moved, direction.expand(len(moved), -1))
    left = float(point[0, 0] + 1) / unit  # of the grid's edge, in pixels
    faces = torch.arange(config.max_resolution + 1) * cell - left

    displacements = torch.arange(-RANGE, RANGE + SPACING / 2, SPACING)
    losses, gradients = [], {reading: [] for reading in READINGS}
    for warp, colors in zip(problem.true[1:], problem.colors[1:]):
        loss, parts = _sweep_patch(image, warp_points(warp, problem.grid), colors, displacements * unit)
        losses.append(loss)
        for reading, part in parts.items():
            gradients[reading].append(part * unit)
    return LevelSweeps(
        name,
        config.max_resolution,
        problem.longer,
        psnr,
        close,
        faces[(faces > close[0]) & (faces < close[-1])],
        {reading: gradient[:, 0] * unit for reading, gradient in brightness.items()},
        displacements,
        torch.stack(losses),
        {reading: torch.stack(parts) for reading, parts in gradients.items()},
    )


def _fit(image: HashImage, photograph: Float[Tensor, "height width 3"], steps: int) -> float:
    """Fits a picture to random points of the photograph; its PSNR there in the last step."""
    height, width, _ = photograph.shape
    limits = torch.tensor([width, height]) / max(height, width)
    optimizer = torch.optim.Adam(image.param_groups(), fused=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        points = (2 * torch.rand(FIT_BATCH, 2, generator=generator) - 1) * limits
        loss = nn.functional.mse_loss(image(points, step), sample_colors(photograph, points[None])[0])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return -10 * math.log10(loss.item())


def _reading_gradients(
    image: HashImage, points: Float[Tensor, "*batch 2"], feature_gradients: Float[Tensor, "*batch features"]
) -> Dict[str, Float[Tensor, "*batch 2"]]:
    """The points' gradients under each reading, given those of their features."""
    points = points.detach().requires_grad_()
    gradients = {}
    for reading in READINGS:
        image.encoding.config.gradient = reading
        features = image.encoding((points + 1) / 2)
        (gradients[reading],) = torch.autograd.grad(features, points, feature_gradients)
    return gradients


def _sweep_patch(
    image: HashImage,
    points: Float[Tensor, "pixels 2"],
    colors: Float[Tensor, "pixels 3"],
    displacements: Float[Tensor, "num"],
) -> Tuple[Float[Tensor, "num"], Dict[str, Float[Tensor, "num pixels"]]]:
    """Loss of a patch moved along x, and for each reading the gradient of each pixel's squared error."""
    losses: List[Tensor] = []
    gradients: Dict[str, List[Tensor]] = {reading: [] for reading in READINGS}
    for part in displacements.split(max(1, 65536 // len(points))):
        moved = points.expand(len(part), -1, -1).clone()
        moved[..., 0] += part[:, None]
        features = image.encoding((moved + 1) / 2).detach().requires_grad_()
        errors = (image.decoder(features) - colors).square().mean(dim=-1)
        (feature_gradients,) = torch.autograd.grad(errors.sum(), features)
        losses.append(errors.mean(dim=1).detach())
        for reading, gradient in _reading_gradients(image, moved, feature_gradients).items():
            gradients[reading].append(gradient[..., 0])
    return torch.cat(losses), {reading: torch.cat(parts) for reading, parts in gradients.items()}


def _resting_place(displacements: Float[Tensor, "num"], gradient: Float[Tensor, "num"]) -> Tuple[float, float]:
    """Where the force vanishes nearest to 0, and the width of the range from which it leads there, in pixels."""
    rising = gradient > 0  # descent goes left there
    crossings = torch.nonzero(~rising[:-1] & rising[1:])[:, 0]
    if len(crossings) == 0:
        return RANGE, 0.0
    before, after = gradient[crossings], gradient[crossings + 1]
    places = displacements[crossings] + before / (before - after) * SPACING
    nearest = int(places.abs().argmin())
    left = int(crossings[nearest])
    right = left + 1
    while left > 0 and not rising[left - 1]:
        left -= 1
    while right + 1 < len(rising) and rising[right + 1]:
        right += 1
    return float(places[nearest]), float(displacements[right] - displacements[left])


def _mean(values: List[float]) -> float:
    return sum(values) / len(values)
