"""How well matches determine each camera: the covariance of bundle adjustment, without a fixed gauge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

import numpy as np
from jaxtyping import Bool, Float, Int

from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.sfm import FLIP, Structure

GAUGE = 7
"""Dimensions that no match determines: a similarity of the whole."""
MAX_CAMERAS = 600
"""Above, each camera's deviation is what it is with all points and other cameras fixed, which is smaller: the
full normal equations grow with the square of the number of cameras."""


def pose_deviations(
    images: MatchedImages, structure: Structure, limit: float
) -> Tuple[Float[np.ndarray, "num_images"], Float[np.ndarray, "num_images"]]:
    """Standard deviations of each camera's rotation, in degrees, and of its centre, in the structure's units.

    They are roots of the traces of 3x3 blocks of sigma^2 (U - W V^-1 W^T)^+, the pseudoinverse of the normal equations
    of bundle adjustment without the points (Triggs et al. 2000, sections 6 and 9), where the 7 dimensions of the gauge
    are left out and sigma is the size of residuals. Without a gauge, every camera is measured against all others; so
    those above the limit are taken out, the worst first, until no camera is left that is.

    Args:
        images: keypoints.
        structure: of them.
        limit: degrees from which a camera is not determined.

    Returns:
        Infinite for cameras that are not placed or not determined.
    """
    turns = np.full(images.num_images, np.inf)
    shifts = turns.copy()
    active = structure.placed.copy()
    if int(active.sum()) < 3:
        return turns, shifts
    terms = _terms(images, structure)
    if int(active.sum()) > MAX_CAMERAS:
        return _alone(terms, active)
    while int(active.sum()) >= 3:
        cameras, found, steps = _deviations(terms, active)
        worst = float(found.max())
        if worst <= limit:
            turns[cameras], shifts[cameras] = found, steps
            break
        most = np.argsort(-found)[: max(len(found) // 20, 1)]
        active[cameras[most[found[most] >= min(max(limit, 0.5 * worst), worst)]]] = False
    return turns, shifts


def _alone(
    terms: _Terms, active: Bool[np.ndarray, "num_images"]
) -> Tuple[Float[np.ndarray, "num_images"], Float[np.ndarray, "num_images"]]:
    """Deviations of each camera by its own observations of fixed points."""
    normal = np.zeros((len(active), 6, 6))
    np.add.at(normal, terms.image, terms.by_camera.transpose(0, 2, 1) @ terms.by_camera)
    seen = active & (np.bincount(terms.image, minlength=len(active)) >= 6)
    ridge = 1e-12 * np.trace(normal, axis1=1, axis2=2) + 1e-12
    variances = terms.sigma**2 * np.diagonal(np.linalg.inv(normal + ridge[:, None, None] * np.eye(6)), 0, 1, 2)
    turns = np.degrees(np.sqrt(variances[:, :3].sum(axis=1)))
    return np.where(seen, turns, np.inf), np.where(seen, np.sqrt(variances[:, 3:].sum(axis=1)), np.inf)


@dataclass(frozen=True, eq=False)
class _Terms:
    """Derivatives of all observations' residuals, weighted."""

    image: Int[np.ndarray, "n"]
    point: Int[np.ndarray, "n"]
    by_camera: Float[np.ndarray, "n 2 6"]
    """By a turn about the camera's own axes and a step of its centre."""
    by_point: Float[np.ndarray, "n 2 3"]
    sigma: float
    """Size of the residuals, in pixels."""


