"""Writing cameras as a COLMAP sparse model."""

from __future__ import annotations

from pathlib import Path
from typing import List, Literal, Optional, Sequence

import numpy as np
import roma
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.intrinsics import colmap_model, frame_intrinsics, is_fisheye
from hashpose_ns.export.poses import ExportedPoints
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils


def write_colmap_model(
    directory: Path,
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    cameras: Cameras,
    names: Sequence[str],
    points: Optional[ExportedPoints] = None,
    format: Literal["bin", "txt"] = "bin",
) -> List[Path]:
    """Write cameras.*, images.* and points3D.* of a COLMAP model.

    Images with the same intrinsics share one COLMAP camera. Rotations are made orthonormal before they become
    quaternions. Image ids count from 1 in the order given; images carry no 2-D points, and 3-D points no tracks.

    Args:
        directory: an existing folder.
        camera_to_worlds: poses with OpenCV axes (right, down, forwards).
        cameras: their intrinsics; the poses in it are not read.
        names: unique image names, relative to COLMAP's image folder.
        points: 3-D points in the frame of the poses; none are written when None.
        format: COLMAP's binary or text format.

    Returns:
        The three files.

    Raises:
        HashPoseError: if COLMAP has no model for a camera, or the format cannot hold a name.
    """
    if not len(camera_to_worlds) == len(cameras) == len(names):
        raise ValueError(f"There are {len(camera_to_worlds)} poses, {len(cameras)} cameras and {len(names)} names.")
    _check_names(names, format)
    intrinsics, fisheye = frame_intrinsics(cameras), is_fisheye(cameras)
    # One model for all perspective cameras: nerfstudio's colmap dataparser reads no mixtures
    distorted = any(colmap_model(values, kind)[0] == "OPENCV" for values, kind in zip(intrinsics, fisheye))
    colmap_cameras, camera_ids = {}, []
    known_ids: dict[tuple, int] = {}
    for values, kind in zip(intrinsics, fisheye):
        model, parameters = colmap_model(values, kind, force_distortion=distorted)
        width, height = int(values["w"]), int(values["h"])
        camera_id = known_ids.setdefault((model, width, height, *parameters), len(known_ids) + 1)
        camera_ids.append(camera_id)
        colmap_cameras[camera_id] = colmap_utils.Camera(
            id=camera_id, model=model, width=width, height=height, params=np.array(parameters)
        )

    poses = camera_to_worlds.detach().cpu().double()
    rotations = roma.special_procrustes(poses[:, :, :3]).mT
    translations = -(rotations @ poses[:, :, 3:])[..., 0]
    images = {
        i + 1: colmap_utils.Image(
            id=i + 1,
            qvec=colmap_utils.rotmat2qvec(rotations[i].numpy()),
            tvec=translations[i].numpy(),
            camera_id=camera_ids[i],
            name=name,
            xys=np.zeros((0, 2)),
            point3D_ids=np.zeros(0, dtype=np.int64),
        )
        for i, name in enumerate(names)
    }
    no_track = np.zeros(0, dtype=np.int32)
    points3d = {
        i + 1: colmap_utils.Point3D(
            id=i + 1, xyz=xyz, rgb=rgb, error=float(error), image_ids=no_track, point2D_idxs=no_track
        )
        for i, (xyz, rgb, error) in enumerate(zip(points.xyz, points.rgb, points.error) if points is not None else ())
    }
    colmap_utils.write_model(colmap_cameras, images, points3d, path=str(directory), ext=f".{format}")
    return [directory / f"{part}.{format}" for part in ("cameras", "images", "points3D")]


def _check_names(names: Sequence[str], format: str) -> None:
    """Raise HashPoseError for a name that would not be read back as it is."""
    if len(set(names)) < len(names):
        raise HashPoseError("COLMAP needs unique image names.")
    for name in names:
        if format == "txt" and any(character.isspace() for character in name):
            raise HashPoseError(f"COLMAP's text format cannot hold the white space in {name!r}; use --format bin.")
        # nerfstudio's binary writer packs one byte per character
        if format == "bin" and not name.isascii():
            raise HashPoseError(f"The binary format cannot hold the letters of {name!r}; use --format txt.")
