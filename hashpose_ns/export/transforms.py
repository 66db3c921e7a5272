"""Writing cameras as nerfstudio's transforms.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.data.source import LEGACY_APPLIED_TRANSFORM
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.intrinsics import frame_intrinsics, is_fisheye
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.io import load_from_json

NO_TRANSFORM = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))


def input_file_extras(dataparser_config: DataParserConfig) -> Dict[str, Any]:
    """What an exported transforms.json takes over from the input's. The matrices of both are in one frame.

    ``applied_transform`` and ``applied_scale`` led from the original (COLMAP's) frame to that of the matrices.

    Args:
        dataparser_config: config of the run's dataparser.

    Returns:
        ``applied_transform`` (3 rows of 4) and, where the input has them, ``applied_scale`` and, as an absolute path,
        ``ply_file_path``.
    """
    extras: Dict[str, Any] = {"applied_transform": NO_TRANSFORM}
    if type(dataparser_config) is not NerfstudioDataParserConfig:  # a subclass may read other files
        return extras
    data = dataparser_config.data
    path = data if data.suffix == ".json" else data / "transforms.json"
    meta = load_from_json(path)
    if "applied_scale" in meta:
        extras["applied_scale"] = float(meta["applied_scale"])
    if "applied_transform" in meta:
        extras["applied_transform"] = meta["applied_transform"]
    elif (data / "colmap/sparse/0").exists():
        extras["applied_transform"] = LEGACY_APPLIED_TRANSFORM
    if "ply_file_path" in meta:
        extras["ply_file_path"] = path.absolute().parent / meta["ply_file_path"]
    return extras


def write_transforms(
    directory: Path,
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    cameras: Cameras,
    image_filenames: Sequence[Path],
    note: str,
    relative_to: Optional[Path] = None,
    applied_transform: Sequence[Sequence[float]] = NO_TRANSFORM,
    applied_scale: Optional[float] = None,
    ply_file_path: Optional[Path] = None,
    mask_filenames: Optional[Sequence[Path]] = None,
    depth_filenames: Optional[Sequence[Path]] = None,
    frame_notes: Optional[Sequence[Dict[str, Any]]] = None,
) -> Path:
    """Write transforms.json, for nerfstudio-data.

    Intrinsics stand once at the top when all images share them, else with each frame.

    Args:
        directory: an existing folder.
        camera_to_worlds: poses, OpenGL axes.
        cameras: their intrinsics; the poses in it are not read.
        image_filenames: the images, absolute.
        note: what made the file; readers ignore it.
        relative_to: where the file will lie in the end, if not in ``directory``; file paths are written relative to it.
        applied_transform: rigid motion, [3, 4], from the original frame to that of the poses. It is noted, not applied.
        applied_scale: the scale that went with it, likewise.
        ply_file_path: points in the frame of the poses: absolute, or relative to the file.
        mask_filenames: a mask for each image, absolute.
        depth_filenames: a depth map for each image, absolute.
        frame_notes: further entries for each frame, which readers ignore.

    Returns:
        The file.

    Raises:
        HashPoseError: if a camera is neither perspective nor fisheye, or both occur.
    """
    if not len(camera_to_worlds) == len(cameras) == len(image_filenames):
        raise ValueError(
            f"There are {len(camera_to_worlds)} poses, {len(cameras)} cameras and {len(image_filenames)} images."
        )
    start = (directory if relative_to is None else relative_to).resolve()

    def link(filename: Path) -> str:
        try:
            return Path(os.path.relpath(filename, start)).as_posix()
        except ValueError:  # on another drive
            return filename.as_posix()

    fisheye = is_fisheye(cameras)
    if any(fisheye) and not all(fisheye):
        raise HashPoseError("A transforms.json cannot hold perspective and fisheye cameras together.")
    content: Dict[str, Any] = {"note": note, "camera_model": "OPENCV_FISHEYE" if any(fisheye) else "OPENCV"}

    intrinsics = frame_intrinsics(cameras)
    shared = all(values == intrinsics[0] for values in intrinsics)
    if shared:
        content.update(intrinsics[0])
    content["applied_transform"] = [[float(value) for value in row] for row in applied_transform]
    if applied_scale is not None:
        content["applied_scale"] = applied_scale
    if ply_file_path is not None:
        content["ply_file_path"] = link(ply_file_path) if ply_file_path.is_absolute() else ply_file_path.as_posix()

    matrices = torch.eye(4, dtype=torch.float64).repeat(len(camera_to_worlds), 1, 1)
    matrices[:, :3] = camera_to_worlds.detach().cpu().double()

    content["frames"] = []
    for i, filename in enumerate(image_filenames):
        frame: Dict[str, Any] = {"file_path": link(filename)}
        if mask_filenames is not None:
            frame["mask_path"] = link(mask_filenames[i])
        if depth_filenames is not None:
            frame["depth_file_path"] = link(depth_filenames[i])
        if not shared:
            frame.update(intrinsics[i])
        if frame_notes is not None:
            frame.update(frame_notes[i])
        content["frames"].append({**frame, "transform_matrix": matrices[i].tolist()})

    path = directory / "transforms.json"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path
