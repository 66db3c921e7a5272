"""Wrong initial poses made from true ones, by the protocols of the published tables.

Poses are camera-to-world matrices with OpenGL axes. No function here reads or advances torch's global generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.errors import HashPoseError

RIGID_TOLERANCE = 1e-3
"""Largest entry of R^T R - I that still counts as a rotation: stored poses are often rounded to a few digits."""

ROUNDING_TOLERANCE = 2e-2
"""Largest entry of R^T R - I that rounding explains, to two digits at worst; anything above is no rotation."""


@dataclass
class PerturbationConfig:
    """Random errors put on the true camera poses."""

    protocol: Literal["barf", "l2g"] = "barf"
    """Where the noise acts.
    - barf: one se(3) twist per camera on the world side, which turns each camera about the world's origin.
    - l2g: a rotation and a translation drawn apart, on the camera side, as in L2G-NeRF."""
    rotation: float = 0.15
    """Standard deviation of each rotation component, in radians.
    BARF uses 0.15, L2G-NeRF 0.07."""
    translation: float = 0.15
    """Standard deviation of each translation component, in the units of the poses.
    For barf it is that of the twist, before the exponential map. BARF uses 0.15, L2G-NeRF 0.5."""
    seed: int = 0
    """Seed of the noise. The same seed and number of cameras give the same noise, whatever else is random."""


def perturb_poses(
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"], config: PerturbationConfig
) -> Float[Tensor, "num_cameras 3 4"]:
    r"""Put the protocol's noise on camera poses.

    In world-to-camera terms, :math:`T` being a true pose:

    - barf: :math:`T' = T \exp(\xi)` with :math:`\xi = (\omega, v)`, so that the camera-to-world pose becomes
      :math:`\exp(\xi)^{-1} T^{-1}`. The exponential is that of SE(3), with its V matrix on :math:`v`.
    - l2g: :math:`T' = [\exp(\omega) | v]\, T`, so that it becomes :math:`T^{-1} [\exp(\omega) | v]^{-1}`.

    The six numbers of a camera are one row of ``randn(N, 6)`` for barf; for l2g all rotations are drawn before all
    translations. Draws, exponential and products are float64.

    Args:
        camera_to_worlds: true poses; not modified.
        config: which noise, how much, and its seed.

    Returns:
        The perturbed poses, with the dtype and device of the input.

    Raises:
        HashPoseError: if a standard deviation is negative or the protocol is unknown.
    """
    if config.rotation < 0 or config.translation < 0:
        raise HashPoseError(
            f"A perturbation's standard deviations cannot be negative (rotation {config.rotation}, "
            f"translation {config.translation})."
        )
    num_cameras = len(camera_to_worlds)
    generator = torch.Generator(device="cpu").manual_seed(config.seed)
    if config.protocol == "barf":
        draws = torch.randn(num_cameras, 6, generator=generator, dtype=torch.float64)
        rotation_vectors, translations = draws[:, :3] * config.rotation, draws[:, 3:] * config.translation
        noise = exp_map_SE3(torch.cat([translations, rotation_vectors], dim=-1))
    elif config.protocol == "l2g":
        rotation_vectors = torch.randn(num_cameras, 3, generator=generator, dtype=torch.float64) * config.rotation
        translations = torch.randn(num_cameras, 3, generator=generator, dtype=torch.float64) * config.translation
        noise = exp_map_SE3(torch.cat([torch.zeros_like(translations), rotation_vectors], dim=-1))
        noise[:, :, 3] = translations
    else:
        raise HashPoseError(f"There is no perturbation protocol called {config.protocol!r}; choose barf or l2g.")

    noise = noise.to(camera_to_worlds.device)
    rotations, centers = camera_to_worlds[:, :, :3].double(), camera_to_worlds[:, :, 3:].double()
    inverse_rotations = noise[:, :, :3].mT
    inverse_translations = -inverse_rotations @ noise[:, :, 3:]
    if config.protocol == "barf":
        rotations, centers = inverse_rotations @ rotations, inverse_rotations @ centers + inverse_translations
    else:
        rotations, centers = rotations @ inverse_rotations, rotations @ inverse_translations + centers
    return torch.cat([rotations, centers], dim=-1).to(camera_to_worlds.dtype)


def identity_poses(num_cameras: int) -> Float[Tensor, "num_cameras 3 4"]:
    """Poses that know nothing: every camera at the world's origin, looking along -z with y up.

    Args:
        num_cameras: how many.

    Returns:
        Camera-to-world poses, float32, one memory for each.
    """
    return torch.eye(3, 4).repeat(num_cameras, 1, 1)


def rigid_deviations(rotations: Float[Tensor, "num_cameras 3 3"]) -> Float[Tensor, "num_cameras"]:
    """Largest entry of R^T R - I of each camera, 0 for a rotation."""
    return (rotations.mT @ rotations - torch.eye(3, dtype=rotations.dtype)).abs().amax(dim=(1, 2))


def validate_poses(
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    names: Sequence[str],
    tolerance: float = RIGID_TOLERANCE,
    hint: str = "",
) -> None:
    """Check that poses are finite and rigid.

    Args:
        camera_to_worlds: poses to check.
        names: what to call each camera in the message, for instance its image's file name.
        tolerance: largest entry of R^T R - I that still counts as a rotation.
        hint: what to say of mirrored poses beside.

    Raises:
        HashPoseError: one sentence that names the first bad camera: a NaN or an infinity in it, columns that are not
            orthonormal to within the tolerance, or a mirroring (determinant below zero).
    """
    poses = camera_to_worlds.detach().double().cpu()
    finite = torch.isfinite(poses).flatten(1).all(dim=1)
    rotations = torch.where(finite[:, None, None], poses[:, :, :3], torch.eye(3, dtype=poses.dtype))
    deviations = rigid_deviations(rotations)
    mirrored = torch.linalg.det(rotations) < 0
    bad = torch.nonzero(~finite | (deviations > tolerance) | mirrored).flatten()
    if len(bad) == 0:
        return
    first = int(bad[0])
    if not finite[first]:
        reason = "holds a value that is not a finite number"
    elif deviations[first] > tolerance:
        reason = f"is not rigid (its axes deviate from orthonormal by {float(deviations[first]):.2g})"
    else:
        reason = "mirrors space (its axes form a left-handed frame)"
    others = f", and {len(bad) - 1} more of the {len(poses)} are bad too" if len(bad) > 1 else ""
    hint = f"; {hint}" if hint and mirrored.any() else ""
    raise HashPoseError(f"The pose of camera {names[first]} {reason}{others}{hint}.")
