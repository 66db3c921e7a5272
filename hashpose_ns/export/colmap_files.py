"""COLMAP's files where nerfstudio's readers and writers fall short: any name, any camera model, and files that are cut
off or say they hold more than they do."""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np

from hashpose_ns.data.colmap_files import OBSERVATION, walk_cameras, walk_images, walk_points
from hashpose_ns.errors import HashPoseError
from hashpose_ns.stopping import keeps_handlers
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils


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
        HashPoseError: a camera's model is not known, or the file is cut off.
    """
    models = camera_models()

    def num_params(camera_id: int, model: int) -> int:
        if model not in models:
            raise HashPoseError(
                f"the model of camera {camera_id}, number {model}, is not known here, where pip install "
                "hashpose[colmap] may help"
            )
        return models[model][1]

    return {
        key: colmap_utils.Camera(id=key, model=models[model][0], width=width, height=height, params=np.array(params))
        for key, model, width, height, params in walk_cameras(path, num_params)
    }


def read_images(path: Path) -> Dict[int, Any]:
    """images.bin, by id.

    Raises:
        HashPoseError: the file is cut off, or a name is no UTF-8.
    """
    return {
        key: colmap_utils.Image(
            id=key,
            qvec=np.array(pose[:4]),
            tvec=np.array(pose[4:]),
            camera_id=camera,
            name=name,
            xys=observations["xy"].copy(),
            point3D_ids=observations["point"].copy(),
        )
        for key, pose, camera, name, observations in walk_images(path)
    }


def read_points(path: Path) -> Dict[int, Any]:
    """points3D.bin, by id.

    Raises:
        HashPoseError: the file is cut off.
    """
    return {
        key: colmap_utils.Point3D(
            id=key,
            xyz=np.array(rest[:3]),
            rgb=np.array(rest[3:6]),
            error=rest[6],
            image_ids=track["image"].copy(),
            point2D_idxs=track["observation"].copy(),
        )
        for (key, *rest), track in walk_points(path)
    }


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
