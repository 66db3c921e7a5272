"""Projection of points into nerfstudio's cameras, the inverse of `Cameras.generate_rays`."""

from __future__ import annotations

from typing import Tuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hashpose_ns.data.distortion import distort
from nerfstudio.cameras.cameras import Cameras, CameraType


def project(
    cameras: Cameras,
    indices: Int[Tensor, "num_points"],
    camera_to_worlds: Float[Tensor, "num_points 3 4"],
    points: Float[Tensor, "num_points 3"],
) -> Tuple[Float[Tensor, "num_points 2"], Bool[Tensor, "num_points"]]:
    """Where points fall on the images of perspective or fisheye cameras, with their distortion.

    Args:
        cameras: intrinsics; the poses in it are not read.
        indices: camera of each point.
        camera_to_worlds: pose of that camera, OpenGL axes, in the points' frame.
        points: positions.

    Returns:
        Pixel coordinates (x to the right, y down; the centre of the upper left pixel is (0.5, 0.5)), and whether the
        point lies in front of the camera and on the image.
    """

    def of(values: Tensor) -> Tensor:
        return values.to(points.device)[indices].reshape(len(points)).to(points)

    local = ((points - camera_to_worlds[:, :, 3])[:, None, :] @ camera_to_worlds[:, :, :3])[:, 0]
    x, y, depth = local[:, 0], -local[:, 1], -local[:, 2]
    fisheye = cameras.camera_type.to(points.device)[indices].reshape(-1) == CameraType.FISHEYE.value
    radius = torch.hypot(x, y).clamp(min=1e-12)
    # Perspective cameras distort tangents of angles to the axis, fisheyes the angles.
    scale = torch.where(fisheye, torch.atan2(radius, depth) / radius, 1.0 / depth.clamp(min=1e-9))
    x, y = x * scale, y * scale
    in_front = fisheye | (depth > 1e-9)
    if cameras.distortion_params is not None:
        distortion = cameras.distortion_params.to(points)[indices].reshape(len(points), 6)
        x, y, slope = distort(x, y, distortion)
        in_front = in_front & (slope > 0)  # beyond, points would fall into the image again
    pixels = torch.stack([of(cameras.fx) * x + of(cameras.cx), of(cameras.fy) * y + of(cameras.cy)], dim=-1)
    width, height = of(cameras.width), of(cameras.height)
    on_image = (pixels[:, 0] >= 0) & (pixels[:, 0] < width) & (pixels[:, 1] >= 0) & (pixels[:, 1] < height)
    return pixels, in_front & on_image
