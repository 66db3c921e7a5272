"""Pixels where images have structure: flat regions carry no information on poses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Dict, Literal, Optional, Type, Union

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hashpose_ns.errors import HashPoseError
from hashpose_ns.host import sent
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig

FEWEST = 3
"""Rays a camera, at least, where all cameras get as many: fewer say nothing of a camera's motion."""

MAX_CELLS = 1 << 22
"""Cells over all images that densities are kept for; larger images share a density among neighbouring pixels."""


@dataclass
class EdgePixelSamplerConfig(PixelSamplerConfig):
    """Configuration of the edge-guided pixel sampler."""

    _target: Type = field(default_factory=lambda: EdgePixelSampler)
    edge_fraction: float = 0.0
    """Fraction of a batch's pixels drawn in proportion to the smoothed image gradient.
    The rest is drawn uniformly. 0 samples as nerfstudio does."""
    cameras: Literal["free", "equal", "shared"] = "free"
    """How a batch is spread over images.
    - free: all pixels are drawn independently.
    - equal: as many from each image, or at least three from some images, drawn again at each step.
    - shared: the same places in all images (L2G-NeRF)."""
    edge_radius: float = 0.03
    """Radius of the smoothing, as a fraction of the image's width.
    A wrong pose moves an edge into its neighbourhood."""


class EdgePixelSampler(PixelSampler):
    """nerfstudio's pixel sampler with a share of edge-guided pixels, and with as many pixels from each image if that is
    asked for. Images of different sizes, masks, fisheye crops and equirectangular images are sampled as nerfstudio
    does."""

    config: EdgePixelSamplerConfig

    def __init__(self, config: EdgePixelSamplerConfig, **kwargs) -> None:
        if not 0 <= config.edge_fraction <= 1:
            raise HashPoseError("pixel-sampler.edge-fraction is a fraction of the batch, between 0 and 1.")
        if config.edge_fraction > 0 and config.cameras == "shared":
            raise HashPoseError(
                "Pixels that all images share cannot be drawn from edges; set --pipeline.datamanager.pixel-sampler."
                "edge-fraction 0, or .cameras equal."
            )
        super().__init__(config, **kwargs)
        self._images: Optional[Tensor] = None
        self._density: Optional[Tensor] = None

    def sample(self, image_batch: Dict) -> Dict:
        """Samples pixels of a batch of images, see nerfstudio's `PixelSampler.sample`."""
        images = image_batch["image"]
        if self.config.edge_fraction > 0 and isinstance(images, Tensor) and images is not self._images:
            self._images, self._density = images, edge_density(images, self.config.edge_radius).cpu()
            self._cumulative = self._density.flatten().double().cumsum(0)
        return super().sample(image_batch)

    def collate_image_dataset_batch(self, batch: Dict, num_rays_per_batch: int, keep_full_image: bool = False) -> Dict:
        """As nerfstudio does. Of images on a GPU the pixels are drawn on the CPU as well: the same ones, and without
        waiting for the GPU. `image_idx` and `mask` are on the CPU wherever the images are."""
        device = batch["image"].device
        if device.type == "cpu":
            return super().collate_image_dataset_batch(batch, num_rays_per_batch, keep_full_image)
        count, height, width = batch["image"].shape[:3]
        stand_in = {"image": torch.zeros(1).expand(count, height, width, 1), "image_idx": torch.arange(count)}
        if "mask" in batch:
            stand_in["mask"] = batch["mask"]
        places = super().collate_image_dataset_batch(stand_in, num_rays_per_batch)["indices"]
        here, there = places.unbind(-1), sent(places, device).unbind(-1)
        pixels = {
            key: value[there if value.device == device else here]
            for key, value in batch.items()
            if key != "image_idx" and value is not None
        }
        places[:, 0] = batch["image_idx"][here[0]]
        pixels["indices"] = places
        if keep_full_image:
            pixels["full_image"] = batch["image"]
        return pixels

    def sample_method(
        self,
        batch_size: int,
        num_images: int,
        image_height: int,
        image_width: int,
        mask: Optional[Tensor] = None,
        device: Union[torch.device, str] = "cpu",
    ) -> Int[Tensor, "batch_size 3"]:
        """Indices (image, row, column) of pixels."""
        if mask is not None and num_images == 1:  # nerfstudio drops the dimension of a single image
            allowed = torch.nonzero(mask[..., 0]).to(device)
            if len(allowed):
                return allowed[torch.randint(len(allowed), (batch_size,), device=device)]
        uniform = super().sample_method(batch_size, num_images, image_height, image_width, mask, device)
        if mask is None and self.config.cameras != "free":
            uniform = self._spread(uniform, num_images)
        count = round(batch_size * self.config.edge_fraction)
        if count == 0 or mask is not None or self._density is None:
            return uniform
        rows, columns = self._density.shape[1:]
        drawn = torch.rand(count, dtype=torch.float64)
        if self.config.cameras == "equal":  # each image's densities sum to 1
            drawn = (uniform[:count, 0].cpu() + drawn) / num_images
        drawn = drawn * self._cumulative[-1]
        cells = torch.searchsorted(self._cumulative, drawn).clamp(max=len(self._cumulative) - 1)
        inside = torch.rand(count, 2)
        row = ((cells // columns % rows + inside[:, 0]) * (image_height / rows)).long().clamp(max=image_height - 1)
        column = ((cells % columns + inside[:, 1]) * (image_width / columns)).long().clamp(max=image_width - 1)
        uniform[:count] = torch.stack([cells // (rows * columns), row, column], dim=-1).to(uniform.device)
        return uniform

    def _spread(self, pixels: Int[Tensor, "batch_size 3"], num_images: int) -> Int[Tensor, "batch_size 3"]:
        """The same number of pixels, of which each image has as many, one image after the other; what is left over goes
        to some images."""
        count = len(pixels)
        chosen = torch.randperm(num_images)[: max(count // FEWEST, 1)].to(pixels.device)
        rounds = -(-count // len(chosen))
        places = pixels[:, 1:]
        if self.config.cameras == "shared":
            places = places[:rounds].repeat_interleave(len(chosen), dim=0)[:count]
        return torch.cat([chosen.repeat(rounds)[:count, None], places], dim=-1)


def edge_density(
    images: Float[Tensor, "num height width channels"], radius: float
) -> Float[Tensor, "num rows columns"]:
    """Gradient magnitude of the grey images, averaged over a square of half-width `radius` times the image's width.

    Args:
        images: [N, H, W, C] with values in [0, 1]; the first three channels count.
        radius: fraction of the width.
    Returns:
        Non-negative densities per image that sum to 1 for each image, so that every camera gets its share of rays; at
        the images' resolution or, where that is too large, on a coarser grid of cells.
    """
    num, height, width = images.shape[:3]
    stride = max(1, math.ceil(math.sqrt(num * height * width / MAX_CELLS)))
    densities = []
    for image in images:
        gray = functional.avg_pool2d(image[..., :3].float().mean(-1)[None, None], stride, ceil_mode=True)
        padded = functional.pad(gray, (1, 1, 1, 1), mode="replicate")
        dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        reach = max(1, round(radius * gray.shape[-1]))
        magnitude = (dx.square() + dy.square()).sqrt()
        smooth = functional.avg_pool2d(magnitude, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)[0, 0]
        # A picture of nothing is sampled evenly.
        densities.append((smooth + 1e-8) / (smooth + 1e-8).sum())
    return torch.stack(densities)
