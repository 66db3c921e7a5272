"""Images beside exported cameras: links, copies, or undistorted copies."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Literal, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Float

from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.export.intrinsics import frame_intrinsics, is_fisheye
from nerfstudio.cameras.cameras import Cameras, CameraType

if TYPE_CHECKING:
    from hashpose_ns.export.exported import ExportedCameras

Images = Literal["none", "link", "copy", "undistorted"]


def check_images_exist(filenames: Sequence[Path]) -> None:
    """Raises HashPoseError if images are missing."""
    missing = [filename for filename in filenames if not filename.exists()]
    if missing:
        raise HashPoseError(
            f"{len(missing)} of {len(filenames)} images are missing, the first is {missing[0]}; put them back, or "
            "export with --images none."
        )


def place_images(folder: Path, exported: ExportedCameras, how: Images) -> Cameras:
    """Puts the images into FOLDER/images under their names, and masks into FOLDER/masks as PNG.

    Args:
        folder: the export's folder.
        exported: the cameras.
        how: ``link`` makes symbolic links, ``copy`` copies, ``undistorted`` writes images without lens distortion.

    Returns:
        Intrinsics of the images as placed.

    Raises:
        HashPoseError: an image is missing or unreadable, or links cannot be made here.
    """
    if how == "none":
        return exported.cameras
    masks = exported.mask_filenames or []
    check_images_exist([*exported.image_filenames, *masks])
    jobs = [(source, folder / "images" / name) for source, name in zip(exported.image_filenames, exported.names)]
    mask_jobs = [(source, (folder / "masks" / name).with_suffix(".png")) for source, name in zip(masks, exported.names)]
    for _, target in [*jobs, *mask_jobs]:
        target.parent.mkdir(parents=True, exist_ok=True)
    if how == "undistorted":
        return _undistort(exported.cameras, jobs, mask_jobs)
    for source, target in [*jobs, *mask_jobs]:
        if how == "link":
            try:
                os.symlink(source, target)
            except OSError as error:
                raise HashPoseError(f"Links cannot be made here ({error.strerror}); use --images copy.") from error
        else:
            shutil.copyfile(source, target)
    return exported.cameras


def _undistort(cameras: Cameras, jobs: List[Tuple[Path, Path]], mask_jobs: List[Tuple[Path, Path]]) -> Cameras:
    """Writes undistorted images and masks; the pinhole cameras of these, of the same sizes as before."""
    import cv2

    intrinsics, fisheye = frame_intrinsics(cameras), is_fisheye(cameras)
    kinds = [(kind, *values.values()) for kind, values in zip(fisheye, intrinsics)]
    maps = {kind: _undistortion(values, kind[0]) for kind, values in zip(kinds, intrinsics)}

    def run(kind: tuple, job: Tuple[Path, Path], interpolation: int) -> None:
        x, y, _ = maps[kind]
        if x is None:
            shutil.copyfile(*job)
            return
        _rewrite(*job, lambda image: cv2.remap(image, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE))

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(run, kinds, jobs, repeat(cv2.INTER_LINEAR)))
        list(pool.map(run, kinds, mask_jobs, repeat(cv2.INTER_NEAREST)))
    matrices = torch.tensor(np.array([maps[kind][2] for kind in kinds]), dtype=torch.float32)
    return Cameras(
        camera_to_worlds=cameras.camera_to_worlds,
        fx=matrices[:, 0, 0],
        fy=matrices[:, 1, 1],
        cx=matrices[:, 0, 2],
        cy=matrices[:, 1, 2],
        width=cameras.width.reshape(-1),
        height=cameras.height.reshape(-1),
        camera_type=CameraType.PERSPECTIVE,
    )


def _undistortion(
    values: Dict[str, float], fisheye: bool
) -> Tuple[Optional[np.ndarray], Optional[np.ndarray], Float[np.ndarray, "3 3"]]:
    """Where each pixel of the undistorted image comes from (columns and rows, float32; None where nothing is
    distorted), and the pinhole's matrix. The pinhole sees the largest rectangle that the image fills."""
    import cv2

    # OpenCV's pixel (0, 0) is centred on the origin, nerfstudio's and COLMAP's on (0.5, 0.5)
    matrix = np.array(
        [[values["fl_x"], 0.0, values["cx"] - 0.5], [0.0, values["fl_y"], values["cy"] - 0.5], [0.0, 0.0, 1.0]]
    )
    half = np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    size = int(values["w"]), int(values["h"])
    if fisheye:
        if values["p1"] or values["p2"]:
            raise HashPoseError("A fisheye camera with tangential distortion (p1, p2) cannot be undistorted.")
        distortion = np.array([values[name] for name in ("k1", "k2", "k3", "k4")])
        pinhole = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(matrix, distortion, size, np.eye(3), balance=0)
        x, y = cv2.fisheye.initUndistortRectifyMap(matrix, distortion, np.eye(3), pinhole, size, cv2.CV_32FC1)
        return x, y, pinhole + half
    if values["k4"]:
        raise HashPoseError("Radial distortion of fourth order (k4) cannot be undistorted; use --images link.")
    distortion = np.array([values[name] for name in ("k1", "k2", "p1", "p2", "k3")])
    if not distortion.any():
        return None, None, matrix + half
    pinhole, _ = cv2.getOptimalNewCameraMatrix(matrix, distortion, size, 0)
    x, y = cv2.initUndistortRectifyMap(matrix, distortion, None, pinhole, size, cv2.CV_32FC1)
    return x, y, pinhole + half


def _rewrite(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Reads an image, changes its pixels and writes it: PNG where the name says so, else in the format it had (JPEG at
    quality 95)."""
    from PIL import Image

    try:
        with Image.open(source) as image:
            format, pixels = image.format, np.asarray(image.convert("L") if image.mode == "1" else image)
    except (OSError, SyntaxError) as error:
        raise HashPoseError(f"The image {source} cannot be read: {one_line(error)}.") from error
    format = "PNG" if target.suffix.lower() == ".png" else format
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    Image.fromarray(change(pixels)).save(target, format=format, **options)
