"""COLMAP's binary files, looked through before nerfstudio reads them.

Its reader believes every count: one that is damaged makes it ask for gigabytes before it finds the end of the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Set

from hashpose_ns.errors import HashPoseError

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
    if not (folder / "cameras.txt").exists() and (folder / "cameras.bin").exists():
        camera_ids = _check_cameras(_Walk(folder / "cameras.bin"))
        if (folder / "images.bin").exists():
            _check_images(_Walk(folder / "images.bin"), camera_ids)
    if with_points and (folder / "points3D.bin").exists():
        _check_points(_Walk(folder / "points3D.bin"))


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


def _check_cameras(walk: _Walk) -> Set[int]:
    from nerfstudio.data.utils.colmap_parsing_utils import CAMERA_MODEL_IDS

    ids = set()
    with walk.file:
        for _ in range(walk.count(24, "cameras")):
            camera_id, model, _, _ = walk.read("iiQQ", "its cameras")
            if model not in CAMERA_MODEL_IDS:
                raise unsupported_camera_model(NEWER_MODELS.get(model, f"number {model}") + f" ({walk.path})")
            walk.skip(8 * CAMERA_MODEL_IDS[model].num_params, "its cameras")
            ids.add(camera_id)
    return ids


def _check_images(walk: _Walk, camera_ids: Set[int]) -> None:
    with walk.file:
        for _ in range(walk.count(73, "images")):
            *_, camera_id = walk.read("i7di", "its images")
            raw = walk.read_name("the names of its images")
            try:
                name = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise HashPoseError(
                    f"{walk.path} has an image with a name that is no UTF-8, {raw!r}; rename the image, there and on "
                    "the disk."
                ) from None
            if camera_id not in camera_ids:
                raise HashPoseError(f"The image {name} of {walk.path} has the camera {camera_id}, which is not there.")
            count = walk.count(24, f"observations of {name}")
            walk.skip(24 * count, f"observations of {name}")


def _check_points(walk: _Walk) -> None:
    with walk.file:
        for _ in range(walk.count(51, "points")):
            walk.skip(43, "its points")
            count = walk.count(8, "elements of a track")
            walk.skip(8 * count, "its tracks")
