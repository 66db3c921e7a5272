"""What matches say of the poses of a moment: a bounded part of them, in numbers, over a photograph and in the scene."""

from __future__ import annotations

import base64
import dataclasses
import io
from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.gate import Support, support
from hashpose_ns.matches.sfm import FLIP, epipolar_errors, homogeneous
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.viewer.colors import FAR_OFF, NEAR, OFF
from hashpose_ns.viewer.state import PoseState

MAX_PAIRS, MAX_MATCHES = 64, 2000
"""Pairs of images, and matches of them, that numbers over all cameras and points are from."""

MAX_PARTNERS, MAX_DRAWN = 48, 500
"""Other images, and matches with them, that are shown of one camera."""

NEAR_PIXELS, FAR_PIXELS = 1.0, 4.0
"""Distances from the epipolar line below which a match is green, and above which it is red."""

MIN_ANGLE = np.radians(1.5)
"""Between the rays of a match, below which it says nothing about depth: as in structure from motion."""

WIDTH = 480
"""Of the picture, in pixels."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """Matched keypoints of one image, and how far they are from where poses want them."""

    pixels: Float[np.ndarray, "n 2"]
    """Keypoints in pixels of the image's file."""
    offsets: Float[np.ndarray, "n 2"]
    """From each keypoint to the nearest point of its epipolar line, in pixels, in the image without distortion; 0 where
    there is no such line."""
    distances: Float[np.ndarray, "n"]
    """Their lengths; infinite where the match would lie behind a camera, or both cameras are in one place."""


@dataclass(frozen=True, eq=False)
class Supports:
    """How well matches are explained by the poses of now, and by earlier ones."""

    now: Support
    """By the poses of now."""
    given: Support
    """By the poses that came in."""
    start: Optional[Support]
    """By those that matches gave, where training started there."""


@dataclass(frozen=True, eq=False)
class CameraMatches:
    """The matches of one image."""

    index: int
    """The image."""
    count: int
    """How many there are."""
    others: int
    """With how many other images."""
    shown: MatchedImages
    """At most `MAX_DRAWN` of them."""


