"""Tracks as a term of the training loss: how far keypoints lie from where a free point of each track is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from hashpose_ns.matches.config import MatchTermConfig
from hashpose_ns.matches.epipolar import MatchTerm
from hashpose_ns.matches.features import MatchedImages

VIEWS = 8
"""Images of a track at most; longer ones are cut, so that a step's tensors have one shape and its cost a bound."""
MIN_ANGLE = 1.5
"""Degrees between the rays of a track's widest pair below which its point has no depth (COLMAP's)."""
NEAR = 1e-6
"""Depth, relative to the point's distance from the camera, below which a point is behind the camera."""
STEPS = 5
"""Of Gauss-Newton's method, from the midpoint."""


@dataclass(frozen=True, eq=False)
class Tracks:
    """Keypoints that verified matches chain over images."""

    images: Int[Tensor, "tracks views"]
    """Training images of each track; any where `seen` is false."""
    points: Float[Tensor, "tracks views 2"]
    """Where they see it, on the plane at depth 1 (see `Matches`)."""
    seen: Bool[Tensor, "tracks views"]
    """Which of these exist."""
    focals: Float[Tensor, "num_images"]
    """Mean focal length of each training camera, in pixels."""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Tracks:
        """The same on another device."""
        return Tracks(*(t.to(device) for t in (self.images, self.points, self.seen, self.focals)))

    def chosen(self, rows: Int[Tensor, "chosen"]) -> Tracks:
        """Some of them."""
        return Tracks(self.images[rows], self.points[rows], self.seen[rows], self.focals)


