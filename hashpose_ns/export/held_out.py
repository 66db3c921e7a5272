"""Evaluation images' cameras, found against the trained field."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.export.per_image import RAYS_PER_IMAGE, image_error

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline

OPTIMIZED = "test-time optimisation"
ALIGNED = "nothing: aligned by the training cameras"


def optimized_held_out_cameras(
    pipeline: "HashPosePipeline", indices: List[int]
) -> Tuple[Float[Tensor, "num_cameras 3 4"], List[str]]:
    """Poses of evaluation images in the learned frame: the given ones aligned by the training cameras, then optimised
    against the frozen field, with the settings of the run's own evaluation. Where that does not make the field's render
    more like the image, the aligned pose stays.

    Args:
        pipeline: in evaluation mode.
        indices: which evaluation images.

    Returns:
        The poses, and what was done to each in words.
    """
    from hashpose_ns.evaluation import optimized_eval_cameras
    from nerfstudio.utils.rich_utils import get_progress

    config, dataset = pipeline.config, pipeline.datamanager.eval_dataset
    aligned = pipeline.aligned_eval_poses()
    poses, moved_by = [], []
    candidates = optimized_eval_cameras(pipeline, indices, aligned)
    with get_progress("Optimising cameras of evaluation images", suffix="images") as progress:
        for index in progress.track(indices):
            pose, how = aligned[index : index + 1], ALIGNED
            if config.tto_steps > 0:
                optimized = next(candidates).to(pose)
                errors = [
                    image_error(pipeline.model, dataset, index, candidate[0], 2 * RAYS_PER_IMAGE)
                    for candidate in (pose, optimized)
                ]
                if None in errors or errors[1] < errors[0]:
                    pose, how = optimized, OPTIMIZED
            poses.append(pose)
            moved_by.append(how)
    return torch.cat(poses).detach(), moved_by
