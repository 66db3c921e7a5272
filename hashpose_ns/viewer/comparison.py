"""A training photograph beside the field's picture from the same, refined, camera."""

from __future__ import annotations

import base64
import io
import time
from typing import TYPE_CHECKING, ContextManager, Tuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hashpose_ns.cameras.pose_optimizer import REFINE_KEY

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline

CPU_HEIGHT, GPU_HEIGHT = 64, 256
"""Rows of a rendered picture at most: training waits while it is rendered."""


def render_training_camera(
    pipeline: "HashPosePipeline", index: int, lock: ContextManager
) -> Tuple[Float[Tensor, "height width 3"], Float[Tensor, "height width 3"], float]:
    """A photograph and its render, at the same small size.

    Args:
        pipeline: the pipeline; its model is put into evaluation mode meanwhile.
        index: a training camera.
        lock: held while the model is used, so that no training step is under way.
    Returns:
        Photograph and render, values in [0, 1], and for how many seconds the lock was held.
    """
    model, dataset = pipeline.model, pipeline.datamanager.train_dataset
    limit = CPU_HEIGHT if model.device.type == "cpu" else GPU_HEIGHT
    camera = dataset.cameras[index : index + 1].to("cpu")
    camera.rescale_output_resolution(min(1.0, limit / float(camera.height.max())))
    camera.metadata = {REFINE_KEY: index}
    photograph = dataset[index]["image"].permute(2, 0, 1)[None].float()
    size = int(camera.height[0]), int(camera.width[0])
    photograph = functional.interpolate(photograph, size=size, mode="area")[0].permute(1, 2, 0)
    with lock:
        begin, was_training = time.perf_counter(), model.training
        model.eval()
        try:
            with torch.no_grad():
                photograph = model.renderer_rgb.blend_background(photograph.to(model.device))
                render = model.get_outputs_for_camera(camera.to(model.device))["rgb"]
        finally:
            model.train(was_training)
        seconds = time.perf_counter() - begin
    return photograph.cpu(), render.clamp(0.0, 1.0).cpu(), seconds


def side_by_side(left: Float[Tensor, "height width 3"], right: Float[Tensor, "height width 3"]) -> str:
    """Two pictures as one image in a data URL."""
    from PIL import Image

    gap = torch.zeros(left.shape[0], max(left.shape[1] // 40, 1), 3)
    pixels = (255 * torch.cat([left, gap, right], dim=1)).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((480, round(480 * pixels.shape[0] / pixels.shape[1]))).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
