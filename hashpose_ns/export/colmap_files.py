"""COLMAP's files where nerfstudio's readers and writers fall short: any name, any camera model, and files that are cut
off or say they hold more than they do."""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np

from hashpose_ns.stopping import keeps_handlers
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils

OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
TRACK_ELEMENT = np.dtype([("image", "<u4"), ("observation", "<u4")])


@lru_cache(maxsize=None)
def camera_models() -> Dict[int, Tuple[str, int]]:
    """Name and number of parameters of COLMAP's camera models by their number: those that nerfstudio knows, and where
    pycolmap is installed those that it knows."""
    models = {model.model_id: (model.model_name, model.num_params) for model in colmap_utils.CAMERA_MODELS}
    try:
        with keeps_handlers():
            import pycolmap
    except ImportError:
        return models
    for name, model in pycolmap.CameraModelId.__members__.items():
        if name != "INVALID":
            models[int(model)] = name, len(pycolmap.Camera.create_from_model_id(0, model, 1.0, 1, 1).params)
    return models


def read_cameras(path: Path) -> Dict[int, Any]:
    """cameras.bin, by id.

    Raises:
        ValueError: a camera's model is not known.
        struct.error: the file is cut off.
    """
    data, at, cameras = path.read_bytes(), 8, {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        key, model, width, height = struct.unpack_from("<IiQQ", data, at)
        if model not in camera_models():
            raise ValueError(
                f"the model of camera {key}, number {model}, is not known here, where pip install hashpose[colmap] may "
                "help"
            )
        name, count = camera_models()[model]
        params = np.array(struct.unpack_from(f"<{count}d", data, at + 24))
        cameras[key] = colmap_utils.Camera(id=key, model=name, width=width, height=height, params=params)
        at += 24 + 8 * count
    return cameras


def read_images(path: Path) -> Dict[int, Any]:
    """images.bin, by id.

    Raises:
        ValueError: the file is cut off, or a name is no UTF-8.
        struct.error: the file is cut off.
    """
    data, at, images = path.read_bytes(), 8, {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        key, *pose, camera = struct.unpack_from("<I7dI", data, at)
        end = data.index(b"\0", at + 64)
        count = struct.unpack_from("<Q", data, end + 1)[0]
        observations = np.frombuffer(data, OBSERVATION, min(count, len(data)), end + 9)
        images[key] = colmap_utils.Image(
            id=key,
            qvec=np.array(pose[:4]),
            tvec=np.array(pose[4:]),
            camera_id=camera,
            name=data[at + 64 : end].decode("utf-8"),
            xys=observations["xy"].copy(),
            point3D_ids=observations["point"].copy(),
        )
        at = end + 9 + observations.nbytes
    return images


def read_points(path: Path) -> Dict[int, Any]:
    """points3D.bin, by id.

    Raises:
        ValueError, struct.error: the file is cut off.
    """
    data, at, points = path.read_bytes(), 8, {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        key, x, y, z, red, green, blue, error, count = struct.unpack_from("<Q3d3BdQ", data, at)
        track = np.frombuffer(data, TRACK_ELEMENT, min(count, len(data)), at + 51)
        points[key] = colmap_utils.Point3D(
            id=key,
            xyz=np.array([x, y, z]),
            rgb=np.array([red, green, blue]),
            error=error,
            image_ids=track["image"].copy(),
            point2D_idxs=track["observation"].copy(),
        )
        at += 51 + track.nbytes
    return points


def write_cameras(cameras: Dict[int, Any], path: Path) -> None:
    """cameras.bin.

    Raises:
        OSError: it cannot be written.
    """
    numbers = {name: number for number, (name, _) in camera_models().items()}
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(cameras)))
        for camera in cameras.values():
            file.write(struct.pack("<IiQQ", camera.id, numbers[camera.model], camera.width, camera.height))
            file.write(struct.pack(f"<{len(camera.params)}d", *camera.params))


def write_images(images: Dict[int, Any], path: Path) -> None:
    """images.bin.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(images)))
        for image in images.values():
            file.write(struct.pack("<I7dI", image.id, *image.qvec, *image.tvec, image.camera_id))
            file.write(image.name.encode("utf-8") + b"\0" + struct.pack("<Q", len(image.point3D_ids)))
            observations = np.zeros(len(image.point3D_ids), OBSERVATION)
            observations["xy"], observations["point"] = np.reshape(image.xys, (-1, 2)), image.point3D_ids
            file.write(observations.tobytes())


def write_images_text(images: Dict[int, Any], path: Path) -> None:
    """images.txt, in UTF-8 whatever the locale.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("# Image list with two lines of data per image:\n")
        file.write("#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n")
        file.write("#   POINTS2D[] as (X, Y, POINT3D_ID)\n")
        for image in images.values():
            file.write(" ".join(map(str, [image.id, *image.qvec, *image.tvec, image.camera_id, image.name])) + "\n")
            observations = zip(image.xys, image.point3D_ids)
            file.write(" ".join(f"{x} {y} {int(point)}" for (x, y), point in observations) + "\n")
