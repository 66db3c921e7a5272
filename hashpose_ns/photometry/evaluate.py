"""Rendering and scoring of held-out images, cameras aligned and then test-time optimised."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from time import time
from typing import Dict, List, Optional

import torch

from hashpose_ns.errors import HashPoseError
from hashpose_ns.photometry.align import optimized_held_out_poses
from hashpose_ns.photometry.pixels import evenly_spaced, posed_cameras
from hashpose_ns.photometry.scene import PosedScene


def evaluate_images(
    scene: PosedScene, num_images: int = -1, output_path: Optional[Path] = None, get_std: bool = False
) -> Dict[str, float]:
    """Scores held-out images with aligned cameras and, after test-time optimisation, again. What masks take out is not
    scored.

    Args:
        scene: the field and the images.
        num_images: how many images are scored, evenly spaced; -1 takes all.
        output_path: where to save photographs beside renders.
        get_std: whether to add the deviation over images as `*_std`; 0 for a single image.
    Returns:
        Means over images: `<metric>_aligned`, `<metric>_tto`, `num_rays_per_sec`, `fps`, `num_eval_images`.

    Raises:
        HashPoseError: there is no image to evaluate.
    """
    from torchvision.utils import save_image

    from nerfstudio.utils.rich_utils import get_progress

    renderer, dataset = scene.renderer, scene.held_out
    indices = evenly_spaced(len(dataset), num_images)
    if not indices:
        raise HashPoseError("There is no image to evaluate: the held-out split is empty, or eval-num-images is 0.")
    poses = scene.aligned_held_out_poses()
    variants = ["aligned"] + (["tto"] if scene.test_time.steps > 0 else [])
    values: Dict[str, List[float]] = defaultdict(list)
    if output_path is not None:
        output_path.mkdir(parents=True, exist_ok=True)
    optimized = optimized_held_out_poses(scene, indices, poses)
    with get_progress("Evaluating held-out images", suffix="images") as progress:
        for index in progress.track(indices):
            batch = dataset[index]
            for variant in variants:
                pose = next(optimized) if variant == "tto" else poses[index : index + 1]
                camera = posed_cameras(dataset, pose, scene.device, [index])
                begin = time()
                outputs = renderer.get_outputs_for_camera(camera)
                seconds = time() - begin
                metrics, images = renderer.get_image_metrics_and_images(outputs, batch)
                for name, value in metrics.items():
                    values[f"{name}_{variant}"].append(float(value))
                if output_path is not None:
                    for name, image in images.items():
                        file = output_path / f"eval_{variant}_{name}_{index:04d}.png"
                        save_image(image.permute(2, 0, 1).cpu(), file)
            num_rays = int(camera.height * camera.width)
            values["num_rays_per_sec"].append(num_rays / seconds)
            values["fps"].append(1.0 / seconds)
    result: Dict[str, float] = {}
    for name, numbers in values.items():
        tensor = torch.tensor(numbers, dtype=torch.float64)
        result[name] = float(tensor.mean())
        if get_std:
            result[f"{name}_std"] = float(tensor.std(unbiased=True)) if len(numbers) > 1 else 0.0
    result["num_eval_images"] = float(len(indices))
    return result
