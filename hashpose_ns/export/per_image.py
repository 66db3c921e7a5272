"""Poses with what is known about each of them, for programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras

if TYPE_CHECKING:
    from hashpose_ns.export.poses import ExportedCameras
    from hashpose_ns.model import PoseRefiningModel
    from hashpose_ns.pipeline import HashPosePipeline
    from nerfstudio.data.datasets.base_dataset import InputDataset

RAYS_PER_IMAGE = 1024
"""Random pixels of each image that its loss is measured on."""


def image_records(exported: ExportedCameras) -> List[Dict[str, Any]]:
    """A JSON-ready entry for each image: name, file, split, what moved it, its pose and how far it moved.

    Poses are camera-to-world matrices [3, 4] with OpenGL axes in the input's frame. Movement is the angle in degrees
    and the distance of the centres in units of the input, from where training started.
    """
    records = []
    for i, name in enumerate(exported.names):
        record = {
            "name": name,
            "file_path": exported.image_filenames[i].as_posix(),
            "split": exported.splits[i],
            "refined_by": exported.refined_by[i],
            "camera_to_world": exported.camera_to_worlds[i].tolist(),
            "movement": None,
        }
        if exported.movement is not None:
            record["movement"] = {
                "rotation_deg": float(exported.movement.rotation_deg[i]),
                "center": float(exported.movement.center[i]),
            }
        records.append(record)
    return records


@torch.no_grad()
def image_error(
    model: PoseRefiningModel,
    dataset: InputDataset,
    index: int,
    camera_to_world: Float[Tensor, "3 4"],
    rays: int = RAYS_PER_IMAGE,
    trained: bool = False,
) -> Optional[float]:
    """Mean squared error, colours in [0, 1], of the field's render of an image from a pose.

    Args:
        model: in evaluation mode.
        dataset: that holds the image.
        index: of the image.
        camera_to_world: in the frame of the field, OpenGL axes.
        rays: random pixels that are compared, outside of masks; the same ones at every call.
        trained: whether it is a training image and has an appearance embedding, where there are embeddings.

    Returns:
        The error, or None where the mask leaves no pixel.
    """
    batch = dataset[index]
    image = batch["image"]
    height, width = image.shape[:2]
    generator = torch.Generator().manual_seed(index)
    if "mask" in batch:
        allowed = torch.nonzero(batch["mask"][..., 0] > 0)
        if len(allowed) == 0:
            return None
        pixels = allowed[torch.randint(len(allowed), (rays,), generator=generator)]
    else:
        flat = torch.randint(height * width, (rays,), generator=generator)
        pixels = torch.stack([flat // width, flat % width], dim=-1)
    camera: Cameras = dataset.cameras[index : index + 1].to(model.device)
    camera.camera_to_worlds = camera_to_world[None].float().to(model.device)
    bundle = camera.generate_rays(camera_indices=0, coords=(pixels + 0.5).to(model.device))
    bundle.camera_indices = torch.full_like(bundle.camera_indices, index)
    target = model.renderer_rgb.blend_background(image[pixels[:, 0], pixels[:, 1]].to(model.device))
    model.field.train(trained)  # what decides about the embedding, and nothing else
    render = model(bundle)["rgb"].clamp(0.0, 1.0)
    model.field.eval()
    return float((render - target).square().mean())


def image_losses(pipeline: HashPosePipeline, exported: ExportedCameras) -> List[Dict[str, Optional[float]]]:
    """``mse`` and ``psnr`` (dB) of each image against the field's render from its exported pose, from
    `RAYS_PER_IMAGE` pixels; both None where a mask leaves none."""
    from nerfstudio.utils.rich_utils import get_progress

    model, datamanager = pipeline.model, pipeline.datamanager
    losses: List[Dict[str, Optional[float]]] = []
    with get_progress("Comparing renders with images", suffix="images") as progress:
        for i in progress.track(range(len(exported.names))):
            trained = exported.splits[i] == "train"
            dataset = datamanager.train_dataset if trained else datamanager.eval_dataset
            pose = exported.learned_camera_to_worlds[i]
            mse = image_error(model, dataset, exported.indices[i], pose, trained=trained)
            losses.append({"mse": mse, "psnr": None if mse is None else -10.0 * math.log10(max(mse, 1e-10))})
    return losses


def uncertainties(pipeline: HashPosePipeline, exported: ExportedCameras) -> List[Optional[Dict[str, Any]]]:
    """Standard deviations and covariance of each training camera's pose about its own centre, along its own OpenGL
    axes, in degrees and units of the input; None for evaluation images and cameras whose pose is not the field's."""
    from hashpose_ns.cameras.uncertainty import pose_covariances

    found = pose_covariances(pipeline).scaled(exported.frame.unit)
    return [
        found.as_dict(index) if split == "train" and refined else None
        for split, index, refined in zip(exported.splits, exported.indices, exported.is_refined)
    ]
