"""Planar image alignment: warped patches of one photograph, recovered together with the picture they were cut from."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from hashpose_ns.bench.planar.images import NeuralImage, make_image
from hashpose_ns.bench.planar.settings import Planar, Representation
from hashpose_ns.bench.planar.warps import corner_errors, homographies, patch_grid, sample_twists, warp_points
from hashpose_ns.errors import HashPoseError, one_line

RECORDS = 60
"""How often in a run the corner error is measured."""


@dataclass(frozen=True)
class Problem:
    """What a representation is given, the patches' colours, and what it is to find, their warps."""

    photograph: Float[Tensor, "height width 3"]
    """Colours in [0, 1]."""
    side: int
    """Pixels along a patch's side."""
    grid: Float[Tensor, "pixels 2"]
    """Pixel centres of a patch in its own coordinates."""
    true: Float[Tensor, "patches 3 3"]
    """The warps the patches were cut with; the first one, the anchor's, is the identity."""
    colors: Float[Tensor, "patches pixels 3"]
    """The photograph at the warped grid."""

    @property
    def longer(self) -> int:
        """Pixels along the photograph's longer side."""
        return max(self.photograph.shape[:2])


@dataclass
class Run:
    """How one representation did with one seed."""

    representation: Representation
    seed: int
    steps: List[int]
    """Steps at which it was measured."""
    seconds: List[float]
    """Processor time of this process in training until then."""
    corner_errors: List[float]
    """Mean over the patches but the anchor, in pixels."""
    patch_errors: List[float]
    """Final corner error of each of these patches."""
    psnr: float
    """Of all patches' pixels, in dB."""
    warps: Float[Tensor, "patches 3 3"]
    """Recovered."""
    image: NeuralImage
    """Recovered."""

    def record(self) -> Dict[str, Any]:
        """Numbers for a JSON file."""
        return {
            "representation": str(self.representation),
            "seed": self.seed,
            "corner_error": self.corner_errors[-1],
            "patch_errors": self.patch_errors,
            "psnr": self.psnr,
            "warps": self.warps.tolist(),
            "curve": {"step": self.steps, "seconds": self.seconds, "corner_error": self.corner_errors},
        }


def read_photograph(path: Path, size: int) -> Float[Tensor, "height width 3"]:
    """A picture in [0, 1], composited on white where it has alpha, its longer side resized to ``size`` pixels.

    Raises:
        HashPoseError: if there is no such picture, or it is too narrow to cut patches from.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = "it does not exist" if not path.exists() else one_line(error)
        raise HashPoseError(f"The picture {path} cannot be read ({reason}).") from error
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    scale = size / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    if min(width, height) < 16:
        raise HashPoseError(f"{path} is {width}x{height} at --size {size}: patches need 16 pixels on the shorter side.")
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255)


def sample_colors(
    photograph: Float[Tensor, "height width 3"], points: Float[Tensor, "patches pixels 2"]
) -> Float[Tensor, "patches pixels 3"]:
    """Bilinear interpolation between pixel centres; beyond the outermost ones the photograph goes on as it ends."""
    height, width, _ = photograph.shape
    scale = max(height, width) / torch.tensor([width, height])
    channels = photograph.permute(2, 0, 1)[None]
    colors = nn.functional.grid_sample(channels, (points * scale)[None], padding_mode="border", align_corners=False)
    return colors[0].permute(1, 2, 0)


def make_problem(photograph: Float[Tensor, "height width 3"], settings: Planar, seed: int) -> Problem:
    """Cuts the patches; they depend on the photograph, the noise and the seed alone."""
    height, width, _ = photograph.shape
    side, longer = min(height, width) // 2, max(height, width)
    generator = torch.Generator().manual_seed(seed)
    twists = sample_twists(settings.noise, settings.translation, side, (width, height), generator)
    grid, true = patch_grid(side, longer), homographies(twists)
    colors = sample_colors(photograph, warp_points(true, grid.expand(len(true), -1, -1)))
    return Problem(photograph, side, grid, true, colors)


def align(problem: Problem, representation: Representation, settings: Planar, seed: int) -> Run:
    """Recovers warps and picture by Adam on the mean squared error of random pixels of all patches.

    Every warp starts as the identity and the anchor stays there. Warps stand still while the picture begins to form:
    gradients of an untrained picture are noise, which Adam would follow at full speed.

    Raises:
        HashPoseError: if it diverges.
    """
    torch.manual_seed(seed)
    image = make_image(representation, settings)
    num_patches, num_pixels, _ = problem.colors.shape
    twists = nn.Parameter(torch.zeros(num_patches - 1, 8))
    groups = image.param_groups()
    optimizer = torch.optim.Adam([*groups, {"params": [twists], "lr": settings.warp_rate}], fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    pixels = torch.Generator().manual_seed(seed)
    patches = torch.arange(num_patches)[:, None]

    def warps(moving: bool = False) -> Tensor:
        free = twists if moving else twists.detach()
        return homographies(torch.cat([torch.zeros(1, 8), free]))

    def errors() -> Tensor:
        return corner_errors(warps(), problem.true, problem.side, problem.longer)

    steps, seconds, curve, spent = [0], [0.0], [float(errors().mean())], 0.0
    marks = {round((i + 1) * settings.steps / RECORDS) for i in range(RECORDS)}
    for step in range(settings.steps):
        began = time.process_time()
        progress = step / settings.steps
        moving = warp_factor(progress, settings)
        for group, rate, factor in zip(optimizer.param_groups, rates, [*image.rate_factors(step), moving]):
            group["lr"] = rate * factor * settings.decay**progress
        chosen = torch.randint(num_pixels, (num_patches, settings.batch // num_patches), generator=pixels)
        colors = image(warp_points(warps(moving > 0), problem.grid[chosen]), step)
        loss = nn.functional.mse_loss(colors, problem.colors[patches, chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        spent += time.process_time() - began
        if step + 1 in marks:
            steps.append(step + 1)
            seconds.append(round(spent, 3))
            curve.append(float(errors().mean()))
            if not math.isfinite(curve[-1] + loss.item()):
                raise HashPoseError(f"{representation} diverged with seed {seed}; lower the learning rates.")
    psnr = patch_psnr(image, warps(), problem, settings.steps)
    return Run(representation, seed, steps, seconds, curve, errors().tolist(), psnr, warps(), image)


def warp_factor(progress: float, settings: Planar) -> float:
    """Factor on the warps' learning rate: 0, then rising linearly to 1 over as long again."""
    if settings.warp_start == 0:
        return 1.0
    return min(max(progress / settings.warp_start - 1, 0.0), 1.0)


@torch.no_grad()
def patch_psnr(image: NeuralImage, warps: Float[Tensor, "patches 3 3"], problem: Problem, step: int) -> float:
    """PSNR of all patches' pixels in dB."""
    points = warp_points(warps, problem.grid.expand(len(warps), -1, -1))
    return -10 * math.log10(float(nn.functional.mse_loss(image(points, step), problem.colors)))


@torch.no_grad()
def render(image: NeuralImage, size: Tuple[int, int], step: int) -> Float[Tensor, "height width 3"]:
    """The whole picture at a width and height in pixels."""
    width, height = size
    longer = max(size)
    x, y = ((2 * torch.arange(length) + 1 - length) / longer for length in (width, height))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return image(torch.stack([columns, rows], dim=-1), step)
