"""Checks of what a dataparser hands over: what could not be trained on or exported is refused before training.

Every split goes through `check_outputs`. Messages name the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity
from hashpose_ns.cameras.perturbation import RIGID_TOLERANCE, ROUNDING_TOLERANCE, rigid_deviations, validate_poses
from hashpose_ns.data.distortion import distort
from hashpose_ns.data.names import check_names, image_folder_and_names, image_names, images_folder, printable
from hashpose_ns.data.source import SourceCameras
from hashpose_ns.data.source_checks import check_centers, compare_with_source
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.camera_utils import radial_and_tangential_undistort
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs

MAX_SLOPE = 20.0
"""Tangent of the largest angle, 87 degrees, between a pixel of a perspective image and its camera's axis. Beyond it a
focal length or a principal point is wrong by orders of magnitude."""

MAX_FISHEYE_ANGLE = 4 * torch.pi
"""The same for fisheye cameras, in radians. Corners outside of the image circle reach far."""

MIN_FIELD_OF_VIEW = 1e-5
"""Image size over focal length, in radians about the field of view, of the longest lens."""

MAX_STRETCH = 10.0
"""Largest ratio of the two focal lengths; anamorphic lenses have 2."""

MAX_ZOOM = 100.0
"""Largest ratio of a focal length to the median of all, in units of the images' widths."""

PCA_MIRRORS = "--orientation-method pca of nerfstudio 1.1.5 can do that to right poses, take another"

ONE_WAY_DATAPARSERS = {
    "NeRFOSR": "nerfosr-data",
    "SDFStudio": "sdfstudio-data",
    "NuScenes": "nuscenes-data",
    "Dycheck": "dycheck-data",
    "Sitcoms3D": "sitcoms3d-data",
}
"""nerfstudio's dataparsers that move the poses without saying how in their outputs, by class name."""

DISTORTION_GRID = 9
"""Distortion is undone for this many pixels in x and in y, edges included."""

MAX_LOST = 0.75
"""Fraction of them that may not come back; models of wide lenses often turn back before the corners."""


def check_outputs(dataparser: DataParser, outputs: DataparserOutputs, source: Optional[SourceCameras]) -> List[str]:
    """Checks what a dataparser made of one split, but for the poses. Intrinsics that it left out are put back,
    in place.

    Args:
        dataparser: that made it.
        outputs: of one split; their cameras are at the resolution of the images.
        source: the cameras of the files it read, where they are known.

    Returns:
        What was changed, in sentences.

    Raises:
        HashPoseError: a camera is impossible or not the file's, an image is listed twice or has a name that no format
            can hold, or the way back to the input's frame is lost.
    """
    filenames, cameras = outputs.image_filenames, outputs.cameras
    notes: List[str] = []
    if not filenames:
        return notes
    config, names = dataparser.config, [printable(name) for name in image_names(filenames)]
    check_names(image_folder_and_names(filenames, Path(config.data), images_folder(config))[1])
    check_transform(outputs)
    check_intrinsics(cameras, names)
    reason = one_way(dataparser)
    if reason is not None:
        notes.append(f"The refined poses will not be exportable: {reason}.")
    if source is None:
        check_centers(cameras.camera_to_worlds[:, :, 3].double(), names)
    elif put_back := compare_with_source(dataparser, outputs, source):
        check_intrinsics(cameras, names)
        notes.append(f"nerfstudio leaves out {', '.join(put_back)} of the input; the values of the file are taken.")
    return notes


def one_way(dataparser: DataParser) -> Optional[str]:
    """Why poses that a dataparser has read cannot be taken back to their own frame; None if they can."""
    for parent in type(dataparser).__mro__:
        if parent.__name__ in ONE_WAY_DATAPARSERS:
            return (
                f"{ONE_WAY_DATAPARSERS[parent.__name__]} does not record how it moved the poses out of their own frame"
            )
    return None


def check_transform(outputs: DataparserOutputs) -> None:
    """Raises HashPoseError unless the outputs' scale and transform are a change of frame that can be undone."""
    scale, transform = float(outputs.dataparser_scale), outputs.dataparser_transform.double()[:3]
    rotation = transform[:, :3]
    rigid = torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-3)
    if not (0 < scale < float("inf") and transform.isfinite().all() and rigid and torch.linalg.det(rotation) > 0):
        raise HashPoseError(
            f"The dataparser's scale ({scale:g}) and transform cannot be inverted, so refined poses could not be "
            "exported; correct the input's applied_transform and applied_scale, or the dataparser's scale factor."
        )


def dataparser_similarity(outputs: DataparserOutputs) -> Similarity:
    """The map from the input's frame to nerfstudio's that a dataparser recorded."""
    scale, transform = float(outputs.dataparser_scale), outputs.dataparser_transform.double()
    return Similarity(torch.tensor(scale, dtype=torch.float64), transform[:, :3], transform[:, 3] * scale)