def _terms(images: MatchedImages, structure: Structure) -> _Terms:
    lengths = [len(track) for track in structure.tracks]
    point = np.repeat(np.arange(len(lengths)), lengths)
    image, keypoint = np.concatenate(structure.tracks).T
    poses = structure.camera_to_worlds[image]
    to_camera = FLIP @ poses[:, :, :3].transpose(0, 2, 1)
    local = np.einsum("nij,nj->ni", to_camera, structure.points[point] - poses[:, :, 3])
    x, y, z = local.T
    z = np.where(np.abs(z) < 1e-9, 1e-9, z)
    seen = np.stack([images.points[i][k] for i, k in zip(image, keypoint)])
    focal = images.focals[image]
    residuals = focal[:, None] * (np.stack([x / z, y / z], axis=1) - seen)
    sigma = float(max(1.4826 * np.median(np.abs(residuals)), 1e-6))
    good = (np.abs(residuals) < 5.0 * sigma).all(axis=1) & (z > 0) & structure.placed[image]
    by_local = np.zeros((len(z), 2, 3))
    by_local[:, 0, 0] = by_local[:, 1, 1] = 1 / z
    by_local[:, 0, 2], by_local[:, 1, 2] = -x / z**2, -y / z**2
    by_local *= focal[:, None, None]
    # A turn by w about the camera's own axes moves a point by -w x local, a step of the centre by c moves it by -c.
    cross = np.zeros((len(z), 3, 3))
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
    cross -= cross.transpose(0, 2, 1)
    by_point = by_local @ to_camera
    by_camera = np.concatenate([-by_local @ cross, -by_point], axis=2)
    return _Terms(image[good], point[good], by_camera[good], by_point[good], sigma)


def _deviations(
    terms: _Terms, active: Bool[np.ndarray, "num_images"]
) -> Tuple[Int[np.ndarray, "some"], Float[np.ndarray, "some"], Float[np.ndarray, "some"]]:
    """Of the active cameras, by what these see alone: their indices, rotations' and centres' deviations."""
    from scipy import sparse

    kept = active[terms.image]
    twice = np.bincount(terms.point[kept], minlength=int(terms.point.max(initial=0)) + 1) >= 2
    kept = kept & twice[terms.point]
    cameras = np.flatnonzero(active)
    rows = np.searchsorted(cameras, terms.image[kept])
    _, point = np.unique(terms.point[kept], return_inverse=True)
    by_camera, by_point = terms.by_camera[kept], terms.by_point[kept]
    count = int(point.max(initial=-1)) + 1
    if count == 0:
        return cameras, np.full(len(cameras), np.inf), np.full(len(cameras), np.inf)
    normal = np.zeros((len(cameras), 6, 6))
    np.add.at(normal, rows, by_camera.transpose(0, 2, 1) @ by_camera)
    of_points = np.zeros((count, 3, 3))
    np.add.at(of_points, point, by_point.transpose(0, 2, 1) @ by_point)
    ridge = 1e-9 * np.trace(of_points, axis1=1, axis2=2) + 1e-12
    inverse = np.linalg.inv(of_points + ridge[:, None, None] * np.eye(3))
    mixed = by_camera.transpose(0, 2, 1) @ by_point  # [n, 6, 3]
    row = (6 * rows[:, None, None] + np.arange(6)[None, :, None]).repeat(3, axis=2).ravel()
    column = (3 * point[:, None, None] + np.arange(3)[None, None, :]).repeat(6, axis=1).ravel()
    w = sparse.csr_matrix((mixed.ravel(), (row, column)), shape=(6 * len(cameras), 3 * count))
    schur = -(w @ sparse.block_diag(list(inverse), format="csr") @ w.T).toarray()
    for number in range(len(cameras)):
        place = slice(6 * number, 6 * number + 6)
        schur[place, place] += normal[number]
    # turns and steps in units of their own, so that a scene's scale does not decide which dimensions are the gauge's
    unit = np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-12)).reshape(-1)
    values, vectors = np.linalg.eigh(schur / unit[:, None] / unit[None, :])
    values, vectors = np.maximum(values[GAUGE:], 1e-12), vectors[:, GAUGE:]
    variances = (np.square(vectors) / values).sum(axis=1) / unit**2 * terms.sigma**2
    variances = variances.reshape(-1, 6)
    return cameras, np.degrees(np.sqrt(variances[:, :3].sum(axis=1))), np.sqrt(variances[:, 3:].sum(axis=1))
