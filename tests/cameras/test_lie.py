"""The exponential map of SE(3) against its plain reference in float64, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch
from torch import Tensor

from hashpose_ns.cameras.lie import exp_map_reference, exp_map_SE3, log_map_SE3
from nerfstudio.cameras import lie_groups

ANGLES = [0.0, 1e-30, 1e-8, 1e-6, 1e-4, 5e-3, 9.99e-3, 0.0101, 0.03, 0.1, 0.5, 1.0, 1.249, 1.251, 2.0, 3.1]


def make_twists(angle: float, count: int = 200) -> Tensor:
    """Twists of an angle that float32 holds exactly."""
    generator = torch.Generator().manual_seed(0)
    lines, axes = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=1, keepdim=True)
    return torch.cat([lines, angle * axes], dim=1).float().double()


def poses_and_gradient(function, twists: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    twists = twists.clone().requires_grad_()
    poses = function(twists)
    return poses.detach().double(), torch.autograd.grad(poses, twists, weights.to(poses))[0].double()


def errors(function, twists: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    weights = torch.randn(len(twists), 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = poses_and_gradient(exp_map_reference, twists, weights)
    actual = poses_and_gradient(function, twists.to(dtype), weights)
    return tuple((a - b).abs().max().item() for a, b in zip(actual, expected))  # type: ignore


@pytest.mark.parametrize("angle", [0.0, 1e-8, 0.1, 3.1])
def test_the_reference_is_a_rotation_by_the_angle_and_a_screw(angle):
    """Rodrigues' rotation by roma, and the translation as the mean of the rotations on the way, by quadrature."""
    twists = make_twists(angle, 20)
    poses = exp_map_reference(twists)
    torch.testing.assert_close(poses[:, :, :3], roma.rotvec_to_rotmat(twists[:, 3:]), rtol=0, atol=1e-14)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    way = [
        w / 2 * roma.rotvec_to_rotmat((t + 1) / 2 * twists[:, 3:]) @ twists[:, :3, None] for t, w in zip(nodes, weights)
    ]
    torch.testing.assert_close(poses[:, :, 3:], sum(way), rtol=0, atol=1e-13)


@pytest.mark.parametrize("angle", [*ANGLES, 6.0, 12.0])
def test_poses_and_gradients_are_exact_in_float64(angle):
    pose_error, gradient_error = errors(exp_map_SE3, make_twists(angle), torch.float64)
    assert pose_error < 2e-14 and gradient_error < 6e-14


@pytest.mark.parametrize("angle", ANGLES)
def test_float32_is_as_exact_as_float32_can_be_and_as_nerfstudios(angle):
    twists = make_twists(angle)
    ours, theirs = (errors(function, twists, torch.float32) for function in (exp_map_SE3, lie_groups.exp_map_SE3))
    assert ours[0] < 5e-7 and ours[1] < 2.5e-6
    # Theirs loses digits from 0.005 to 0.1; elsewhere both round in the last digit.
    assert ours[0] < 1.6 * theirs[0] + 1e-9 and ours[1] < 1.6 * theirs[1] + 1e-9


def test_nerfstudios_map_rounds_where_corrections_are():
    """Why there is one of our own: the gradient of a correction of half a degree."""
    ours, theirs = (
        errors(function, make_twists(0.0101), torch.float32)[1] for function in (exp_map_SE3, lie_groups.exp_map_SE3)
    )
    assert ours < 1e-6 < 1e-4 < theirs


def test_gradients_against_finite_differences():
    twists = make_twists(1.0, 6)
    twists[0] = 0
    twists[1, 3:] *= 1e-4
    twists[2, 3:] *= 3.0
    assert torch.autograd.gradcheck(exp_map_SE3, (twists.requires_grad_(),))


def test_zero_gives_the_identity_and_the_generators():
    twists = torch.zeros(2, 6, requires_grad=True)
    poses = exp_map_SE3(twists)
    assert torch.equal(poses, torch.eye(3, 4).expand(2, -1, -1))
    (gradient,) = torch.autograd.grad(poses[0, 2, 1] + 3 * poses[1, 0, 3], twists)
    assert torch.equal(gradient, torch.tensor([[0, 0, 0, 1.0, 0, 0], [3, 0, 0, 0, 0, 0]]))


def test_rotations_stay_rotations_and_mixed_precision_rounds_nothing():
    twists = make_twists(0.7).float()
    poses = exp_map_SE3(twists)
    torch.testing.assert_close(poses[:, :, :3] @ poses[:, :, :3].mT, torch.eye(3).expand(200, 3, 3), rtol=0, atol=6e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exp_map_SE3(twists), poses)


def test_no_poses_and_what_is_no_number():
    assert exp_map_SE3(torch.zeros(0, 6)).shape == (0, 3, 4)
    poses = exp_map_SE3(torch.tensor([[0, 0, 0, 0.1, 0, 0], [0, 0, 0, torch.nan, 0, 0], [0, 0, 0, torch.inf, 0, 0]]))
    assert [bool(torch.isfinite(pose).all()) for pose in poses] == [True, False, False]


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 3.1])
def test_the_logarithm_takes_it_back(angle):
    for twist in make_twists(angle, 5):
        torch.testing.assert_close(log_map_SE3(exp_map_SE3(twist[None])[0]), twist, rtol=0, atol=1e-9)
