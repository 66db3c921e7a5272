"""Evaluation images' cameras, found against the trained field."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline


def optimized_held_out_cameras(
    pipeline: "HashPosePipeline", indices: List[int]
) -> Tuple[Float[Tensor, "num_cameras 3 4"], str]:
    """Poses of evaluation images in the learned frame: the given ones aligned by the training cameras, then optimised
    against the frozen field, with the settings of the run's own evaluation.

    Args:
        pipeline: in evaluation mode.
        indices: which evaluation images.

    Returns:
        The poses, and what was done in words.
    """
    from hashpose_ns.evaluation import optimize_camera
    from hashpose_ns.export.poses import ALIGNED, OPTIMIZED
    from nerfstudio.utils.rich_utils import get_progress

    config, dataset = pipeline.config, pipeline.datamanager.eval_dataset
    poses = pipeline.aligned_eval_poses()
    if config.tto_steps <= 0:
        return poses[indices], ALIGNED
    found = []
    with get_progress("Optimising cameras of evaluation images", suffix="images") as progress:
        for index in progress.track(indices):
            camera = pipeline._eval_camera(index, poses)
            image = dataset[index]["image"]
            found.append(
                optimize_camera(pipeline.model, camera, image, config.tto_steps, config.tto_rays, config.tto_lr)
            )
    return torch.cat(found).detach(), OPTIMIZED
