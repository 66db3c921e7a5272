"""A training photograph beside the field's picture from the same, refined, camera."""

from __future__ import annotations

import base64
import io
import time
from typing import ContextManager, Tuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hashpose_ns.photometry.pixels import posed_cameras
from hashpose_ns.photometry.scene import PosedScene

CPU_HEIGHT, GPU_HEIGHT = 64, 256
"""Rows of a rendered picture at most: training waits while it is rendered."""


def render_training_camera(
    scene: PosedScene, index: int, lock: ContextManager
) -> Tuple[Float[Tensor, "height width 3"], Float[Tensor, "height width 3"], float]:
    """A photograph and its render, at the same small size.

    Args:
        scene: the run.
        index: a training camera.
        lock: held while the model is used, so that no training step is under way.
    Returns:
        Photograph and render, values in [0, 1], and for how many seconds the lock was held.
    """
    device = scene.device
    limit = CPU_HEIGHT if device.type == "cpu" else GPU_HEIGHT
    photograph = scene.train[index]["image"].permute(2, 0, 1)[None].float()
    with lock:
        begin = time.perf_counter()
        pose = scene.poses.refined_camera_to_worlds()[index : index + 1].detach()
        camera = posed_cameras(scene.train, pose, "cpu", [index])
        camera.rescale_output_resolution(min(1.0, limit / float(camera.height.max())))
        render = scene.renderer.get_outputs_for_camera(camera.to(device))["rgb"]
        seconds = time.perf_counter() - begin
    photograph = functional.interpolate(photograph, size=render.shape[:2], mode="area")[0].permute(1, 2, 0)
    return scene.renderer.composite(photograph).cpu(), render.clamp(0.0, 1.0).cpu(), seconds


def side_by_side(left: Float[Tensor, "height width 3"], right: Float[Tensor, "height width 3"]) -> str:
    """Two pictures as one image in a data URL."""
    from PIL import Image

    gap = torch.zeros(left.shape[0], max(left.shape[1] // 40, 1), 3)
    pixels = (255 * torch.cat([left, gap, right], dim=1)).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((480, round(480 * pixels.shape[0] / pixels.shape[1]))).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
