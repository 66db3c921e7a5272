"""Writing cameras as a COLMAP sparse model."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Literal, Optional, Sequence, Tuple

import numpy as np
import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hashpose_ns.data.names import check_names
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.colmap_files import write_cameras, write_images, write_images_text
from hashpose_ns.export.frame import flip_axes
from hashpose_ns.export.intrinsics import colmap_model, frame_intrinsics, is_fisheye
from hashpose_ns.export.points import ExportedPoints
from hashpose_ns.export.projection import project
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
    quaternions. Image ids count from 1 in the order given. Where it is known which images show a point, the point gets
    a track: its observations are where it was seen, or its own projections if that is unknown.

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
    check_colmap_names(names, format)
    colmap_cameras, camera_ids = colmap_cameras_of(cameras)
    poses = camera_to_worlds.detach().cpu().double()
    poses = torch.cat([roma.special_procrustes(poses[:, :, :3]), poses[:, :, 3:]], dim=-1)
    observations = _observations(cameras, poses, points)
    images = {}
    for i, name in enumerate(names):
        qvec, tvec = world_to_camera(poses[i].numpy())
        pixels, seen = observations[i]
        images[i + 1] = colmap_utils.Image(
            id=i + 1, qvec=qvec, tvec=tvec, camera_id=camera_ids[i], name=name, xys=pixels, point3D_ids=seen + 1
        )
    points3d = {} if points is None else _points3d(points, [seen for _, seen in observations])
    return write_model(directory, colmap_cameras, images, points3d, format)


def colmap_model_or_note(
    folder: Path, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], cameras: Cameras, names: Sequence[str]
) -> List[str]:
    """Writes sparse/0 of a folder, for commands that write other formats too.

    Args:
        folder: where there is no sparse/ yet.
        camera_to_worlds: poses, OpenGL axes.
        cameras, names: as in `write_colmap_model`.

    Returns:
        Notes for the user: why it is left out, where COLMAP has no place for a lens or a name.
    """
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    try:
        write_colmap_model(model, flip_axes(camera_to_worlds), cameras, names)
    except HashPoseError as error:
        for path in (*model.iterdir(), model, model.parent):
            path.unlink() if path.is_file() else path.rmdir()
        return [f"sparse/0 is left out: {error}"]
    return []


def colmap_cameras_of(cameras: Cameras) -> Tuple[Dict[int, colmap_utils.Camera], List[int]]:
    """COLMAP's cameras by id, and the id of each camera. Those with the same intrinsics are one.

    Raises:
        HashPoseError: if COLMAP has no model for a camera.
    """
    intrinsics, fisheye = frame_intrinsics(cameras), is_fisheye(cameras)
    # One model for all perspective cameras: nerfstudio's colmap dataparser reads no mixtures
    distorted = any(colmap_model(values, kind)[0] == "OPENCV" for values, kind in zip(intrinsics, fisheye))
    found, camera_ids = {}, []
    known_ids: dict[tuple, int] = {}
    for values, kind in zip(intrinsics, fisheye):
        model, parameters = colmap_model(values, kind, force_distortion=distorted)
        width, height = int(values["w"]), int(values["h"])
        camera_id = known_ids.setdefault((model, width, height, *parameters), len(known_ids) + 1)
        camera_ids.append(camera_id)
        found[camera_id] = colmap_utils.Camera(
            id=camera_id, model=model, width=width, height=height, params=np.array(parameters)
        )
    return found, camera_ids


def write_model(
    directory: Path,
    cameras: Dict[int, colmap_utils.Camera],
    images: Dict[int, colmap_utils.Image],
    points: Dict[int, colmap_utils.Point3D],
    format: Literal["bin", "txt"],
) -> List[Path]:
    """Writes cameras.*, images.* and points3D.*, the binary ones byte for byte as pycolmap does.

    pycolmap's own writer is not used: on a full disk it cuts files off without an error.

    Args:
        directory: an existing folder.
        cameras: by id.
        images: by id.
        points: by id.
        format: COLMAP's binary or text format.

    Returns:
        The three files.

    Raises:
        HashPoseError: if the format cannot hold a name.
        OSError: if the files cannot be written.
    """
    check_colmap_names([image.name for image in images.values()], format)
    files = [directory / f"{part}.{format}" for part in ("cameras", "images", "points3D")]
    if format == "txt":
        writers = colmap_utils.write_cameras_text, write_images_text, colmap_utils.write_points3D_text
    else:
        writers = write_cameras, write_images, colmap_utils.write_points3D_binary
    for content, write, path in zip((cameras, images, points), writers, files):
        write(content, path)
    return files


def world_to_camera(
    camera_to_world: Float[np.ndarray, "3 4"],
) -> Tuple[Float[np.ndarray, "4"], Float[np.ndarray, "3"]]:
    """COLMAP's quaternion (w, x, y, z) and translation of a rigid pose with OpenCV axes."""
    qvec = colmap_utils.rotmat2qvec(camera_to_world[:, :3].T)
    # by the quaternion's own matrix, so that large centres come back as they were
    return qvec, -(colmap_utils.qvec2rotmat(qvec) @ camera_to_world[:, 3])


