"""nerfstudio's intrinsics in the terms of COLMAP and of transforms.json."""

from __future__ import annotations

from typing import Dict, List, Tuple

import torch

from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import Cameras, CameraType

DISTORTION_NAMES = ("k1", "k2", "k3", "k4", "p1", "p2")
"""nerfstudio's order of the distortion parameters."""


def frame_intrinsics(cameras: Cameras) -> List[Dict[str, float]]:
    """The intrinsics of each camera, under the names of transforms.json: fl_x, fl_y, cx, cy, w, h, k1 to k4, p1, p2.

    Args:
        cameras: N cameras.

    Raises:
        HashPoseError: if a value is not finite or a focal length or size is not positive.
    """
    num_cameras = len(cameras)
    columns = {
        name: getattr(cameras, attribute).reshape(-1).cpu().tolist()
        for name, attribute in (
            ("fl_x", "fx"),
            ("fl_y", "fy"),
            ("cx", "cx"),
            ("cy", "cy"),
            ("w", "width"),
            ("h", "height"),
        )
    }
    distortion = cameras.distortion_params
    if distortion is None:
        distortion = torch.zeros(num_cameras, len(DISTORTION_NAMES))
    if distortion.shape[-1] != len(DISTORTION_NAMES):
        raise HashPoseError(
            f"Cameras with {distortion.shape[-1]} distortion parameters cannot be exported; only 6 can."
        )
    columns.update(zip(DISTORTION_NAMES, distortion.reshape(num_cameras, -1).cpu().T.tolist()))
    intrinsics = [{name: column[i] for name, column in columns.items()} for i in range(num_cameras)]
    for i, values in enumerate(intrinsics):
        if not torch.isfinite(torch.tensor(list(values.values()))).all():
            raise HashPoseError(f"An intrinsic parameter of training camera {i} is not a finite number.")
        if min(values["fl_x"], values["fl_y"], values["w"], values["h"]) <= 0:
            raise HashPoseError(f"The focal length or the image size of training camera {i} is not positive.")
    return intrinsics


def is_fisheye(cameras: Cameras) -> List[bool]:
    """For each camera, whether it is a fisheye (True) or a perspective camera (False).

    Raises:
        HashPoseError: if a camera is of any other type.
    """
    types = [CameraType(int(value)) for value in cameras.camera_type.reshape(-1)]
    for camera_type in types:
        if camera_type not in (CameraType.PERSPECTIVE, CameraType.FISHEYE):
            raise HashPoseError(
                f"Cameras of type {camera_type.name} cannot be stored in a COLMAP model; export with `hashpose-export "
                "nerfstudio`, `json` or `tum` instead."
            )
    return [camera_type == CameraType.FISHEYE for camera_type in types]


def colmap_model(
    intrinsics: Dict[str, float], fisheye: bool, force_distortion: bool = False
) -> Tuple[str, List[float]]:
    """COLMAP's camera model and its parameters for one camera.

    PINHOLE (fx, fy, cx, cy) without distortion, OPENCV (fx, fy, cx, cy, k1, k2, p1, p2) with it, OPENCV_FISHEYE (fx,
    fy, cx, cy, k1, k2, k3, k4) for fisheye cameras.

    Args:
        intrinsics: one entry of ``frame_intrinsics``.
        fisheye: whether the camera is a fisheye.
        force_distortion: OPENCV even where all distortion parameters are zero.

    Raises:
        HashPoseError: if that model cannot hold the parameters.
    """
    shared = [intrinsics[name] for name in ("fl_x", "fl_y", "cx", "cy")]
    if fisheye:
        if intrinsics["p1"] != 0 or intrinsics["p2"] != 0:
            raise HashPoseError(
                "COLMAP's fisheye model has no tangential distortion, but p1 or p2 is not zero; export with "
                "`hashpose-export nerfstudio` instead."
            )
        return "OPENCV_FISHEYE", shared + [intrinsics[name] for name in ("k1", "k2", "k3", "k4")]
    if intrinsics["k3"] != 0 or intrinsics["k4"] != 0:
        undistorted = "" if intrinsics["k4"] else "with --images undistorted, or "
        raise HashPoseError(
            "COLMAP's OPENCV model cannot hold radial distortion of third and fourth order, but k3 or k4 is not "
            f"zero; export {undistorted}with `hashpose-export nerfstudio`."
        )
    if force_distortion or any(intrinsics[name] != 0 for name in ("k1", "k2", "p1", "p2")):
        return "OPENCV", shared + [intrinsics[name] for name in ("k1", "k2", "p1", "p2")]
    return "PINHOLE", shared