class ShownMatches:
    """The part of a run's matches that the viewer works with, the same at all times, and what they say.

    Args:
        images: keypoints and all verified matches.
    """

    def __init__(self, images: MatchedImages) -> None:
        self.images = images
        self.sample = thinned(images, np.arange(len(images.pairs)), MAX_PAIRS, MAX_MATCHES)
        """Of all cameras."""
        self.supports: Optional[Supports] = None
        """Of the sample."""
        self.camera: Optional[CameraMatches] = None
        """The selected one."""
        self.camera_supports: Optional[Supports] = None
        """Of what is shown of the selected camera."""
        self.points: Optional[Tuple[Float[np.ndarray, "points 3"], UInt8[np.ndarray, "points 3"]]] = None
        """Where rays meet, and their colours, where that is asked for."""
        self.picture = ""
        """The photograph of the selected camera with its matches, as a data URL, where that is asked for."""
        self.medians: Dict[int, float] = {}
        """Step -> median distance of the sample, in pixels."""
        self._seen: Optional[Tuple[Tuple[int, bool, bool], PoseState]] = None
        self._before: Dict[str, Tuple[Tuple[Tensor, Tensor], Tuple[Support, Optional[Support]]]] = {}
        self._photograph: Optional[Tuple[int, UInt8[np.ndarray, "height width 3"]]] = None

    def is_new(self, state: PoseState, selected: int, points: bool, picture: bool) -> bool:
        """Whether there is something to `look` at that was not seen yet; with its arguments."""
        if self._seen is None or self._seen[0] != (selected, points, picture):
            return True
        seen = self._seen[1]
        return not all(
            torch.equal(*pair)
            for pair in ((seen.refined, state.refined), (seen.base, state.base), (seen.initial, state.initial))
        )

    def look(self, state: PoseState, selected: int, points: bool, picture: Optional[PosedScene]) -> None:
        """Works out all that is shown.

        Args:
            state: the poses.
            selected: index of a camera.
            points: whether points are shown.
            picture: the run, where a picture is shown.
        """
        refined = state.refined.double().numpy()
        if self.camera is None or self.camera.index != selected:
            self.camera = self._of_camera(selected)
            self._before.pop("camera", None)
        self.supports = self._supports("all", self.sample, state)
        self.camera_supports = self._supports("camera", self.camera.shown, state)
        self.points = self._points(refined) if points else None
        self.picture = ""
        if picture is not None:
            cameras = picture.train_outputs.cameras
            if self._photograph is None or self._photograph[0] != selected:
                self._photograph = selected, photograph(picture, selected)
            size = int(cameras.width[selected]), int(cameras.height[selected])
            drawn = residual_picture(self._photograph[1], residuals(self.camera.shown, selected, refined), size)
            self.picture = data_url(drawn)
        self._seen = (selected, points, picture is not None), state

    def follow(self, steps: Sequence[int], poses: Sequence[np.ndarray], most: int = 5) -> bool:
        """Works out median distances of earlier poses, of some of them evenly spread first.

        Args:
            steps: when they were.
            poses: all cameras' at each step.
            most: how many to work out now.
        Returns:
            Whether some are left.
        """
        order = [*np.linspace(0, len(steps) - 1, 4 * most).round().astype(int).tolist(), *range(len(steps))]
        left = list(dict.fromkeys(i for i in order if steps[i] not in self.medians)) if steps else []
        for i in left[:most]:
            self.medians[steps[i]] = support(self.sample, np.asarray(poses[i], dtype=np.float64)).median
        return len(left) > most

    def _of_camera(self, index: int) -> CameraMatches:
        pairs = np.flatnonzero((self.images.pairs == index).any(axis=1))
        count = sum(len(self.images.matches[pair]) for pair in pairs)
        return CameraMatches(index, count, len(pairs), thinned(self.images, pairs, MAX_PARTNERS, MAX_DRAWN))

    def _supports(self, what: str, images: MatchedImages, state: PoseState) -> Supports:
        """Earlier poses change only when a checkpoint is loaded."""
        poses = state.initial, state.base
        known = self._before.get(what)
        if known is None or not all(torch.equal(one, other) for one, other in zip(known[0], poses)):
            given, start = (support(images, pose.double().numpy()) for pose in poses)
            known = self._before[what] = poses, (given, start if state.rebased else None)
        return Supports(support(images, state.refined.double().numpy()), *known[1])

    def _points(
        self, camera_to_worlds: Float[np.ndarray, "num_images 3 4"]
    ) -> Tuple[Float[np.ndarray, "points 3"], UInt8[np.ndarray, "points 3"]]:
        """Without those that are far off, or that say nothing about depth."""
        if not len(self.sample.pairs):
            return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.uint8)
        distances = np.concatenate(epipolar_errors(self.sample, camera_to_worlds))
        points, angles = meeting_points(self.sample, camera_to_worlds)
        kept = (distances < FAR_PIXELS) & (angles > MIN_ANGLE)
        return points[kept], residual_colors(distances[kept])