def chained(images: MatchedImages) -> Tracks:
    """Tracks of verified matches.

    Matches are joined pair by pair, those with most matches first. One that would give a track two keypoints of an
    image is left out, for one of its track's matches is wrong. Tracks of more than `VIEWS` images are cut.
    """
    offsets = np.concatenate([[0], np.cumsum([len(points) for points in images.points])])
    image_of = np.repeat(np.arange(images.num_images), np.diff(offsets)).tolist()
    track_of: Dict[int, Dict[int, int]] = {}  # of a keypoint: its track, from image to keypoint
    for index in np.argsort([-len(match) for match in images.matches], kind="stable"):
        for one, two in (images.matches[index] + offsets[images.pairs[index]]).tolist():
            first = track_of.setdefault(one, {image_of[one]: one})
            second = track_of.setdefault(two, {image_of[two]: two})
            if first is second or first.keys() & second.keys():
                continue
            if len(first) < len(second):
                first, second = second, first
            first.update(second)
            track_of.update(dict.fromkeys(second.values(), first))
    random = np.random.default_rng(0)
    pieces: List[np.ndarray] = []
    for track in {id(track): track for track in track_of.values()}.values():
        whole = random.permutation(sorted(track.values()))
        pieces += [piece for piece in np.array_split(whole, -(-len(whole) // VIEWS)) if len(piece) > 1]
    padded = np.full((len(pieces), VIEWS), -1)
    for row, piece in enumerate(pieces):
        padded[row, : len(piece)] = piece
    points = np.concatenate([*images.points, np.zeros((1, 2))])[padded]
    return Tracks(
        torch.tensor([*image_of, 0])[torch.from_numpy(padded)],
        torch.from_numpy(points).float(),
        torch.from_numpy(padded >= 0),
        torch.from_numpy(images.focals).float(),
    )


def residuals(
    tracks: Tracks, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], places: Float[Tensor, "tracks 3"]
) -> tuple[Float[Tensor, "tracks views 2"], Float[Tensor, "tracks views 2 3"], Bool[Tensor, "tracks views"]]:
    """Reprojection errors in pixels, their derivatives by the places, and which of them count.

    Args:
        tracks: N cameras' tracks.
        camera_to_worlds: OpenGL axes, any units.
        places: a point for each track, world axes.

    Returns:
        Errors, x right and y down; derivatives, in pixels a unit; whether the image sees the point in front of it.
    """
    # to OpenCV's axes, whose y points down and z forwards
    every = torch.cat([camera_to_worlds[..., :1], -camera_to_worlds[..., 1:3]], dim=-1)
    flat = tracks.images.flatten()
    rotations = every.index_select(0, flat).view(*tracks.images.shape, 3, 3)
    centers = camera_to_worlds[..., 3].index_select(0, flat).view(*tracks.images.shape, 3)
    offsets = places[:, None] - centers
    # products and sums in place of matmul, which mixed precision would round
    local = (rotations * offsets[..., None]).sum(-2)
    valid = tracks.seen & (local[..., 2] > NEAR * offsets.detach().norm(dim=-1))
    depths = torch.where(valid, local[..., 2], torch.ones_like(local[..., 2]))[..., None]
    projected = local[..., :2] / depths
    focals = tracks.focals.to(local)[tracks.images][..., None]
    errors = torch.where(valid[..., None], focals * (projected - tracks.points.to(local)), torch.zeros_like(projected))
    axes = rotations.transpose(-1, -2)
    slopes = (axes[..., :2, :] - projected[..., None] * axes[..., 2:, :]) * (focals / depths)[..., None]
    return errors, slopes, valid


@torch.no_grad()
def triangulate(
    tracks: Tracks, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], scale: float, steps: int = STEPS
) -> tuple[Float[Tensor, "tracks 3"], Bool[Tensor, "tracks"]]:
    """The places where the robust reprojection errors of tracks are smallest, in float64 and without a gradient.

    From the point nearest to all rays, iteratively reweighted Gauss-Newton steps.

    Args:
        tracks: N cameras' tracks.
        camera_to_worlds: OpenGL axes, any units.
        scale: Cauchy's, in pixels.
        steps: number of steps.

    Returns:
        The places, and whether the rays of a track are wide enough apart to have one.
    """
    poses = camera_to_worlds.double()
    rotations = torch.cat([poses[..., :1], -poses[..., 1:3]], dim=-1)[tracks.images]
    rays = functional.pad(tracks.points.double(), (0, 1), value=1.0)
    rays = functional.normalize((rotations * rays[..., None, :]).sum(-1), dim=-1)
    eye = torch.eye(3, dtype=torch.float64, device=poses.device)
    across = (eye - rays[..., None] * rays[..., None, :]) * tracks.seen[..., None, None]
    both = tracks.seen[:, :, None] & tracks.seen[:, None, :]
    # of the chord between unit rays: the cosine of a small angle has no digits left
    chords = (rays[:, :, None] - rays[:, None]).norm(dim=-1) * both
    wide = chords.amax((-1, -2)) > 2 * np.sin(np.radians(MIN_ANGLE) / 2)
    centers = poses[..., 3][tracks.images]
    places = _solved(across.sum(1), (across * centers[..., None, :]).sum((1, 3)))
    for _ in range(steps):
        errors, slopes, valid = residuals(tracks, poses, places)
        weights = valid / (1 + errors.square().sum(-1) / scale**2)
        slopes_weighted = slopes * weights[..., None, None]
        normal = (slopes_weighted[..., :, None] * slopes[..., None, :]).sum((1, 2))
        step = _solved(normal, (slopes_weighted * errors[..., None]).sum((1, 2)))
        places = places - step
    return places, wide & places.isfinite().all(-1)


def _solved(matrices: Float[Tensor, "tracks 3 3"], right: Float[Tensor, "tracks 3"]) -> Float[Tensor, "tracks 3"]:
    """Solutions of small symmetric systems, regularised by rounding; no wait for a GPU's verdict on singular ones."""
    size = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    eye = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    return torch.linalg.solve_ex(matrices + (1e-12 * size + 1e-30) * eye, right)[0]


def track_loss(
    tracks: Tracks,
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    config: MatchTermConfig,
    steps: int = STEPS,
) -> Float[Tensor, ""]:
    r"""Mean over keypoints of :math:`\frac{s^2}{2} \log(1 + |e|^2 / s^2)`, e being their reprojection errors in pixels.

    Each track's point is where its own share of the loss is smallest for the poses as they are (variable projection).
    There the loss has no slope by the point, so the gradient by the poses with the point held fixed is the whole one
    (envelope theorem). Keypoints whose camera has the point behind it, tracks with fewer than two others, and those
    without a wide enough angle take no part in this step.

    Args:
        tracks: at least one; some are drawn where they have more keypoints than `config.per_step`.
        camera_to_worlds: OpenGL axes, any units.
        config: settings.
        steps: of triangulation.
    """
    count = max(config.per_step // VIEWS, 1)
    if len(tracks) > count:
        tracks = tracks.chosen(torch.randint(len(tracks), (count,), device=tracks.images.device))
    places, wide = triangulate(tracks, camera_to_worlds.detach(), config.scale, steps)
    places = torch.where(wide[:, None], places, torch.zeros_like(places)).to(camera_to_worlds.dtype)
    errors, _, valid = residuals(tracks, camera_to_worlds, places)
    valid = valid & wide[:, None]
    valid = valid & (valid.sum(-1, keepdim=True) >= 2)
    losses = 0.5 * config.scale**2 * torch.log1p(errors.square().sum(-1) / config.scale**2)
    return torch.where(valid, losses, torch.zeros_like(losses)).sum() / valid.sum().clamp(min=1)


class TrackTerm(MatchTerm):
    """The term of tracks in place of matches. It remembers no points, so a resumed run needs nothing of it.

    Args:
        matches: the tracks, at least one.
        config: settings.
    """

    matches: Tracks
    loss = staticmethod(track_loss)
