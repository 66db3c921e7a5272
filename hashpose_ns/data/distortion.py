"""nerfstudio's distortion of perspective and fisheye cameras, forwards; `radial_and_tangential_undistort` is the way
back."""

from __future__ import annotations

from typing import Tuple

from jaxtyping import Float
from torch import Tensor


def distort(
    x: Float[Tensor, "*batch"], y: Float[Tensor, "*batch"], distortion: Float[Tensor, "*#batch 6"]
) -> Tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Distorts coordinates at unit focal length.

    Args:
        x: to the right; tangents of angles to the axis, for fisheyes angles.
        y: down.
        distortion: k1, k2, k3, k4, p1, p2.

    Returns:
        x and y, distorted, and the radial slope: where it is not positive, distortion has turned back, and no pixel
        belongs to the point.
    """
    k1, k2, k3, k4, p1, p2 = distortion.unbind(dim=-1)
    squared = x * x + y * y
    radial = 1.0 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4)))
    slope = 1.0 + squared * (3.0 * k1 + squared * (5.0 * k2 + squared * (7.0 * k3 + squared * 9.0 * k4)))
    return (
        x * radial + 2.0 * p1 * x * y + p2 * (squared + 2.0 * x * x),
        y * radial + 2.0 * p2 * x * y + p1 * (squared + 2.0 * y * y),
        slope,
    )