def thinned(images: MatchedImages, pairs: Int[np.ndarray, "n"], most_pairs: int, most_matches: int) -> MatchedImages:
    """The same images with a part of their matches, spread evenly.

    Args:
        images: keypoints and matches.
        pairs: which pairs to take matches from, as indices.
        most_pairs: of these, evenly chosen.
        most_matches: of all chosen pairs together.
    """
    if len(pairs) > most_pairs:
        pairs = pairs[np.linspace(0, len(pairs) - 1, most_pairs).round().astype(int)]
    counts = np.array([len(images.matches[pair]) for pair in pairs], dtype=int)
    stride = max(-(-int(counts.sum()) // most_matches), 1)
    begins = np.cumsum(counts) - counts
    matches = [images.matches[pair][-int(begin) % stride :: stride] for pair, begin in zip(pairs, begins)]
    return dataclasses.replace(images, pairs=images.pairs[pairs], matches=matches, rotations=images.rotations[pairs])


def residuals(images: MatchedImages, index: int, camera_to_worlds: Float[np.ndarray, "num_images 3 4"]) -> Residuals:
    """How far the matches of one image are from their epipolar lines in it.

    Args:
        images: keypoints, and matches of this image with others.
        index: the image.
        camera_to_worlds: poses, OpenGL axes.
    """
    sides = [(0, 1) if first == index else (1, 0) for first, _ in images.pairs]
    own = np.concatenate([match[:, here] for match, (here, _) in zip(images.matches, sides)] or [np.zeros(0, int)])
    others = [int(pair[there]) for pair, (_, there) in zip(images.pairs, sides)]
    seen = [images.points[o][match[:, there]] for o, match, (_, there) in zip(others, images.matches, sides)]
    other = np.repeat(np.array(others, dtype=int), [len(match) for match in images.matches])
    x = homogeneous(images.points[index][own])
    y = homogeneous(np.concatenate(seen or [np.zeros((0, 2))]))
    # this camera from the other one, both with OpenCV's axes
    from_world = FLIP @ camera_to_worlds[index, :, :3].T
    turned = np.einsum("ij,njk,nk->ni", from_world, camera_to_worlds[other, :, :3] @ FLIP, y)
    translation = (camera_to_worlds[other, :, 3] - camera_to_worlds[index, :, 3]) @ from_world.T
    lines = np.cross(translation, turned)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = -((lines * x).sum(axis=1) / np.square(lines[:, :2]).sum(axis=1))[:, None] * lines[:, :2]
    offsets = np.nan_to_num(images.focals[index] * steps, nan=0.0, posinf=0.0, neginf=0.0)
    errors = np.concatenate(epipolar_errors(images, camera_to_worlds) or [np.zeros(0)])
    distances = np.where(np.isfinite(errors), np.hypot(*offsets.T), np.inf)
    return Residuals(images.pixels[index][own], offsets, distances)


def meeting_points(
    images: MatchedImages, camera_to_worlds: Float[np.ndarray, "num_images 3 4"]
) -> Tuple[Float[np.ndarray, "num_matches 3"], Float[np.ndarray, "num_matches"]]:
    """The points nearest to both rays of each match, halfway between them, all pairs one after the other; and the
    angles between the rays in radians.

    Args:
        images: keypoints and at least one match.
        camera_to_worlds: poses, OpenGL axes.
    """
    first, second = np.repeat(images.pairs, [len(match) for match in images.matches], axis=0).T
    pairs = list(zip(images.pairs, images.matches))
    seen = [np.concatenate([images.points[pair[side]][match[:, side]] for pair, match in pairs]) for side in (0, 1)]
    rays = [
        np.einsum("nij,nj->ni", camera_to_worlds[index, :, :3] @ FLIP, homogeneous(points))
        for index, points in zip((first, second), seen)
    ]
    a, b = (ray / np.linalg.norm(ray, axis=1, keepdims=True) for ray in rays)
    begin, end = camera_to_worlds[first, :, 3], camera_to_worlds[second, :, 3]
    between, cosine = end - begin, (a * b).sum(axis=1)
    to_a, to_b = (between * a).sum(axis=1), (between * b).sum(axis=1)
    square = np.maximum(1.0 - cosine**2, 1e-12)
    along_a, along_b = (to_a - cosine * to_b) / square, (cosine * to_a - to_b) / square
    points = 0.5 * (begin + along_a[:, None] * a + end + along_b[:, None] * b)
    return points, np.arccos(np.clip(cosine, -1.0, 1.0))


def residual_colors(distances: Float[np.ndarray, "n"]) -> UInt8[np.ndarray, "n 3"]:
    """Green, yellow or red."""
    table = np.array([NEAR, OFF, FAR_OFF], dtype=np.uint8)
    return table[np.digitize(distances, [NEAR_PIXELS, FAR_PIXELS])]


def photograph(scene: PosedScene, index: int) -> UInt8[np.ndarray, "height width 3"]:
    """A training image, as wide as the picture is."""
    from PIL import Image

    values = scene.renderer.composite(scene.train[index]["image"].float()).cpu().clamp(0.0, 1.0)
    image = Image.fromarray((255 * values).round().byte().numpy())
    return np.asarray(image.resize((WIDTH, max(round(WIDTH * image.height / image.width), 1))))


def residual_picture(
    picture: UInt8[np.ndarray, "height width 3"], shown: Residuals, size: Tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """A photograph with a dot at every keypoint, and a line from there to its epipolar line; the worst are on top.

    Args:
        picture: the photograph.
        shown: what to draw.
        size: width and height of the image's file.
    """
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    scale = np.array(image.size) / size
    begins, ends = scale * shown.pixels, scale * (shown.pixels + shown.offsets)
    longest = float(np.hypot(*image.size))
    colors = residual_colors(shown.distances)
    for i in np.argsort(shown.distances, kind="stable"):
        (x, y), color = begins[i].tolist(), tuple(colors[i].tolist())
        if np.isfinite(shown.distances[i]):
            step = ends[i] - begins[i]
            step *= min(1.0, longest / max(float(np.hypot(*step)), 1e-9))  # to the edge at most
            pen.line((x, y, x + float(step[0]), y + float(step[1])), fill=color, width=2)
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color, outline=(40, 40, 40))
    return np.asarray(image)


def data_url(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """A picture as a JPEG in a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