def check_intrinsics(cameras: Cameras, names: Sequence[str]) -> None:
    """Checks focal lengths, principal points and distortion.

    Args:
        cameras: at the resolution of their images.
        names: what to call each camera.

    Raises:
        HashPoseError: one sentence that names the first bad camera.
    """

    def column(values: Tensor) -> Float[Tensor, "num_cameras"]:
        return values.detach().double().cpu().reshape(len(cameras))

    fx, fy, cx, cy = (column(values) for values in (cameras.fx, cameras.fy, cameras.cx, cameras.cy))
    width, height, kind = column(cameras.width), column(cameras.height), column(cameras.camera_type)
    numbers = [f"({x:g}, {y:g})" for x, y in zip(fx.tolist(), fy.tolist())]
    points = [f"({x:g}, {y:g})" for x, y in zip(cx.tolist(), cy.tolist())]

    def refuse(bad: Bool[Tensor, "num_cameras"], sentences: List[str]) -> None:
        if bad.any():
            first, count = int(torch.nonzero(bad)[0]), int(bad.sum())
            others = f"; {count} of {len(bad)} cameras are like that" if count > 1 else ""
            raise HashPoseError(f"{sentences[first]}{others}.")

    refuse(
        ~(fx.isfinite() & fy.isfinite() & (fx > 0) & (fy > 0)),
        [f"The focal lengths of {name}, {f}, are not positive numbers" for name, f in zip(names, numbers)],
    )
    refuse(
        ~(cx.isfinite() & cy.isfinite()),
        [f"The principal point of {name}, {p}, is not a pair of finite numbers" for name, p in zip(names, points)],
    )
    slope = torch.hypot(torch.maximum(cx, width - cx) / fx, torch.maximum(cy, height - cy) / fy)
    limit = torch.full_like(slope, torch.inf)
    limit[kind == CameraType.PERSPECTIVE.value] = MAX_SLOPE
    limit[kind == CameraType.FISHEYE.value] = MAX_FISHEYE_ANGLE
    lens, stretch = torch.minimum(width / fx, height / fy), torch.maximum(fx / fy, fy / fx)
    refuse(
        (slope > limit) | (((lens < MIN_FIELD_OF_VIEW) | (stretch > MAX_STRETCH)) & limit.isfinite()),
        [
            f"The intrinsics of {name} are impossible: focal lengths {f} and principal point {p} for an image of "
            f"{int(w)}x{int(h)}"
            for name, f, p, w, h in zip(names, numbers, points, width, height)
        ],
    )
    zoom = (fx / width) / (fx / width).median()
    refuse(
        ((zoom > MAX_ZOOM) | (zoom < 1.0 / MAX_ZOOM)) & limit.isfinite(),
        [f"The focal length of {name} is {z:.3g} times that of the other images" for name, z in zip(names, zoom)],
    )
    if cameras.distortion_params is None:
        return
    distortion = cameras.distortion_params.detach().double().cpu().reshape(len(cameras), -1)
    refuse(
        ~distortion.isfinite().all(dim=1),
        [f"A distortion parameter of {name} is not a finite number" for name in names],
    )
    if distortion.shape[1] == 6:
        lost = _lost_pixels(distortion, torch.stack([-cx / fx, (width - cx) / fx, -cy / fy, (height - cy) / fy], dim=1))
        lost[~limit.isfinite()] = 0.0
        refuse(
            lost > MAX_LOST,
            [
                f"The distortion of {name} cannot be undone for most of its pixels: k1 {k[0]:g}, k2 {k[1]:g}, k3 "
                f"{k[2]:g}, k4 {k[3]:g}, p1 {k[4]:g}, p2 {k[5]:g}"
                for name, k in zip(names, distortion.tolist())
            ],
        )


def _lost_pixels(
    distortion: Float[Tensor, "num_cameras 6"], bounds: Float[Tensor, "num_cameras 4"]
) -> Float[Tensor, "num_cameras"]:
    """The fraction of an image's pixels that do not come back where they were after nerfstudio has undone their
    distortion.

    Args:
        distortion: k1, k2, k3, k4, p1, p2.
        bounds: of the image at unit focal length: left, right, top, bottom.
    """
    steps = torch.linspace(0.0, 1.0, DISTORTION_GRID, dtype=torch.float64)
    left, right, top, bottom = (bounds[:, i, None, None] for i in range(4))
    x, y = left + (right - left) * steps[:, None], top + (bottom - top) * steps
    pixels = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
    params = distortion[:, None, None]
    undone = radial_and_tangential_undistort(pixels, params)
    x, y, slope = distort(undone[..., 0], undone[..., 1], params)
    error = (torch.stack([x, y], dim=-1) - pixels).norm(dim=-1)
    size = torch.hypot(right - left, bottom - top)
    return (~((error < 1e-2 * size) & (slope > 0))).double().mean(dim=(1, 2))


def make_rigid(outputs: DataparserOutputs) -> List[str]:
    """Makes rotations that were rounded to a few digits orthonormal, in place.

    Args:
        outputs: of one split.

    Returns:
        What was changed, in sentences.

    Raises:
        HashPoseError: one sentence that names the first pose that is not finite, not rigid, or mirrors space.
    """
    poses = outputs.cameras.camera_to_worlds
    names = [printable(name) for name in image_names(outputs.image_filenames)]
    validate_poses(poses, names, ROUNDING_TOLERANCE, PCA_MIRRORS)
    rotations = poses[:, :, :3].double()
    rounded = rigid_deviations(rotations) > RIGID_TOLERANCE
    if not rounded.any():
        return []
    poses = poses.clone()
    poses[rounded, :, :3] = roma.special_procrustes(rotations[rounded]).to(poses)
    outputs.cameras.camera_to_worlds = poses
    return ["Some rotations of the input are rounded to a few digits; they are made orthonormal."]
