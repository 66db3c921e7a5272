"""Structure from motion as a method of the bench: poses from matches alone, no field. What a run of it does."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from hashpose_ns.bench.suites import SFM_METHODS
from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    import numpy as np

    from hashpose_ns.matches.config import FeatureConfig
    from hashpose_ns.matches.features import MatchedImages
    from hashpose_ns.matches.sfm import Structure
    from hashpose_ns.pipeline import HashPosePipeline
    from nerfstudio.cameras.cameras import Cameras

FEWEST = 3
"""Images that must be placed for errors over the placed ones: any two cameras can be aligned."""


def structure_of(method: str, images: MatchedImages, given: np.ndarray) -> Optional[Structure]:
    """What a method makes of matches.

    Args:
        method: one of `SFM_METHODS`.
        images: keypoints and verified matches.
        given: poses [N, 3, 4] to start from, which only `sfm-given` looks at.

    Returns:
        None if it makes nothing.
    """
    from hashpose_ns.matches.sfm import structure_from_given, structure_from_none, structure_incremental

    makers: Dict[str, Callable[[], Optional[Structure]]] = {
        "sfm-given": lambda: structure_from_given(images, given),
        "sfm-incremental": lambda: structure_incremental(images),
        "sfm-global": lambda: structure_from_none(images),
    }
    assert set(makers) == set(SFM_METHODS)
    return makers[method]()


def place_cameras(pipeline: HashPosePipeline, method: str, features: FeatureConfig) -> Dict[str, Any]:
    """Puts a pipeline's training cameras to where structure from motion sees them, those that it does not place to
    where they were given.

    Args:
        pipeline: an untrained one, whose initial poses are the given ones.
        method: one of `SFM_METHODS`.
        features: how matches are found.

    Returns:
        `sfm_images`, `sfm_placed` and `sfm_not_placed`, their number; `sfm_matches`, of verified matches;
        `sfm_match_seconds`, CPU time for keypoints and matches, whoever spent it first; `sfm_seconds`, for the rest;
        `sfm_placed_*`, errors over the placed cameras alone, where there are three; the mean of BARF's angles as
        `sfm_placed_barf_rotation_deg_mean`. Units as in `HashPosePipeline.pose_metrics`.

    Raises:
        HashPoseError: pycolmap is missing, or an image cannot be used.
    """
    import torch

    from hashpose_ns.matches.features import NoMatches, find_matches, pairs_to_match
    from hashpose_ns.matches.start import in_frame_of
    from hashpose_ns.matches.strategy import are_known

    poses = pipeline.model.camera_optimizer
    initial = poses.initial_camera_to_worlds.detach().double().cpu()
    known = are_known(initial)
    with tempfile.TemporaryDirectory(prefix="hashpose-bench-") as folder:
        files, masks, cameras = training_images(pipeline, Path(folder))
        # Which pairs are matched is the same for all methods, so that they have the same matches.
        pairs = pairs_to_match(initial.numpy() if known else None, len(files), features)
        try:
            images = find_matches(files, cameras, masks, pairs, features)
        except NoMatches as reason:
            raise HashPoseError(f"There is no structure from motion, because {reason}.") from reason
    begin = time.process_time()
    structure = structure_of(method, images, initial.numpy())
    seconds = time.process_time() - begin
    count = len(initial)
    placed = torch.zeros(count, dtype=torch.bool)
    if structure is not None and structure.placed.sum() >= 2:
        placed = torch.from_numpy(structure.placed)
        poses.rebase(torch.from_numpy(in_frame_of(initial.numpy(), structure, known)), trusted=False)
    found: Dict[str, Any] = {
        "sfm_images": count,
        "sfm_placed": int(placed.sum()),
        "sfm_not_placed": count - int(placed.sum()),
        "sfm_matches": sum(map(len, images.matches)),
        "sfm_seconds": round(seconds, 2),
    }
    if math.isfinite(images.seconds):  # an earlier version's cache does not know
        found["sfm_match_seconds"] = round(images.seconds, 2)
        found["cpu_seconds"] = round(images.seconds + seconds, 2)
    return {**found, **_errors_of(pipeline, placed)}


def _errors_of(pipeline: HashPosePipeline, placed: Any) -> Dict[str, float]:
    """Errors over some cameras after both alignments, of these cameras alone."""
    from hashpose_ns.cameras.alignment import align_centers, pose_errors

    if int(placed.sum()) < FEWEST:
        return {}
    poses = pipeline.model.camera_optimizer
    estimated, reference = poses.refined_camera_to_worlds().detach()[placed], poses.reference_camera_to_worlds[placed]
    centers = align_centers(estimated, reference)
    angles = pose_errors(estimated, reference, centers, barf_exact=True).rotation_deg
    return {
        **pose_errors(estimated, reference).summary("sfm_placed_"),
        **pose_errors(estimated, reference, centers).summary("sfm_placed_by_centers_"),
        "sfm_placed_barf_rotation_deg_mean": float(angles.mean()),
    }


def training_images(pipeline: HashPosePipeline, folder: Path) -> Tuple[List[Path], Optional[List[Path]], Cameras]:
    """The images that a field would be trained on, at the size it would see them, their masks, and cameras for them.

    Args:
        pipeline: whose.
        folder: an empty one, for images that have to be made smaller.
    """
    from PIL import Image

    manager = pipeline.datamanager
    outputs = manager.train_dataparser_outputs
    files = [Path(name) for name in outputs.image_filenames]
    masks = [Path(name) for name in outputs.mask_filenames] if outputs.mask_filenames is not None else None
    if manager.config.camera_res_scale_factor == 1.0:
        return files, masks, outputs.cameras
    cameras = manager.train_dataset.cameras

    def smaller(paths: List[Path], kind: str, resampling: Image.Resampling) -> List[Path]:
        made = []
        for index, path in enumerate(paths):
            made.append(folder / f"{kind}_{index:05d}.png")
            with Image.open(path) as image:
                size = int(cameras.width[index]), int(cameras.height[index])
                image.resize(size, resampling).save(made[-1], compress_level=1)
        return made

    small = smaller(files, "image", Image.Resampling.BILINEAR)  # as nerfstudio makes them
    return small, smaller(masks, "mask", Image.Resampling.NEAREST) if masks is not None else None, cameras
