"""Poses of a photograph from its matches with the training images, whose keypoints the field's surface gives points in
space: PnP. They are further hypotheses of the search, and judged as all others are."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hashpose_ns.matches.features import nearest_both_ways
from hashpose_ns.matches.sfm import FLIP
from hashpose_ns.photometry.pixels import ImagePixels, Pixels, evenly_spaced, pixel_rays, posed_cameras
from hashpose_ns.photometry.scene import PosedScene
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datasets.base_dataset import InputDataset

LONGEST = 640
"""Longer side, in pixels, from twice of which on images are reduced before keypoints are found."""

MOST_IMAGES = 200
"""Training images that are matched, evenly spaced where there are more."""

IMAGES, ALONE = 8, 3
"""How many training images of the most matches give points together, and how many of them each a pose of its own."""

LEAST_MATCHES = 6
"""Of an image, and that agree with a pose."""

ERROR = 4.0
"""Largest distance in pixels between a keypoint and its point's image."""

OPAQUE = 0.5
"""Accumulation from which on a ray meets a surface."""

KEPT = 16
"""Photographs whose matches are kept."""


class Keypoints(NamedTuple):
    """SIFT's keypoints of an image."""

    places: Float[Tensor, "count 2"]
    """Row and column, in pixels of the dataset's image, of which the first has its centre at .5."""
    descriptors: Float[Tensor, "count 128"]
    """Of length 1."""


class Seen(NamedTuple):
    """Keypoints of a photograph, and the points in space that they match."""

    keypoints: Int[np.ndarray, "count"]
    """Which of the photograph's."""
    directions: Float[np.ndarray, "count 3"]
    """Of their rays in the camera's frame, OpenCV axes."""
    points: Float[np.ndarray, "count 3"]
    """In the learned frame."""


class MatchedPoses:
    """Proposes poses for photographs in a scene, see `hashpose_ns.photometry.localize.CandidateSource`. Keypoints of
    the training images are found once.

    Args:
        scene: the field, the training images and their poses.
    """

    def __init__(self, scene: PosedScene) -> None:
        self.poses = scene.poses.refined_camera_to_worlds().detach()
        self.images = evenly_spaced(len(self.poses), MOST_IMAGES)
        self.keypoints: Dict[int, Keypoints] = {}
        self._latest: List[Tuple[InputDataset, int, List[Seen]]] = []

    def __call__(self, scene: PosedScene, dataset: InputDataset, index: int) -> Float[Tensor, "count 3 4"]:
        """Poses in the learned frame: by the matches of all images together, and by those of single ones."""
        parts = self._seen(scene, dataset, index)
        if not parts:
            return self.poses[:0]
        together = Seen(*(np.concatenate(column) for column in zip(*parts)))
        error = ERROR / focal_of(dataset, index)
        found = [resected(part, error) for part in (together, *(parts[:ALONE] if len(parts) > 1 else []))]
        poses = [torch.from_numpy(pose).to(self.poses) for pose in found if pose is not None]
        return torch.stack(poses) if poses else self.poses[:0]

    def agreeing(self, scene: PosedScene, dataset: InputDataset, index: int, pose: Float[Tensor, "3 4"]) -> int:
        """How many keypoints of a photograph are where a pose sees the points that they match."""
        parts = self._seen(scene, dataset, index)
        if not parts:
            return 0
        camera, error = pose.detach().cpu().double().numpy(), ERROR / focal_of(dataset, index)
        return len(np.unique(np.concatenate([part.keypoints[reprojected(part, camera, error)] for part in parts])))

    def _seen(self, scene: PosedScene, dataset: InputDataset, index: int) -> List[Seen]:
        """What the training images of the most matches say of a photograph's keypoints, the best first. Photographs
        are asked for twice, before and after the search."""
        for known, row, seen in self._latest:
            if known is dataset and row == index:
                return seen
        seen = self._matched(scene, dataset, index)
        self._latest = [*self._latest[-KEPT + 1 :], (dataset, index, seen)]
        return seen

    @torch.no_grad()
    def _matched(self, scene: PosedScene, dataset: InputDataset, index: int) -> List[Seen]:
        asked = keypoints_of(scene, dataset, index)
        matches = {image: nearest_both_ways(asked.descriptors, self._known(scene, image)) for image in self.images}
        best = sorted(self.images, key=lambda image: -len(matches[image]))[:IMAGES]
        rays = _rays(dataset, index, asked.places, torch.eye(4)[:3], scene.device)
        directions = rays.directions.cpu().double().numpy() @ FLIP
        parts = []
        for image in best:
            rows = matches[image].astype(np.int64)
            if len(rows) >= LEAST_MATCHES:
                points = self._points(scene, image, rows[:, 1])
                kept = np.isfinite(points).all(axis=1) & (directions[rows[:, 0], 2] > 0.05)
                parts.append(Seen(rows[kept, 0], directions[rows[kept, 0]], points[kept]))
        return parts

    def _known(self, scene: PosedScene, image: int) -> Float[Tensor, "count 128"]:
        if image not in self.keypoints:
            self.keypoints[image] = keypoints_of(scene, scene.train, image)
        return self.keypoints[image].descriptors

    def _points(self, scene: PosedScene, image: int, rows: np.ndarray) -> Float[np.ndarray, "count 3"]:
        """Where the surface is at some keypoints of a training image; NaN where there is none."""
        places = self.keypoints[image].places[torch.from_numpy(rows)]
        chunk, parts = scene.renderer.rays_per_chunk(), []
        for begin in range(0, len(places), chunk):
            rays = _rays(scene.train, image, places[begin : begin + chunk], self.poses[image], scene.device)
            surface = scene.renderer.surfaces(rays)
            points = rays.origins + surface["depth"] * rays.directions
            parts.append(torch.where(surface["accumulation"] >= OPAQUE, points, torch.nan))
        return torch.cat(parts).cpu().double().numpy()


