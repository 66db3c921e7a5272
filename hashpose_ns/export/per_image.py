"""Poses with what is known about each of them, for programs."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional

from hashpose_ns.export.exported import ExportedCameras
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.scores import image_error


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


def image_losses(scene: PosedScene, exported: ExportedCameras) -> List[Dict[str, Optional[float]]]:
    """``mse`` and ``psnr`` (dB) of each image against the field's render from its exported pose, from
    `RAYS_PER_IMAGE` pixels outside of masks; both None if a mask leaves none."""
    from nerfstudio.utils.rich_utils import get_progress

    losses: List[Dict[str, Optional[float]]] = []
    with get_progress("Comparing renders with images", suffix="images") as progress:
        for i in progress.track(range(len(exported.names))):
            trained = exported.splits[i] == "train"
            dataset = scene.train if trained else scene.held_out
            pose = exported.learned_camera_to_worlds[i]
            mse = image_error(scene.renderer, dataset, exported.indices[i], pose, own_appearance=trained)
            losses.append({"mse": mse, "psnr": None if mse is None else -10.0 * math.log10(max(mse, 1e-10))})
    return losses


def uncertainties(scene: PosedScene, exported: ExportedCameras) -> List[Optional[Dict[str, Any]]]:
    """Standard deviations and covariance of each training camera's pose about its own centre, along its own OpenGL
    axes, in degrees and units of the input; None for evaluation images and cameras whose pose is not the field's."""
    from hashpose_ns.photometry.uncertainty import pose_covariances

    found = pose_covariances(scene).scaled(exported.frame.unit)
    return [
        found.as_dict(index) if split == "train" and refined else None
        for split, index, refined in zip(exported.splits, exported.indices, exported.is_refined)
    ]
