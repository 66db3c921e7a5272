"""Alignment of two sets of camera poses by a similarity, and the pose errors that remain after it.

This is the only place where estimated poses meet a ground truth. Poses are camera-to-world matrices with OpenGL axes
(right, up, backwards); everything is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Dict, Optional, Tuple

import numpy as np
import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CUT_OFF = 5.0
"""Residual, in standard deviations of one of its three components, beyond which more residual means less influence."""

PRIOR = 0.1
"""Components of residuals that the prior of the variances is worth where the residuals themselves leave a variance
undetermined: with two or three cameras, whose centres are fitted exactly."""

SMALLEST_CORRELATION = 0.5
"""Of the aligned centres of two sides, below which their spreads say nothing of the scale."""

MEDIAN_SQUARE = 2.366
"""Median of the chi-square distribution with three degrees of freedom."""

SMALLEST_VARIANCE = 1e-26
"""Of angles, and of centres relative to the capture's extent: the rounding of float64, squared, with some room."""

CONVERGED = 1e-10
"""Change of rotation and scale in a step that ends the fit."""

TINY = float(np.finfo(np.float64).tiny)

MAX_ITERATIONS = 50
"""Steps of the fit. A median may alternate between two cameras for ever, at differences that do not matter."""

MAX_COMPARED = 100
"""Cameras that are compared each with each for the first guess."""

ROTATION_GAP = 1e-6
"""Camera centres determine a rotation when the two smallest singular values of their covariance with the target
centres, the last one signed, add up to more than this fraction of the largest."""

