"""Evaluation images' cameras, found against the trained field."""

from __future__ import annotations

from typing import List, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.export.exported import ALIGNED, OPTIMIZED
from hashpose_ns.photometry.align import optimized_held_out_poses
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.scores import RAYS_PER_IMAGE, image_error


def optimized_held_out_cameras(
    scene: PosedScene, indices: List[int]
) -> Tuple[Float[Tensor, "num_cameras 3 4"], List[str]]:
    """Poses of evaluation images in the learned frame: the given ones aligned by the training cameras, then optimised
    against the frozen field, with the settings of the run's own evaluation. Where that does not make the field's render
    more like the image, the aligned pose stays.

    Args:
        scene: the field and the images.
        indices: which evaluation images.

    Returns:
        The poses, and what was done to each in words.
    """
    from nerfstudio.utils.rich_utils import get_progress

    aligned = scene.aligned_held_out_poses()
    poses, moved_by = [], []
    candidates = optimized_held_out_poses(scene, indices, aligned)
    with get_progress("Optimising cameras of evaluation images", suffix="images") as progress:
        for index in progress.track(indices):
            pose, how = aligned[index : index + 1], ALIGNED
            if scene.test_time.steps > 0:
                optimized = next(candidates).to(pose)
                before, after = (
                    image_error(scene.renderer, scene.held_out, index, candidate[0], 2 * RAYS_PER_IMAGE)
                    for candidate in (pose, optimized)
                )
                if before is not None and after is not None and after < before:
                    pose, how = optimized, OPTIMIZED
            poses.append(pose)
            moved_by.append(how)
    return torch.cat(poses).detach(), moved_by
