"""Cameras in pictures: viewing pyramids, and the viewpoint from which all cameras are seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, List, Optional, Tuple, Union

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection

FRUSTUM_EDGES = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])
"""Edges [8, 2] of a pyramid, as indices of its points."""

FORWARD_FACING = 0.5
"""Cameras are forward-facing if their mean horizontal viewing direction is longer than this."""

OUTLIER = 3.0
"""Points beyond this many times the 90 % quantile of distances from the median are not kept in view."""


def frustum_points(
    camera_to_worlds: Float[np.ndarray, "*batch 3 4"], extents: Union[float, Float[np.ndarray, "*batch 3"]]
) -> Float[np.ndarray, "*batch 5 3"]:
    """Tip and four corners of viewing pyramids.

    Args:
        camera_to_worlds: poses, OpenGL axes (looking down -z).
        extents: half width, half height and depth of each pyramid; one number is the depth and full width of all.
    """
    corners = np.array([[0, 0, 0], [-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1]])
    if np.ndim(extents) == 0:
        extents = np.multiply(extents, [0.5, 0.5, 1.0])
    local = corners * np.asarray(extents)[..., None, :]
    return local @ np.swapaxes(camera_to_worlds[..., :3], -1, -2) + camera_to_worlds[..., None, :, 3]


def frustum_size(camera_to_worlds: Float[np.ndarray, "num_cameras 3 4"]) -> float:
    """Depth of pyramids that are neither specks nor in each other's way."""
    centers = camera_to_worlds[:, :, 3]
    spread = np.linalg.norm(centers - centers.mean(axis=0), axis=-1).mean() + 1e-9
    return 0.12 * float(spread) * min(1.0, (60 / len(centers)) ** 0.25)


@dataclass(frozen=True, eq=False)
class View:
    """A viewpoint and its projection."""

    center: Float[np.ndarray, "3"]
    """The point the view is centred on."""
    axes: Float[np.ndarray, "3 3"]
    """Unit vectors to the right, up, and back to the viewer, as rows."""
    distance: float = np.inf
    """From the viewer to the centre; infinite for a parallel projection."""

    @property
    def eye(self) -> Float[np.ndarray, "3"]:
        """Where the viewer stands."""
        return self.center + self.distance * self.axes[2]

    def project(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 2"]:
        """Points projected to the plane through the centre: right and up, in scene units."""
        local = (points - self.center) @ self.axes.T
        return local[..., :2] / np.maximum(1 - local[..., 2:] / self.distance, 0.1)


class Views:
    """Viewpoints from which all cameras are seen, upright as most cameras are.

    Args:
        camera_to_worlds: [N, 3, 4] poses, OpenGL axes. They decide what is up and which side is the front.
        points: [n, 3] what to keep in view besides far outliers, such as a camera that flew off; by default the
            cameras' centres.
        smallest: radius of the view if the points are closer together.
    """

    def __init__(
        self,
        camera_to_worlds: Float[np.ndarray, "num_cameras 3 4"],
        points: Optional[Float[np.ndarray, "n 3"]] = None,
        smallest: float = 1e-9,
    ) -> None:
        _, up, back = camera_to_worlds[:, :, :3].mean(axis=0).T
        self.up = up / np.linalg.norm(up) if np.linalg.norm(up) > 0.1 else np.array([0.0, 0.0, 1.0])
        front = back - (back @ self.up) * self.up
        self.forward_facing = bool(np.linalg.norm(front) > FORWARD_FACING)
        if not self.forward_facing:  # any side is as good as another
            front = np.cross(self.up, np.eye(3)[np.argmin(np.abs(self.up))])
        self.front = front / np.linalg.norm(front)
        """Horizontal direction to the viewer: behind forward-facing cameras."""
        self._centers = camera_to_worlds[:, :, 3]
        points = self._centers if points is None else points
        distances = np.linalg.norm(points - np.median(points, axis=0), axis=-1)
        self.points = points[distances <= OUTLIER * np.quantile(distances, 0.9)]
        """What is kept in view."""
        self.center = (self.points.max(axis=0) + self.points.min(axis=0)) / 2
        self.radius = max(float(np.linalg.norm(self.points - self.center, axis=-1).max()), smallest)
        """Of the sphere about the centre that holds the points."""

    def oblique(self, turn: float = 0.0, distance: float = 3.5) -> View:
        """A perspective view from the front, a little from the side and above.

        Args:
            turn: angle (radians) about the vertical.
            distance: of the viewer from the centre, in radii.
        """
        azimuth, elevation = np.radians(40.0 if self.forward_facing else -30.0) + turn, np.radians(28.0)
        side = np.cross(self.up, self.front)
        horizontal = np.cos(azimuth) * self.front + np.sin(azimuth) * side
        right = np.cos(azimuth) * side - np.sin(azimuth) * self.front
        back = np.cos(elevation) * horizontal + np.sin(elevation) * self.up
        return View(self.center, np.stack([right, np.cross(back, right), back]), distance * self.radius)

    def above_and_beside(self) -> Tuple[View, View]:
        """Parallel views from above and from the side, both across the cameras' largest horizontal spread."""
        flat = self._centers - self._centers.mean(axis=0)
        flat = flat - np.outer(flat @ self.up, self.up)
        right = np.linalg.svd(flat)[2][0] if np.linalg.norm(flat) > 1e-9 else np.cross(self.up, self.front)
        right = right - (right @ self.up) * self.up
        right = right / np.linalg.norm(right)
        back = np.cross(right, self.up)
        return View(self.center, np.stack([right, -back, self.up])), View(self.center, np.stack([right, self.up, back]))

    def limits(self, *views: View) -> Float[np.ndarray, "2 2"]:
        """Lowest and highest right and up, as rows, of what is kept in view in any of some views."""
        seen = np.concatenate([view.project(self.points) for view in views])
        return np.stack([seen.min(axis=0), seen.max(axis=0)])


def frustum_collection(
    view: View, points: Float[np.ndarray, "num_cameras 5 3"], color: str, width: float, **options: Any
) -> LineCollection:
    """Pyramids as lines for matplotlib, to be added to axes that `show_limits` prepared."""
    from matplotlib.collections import LineCollection

    return LineCollection(frustum_segments(view, points), colors=color, linewidths=width, **options)


def frustum_segments(view: View, points: Float[np.ndarray, "num_cameras 5 3"]) -> List[Float[np.ndarray, "2 2"]]:
    """The projected edges of pyramids."""
    return list(view.project(points)[:, FRUSTUM_EDGES].reshape(-1, 2, 2))


def show_limits(axes: Axes, limits: Float[np.ndarray, "2 2"], margin: float = 0.02) -> None:
    """Prepares axes for projected points: equal units, no ticks and frame, the limits from `Views.limits`.

    Args:
        axes: of matplotlib.
        limits: lowest and highest right and up.
        margin: kept free around, as a fraction of the larger side.
    """
    free = margin * np.ptp(limits, axis=0).max() + 1e-9
    axes.set(xlim=limits[:, 0] + [-free, free], ylim=limits[:, 1] + [-free, free], aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
