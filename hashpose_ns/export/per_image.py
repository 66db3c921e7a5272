"""Poses with what is known about each of them, for programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import torch

from nerfstudio.cameras.cameras import Cameras

if TYPE_CHECKING:
    from hashpose_ns.export.poses import ExportedCameras
    from hashpose_ns.pipeline import HashPosePipeline

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
def image_losses(
    pipeline: HashPosePipeline, exported: ExportedCameras, rays: int = RAYS_PER_IMAGE
) -> List[Dict[str, Optional[float]]]:
    """Mean squared error and PSNR of each image against the field's render from its exported pose, with the image's own
    appearance embedding where there are embeddings (evaluation images: the mean one).

    Args:
        pipeline: in evaluation mode.
        exported: its cameras.
        rays: random pixels of each image, outside of masks; the same ones at every call.

    Returns:
        ``mse`` (colours in [0, 1]) and ``psnr`` in dB of each image; both None where the mask leaves no pixel.
    """
    from nerfstudio.utils.rich_utils import get_progress

    model, datamanager = pipeline.model, pipeline.datamanager
    generator = torch.Generator().manual_seed(0)
    losses: List[Dict[str, Optional[float]]] = []
    with get_progress("Comparing renders with images", suffix="images") as progress:
        for i in progress.track(range(len(exported.names))):
            dataset = datamanager.train_dataset if exported.splits[i] == "train" else datamanager.eval_dataset
            index = exported.indices[i]
            batch = dataset[index]
            image = batch["image"]
            allowed = torch.nonzero(batch["mask"][..., 0] > 0) if "mask" in batch else None
            if allowed is not None and len(allowed) == 0:
                losses.append({"mse": None, "psnr": None})
                continue
            height, width = image.shape[:2]
            count = height * width if allowed is None else len(allowed)
            flat = torch.randint(count, (rays,), generator=generator)
            pixels = torch.stack([flat // width, flat % width], dim=-1) if allowed is None else allowed[flat]
            camera: Cameras = dataset.cameras[index : index + 1].to(model.device)
            camera.camera_to_worlds = exported.learned_camera_to_worlds[i : i + 1].float().to(model.device)
            bundle = camera.generate_rays(camera_indices=0, coords=(pixels + 0.5).to(model.device))
            bundle.camera_indices = torch.full_like(bundle.camera_indices, index)
            model.field.train(exported.splits[i] == "train")
            target = model.renderer_rgb.blend_background(image[pixels[:, 0], pixels[:, 1]].to(model.device))
            mse = float((model(bundle)["rgb"].clamp(0.0, 1.0) - target).square().mean())
            losses.append({"mse": mse, "psnr": -10.0 * math.log10(max(mse, 1e-10))})
    model.field.eval()
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