BARF_ARCCOS_MARGIN = 1e-7
"""BARF clamps the cosine of an angle to +-(1 - this), in float32: no angle below 0.028 degrees can come out."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """The map ``x -> scale * rotation @ x + translation`` between two world frames.

    Tensors are float64. The maps below compute in float64 and return the dtype and device of what they were given.
    """

    scale: Float[Tensor, ""]
    """Positive ratio of lengths, target over source."""
    rotation: Float[Tensor, "3 3"]
    """Rotation matrix, from source axes to target axes."""
    translation: Float[Tensor, "3"]
    """Where the source's origin lands, in the target frame."""

    @classmethod
    def identity(cls) -> Similarity:
        """The similarity that changes nothing: pass it to ``pose_errors`` to compare without alignment."""
        return cls(
            scale=torch.ones((), dtype=torch.float64),
            rotation=torch.eye(3, dtype=torch.float64),
            translation=torch.zeros(3, dtype=torch.float64),
        )

    def inverse(self) -> Similarity:
        """The map from the target frame back to the source frame."""
        rotation = self.rotation.T
        return Similarity(1.0 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def apply_to_points(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Map points from the source frame to the target frame.

        Args:
            points: positions in the source frame.

        Returns:
            The positions in the target frame.
        """
        scale, rotation, translation = (x.to(points.device) for x in (self.scale, self.rotation, self.translation))
        return (scale * points.double() @ rotation.T + translation).to(points.dtype)

    def apply_to_poses(self, camera_to_worlds: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 3 4"]:
        """Map camera poses from the source frame to the target frame.

        Centres are mapped as points; axes are turned by the rotation and keep their unit length, so that a pose stays
        rigid whatever the scale.

        Args:
            camera_to_worlds: poses in the source frame.

        Returns:
            The poses in the target frame.
        """
        rotations = self.rotation.to(camera_to_worlds.device) @ camera_to_worlds[..., :3].double()
        centers = self.apply_to_points(camera_to_worlds[..., 3].double())
        return torch.cat([rotations, centers[..., None]], dim=-1).to(camera_to_worlds.dtype)


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """What separates estimated poses from reference poses, camera by camera, in the reference frame."""

    rotation_deg: Float[Tensor, "num_cameras"]
    """Angle between the two orientations, in degrees."""
    translation: Float[Tensor, "num_cameras"]
    """Norm of the difference of the world-to-camera translation vectors, in units of the reference frame. This is
    BARF's metric, which published tables give multiplied by 100. It depends on the orientation error and on where the
    world's origin lies, and is not the distance between the camera centres."""
    center: Float[Tensor, "num_cameras"]
    """Distance between the camera centres, in units of the reference frame."""

    def summary(self, prefix: str = "") -> Dict[str, float]:
        """Mean, median and maximum of each error.

        Args:
            prefix: put before every name.

        Returns:
            ``{prefix}rotation_deg_mean``, ``_median``, ``_max``, and the same for ``translation`` and ``center``.
        """
        summary = {}
        for name in ("rotation_deg", "translation", "center"):
            values = getattr(self, name)
            summary[f"{prefix}{name}_mean"] = float(values.mean())
            # torch.median takes the lower of the two middle values of an even count
            summary[f"{prefix}{name}_median"] = float(values.quantile(0.5))
            summary[f"{prefix}{name}_max"] = float(values.max())
        return summary


def _check_poses(
    first: Float[Tensor, "num_cameras 3 4"], second: Float[Tensor, "num_cameras 3 4"], names: tuple[str, str]
) -> None:
    """Raise ValueError unless both are finite [N, 3, 4] with the same N > 0."""
    for name, poses in zip(names, (first, second)):
        if poses.ndim != 3 or tuple(poses.shape[1:]) != (3, 4):
            raise ValueError(f"The {name} poses must have the shape [N, 3, 4], not {list(poses.shape)}.")
    if first.shape != second.shape:
        raise ValueError(f"There are {len(first)} {names[0]} poses but {len(second)} {names[1]} poses.")
    if len(first) == 0:
        raise ValueError(f"There are no {names[0]} and {names[1]} poses to compare.")
    for name, poses in zip(names, (first, second)):
        if not torch.isfinite(poses).all():
            raise ValueError(f"The {name} poses hold a value that is not finite.")


def centers_coincide(camera_to_worlds: Float[Tensor, "num_cameras 3 4"]) -> bool:
    """Whether the camera centres are one point, up to the rounding of the poses' dtype.

    True for poses that start from the identity. Such centres carry no scale and no orientation. A minority of cameras
    elsewhere does not change that.

    Args:
        camera_to_worlds: camera poses, N > 0.
    """
    return _is_most(_at_the_common_center(camera_to_worlds))


def _is_most(chosen: Bool[Tensor, "num_cameras"]) -> bool:
    return 2 * int(chosen.sum()) > len(chosen)


def _at_the_common_center(camera_to_worlds: Float[Tensor, "num_cameras 3 4"]) -> Bool[Tensor, "num_cameras"]:
    """Which cameras lie at the median centre, up to the rounding of the poses' dtype."""
    centers = camera_to_worlds[..., 3].double()
    median = centers.quantile(0.5, dim=0)
    rounding = 16 * torch.finfo(camera_to_worlds.dtype).eps * max(1.0, float(median.abs().max()))
    return (centers - median).norm(dim=-1) <= rounding


@torch.no_grad()
def align_poses(
    source_camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    target_camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
) -> Similarity:
    r"""The similarity that maps source cameras onto target cameras, from their centres and their orientations.

    It minimises

    .. math::
        \sum_i \rho\!\left(\frac{\angle(R R_i^{source}, R_i^{target})^2}{\sigma_r^2}\right) +
        \rho\!\left(\frac{\|s R x_i + t - y_i\|^2}{\sigma_c^2}\right)

    by iteratively reweighted least squares. The standard deviations of orientations and centres are estimated from the
    residuals (medians, corrected for the parameters that each kind determines), so that each kind counts by what it
    knows: centres on a line say nothing of the turn about it, and centres close to a plane little of its tilt. The
    Geman-McClure loss gives cameras that moved far from the others no weight; up to a third of them may. A step is in
    closed form: the rotation is a Procrustes solution, the scale the ratio of the weighted RMS spreads, and the
    translation maps weighted mean on weighted mean. Swapping the arguments gives the inverse.

    Where the centres of either side coincide, as at an identity start, or those of the two sides have nothing in
    common, the scale is 1. `align_centers` is the alignment of published protocols.

    Args:
        source_camera_to_worlds: camera-to-world poses in the source frame.
        target_camera_to_worlds: the same cameras in the target frame.

    Returns:
        The similarity from source to target. For evaluation cameras in a learned frame, use
        ``align_poses(refined_train, reference_train).inverse().apply_to_poses(reference_test)``.

    Raises:
        ValueError: if the shapes are not the same [N, 3, 4] with N > 0, or a value is not finite.
    """
    _check_poses(source_camera_to_worlds, target_camera_to_worlds, ("source", "target"))
    sides, device = (source_camera_to_worlds, target_camera_to_worlds), source_camera_to_worlds.device
    coincident = [there.cpu().numpy() for there in map(_at_the_common_center, sides) if _is_most(there)]
    # NumPy, as the fit takes many small operations
    (turns_x, x), (turns_y, y) = (np.split(side.cpu().double().numpy(), [3], axis=2) for side in sides)
    fit = _RobustFit(turns_x, turns_y, x[:, :, 0], y[:, :, 0])
    found = fit.by_orientations(np.logical_and.reduce(coincident)) if coincident else fit.by_both()
    scale, rotation, translation = (torch.as_tensor(value, dtype=torch.float64, device=device) for value in found)
    return Similarity(scale, rotation, translation)


Found = Tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]
"""Scale, rotation, translation."""


@dataclass(frozen=True, eq=False)
class _RobustFit:
    """What `align_poses` computes, in float64."""

    turns_x: Float[np.ndarray, "num_cameras 3 3"]
    turns_y: Float[np.ndarray, "num_cameras 3 3"]
    x: Float[np.ndarray, "num_cameras 3"]
    y: Float[np.ndarray, "num_cameras 3"]

    def by_orientations(self, chosen: Bool[np.ndarray, "num_cameras"]) -> Found:
        """Where centres coincide: the robust mean of the orientations, scale 1, and mean centre on mean centre.

        Args:
            chosen: cameras whose centres count; all of them if it is none.
        """
        rotation = self._most_common_rotation()
        for _ in range(MAX_ITERATIONS):
            squares, before = self._turned(rotation), rotation
            rotation = _procrustes(np.tensordot(_weights(squares, _variance(squares)), self._each_turn, 1))
            if np.abs(rotation - before).max() < CONVERGED:
                break
        offsets = self.y - self.x @ rotation.T
        return 1.0, rotation, offsets[chosen if chosen.any() else slice(None)].mean(axis=0)

    def by_both(self) -> Found:
        """Where they do not."""
        x, y, components = self.x, self.y, 3 * len(self.x)
        rotation = self._most_common_rotation()
        scale = self._most_common_scale(rotation)
        translation = np.median(y - scale * x @ rotation.T, axis=0)
        radii = (np.median(np.square(side - np.median(side, axis=0)).sum(axis=1)) for side in (x, y))
        extent = scale * np.sqrt(np.prod([*radii]))  # squared, in units of the target
        turned_by = 1.5  # of the rotation's three parameters, how many the orientations determine
        for _ in range(MAX_ITERATIONS):
            angles = self._turned(rotation)
            offsets = np.square(scale * x @ rotation.T + translation - y).sum(axis=1)
            # A weak prior ties the variances together by the extent of the capture
            of_angles, of_offsets = _variance(angles), _variance(offsets)
            free_angles, free_centers = components - turned_by, max(components - (7.0 - turned_by), 0.0)
            prior_angles, prior_centers = PRIOR * np.exp(-free_angles), PRIOR * np.exp(-free_centers)
            angle_variance = components * of_angles + prior_angles * of_offsets / extent
            angle_variance = max(angle_variance / (free_angles + prior_angles), SMALLEST_VARIANCE)
            center_variance = components * of_offsets + prior_centers * of_angles * extent
            center_variance = max(center_variance / (free_centers + prior_centers), SMALLEST_VARIANCE * extent)

            u, v = _weights(angles, angle_variance), _weights(offsets, center_variance)
            mean_x, mean_y = v @ x / v.sum(), v @ y / v.sum()
            from_x, from_y = x - mean_x, y - mean_y
            covariance = (v[:, None] * from_y).T @ from_x
            spread_x, spread_y = v @ np.square(from_x).sum(axis=1), v @ np.square(from_y).sum(axis=1)
            before = rotation, scale
            # |R A - B|^2 of rotation matrices is twice the square of a small angle
            by_orientations = np.tensordot(u, self._each_turn, 1) / (2.0 * angle_variance)
            rotation = _procrustes(by_orientations + scale * covariance / center_variance)
            correlation = (rotation * covariance).sum() / np.sqrt(spread_x * spread_y)
            scale = float(np.sqrt(spread_y / spread_x)) if correlation > SMALLEST_CORRELATION else 1.0
            translation = mean_y - scale * rotation @ mean_x
            if max(np.abs(rotation - before[0]).max(), abs(scale / before[1] - 1.0)) < CONVERGED:
                break
            extent = scale * np.sqrt(spread_x * spread_y) / v.sum()
            # what centres and orientations know of the rotation: the Hessian of the fit about it
            common = scale * rotation @ covariance.T
            of_centers = (np.trace(common) * np.eye(3) - 0.5 * (common + common.T)) / center_variance
            of_orientations = u.sum() / angle_variance * np.eye(3)
            share = np.trace(np.linalg.lstsq(of_centers + of_orientations, of_orientations, rcond=None)[0])
            turned_by = min(max(float(share), 0.0), 3.0)
        return scale, rotation, translation

    @cached_property
    def _each_turn(self) -> Float[np.ndarray, "num_cameras 3 3"]:
        """Each camera's rotation from source to target."""
        return self.turns_y @ self.turns_x.swapaxes(1, 2)

    def _turned(self, rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "num_cameras"]:
        """Squared angles that a rotation leaves, as chords: 4 at half a turn."""
        return 0.5 * np.square(rotation - self._each_turn).sum(axis=(1, 2))

    @cached_property
    def _sample(self) -> Int[np.ndarray, "some"]:
        """Cameras that are compared each with each."""
        return np.linspace(0, len(self.x) - 1, min(len(self.x), MAX_COMPARED)).round().astype(int)

    def _most_common_rotation(self) -> Float[np.ndarray, "3 3"]:
        """That camera's rotation from source to target which is nearest to half of the others'."""
        each = self._each_turn[self._sample]
        return each[np.median(np.einsum("iab,jab->ij", each, each), axis=1).argmax()]

    def _most_common_scale(self, rotation: Float[np.ndarray, "3 3"]) -> float:
        """Weighted median over pairs of cameras of the ratios of their distances. Pairs that are close together in one
        side count less, and so do cameras whose orientation is unlike the others'."""
        sample = self._sample
        squares = self._turned(rotation)[sample]
        trust = _weights(squares, max(_variance(squares), SMALLEST_VARIANCE))
        first, second = np.triu_indices(len(sample), 1)
        distances = [np.linalg.norm(side[sample][first] - side[sample][second], axis=1) for side in (self.x, self.y)]
        shares = [np.minimum(d / max(np.median(d), TINY), 1.0) for d in distances]
        weights = np.minimum(*shares) * trust[first] * trust[second]
        ratios = distances[1] / np.maximum(distances[0], TINY)
        order = ratios.argsort()
        cumulated = weights[order].cumsum()
        return float(ratios[order][np.searchsorted(cumulated, 0.5 * cumulated[-1])])


def _variance(squares: Float[np.ndarray, "num_cameras"]) -> float:
    """Robust variance along one dimension, from squared norms of three-dimensional residuals."""
    return float(np.median(squares)) / MEDIAN_SQUARE


def _weights(squares: Float[np.ndarray, "num_cameras"], variance: float) -> Float[np.ndarray, "num_cameras"]:
    """Weights of the Geman-McClure loss, for squared norms of three-dimensional residuals."""
    return (1.0 + squares / (max(variance, SMALLEST_VARIANCE**2) * CUT_OFF**2)) ** -2


def _procrustes(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation nearest to a matrix."""
    left, _, right = np.linalg.svd(matrix)
    left[:, 2] *= np.linalg.det(left) * np.linalg.det(right)
    return left @ right


@torch.no_grad()
def align_centers(
    source_camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    target_camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
) -> Similarity:
    r"""The similarity that maps source cameras onto target cameras by their centres alone: the alignment of BARF's
    ``prealign_cameras``, which published pose errors are measured after.

    The rotation is the Procrustes solution :math:`\arg\min_R \sum_i \|R \hat{x}_i - \hat{y}_i\|^2` over proper
    rotations of the centred camera centres (Umeyama, PAMI 1991), the scale the ratio of their RMS spreads, and the
    translation maps mean on mean, with the reflection fixed on the smallest singular direction.

    It is a metric, and no way to place cameras: where centres lie near a line or a plane, its rotation follows their
    noise, and one lost camera turns all others. Where the centres leave the rotation undetermined (they coincide, lie
    on one line, or are fewer than three), it is the chordal mean of the orientations'
    :math:`\arg\min_R \sum_i \|R R_i^{source} - R_i^{target}\|^2`. Where the centres of either side coincide, as at an
    identity start, the scale is 1. (BARF falls back to no alignment.)

    Args:
        source_camera_to_worlds: camera-to-world poses in the source frame.
        target_camera_to_worlds: the same cameras in the target frame.

    Returns:
        The similarity from source to target.

    Raises:
        ValueError: if the shapes are not the same [N, 3, 4] with N > 0, or a value is not finite.
    """
    _check_poses(source_camera_to_worlds, target_camera_to_worlds, ("source", "target"))
    coincide = centers_coincide(source_camera_to_worlds) or centers_coincide(target_camera_to_worlds)
    source = source_camera_to_worlds.double()
    target = target_camera_to_worlds.double().to(source.device)
    source_mean, target_mean = source[:, :, 3].mean(dim=0), target[:, :, 3].mean(dim=0)
    source_centers, target_centers = source[:, :, 3] - source_mean, target[:, :, 3] - target_mean

    scale = torch.ones((), dtype=torch.float64, device=source.device)
    determined = False
    if not coincide:
        scale = target_centers.square().sum().sqrt() / source_centers.square().sum().sqrt()
        covariance = target_centers.T @ source_centers
        rotation, signed_singular_values = roma.special_procrustes(covariance, return_singular_values=True)
        largest, middle, smallest = signed_singular_values
        determined = bool(middle + smallest > ROTATION_GAP * largest)
    if not determined:
        rotation = roma.special_procrustes((target[:, :, :3] @ source[:, :, :3].mT).sum(dim=0))
    return Similarity(scale, rotation, target_mean - scale * (rotation @ source_mean))


def rotation_angle(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """The angle of a rotation matrix in radians, from 0 to pi, to full precision at either end.

    Sine from the skew part and cosine from the trace: unlike the arccos of the trace it does not lose small angles, and
    unlike the norm of the difference to the identity it does not see the rounding of a nearly orthogonal matrix.
    """
    sine = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        dim=-1,
    ).norm(dim=-1)
    cosine = rotation.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1.0
    return torch.atan2(sine, cosine)


@torch.no_grad()
def pose_errors(
    estimated_camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    reference_camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    similarity: Optional[Similarity] = None,
    barf_exact: bool = False,
) -> PoseErrors:
    """Rotation, translation and centre errors of estimated poses, after they are mapped into the reference frame.

    Args:
        estimated_camera_to_worlds: camera-to-world poses in the learned frame.
        reference_camera_to_worlds: the same cameras' true poses.
        similarity: map from the learned to the reference frame; ``align_poses`` of the two when None. Give
            ``Similarity.identity()`` to compare as they are.
        barf_exact: take angles by BARF's float32 arccos with its clamp, which reads 0.028 degrees for a perfect pose.
            Only for comparison with tables computed that way.

    Returns:
        The errors of each camera, float64.

    Raises:
        ValueError: if the shapes are not the same [N, 3, 4] with N > 0, or a value is not finite.
    """
    _check_poses(estimated_camera_to_worlds, reference_camera_to_worlds, ("estimated", "reference"))
    if similarity is None:
        similarity = align_poses(estimated_camera_to_worlds, reference_camera_to_worlds)
    estimated = similarity.apply_to_poses(estimated_camera_to_worlds.double())
    reference = reference_camera_to_worlds.double().to(estimated.device)

    relative = estimated[:, :, :3].mT @ reference[:, :, :3]
    if barf_exact:
        cosine = (relative.float().diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1.0) / 2.0
        angle = cosine.clamp(-1.0 + BARF_ARCCOS_MARGIN, 1.0 - BARF_ARCCOS_MARGIN).acos().double()
    else:
        angle = rotation_angle(relative)

    def world_to_camera_translations(camera_to_worlds: Tensor) -> Tensor:
        return -(camera_to_worlds[:, :, :3].mT @ camera_to_worlds[:, :, 3:])[..., 0]

    return PoseErrors(
        rotation_deg=torch.rad2deg(angle),
        translation=(world_to_camera_translations(estimated) - world_to_camera_translations(reference)).norm(dim=-1),
        center=(estimated[:, :, 3] - reference[:, :, 3]).norm(dim=-1),
    )
