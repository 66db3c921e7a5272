"""Photographs as the network sees them: square crops about the object, by a camera that looks at its middle.

A crop that is not in the middle of a picture shows the object from another direction than the optical axis has. So the
camera is turned, about its own centre, towards the middle of the object's box, and the crop is what that camera sees;
the turn is undone in the poses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.data.reading import reading
from hashpose_ns.errors import HashPoseError
from hashpose_ns.sparse.scenes import turn_towards
from nerfstudio.cameras.cameras import Cameras, CameraType

MARGIN = 1.15
"""Side of a crop over the longer side of the object's box, as in training on average."""
BACKGROUND = 0.5
"""Grey that masked and transparent pixels get."""
PLAIN = 0.06
"""Spread of colours along a picture's border below which its background counts as one colour."""
DIFFERENT = 0.12
"""Difference in colour from such a background that makes a pixel one of the object."""
LARGEST_ANGLE = 120.0
"""Degrees of view beyond which a crop is refused."""


@dataclass
class Crops:
    """Square pictures of the object, and their cameras."""

    images: Float[Tensor, "views 3 size size"]
    """Colours in [0, 1]."""
    tangents: Float[Tensor, "views"]
    """Of half the angle of view."""
    turns: Float[Tensor, "views 3 3"]
    """From each photograph's camera frame (OpenCV's axes) to that of its crop."""
    boxes: list[tuple[float, float, float, float]]
    """Left, top, right and bottom of the object in each photograph, in pixels."""
    found_by: list[str]
    """What each box comes from, in words."""


def crops_of(filenames: list[Path], lenses: Cameras, masks: Optional[list[Path]], size: int) -> Crops:
    """Reads photographs and cuts the object out.

    The box is that of the mask where there is one, of what is not transparent, of what differs from a plain background,
    or else the whole picture.

    Args:
        filenames: the photographs.
        lenses: their intrinsics at the files' size; distortion is removed. Poses are not read.
        masks: a mask for each, white where the object is.
        size: pixels of a side of a crop.

    Raises:
        HashPoseError: a file cannot be read, a mask or a picture shows nothing, or a lens is no perspective one.
    """
    parts = [_crop(file, lenses[i], masks[i] if masks else None, size) for i, file in enumerate(filenames)]
    images, tangents, turns, boxes, found_by = zip(*parts)
    return Crops(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(tangents, dtype=torch.float32),
        torch.stack(turns),
        list(boxes),
        list(found_by),
    )


def _crop(filename: Path, lens: Cameras, mask: Optional[Path], size: int):
    import cv2

    picture, alpha = _read(filename, mask)
    box, found_by = object_box(picture, alpha, mask is not None)
    if int(lens.camera_type) != CameraType.PERSPECTIVE.value:
        raise HashPoseError(f"The image {filename} is not from a perspective camera; undistort it first.")
    fx, fy, cx, cy = (float(value) for value in (lens.fx, lens.fy, lens.cx, lens.cy))
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    k1, k2, k3, _, p1, p2 = [0.0] * 6 if lens.distortion_params is None else lens.distortion_params.double().tolist()
    distortion = np.array([k1, k2, p1, p2, k3])
    left, top, right, bottom = box
    x, y = np.meshgrid(np.linspace(left, right, 9), np.linspace(top, bottom, 9))
    flat = cv2.undistortPoints(np.stack([x, y], -1).reshape(-1, 1, 2), matrix, distortion)[:, 0]
    turn = turn_towards(torch.from_numpy((flat.min(0) + flat.max(0)) / 2))
    seen = np.concatenate([flat, np.ones_like(flat[:, :1])], 1) @ turn.numpy().T
    if (seen[:, 2] <= 0).any():
        raise HashPoseError(f"The intrinsics of {filename} put the object behind its camera; check --intrinsics.")
    tangent = float(np.abs(seen[:, :2] / seen[:, 2:]).max() * MARGIN)
    if tangent > math.tan(math.radians(LARGEST_ANGLE / 2)):
        raise HashPoseError(f"The object in {filename} is more than {LARGEST_ANGLE:.0f} degrees wide; check --fov.")
    # Drawn larger and averaged, so that small crops of large photographs are not aliased.
    times = int(min(max(math.ceil(max(right - left, bottom - top) / size), 1), 24))
    large = size * times
    focal = large / 2 / tangent
    new = np.array([[focal, 0, (large - 1) / 2], [0, focal, (large - 1) / 2], [0, 0, 1]])
    # OpenCV counts pixel centres from 0, lenses here from 0.5.
    matrix[:2, 2] -= 0.5
    maps = cv2.initUndistortRectifyMap(matrix, distortion, turn.numpy(), new, (large, large), cv2.CV_32FC1)
    layers = picture * alpha[..., None] + BACKGROUND * (1 - alpha[..., None])
    border = (
        (BACKGROUND,) * 3 if found_by in ("mask", "alpha") else tuple(float(c) for c in np.median(_border(layers), 0))
    )
    drawn = cv2.remap(layers, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=border)
    small = cv2.resize(drawn, (size, size), interpolation=cv2.INTER_AREA)
    return np.clip(small, 0, 1).astype(np.float32), tangent, turn, box, found_by


def _read(filename: Path, mask: Optional[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Colours [height, width, 3] and how opaque they are [height, width], float32 in [0, 1]."""
    from PIL import Image

    with reading(f"The image {filename}"):
        with Image.open(filename) as image:
            rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    alpha = rgba[..., 3]
    if mask is not None:
        with reading(f"The mask {mask}"):
            with Image.open(mask) as image:
                white = np.asarray(image.convert("L"), dtype=np.float32) / 255
        if white.shape != alpha.shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (white.shape, alpha.shape)]
            raise HashPoseError(f"The mask {mask} is {sizes[0]} and its image {sizes[1]}; give masks of the same size.")
        alpha = alpha * (white > 0.5)
    if not (alpha > 0.5).any():
        raise HashPoseError(f"The image {filename} shows no object: all of it is masked or transparent.")
    return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(alpha)


def object_box(
    picture: Float[np.ndarray, "height width 3"], alpha: Float[np.ndarray, "height width"], masked: bool
) -> tuple[tuple[float, float, float, float], str]:
    """Left, top, right and bottom of the object in pixels, and what that comes from."""
    height, width = alpha.shape
    if masked or (alpha < 0.5).any():
        inside, found_by = alpha > 0.5, "mask" if masked else "alpha"
    else:
        border = _border(picture)
        color = np.median(border, 0)
        inside = np.abs(picture - color).max(-1) > DIFFERENT
        if np.abs(border - color).max(-1).mean() > PLAIN or inside.sum() < 16:
            return (0.0, 0.0, float(width), float(height)), "whole picture"
        found_by = "plain background"
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)), found_by


def _border(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
