"""Test-time photometric optimisation of cameras against a frozen field."""

from __future__ import annotations

from typing import Iterator, List, Literal, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.cameras.pose_optimizer import corrections_to_world, move_rays
from hashpose_ns.photometry.pixels import ImagePixels, Pixels, pixel_rays, posed_cameras
from hashpose_ns.photometry.scene import PosedScene, RayRenderer, frozen
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils import poses as pose_utils

Loss = Literal["training", "mse", "huber"]

HUBER_DELTA = 0.1
"""Error of a colour, of 1, up to which Huber's loss is quadratic."""


def optimize_cameras(
    renderer: RayRenderer,
    cameras: Cameras,
    images: Sequence[ImagePixels],
    side: str,
    steps: int,
    rays: int,
    lr: float,
    *,
    last_rate: float = 1.0,
    loss: Loss = "training",
    pivot: Optional[Float[Tensor, "3"]] = None,
    unit: float = 1.0,
) -> Float[Tensor, "num_cameras 3 4"]:
    """Optimises poses for their photographs. The defaults are BARF's protocol: a zero twist for each camera, a fresh
    Adam at a constant rate, random rays outside of masks, the smoothed gradient and the mean appearance. Which pixels
    are drawn, and of what resolution, is a matter of `images` (`ImagePixels.within`, `.reduced`).

    Cameras are optimised independently; batching changes results only by rounding, and takes memory for all their rays.

    Args:
        renderer: the field.
        cameras: where to start, on the field's device.
        images: the photograph of each. One whose mask leaves no pixel stays where it is.
        side: where twists act, as in `PoseOptimizerConfig.side`.
        steps: number of steps.
        rays: rays per camera and step.
        lr: Adam's learning rate.
        last_rate: the rate falls exponentially to this fraction of it.
        loss: the field's training loss, or the mean squared or Huber's error of colours.
        pivot: what `orbit` turns cameras about, in the frame of the field; its origin by default.
        unit: length of the field's frame that a translation of 1 in a twist stands for, so that one rate suits shifts
            and turns.
    Returns:
        The optimised camera-to-world matrices.
    """
    start = cameras.camera_to_worlds
    seen = [row for row, image in enumerate(images) if image.count > 0]
    if not seen:
        return start.clone()
    generators = [torch.Generator().manual_seed(0) for _ in seen]
    twists = nn.Parameter(torch.zeros(len(images), 6, device=start.device))
    adam = torch.optim.Adam([twists], lr=lr)
    rows = torch.tensor(seen).repeat_interleave(rays).to(start.device)
    units = torch.tensor([unit] * 3 + [1.0] * 3, device=start.device)

    def motions() -> Tensor:
        return corrections_to_world(exp_map_SE3(twists * units), start, side, pivot)

    with frozen(renderer), torch.enable_grad():
        for step in range(steps):
            drawn = [images[row].draw(rays, generator) for row, generator in zip(seen, generators)]
            pixels = Pixels.cat(drawn).to(start.device)
            bundle = pixel_rays(cameras, pixels, rows)
            move_rays(bundle, motions(), rows)
            error = _error(renderer, bundle, pixels.colors, loss)
            # the mean over all rays as the sum over cameras of the means over theirs
            twists.grad = torch.autograd.grad(len(seen) * error, twists)[0]
            adam.param_groups[0]["lr"] = lr * last_rate ** (step / max(steps - 1, 1))
            adam.step()
    with torch.no_grad():
        return pose_utils.multiply(motions(), start)


def _error(
    renderer: RayRenderer, bundle: RayBundle, photograph: Float[Tensor, "rays channels"], loss: Loss
) -> Float[Tensor, ""]:
    """A loss of rays against photographed colours."""
    if loss == "training":
        return renderer.photometric_loss(bundle, photograph, smoothed=True)
    colors, target = renderer.colors(bundle, smoothed=True), renderer.composite(photograph)
    if loss == "mse":
        return functional.mse_loss(colors, target)
    return functional.huber_loss(colors, target, delta=HUBER_DELTA)


def optimized_held_out_poses(
    scene: PosedScene, indices: List[int], poses: Float[Tensor, "num_held_out 3 4"]
) -> Iterator[Float[Tensor, "1 3 4"]]:
    """Optimises held-out cameras, `scene.test_time.images` of them at once, and yields one pose after the other.

    Args:
        scene: the field and the images.
        indices: which held-out images.
        poses: aligned poses of all of them.
    """
    settings = scene.test_time
    for begin in range(0, len(indices), settings.images):
        some = indices[begin : begin + settings.images]
        images = [ImagePixels(scene.held_out, index) for index in some]
        cameras = posed_cameras(scene.held_out, poses[some], scene.device, some)
        found = optimize_cameras(
            scene.renderer, cameras, images, scene.poses.config.side, settings.steps, settings.rays, settings.lr
        )
        yield from found.split(1)
