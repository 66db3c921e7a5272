"""Rendering and scoring of held-out images, and test-time photometric optimisation of their cameras."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.cameras.pose_optimizer import corrections_to_world, move_rays
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils import poses as pose_utils

if TYPE_CHECKING:
    from hashpose_ns.model import HashPoseModel
    from hashpose_ns.pipeline import HashPosePipeline


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of the module asks for a gradient inside."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def optimize_cameras(
    model: "HashPoseModel",
    cameras: Cameras,
    images: Sequence[Float[Tensor, "height width channels"]],
    steps: int,
    rays: int,
    lr: float,
) -> Float[Tensor, "num_cameras 3 4"]:
    """Test-time photometric optimisation of cameras against a frozen field (BARF's protocol): a fresh zero twist for
    each on the side that the poses were refined on, a fresh Adam at a constant rate, random rays.

    Cameras do not feel each other: all at once they end where they would one by one, but for rounding. More at once
    keep a GPU busy and take memory for all their rays.

    Args:
        model: the model in evaluation mode.
        cameras: cameras at their aligned poses.
        images: their photographs, values in [0, 1].
        steps: number of steps.
        rays: rays per camera and step.
        lr: Adam's learning rate.
    Returns:
        The optimised camera-to-world matrices.
    """
    side = model.camera_optimizer.config.side
    start = cameras.camera_to_worlds
    generators = [torch.Generator().manual_seed(0) for _ in images]
    twists = nn.Parameter(torch.zeros(len(images), 6, device=start.device))
    adam = torch.optim.Adam([twists], lr=lr)
    camera_indices = torch.arange(len(images)).repeat_interleave(rays)

    def motions() -> Tensor:
        return corrections_to_world(exp_map_SE3(twists), start, side)

    with frozen(model), torch.enable_grad():
        for _ in range(steps):
            coordinates, targets = [], []
            for image, generator in zip(images, generators):
                height, width = image.shape[:2]
                pixels = torch.randint(height * width, (rays,), generator=generator)
                rows, columns = pixels // width, pixels % width
                coordinates.append(torch.stack([rows, columns], dim=-1) + 0.5)
                targets.append(image[rows, columns])
            bundle = cameras.generate_rays(
                camera_indices=camera_indices[:, None].to(start.device), coords=torch.cat(coordinates).to(start.device)
            )
            move_rays(bundle, motions(), camera_indices.to(start.device))
            outputs = model(bundle)
            loss = model.get_loss_dict(outputs, {"image": torch.cat(targets).to(start.device)})["rgb_loss"]
            # the mean over all rays as the sum over cameras of the means over theirs
            twists.grad = torch.autograd.grad(len(images) * loss, twists)[0]
            adam.step()
    with torch.no_grad():
        return pose_utils.multiply(motions(), start)


def optimized_eval_cameras(
    pipeline: "HashPosePipeline", indices: List[int], poses: Float[Tensor, "num_eval 3 4"]
) -> Iterator[Float[Tensor, "1 3 4"]]:
    """Optimises held-out cameras, `tto_images` of them at once, and gives one pose after the other.

    Args:
        pipeline: in evaluation mode.
        indices: which held-out images.
        poses: aligned poses of all of them.
    """
    config, dataset = pipeline.config, pipeline.datamanager.eval_dataset
    for begin in range(0, len(indices), config.tto_images):
        some = indices[begin : begin + config.tto_images]
        images = [dataset[index]["image"] for index in some]
        cameras = pipeline.eval_cameras(some, poses)
        found = optimize_cameras(pipeline.model, cameras, images, config.tto_steps, config.tto_rays, config.tto_lr)
        yield from found.split(1)


def spread(count: int, wanted: int) -> List[int]:
    """`wanted` of `count` indices, spread evenly; all of them where `wanted` is negative or too large."""
    if wanted == 0 or count == 0:
        raise HashPoseError("There is no image to evaluate: the held-out split is empty, or eval-num-images is 0.")
    if wanted < 0 or wanted >= count:
        return list(range(count))
    return [int(index) for index in torch.linspace(0, count - 1, wanted).round()]


class HeldOutPixels:
    """Random pixels of held-out images, drawn once, whose colours are compared with the field's during training.

    Args:
        dataset: the held-out images.
        count: number of pixels, from at most 16 images.
    """

    def __init__(self, dataset: InputDataset, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        indices = spread(len(dataset), 16)
        self.dataset = dataset
        self.pixels: List[Tuple[int, Float[Tensor, "rays 2"], Float[Tensor, "rays channels"]]] = []
        for index in indices:
            image = dataset[index]["image"]
            height, width = image.shape[:2]
            flat = torch.randint(height * width, (max(count // len(indices), 1),), generator=generator)
            rows, columns = flat // width, flat % width
            self.pixels.append((index, torch.stack([rows, columns], dim=-1) + 0.5, image[rows, columns]))

    @torch.no_grad()
    def psnr(self, model: "HashPoseModel", camera_to_worlds: Float[Tensor, "num_eval 3 4"]) -> float:
        """PSNR over all pixels, cameras at these poses; the model in evaluation mode."""
        errors = []
        for index, coordinates, target in self.pixels:
            camera = self.dataset.cameras[index : index + 1].to(model.device)
            camera.camera_to_worlds = camera_to_worlds[index : index + 1].to(model.device)
            bundle = camera.generate_rays(camera_indices=0, coords=coordinates.to(model.device))
            truth = model.renderer_rgb.blend_background(target.to(model.device))
            errors.append((model(bundle)["rgb"].clamp(0.0, 1.0) - truth).square().flatten())
        return float(-10.0 * torch.cat(errors).mean().log10())


def evaluate_images(
    pipeline: "HashPosePipeline", output_path: Optional[Path] = None, get_std: bool = False
) -> Dict[str, float]:
    """Scores held-out images with aligned cameras and, after test-time optimisation, again.

    Args:
        pipeline: a pipeline in evaluation mode.
        output_path: where to save photographs beside renders.
        get_std: whether to add the deviation over images as `*_std`; 0 for a single image.
    Returns:
        Means over images: `<metric>_aligned`, `<metric>_tto`, `num_rays_per_sec`, `fps`, `num_eval_images`.
    """
    from torchvision.utils import save_image

    from nerfstudio.utils.rich_utils import get_progress

    config, model, dataset = pipeline.config, pipeline.model, pipeline.datamanager.eval_dataset
    indices = spread(len(dataset), config.eval_num_images)
    poses = pipeline.aligned_eval_poses()
    variants = ["aligned"] + (["tto"] if config.tto_steps > 0 else [])
    values: Dict[str, List[float]] = defaultdict(list)
    if output_path is not None:
        output_path.mkdir(parents=True, exist_ok=True)
    optimized = optimized_eval_cameras(pipeline, indices, poses)
    with get_progress("Evaluating held-out images", suffix="images") as progress:
        for index in progress.track(indices):
            batch = dataset[index]
            for variant in variants:
                camera = pipeline.eval_cameras([index], poses)
                if variant == "tto":
                    camera.camera_to_worlds = next(optimized)
                begin = time()
                outputs = model.get_outputs_for_camera(camera)
                seconds = time() - begin
                metrics, images = model.get_image_metrics_and_images(outputs, batch)
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
