"""Alignment of two sets of camera poses by a similarity, and the pose errors that remain after it.

This is the only place where estimated poses meet a ground truth. Poses are camera-to-world matrices with OpenGL axes
(right, up, backwards); everything is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional

import roma
import torch
from jaxtyping import Float
from torch import Tensor

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
    """Whether all camera centres are one point, up to the rounding of the poses' dtype.

    True for poses that start from the identity. Such centres carry no scale and no orientation.

    Args:
        camera_to_worlds: camera poses, N > 0.
    """
    centers = camera_to_worlds[..., 3].double()
    spread = (centers - centers.mean(dim=0)).square().sum(dim=-1).mean().sqrt()
    rounding = 16 * torch.finfo(camera_to_worlds.dtype).eps * max(1.0, float(centers.abs().max()))
    return float(spread) <= rounding


@torch.no_grad()
def align_poses(
    source_camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    target_camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
) -> Similarity:
    r"""The similarity that maps source cameras onto target cameras, from their centres.

    The rotation is the Procrustes solution :math:`\arg\min_R \sum_i \|R \hat{x}_i - \hat{y}_i\|^2` over proper
    rotations of the centred camera centres (Umeyama, PAMI 1991), the scale the ratio of their RMS spreads, and the
    translation maps mean on mean: the alignment of BARF's ``prealign_cameras``, with the reflection fixed on the
    smallest singular direction. The RMS scale makes the alignment symmetric (swapping the arguments gives the inverse),
    which Umeyama's least-squares scale is not.

    Where the centres leave the rotation undetermined (they coincide, lie on one line, or are fewer than three), it is
    taken from the orientations instead, as the chordal mean
    :math:`\arg\min_R \sum_i \|R R_i^{source} - R_i^{target}\|^2`. Where the centres of either side coincide, as at an
    identity start, the scale is 1. (BARF falls back to no alignment.)

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
