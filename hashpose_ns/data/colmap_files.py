"""COLMAP's binary files, record by record, and looked through before nerfstudio reads them.

Its reader believes every count: one that is damaged makes it ask for gigabytes before it finds the end of the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

import numpy as np

from hashpose_ns.errors import HashPoseError

PARAMETER = np.dtype("<f8")
OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
TRACK_ELEMENT = np.dtype([("image", "<u4"), ("observation", "<u4")])

NEWER_MODELS = {
    11: "RAD_TAN_THIN_PRISM_FISHEYE",
    12: "SIMPLE_DIVISION",
    13: "DIVISION",
    14: "SIMPLE_FISHEYE",
    15: "FISHEYE",
    16: "EUCM",
    17: "EQUIRECTANGULAR",
}
"""Camera models by COLMAP's numbers that nerfstudio's reader has never heard of."""


def check_colmap_model(folder: Path, with_points: bool) -> None:
    """Looks through the files that nerfstudio will read, and reads nothing else of them than counts and names.

    Args:
        folder: a COLMAP model. Text models, which nerfstudio prefers, are not looked at.
        with_points: whether the points will be read too.

    Raises:
        HashPoseError: a file ends before what it counts, a camera model is not supported, an image has no camera or a
            name that is no UTF-8.
        OSError: a file cannot be read.
    """
    cameras, images, points = (folder / f"{part}.bin" for part in ("cameras", "images", "points3D"))
    if not (folder / "cameras.txt").exists() and cameras.exists():
        camera_ids = {camera_id for camera_id, *_ in walk_cameras(cameras, _num_params_in_nerfstudio(cameras), False)}
        for _, _, camera_id, name, _ in walk_images(images, False) if images.exists() else ():
            if camera_id not in camera_ids:
                raise HashPoseError(f"The image {name} of {images} has the camera {camera_id}, which is not there.")
    for _ in walk_points(points, False) if with_points and points.exists() else ():
        pass


def _num_params_in_nerfstudio(path: Path) -> Callable[[int, int], int]:
    from nerfstudio.data.utils.colmap_parsing_utils import CAMERA_MODEL_IDS

    def num_params(camera_id: int, model: int) -> int:
        if model not in CAMERA_MODEL_IDS:
            raise unsupported_camera_model(NEWER_MODELS.get(model, f"number {model}") + f" ({path})")
        return CAMERA_MODEL_IDS[model].num_params

    return num_params


def unsupported_camera_model(name: str) -> HashPoseError:
    """What to do about a camera model that nerfstudio cannot read."""
    return HashPoseError(
        f"nerfstudio cannot read the camera model {name}; undistort the images (colmap image_undistorter), or "
        "reconstruct with another model (OPENCV, OPENCV_FISHEYE)."
    )


class _Walk:
    """A position in a file that cannot be moved beyond its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.file = open(path, "rb")
        self.position = 0

    def check(self, count: int, num_bytes: int, what: str) -> None:
        """Raises HashPoseError unless that many records of at least so many bytes can follow."""
        if count * num_bytes > self.size - self.position:
            raise HashPoseError(
                f"{self.path} is cut off or damaged: {what} end beyond the file's {self.size} bytes; copy or make it "
                "again."
            )

    def read(self, format: str, what: str) -> Any:
        """Unpacks the next values."""
        length = struct.calcsize("<" + format)
        self.check(1, length, what)
        self.position += length
        return struct.unpack("<" + format, self.file.read(length))

    def skip(self, num_bytes: int, what: str) -> None:
        self.check(1, num_bytes, what)
        self.position += num_bytes
        self.file.seek(self.position)

    def read_name(self, what: str) -> bytes:
        """The letters up to the next zero."""
        name = b""
        while b"\0" not in name:
            letters = self.file.read(64)
            self.check(1, len(name) + len(letters) + (not letters), what)
            name += letters
        name = name[: name.index(b"\0")]
        self.skip(len(name) + 1, what)
        return name

    def count(self, num_bytes: int, what: str) -> int:
        """A count of records of at least so many bytes each."""
        (count,) = self.read("Q", f"its {what}")
        self.check(count, num_bytes, f"its {count} {what}")
        return count

    def array(self, dtype: np.dtype, count: int, what: str, read: bool) -> np.ndarray:
        """The next values [count]; none of them where they are passed over."""
        if not read:
            self.skip(count * dtype.itemsize, what)
            return np.empty(0, dtype)
        self.check(count, dtype.itemsize, what)
        self.position += count * dtype.itemsize
        return np.frombuffer(self.file.read(count * dtype.itemsize), dtype)


# All of them raise HashPoseError where a file ends before what it counts, and OSError where it cannot be read.


def walk_cameras(
    path: Path, num_params: Callable[[int, int], int], contents: bool = True
) -> Iterator[Tuple[int, int, int, int, np.ndarray]]:
    """The records of cameras.bin: id, number of the model, width, height, and parameters.

    Args:
        path: the file.
        num_params: how many parameters a camera has, by its id and the number of its model; may refuse.
        contents: whether parameters are read.
    """
    walk = _Walk(path)
    with walk.file:
        for _ in range(walk.count(24, "cameras")):
            camera_id, model, width, height = walk.read("IiQQ", "its cameras")
            count = num_params(camera_id, model)
            yield camera_id, model, width, height, walk.array(PARAMETER, count, "its cameras", contents)


def walk_images(path: Path, contents: bool = True) -> Iterator[Tuple[int, Tuple[float, ...], int, str, np.ndarray]]:
    """The records of images.bin: id, quaternion and translation in one, the camera's id, name, and observations.

    Args:
        path: the file.
        contents: whether observations are read, as OBSERVATION.

    Raises:
        HashPoseError: a name is no UTF-8, too.
    """
    walk = _Walk(path)
    with walk.file:
        for _ in range(walk.count(73, "images")):
            image_id, *pose, camera_id = walk.read("I7dI", "its images")
            raw = walk.read_name("the names of its images")
            try:
                name = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise HashPoseError(
                    f"{path} has an image whose name is not UTF-8, {raw!r}; rename the image, there and on the disk."
                ) from None
            what = f"observations of {name}"
            count = walk.count(OBSERVATION.itemsize, what)
            yield image_id, tuple(pose), camera_id, name, walk.array(OBSERVATION, count, what, contents)


def walk_points(path: Path, contents: bool = True) -> Iterator[Tuple[Tuple[Any, ...], np.ndarray]]:
    """The records of points3D.bin: id, position, colour and error in one, and the track.

    Args:
        path: the file.
        contents: whether tracks are read, as TRACK_ELEMENT.
    """
    walk = _Walk(path)
    with walk.file:
        for _ in range(walk.count(51, "points")):
            point = walk.read("Q3d3Bd", "its points")
            count = walk.count(TRACK_ELEMENT.itemsize, "elements of a track")
            yield point, walk.array(TRACK_ELEMENT, count, "its tracks", contents)
