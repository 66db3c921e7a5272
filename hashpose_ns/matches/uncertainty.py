"""How well matches determine each camera: the covariance of bundle adjustment, without a fixed gauge."""

from __future__ import annotations

from typing import Tuple

import numpy as np
from jaxtyping import Float

from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.sfm import FLIP, Structure

GAUGE = 7
"""Dimensions that no match determines: a similarity of the whole."""
MAX_CAMERAS = 600
"""Above, the normal equations are not inverted: their size grows with the square of the number of cameras."""


def pose_deviations(
    images: MatchedImages, structure: Structure
) -> Tuple[Float[np.ndarray, "num_images"], Float[np.ndarray, "num_images"]]:
    """Standard deviations of each camera's rotation, in degrees, and of its centre, in the structure's units.

    They are roots of the traces of 3x3 blocks of sigma^2 (U - W V^-1 W^T)^+, the pseudoinverse of the normal equations
    of bundle adjustment without the points (Triggs et al. 2000, sections 6 and 9), where the 7 dimensions of the gauge
    are left out and sigma is the size of residuals. Cameras in parts that hang together by few points get large ones.

    Args:
        images: keypoints.
        structure: of them.

    Returns:
        Infinite for cameras that are not placed.
    """
    from scipy import sparse

    turns = np.full(images.num_images, np.inf)
    shifts = turns.copy()
    cameras = np.flatnonzero(structure.placed)
    if not 2 <= len(cameras) <= MAX_CAMERAS:
        return turns, shifts
    row_of = np.full(images.num_images, -1)
    row_of[cameras] = np.arange(len(cameras))
    lengths = [len(track) for track in structure.tracks]
    point = np.repeat(np.arange(len(lengths)), lengths)
    image, keypoint = np.concatenate(structure.tracks).T
    kept = row_of[image] >= 0
    point, image, keypoint = point[kept], image[kept], keypoint[kept]
    poses = structure.camera_to_worlds[image]
    # camera coordinates, OpenCV's axes
    to_camera = FLIP @ poses[:, :, :3].transpose(0, 2, 1)
    local = np.einsum("nij,nj->ni", to_camera, structure.points[point] - poses[:, :, 3])
    x, y, z = local.T
    z = np.where(np.abs(z) < 1e-9, 1e-9, z)
    seen = np.stack([images.points[i][k] for i, k in zip(image, keypoint)])
    focal = images.focals[image]
    residuals = focal[:, None] * (np.stack([x / z, y / z], axis=1) - seen)
    sigma = 1.4826 * np.median(np.abs(residuals))
    good = (np.abs(residuals) < max(5.0 * sigma, 1e-6)).all(axis=1) & (z > 0)
    by_local = np.zeros((len(z), 2, 3))
    by_local[:, 0, 0] = by_local[:, 1, 1] = 1 / z
    by_local[:, 0, 2], by_local[:, 1, 2] = -x / z**2, -y / z**2
    by_local *= (focal * good)[:, None, None]
    # A turn by w about the camera's own axes moves a point by -w x local, a step of the centre by -c.
    cross = np.zeros((len(z), 3, 3))
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = z, -y, x
    cross -= cross.transpose(0, 2, 1)
    by_camera = np.concatenate([by_local @ cross, -by_local @ to_camera], axis=2)
    by_point = by_local @ to_camera
    rows = row_of[image]
    normal = np.zeros((len(cameras), 6, 6))
    np.add.at(normal, rows, by_camera.transpose(0, 2, 1) @ by_camera)
    of_points = np.zeros((len(lengths), 3, 3))
    np.add.at(of_points, point, by_point.transpose(0, 2, 1) @ by_point)
    spread = np.trace(of_points, axis1=1, axis2=2)
    inverse = np.linalg.inv(of_points + (1e-9 * spread + 1e-12)[:, None, None] * np.eye(3))
    mixed = by_camera.transpose(0, 2, 1) @ by_point  # [n, 6, 3]
    shape = (6 * len(cameras), 3 * len(lengths))
    row = (6 * rows[:, None, None] + np.arange(6)[None, :, None]).repeat(3, axis=2).ravel()
    column = (3 * point[:, None, None] + np.arange(3)[None, None, :]).repeat(6, axis=1).ravel()
    w = sparse.csr_matrix((mixed.ravel(), (row, column)), shape=shape)
    eliminated = (w @ sparse.block_diag(list(inverse), format="csr") @ w.T).toarray()
    schur = -eliminated
    for number in range(len(cameras)):
        place = slice(6 * number, 6 * number + 6)
        schur[place, place] += normal[number]
    # Turns and steps in units of their own would make small eigenvalues of a scene's scale.
    unit = np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-12).reshape(-1))
    values, vectors = np.linalg.eigh(schur / unit[:, None] / unit[None, :])
    values, vectors = np.maximum(values[GAUGE:], 1e-12), vectors[:, GAUGE:]
    variances = (np.square(vectors) / values).sum(axis=1) / unit**2 * sigma**2
    variances = variances.reshape(-1, 6)
    turns[cameras] = np.degrees(np.sqrt(variances[:, :3].sum(axis=1)))
    shifts[cameras] = np.sqrt(variances[:, 3:].sum(axis=1))
    return turns, shifts
