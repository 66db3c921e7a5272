"""Writing cameras as nerfstudio's transforms.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.data.source import LEGACY_APPLIED_TRANSFORM
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.intrinsics import frame_intrinsics
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.io import load_from_json

NO_TRANSFORM = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))

CAMERA_MODELS = {camera_type: name for name, camera_type in CAMERA_MODEL_TO_TYPE.items()}
"""Name of each type of camera in a transforms.json; OPENCV for perspective ones."""

SETTINGS = ("orientation_override", "fisheye_crop_radius")
"""Further entries of a transforms.json that change how nerfstudio-data reads it."""


def input_file_extras(dataparser_config: DataParserConfig) -> Dict[str, Any]:
    """What an exported transforms.json takes over from the input's. The matrices of both are in one frame.

    ``applied_transform`` and ``applied_scale`` led from the original (COLMAP's) frame to that of the matrices.

    Args:
        dataparser_config: config of the run's dataparser.

    Returns:
        ``applied_transform`` (3 rows of 4) and, where the input has them, ``applied_scale``, ``ply_file_path`` as an
        absolute path, ``settings``, and ``split_lists`` (absolute paths by split).
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
    folder = path.absolute().parent
    if "ply_file_path" in meta:
        extras["ply_file_path"] = folder / meta["ply_file_path"]
    settings = {name: meta[name] for name in SETTINGS if name in meta}
    lists = {
        split: [Path(os.path.normpath(folder / name)) for name in meta[f"{split}_filenames"]]
        for split in ("train", "val", "test")
        if f"{split}_filenames" in meta
    }
    extras.update({name: value for name, value in (("settings", settings), ("split_lists", lists)) if value})
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
    settings: Optional[Mapping[str, Any]] = None,
    split_lists: Optional[Mapping[str, Sequence[Path]]] = None,
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
        settings: further entries for the whole file.
        split_lists: which images are in the splits train, val and test, absolute.

    Returns:
        The file.

    Raises:
        HashPoseError: if there are cameras of several types.
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

    types = [CameraType(value) for value in sorted(set(cameras.camera_type.reshape(-1).tolist()))]
    if len(types) > 1:
        names = " and ".join(camera_type.name.lower() for camera_type in types)
        raise HashPoseError(f"A transforms.json cannot hold {names} cameras together.")
    content: Dict[str, Any] = {"note": note, "camera_model": CAMERA_MODELS[types[0]], **(settings or {})}
    for split, filenames in _remaining_lists(split_lists or {}, image_filenames).items():
        content[f"{split}_filenames"] = [link(filename) for filename in filenames]

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


def _remaining_lists(lists: Mapping[str, Sequence[Path]], image_filenames: Sequence[Path]) -> Dict[str, List[Path]]:
    """What is left of lists of splits when some images are. Each split needs a list that names something, so held-out
    images serve for validation and test where only one of these is left, and without any there are no lists."""
    left = set(image_filenames)
    train, val, test = ([path for path in lists.get(split, ()) if path in left] for split in ("train", "val", "test"))
    return {"train": train, "val": val or test, "test": test or val} if train and (val or test) else {}
