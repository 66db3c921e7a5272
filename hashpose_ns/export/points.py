"""3-D points that go with exported cameras."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, Optional

import numpy as np
import torch

from hashpose_ns.data.source import source_points
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.exported import ExportedCameras, ExportedPoints
from hashpose_ns.photometry.scene import PosedScene
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.utils.rich_utils import CONSOLE

PointKind = Literal["field", "input", "empty"]

PROJECTED = (CameraType.PERSPECTIVE, CameraType.FISHEYE)
"""Types of cameras that `hashpose_ns.export.projection` knows."""


def with_points(scene: PosedScene, exported: ExportedCameras, kind: PointKind, num_points: int) -> ExportedCameras:
    """Exported cameras with points beside them.

    Args:
        scene: what the cameras were exported from.
        exported: the cameras.
        kind: ``field``: sampled from the surfaces of the trained field. ``input``: those that the run's dataparser
            gives. ``empty``: none.
        num_points: how many of the field's to keep at most.

    Raises:
        HashPoseError: if there are no such points, or they have no place among these cameras.
    """
    if kind == "empty":
        return exported
    if kind == "input":
        return dataclasses.replace(exported, points=_input_points(scene, exported))
    return dataclasses.replace(exported, points=_field_points(scene, exported, num_points))


def _field_points(scene: PosedScene, exported: ExportedCameras, num_points: int) -> Optional[ExportedPoints]:
    from hashpose_ns.export.surface import sample_surfaces

    if num_points < 1:
        raise HashPoseError("--num-points has to be positive; for none, export with --points empty.")
    if not any(exported.is_refined):
        raise HashPoseError(
            "All cameras keep their initial poses, and the field's points belong to the refined ones; export with "
            "--points input or --points empty."
        )
    outputs = scene.train_outputs
    if not set(outputs.cameras.camera_type.reshape(-1).tolist()) <= {t.value for t in PROJECTED}:
        raise HashPoseError(
            "Points of the field need perspective or fisheye cameras; export with --points input or --points empty."
        )
    refined = scene.poses.refined_camera_to_worlds()
    points = sample_surfaces(scene.renderer, outputs.cameras, refined, num_points, outputs.mask_filenames)
    if len(points.positions) == 0:  # poses are what an export is for: it goes on
        CONSOLE.print("Too few views agree on any point of the field's surfaces; no points are written.")
        return None
    # training camera -> its place among the exported images; cameras put back to their initial poses see no points
    place = torch.full((len(refined),), -1)
    for image, (split, index) in enumerate(zip(exported.splits, exported.indices)):
        if split == "train" and exported.is_refined[image]:
            place[index] = image
    seen_by = torch.stack([points.seen_by[:, 0], place[points.seen_by[:, 1]]], dim=1)
    return ExportedPoints(
        xyz=exported.frame.points(points.positions).numpy(),
        rgb=(points.colors * 255.0).round().to(torch.uint8).numpy(),
        error=points.errors.double().numpy(),
        seen_by=seen_by[seen_by[:, 1] >= 0].numpy(),
    )


def _input_points(scene: PosedScene, exported: ExportedCameras) -> ExportedPoints:
    outputs = scene.train_outputs
    if exported.frame.arbitrary:
        raise HashPoseError(
            "The input's 3-D points do not fit poses that were found from an identity start; export with "
            "--points field or --points empty."
        )
    if outputs.metadata.get("points3D_xyz") is None:
        raise HashPoseError(
            "The dataparser of this run gives no 3-D points; export with --points field or --points empty."
        )
    xyz = source_points(scene.dataparser)
    if xyz is None or len(xyz) != len(outputs.metadata["points3D_xyz"]):
        read = outputs.metadata["points3D_xyz"].cpu().double()
        xyz = exported.frame.to_nerfstudio.inverse().apply_to_points(read).numpy()
    rgb = outputs.metadata.get("points3D_rgb")
    error = outputs.metadata.get("points3D_error")
    return ExportedPoints(
        xyz=xyz,
        rgb=np.zeros((len(xyz), 3), np.uint8) if rgb is None else rgb.cpu().numpy().astype(np.uint8),
        error=np.full(len(xyz), -1.0) if error is None else error.cpu().double().numpy(),
    )


def write_ply(path: Path, points: ExportedPoints) -> None:
    """Writes positions and colours as a binary PLY file with float64 positions.

    By hand: trimesh rounds to float32 (half a metre in national grids), and plyfile is licensed under the GPL.

    Args:
        path: the file.
        points: what to write.
    """
    names, types = ("x", "y", "z", "red", "green", "blue"), ["double"] * 3 + ["uchar"] * 3
    properties = "".join(f"property {type} {name}\n" for type, name in zip(types, names))
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points.xyz)}\n{properties}end_header\n"
    vertices = np.rec.fromarrays([*points.xyz.T, *points.rgb.T], formats=["<f8"] * 3 + ["u1"] * 3)
    path.write_bytes(header.encode("ascii") + vertices.tobytes())
