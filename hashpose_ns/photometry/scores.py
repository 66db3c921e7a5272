"""Squared errors of pixels at given poses: the one place."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hashpose_ns.photometry.align import optimize_cameras
from hashpose_ns.photometry.pixels import (
    ImagePixels,
    Pixels,
    draw_pixels,
    evenly_spaced,
    pixel_rays,
    posed_cameras,
)
from hashpose_ns.photometry.scene import PosedScene, RayRenderer
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset

RAYS_PER_IMAGE = 1024
"""Random pixels of each image that its error is measured on."""

HELD_OUT_IMAGES = 16
"""Images that held-out pixels are drawn from at most."""


@torch.no_grad()
def squared_errors(
    renderer: RayRenderer,
    cameras: Cameras,
    pixels: Pixels,
    rows: Optional[Int[Tensor, "num_pixels"]] = None,
    *,
    own_appearance: bool = False,
) -> Float[Tensor, "num_pixels"]:
    """Squared error of each pixel, the mean over its three colours in [0, 1], rendered in chunks.

    Args:
        renderer: the field.
        cameras: at the poses to score, on the field's device.
        pixels: on any device.
        rows: which of the cameras sees each pixel; that of the pixel's image by default.
        own_appearance: as in `RayRenderer.colors`.
    """
    chunk, device = renderer.rays_per_chunk(), renderer.device
    errors = []
    for begin in range(0, len(pixels), chunk):
        part = slice(begin, begin + chunk)
        some = pixels[part].to(device)
        rays = pixel_rays(cameras, some, None if rows is None else rows[part].to(device))
        colors = renderer.colors(rays, own_appearance=own_appearance)
        errors.append((colors - renderer.composite(some.colors)).square().mean(dim=-1))
    return torch.cat(errors) if errors else torch.zeros(0, device=device)


def image_error(
    renderer: RayRenderer,
    dataset: InputDataset,
    index: int,
    camera_to_world: Float[Tensor, "3 4"],
    rays: int = RAYS_PER_IMAGE,
    own_appearance: bool = False,
) -> Optional[float]:
    """Mean squared error of an image from a pose, on random pixels outside of its mask, the same ones at every call.

    Args:
        renderer: the field.
        dataset: that holds the image.
        index: of the image.
        camera_to_world: in the frame of the field, OpenGL axes.
        rays: number of pixels.
        own_appearance: for training images, as in `RayRenderer.colors`.

    Returns:
        The error, or None if the mask leaves no pixel.
    """
    pixels = draw_pixels(dataset, index, rays, torch.Generator().manual_seed(index))
    if not len(pixels):
        return None
    camera = posed_cameras(dataset, camera_to_world[None], renderer.device, [index])
    rows = torch.zeros(len(pixels), dtype=torch.long)
    return float(squared_errors(renderer, camera, pixels, rows, own_appearance=own_appearance).mean())


class HeldOutPixels:
    """Random pixels of held-out images, drawn once outside of masks, that training is scored on.

    Args:
        dataset: the held-out images.
        count: number of pixels, from at most `HELD_OUT_IMAGES` images.
    """

    def __init__(self, dataset: InputDataset, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        indices = evenly_spaced(len(dataset), HELD_OUT_IMAGES)
        self.dataset = dataset
        self.pixels = Pixels.cat(
            [draw_pixels(dataset, index, max(count // len(indices), 1), generator) for index in indices]
        )

    def psnr(self, renderer: RayRenderer, camera_to_worlds: Float[Tensor, "num_held_out 3 4"]) -> float:
        """PSNR in dB over all pixels, cameras at these poses; NaN if masks leave no pixel."""
        cameras = posed_cameras(self.dataset, camera_to_worlds, renderer.device)
        return float(-10.0 * squared_errors(renderer, cameras, self.pixels).mean().log10())


def unexplained(
    renderer: RayRenderer, dataset: InputDataset, pixels: Pixels, poses: Float[Tensor, "count 3 4"]
) -> Float[Tensor, "count"]:
    """Mean squared colour error of an image's pixels at each pose, over the variance of the pixels' colours: the share
    of the photograph that the field does not explain from there.

    Args:
        renderer: the field.
        dataset: that holds the image.
        pixels: of one image, on the field's device.
        poses: in the frame of the field.
    """
    rays, device = len(pixels), renderer.device
    variance = renderer.composite(pixels.colors).var(dim=0).mean().clamp(min=1e-4)
    everywhere = pixels[torch.arange(rays, device=device).repeat(len(poses))]
    rows = torch.arange(len(poses), device=device).repeat_interleave(rays)
    cameras = posed_cameras(dataset, poses, device, [int(pixels.images[0])] * len(poses))
    errors = squared_errors(renderer, cameras, everywhere, rows)
    return errors.view(len(poses), rays).mean(dim=1) / variance


class PoseJudge:
    """Photometric losses of a training camera at any poses, against the field as it is.

    Args:
        scene: the field and the images.
        index: the training camera.
        rays: random pixels that poses are judged by, outside of masks and always the same ones; none if the mask leaves
            none.
    """

    def __init__(self, scene: PosedScene, index: int, rays: int) -> None:
        self.renderer, self.dataset, self.side = scene.renderer, scene.train, scene.poses.config.side
        self.image = ImagePixels(scene.train, index)
        self.pixels = self.image.draw(rays, torch.Generator().manual_seed(index)).to(scene.device)

    def cameras_at(self, poses: Float[Tensor, "count 3 4"]) -> Cameras:
        """The camera, once at each pose."""
        return posed_cameras(self.dataset, poses, self.renderer.device, [self.image.index] * len(poses))

    def losses(self, poses: Float[Tensor, "count 3 4"]) -> Float[Tensor, "count"]:
        """Mean squared colour error at each pose, over the variance of the pixels' colours."""
        return unexplained(self.renderer, self.dataset, self.pixels, poses)

    def optimized(
        self, poses: Float[Tensor, "count 3 4"], steps: int, rays: int, lr: float, last_rate: float = 1.0
    ) -> Tuple[Float[Tensor, "count 3 4"], Float[Tensor, "count"]]:
        """Poses after photometric optimisation, and their losses, the least first. Arguments as in
        `optimize_cameras`."""
        images = [self.image] * len(poses)
        poses = optimize_cameras(
            self.renderer, self.cameras_at(poses), images, self.side, steps, rays, lr, last_rate=last_rate
        )
        losses, order = self.losses(poses).sort()
        return poses[order], losses
