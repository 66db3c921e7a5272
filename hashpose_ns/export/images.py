"""Images beside exported cameras: links, copies, or undistorted copies."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Literal, Optional, Tuple

import numpy as np
import torch
from jaxtyping import Float

from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.export.intrinsics import frame_intrinsics, is_fisheye
from nerfstudio.cameras.cameras import Cameras, CameraType

if TYPE_CHECKING:
    from hashpose_ns.export.exported import ExportedCameras

Images = Literal["none", "link", "copy", "undistorted"]
Job = Tuple[Path, Path]
"""A file and where it goes."""

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""How file systems, and Windows without the right to make links, say that they have none."""


def check_images(exported: ExportedCameras, how: Images, output_dir: Path) -> None:
    """Raises HashPoseError if images or masks are missing, would be one file, or cannot be undistorted.

    Args:
        exported: the cameras.
        how: as for `place_images`.
        output_dir: the export's folder, which need not exist.
    """
    if how == "none":
        return
    images, masks = _jobs(exported, Path())
    missing = [source for source, _ in [*images, *masks] if not source.exists()]
    if missing:
        raise HashPoseError(
            f"{len(missing)} of {len(images) + len(masks)} images are missing, the first is {missing[0]}; put them "
            "back, or export with --images none."
        )
    _check_distinct(images, output_dir, "choose another --output-dir, or export with --images none")
    advice = "export with --images none, or with `hashpose-export nerfstudio`, whose file names every mask"
    _check_distinct(masks, output_dir, advice)
    if how == "undistorted":
        check_undistortable(exported.cameras)


def _jobs(exported: ExportedCameras, folder: Path) -> Tuple[List[Job], List[Job]]:
    """Where the images go, and the masks, where nerfstudio's colmap dataparser looks for them."""
    images = [(source, folder / "images" / name) for source, name in zip(exported.image_filenames, exported.names)]
    masks = [
        (source, (folder / "masks" / name).with_suffix(".png"))
        for source, name in zip(exported.mask_filenames or [], exported.names)
    ]
    return images, masks


def _check_distinct(jobs: List[Job], output_dir: Path, advice: str) -> None:
    """Raises HashPoseError if two files would get one name, on the file system at hand."""
    known: Dict[str, Job] = {}
    for source, target in jobs:
        key = unicodedata.normalize("NFC", str(target)).casefold()
        if key in known and (known[key][1] == target or _are_one_file(known[key][1], target, output_dir)):
            raise HashPoseError(f"{known[key][0]} and {source} would both become {output_dir / target}; {advice}.")
        known[key] = source, target


def _are_one_file(first: Path, second: Path, output_dir: Path) -> bool:
    """Whether the file system takes two names for the same, as many do that differ in upper and lower case."""
    parent = next(parent for parent in output_dir.absolute().parents if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=parent) as folder:
            for name in (first, second):
                Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
                Path(folder, name).touch()
            return Path(folder, first).samefile(Path(folder, second))
    except OSError as error:
        raise HashPoseError(f"{parent} cannot be written ({error.strerror}).") from error


def place_images(folder: Path, exported: ExportedCameras, how: Images) -> Cameras:
    """Puts the images into FOLDER/images under their names, and masks into FOLDER/masks as PNG.

    Args:
        folder: the export's folder.
        exported: the cameras, of which `check_images` has found nothing wrong.
        how: ``link`` makes symbolic links, ``copy`` copies, ``undistorted`` writes images without lens distortion.

    Returns:
        Intrinsics of the images as placed.

    Raises:
        HashPoseError: an image is unreadable, or links cannot be made here.
        OSError: a file cannot be written.
    """
    if how == "none":
        return exported.cameras
    images, masks = _jobs(exported, folder)
    for _, target in [*images, *masks]:
        target.parent.mkdir(parents=True, exist_ok=True)
    if how == "undistorted":
        return _undistort(exported.cameras, images, masks)
    for source, target in [*images, *masks]:
        if how == "copy":
            shutil.copyfile(source, target)
            continue
        try:
            os.symlink(source, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise HashPoseError(f"Links cannot be made here ({error.strerror}); use --images copy.") from error
    return exported.cameras


def _undistort(cameras: Cameras, images: List[Job], masks: List[Job]) -> Cameras:
    """Writes undistorted images and masks; the pinhole cameras of these, of the same sizes as before."""
    import cv2

    intrinsics, fisheye = frame_intrinsics(cameras), is_fisheye(cameras)
    kinds = [(kind, *values.values()) for kind, values in zip(fisheye, intrinsics)]
    maps = {kind: _undistortion(values, kind[0]) for kind, values in zip(kinds, intrinsics)}

    def run(kind: tuple, job: Job, interpolation: int) -> None:
        x, y, _ = maps[kind]
        if x is None:
            shutil.copyfile(*job)
            return
        _rewrite(*job, lambda image: cv2.remap(image, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE))

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(run, kinds, images, repeat(cv2.INTER_LINEAR)))
        list(pool.map(run, kinds, masks, repeat(cv2.INTER_NEAREST)))
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


def check_undistortable(cameras: Cameras) -> None:
    """Raises HashPoseError for a kind of camera that images cannot be freed of."""
    for values, fisheye in zip(frame_intrinsics(cameras), is_fisheye(cameras)):
        if fisheye and (values["p1"] or values["p2"]):
            raise HashPoseError(
                "Images of a fisheye camera with tangential distortion (p1, p2) cannot be undistorted; export with "
                "`hashpose-export nerfstudio` instead."
            )
        if values["k4"] and not fisheye:
            raise HashPoseError(
                "Images with radial distortion of fourth order (k4) cannot be undistorted; export with "
                "`hashpose-export nerfstudio` instead."
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
        distortion = np.array([values[name] for name in ("k1", "k2", "k3", "k4")])
        pinhole = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(matrix, distortion, size, np.eye(3), balance=0)
        x, y = cv2.fisheye.initUndistortRectifyMap(matrix, distortion, np.eye(3), pinhole, size, cv2.CV_32FC1)
        return x, y, pinhole + half
    distortion = np.array([values[name] for name in ("k1", "k2", "p1", "p2", "k3")])
    if not distortion.any():
        return None, None, matrix + half
    pinhole, _ = cv2.getOptimalNewCameraMatrix(matrix, distortion, size, 0)
    x, y = cv2.initUndistortRectifyMap(matrix, distortion, None, pinhole, size, cv2.CV_32FC1)
    return x, y, pinhole + half


LOSSY: Dict[str, Dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
"""Options for formats that Pillow would write at a lower quality; all others lose nothing."""


def _rewrite(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Reads an image, changes its pixels and writes it: PNG where the name says so, else in the format it had."""
    from PIL import Image

    try:
        with Image.open(source) as image:
            format, profile = image.format or "PNG", image.info.get("icc_profile")
            pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    except Exception as error:  # Pillow's readers raise several for broken files
        raise HashPoseError(f"The image {source} cannot be read: {one_line(error)}.") from error
    format = "PNG" if target.suffix.lower() == ".png" else "JPEG" if format == "MPO" else format
    Image.fromarray(change(pixels)).save(target, format=format, icc_profile=profile, **LOSSY.get(format, {}))