def _observations(
    cameras: Cameras, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], points: Optional[ExportedPoints]
) -> List[Tuple[Float[np.ndarray, "_ 2"], Int[np.ndarray, "_"]]]:
    """For each image, where it shows points, and which, in rising order."""
    if points is None or points.seen_by is None:
        return [(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))] * len(camera_to_worlds)
    point, image = torch.from_numpy(points.seen_by).long().unbind(dim=1)
    if points.pixels is not None:
        pixels, rows = torch.from_numpy(points.pixels), np.arange(len(point))
    else:
        opengl = flip_axes(camera_to_worlds)
        pixels, visible = project(cameras, image, opengl[image], torch.from_numpy(points.xyz)[point])
        rows = torch.nonzero(visible)[:, 0].numpy()
    rows = rows[np.lexsort((point.numpy()[rows], image.numpy()[rows]))]
    ends = np.cumsum(np.bincount(image.numpy()[rows], minlength=len(camera_to_worlds)))[:-1]
    return list(zip(np.split(pixels.numpy()[rows], ends), np.split(point.numpy()[rows], ends)))


def _points3d(points: ExportedPoints, seen: List[Int[np.ndarray, "_"]]) -> Dict[int, colmap_utils.Point3D]:
    """COLMAP's points, with tracks of what each image sees."""
    point = np.concatenate(seen)
    image_ids = np.concatenate([np.full(len(part), i + 1) for i, part in enumerate(seen)])
    point2d_indices = np.concatenate([np.arange(len(part)) for part in seen])
    order = np.argsort(point, kind="stable")
    ends = np.cumsum(np.bincount(point, minlength=len(points.xyz)))
    tracks = [np.split(values[order].astype(np.int32), ends[:-1]) for values in (image_ids, point2d_indices)]
    return {
        i + 1: colmap_utils.Point3D(
            id=i + 1,
            xyz=points.xyz[i],
            rgb=points.rgb[i],
            error=float(points.error[i]),
            image_ids=tracks[0][i],
            point2D_idxs=tracks[1][i],
        )
        for i in range(len(points.xyz))
    }


def check_colmap_names(names: Sequence[str], format: str) -> None:
    """Raise HashPoseError for a name that would not be read back as it is."""
    if len(set(names)) < len(names):
        raise HashPoseError("COLMAP needs unique image names.")
    check_names(names, "export with `hashpose-export nerfstudio` instead")
    for name in names:
        if format == "txt" and any(character.isspace() for character in name):
            raise HashPoseError(f"COLMAP's text format cannot hold the white space in {name!r}; use --format bin.")