def _rays(
    dataset: InputDataset,
    index: int,
    places: Float[Tensor, "count 2"],
    pose: Float[Tensor, "3 4"],
    device: torch.device,
) -> RayBundle:
    """Rays of places in an image from a pose."""
    pixels = Pixels(torch.full((len(places),), index), places, torch.zeros(len(places), 3)).to(device)
    rows = torch.zeros(len(places), dtype=torch.long, device=device)
    return pixel_rays(posed_cameras(dataset, pose[None], device, [index]), pixels, rows)


def keypoints_of(scene: PosedScene, dataset: InputDataset, index: int) -> Keypoints:
    """Keypoints of an image on the field's background, outside of its mask."""
    import cv2

    whole = ImagePixels(dataset, index)
    small = whole.reduced(max(whole.image.shape[:2]) // LONGEST)
    picture = (scene.renderer.composite(small.image).cpu().clamp(0.0, 1.0) * 255.0).round().byte().numpy()
    gray = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    allowed = np.ascontiguousarray(small.allowed.numpy().astype(np.uint8))
    found, described = cv2.SIFT_create().detectAndCompute(gray, allowed)  # type: ignore[attr-defined]
    if not found:
        return Keypoints(torch.zeros(0, 2), torch.zeros(0, 128))
    places = torch.tensor([each.pt[::-1] for each in found], dtype=torch.float32)
    descriptors = torch.nn.functional.normalize(torch.from_numpy(np.asarray(described, dtype=np.float32)), dim=1)
    return Keypoints((places + 0.5) * small.factor, descriptors)


def focal_of(dataset: InputDataset, index: int) -> float:
    """Mean focal length of an image, in pixels."""
    return float(0.5 * (dataset.cameras.fx[index] + dataset.cameras.fy[index]))


def resected(seen: Seen, error: float) -> Optional[Float[np.ndarray, "3 4"]]:
    """The pose from which points are seen where they are, by RANSAC (OpenCV's P3P); None if too few agree.

    Args:
        seen: keypoints and points.
        error: largest distance, where rays meet the plane at depth 1, of what agrees.
    Returns:
        Camera-to-world, OpenGL axes.
    """
    import cv2

    if len(seen.points) < LEAST_MATCHES:
        return None
    places = np.ascontiguousarray(seen.directions[:, :2] / seen.directions[:, 2:])
    points = np.ascontiguousarray(seen.points)
    library: Any = cv2  # its stubs want a matrix of distortions
    lens = np.eye(3)
    solved, turn, shift, agree = library.solvePnPRansac(
        points, places, lens, None, iterationsCount=2000, reprojectionError=error, confidence=0.999,
        flags=library.SOLVEPNP_P3P,
    )  # fmt: skip
    if not solved or agree is None or len(agree) < LEAST_MATCHES:
        return None
    turn, shift = library.solvePnPRefineLM(points[agree[:, 0]], places[agree[:, 0]], lens, None, turn, shift)
    rotation = library.Rodrigues(turn)[0].T
    pose = np.concatenate([rotation @ FLIP, -rotation @ shift], axis=1)
    return pose if np.isfinite(pose).all() else None


def reprojected(seen: Seen, pose: Float[np.ndarray, "3 4"], error: float) -> Bool[np.ndarray, "count"]:
    """Which points a pose sees within a distance, where rays meet the plane at depth 1, of their keypoints."""
    local = (seen.points - pose[:, 3]) @ pose[:, :3] @ FLIP
    depth = np.where(local[:, 2:] > 1e-9, local[:, 2:], np.nan)
    apart = local[:, :2] / depth - seen.directions[:, :2] / seen.directions[:, 2:]
    return np.linalg.norm(apart, axis=1) < error
