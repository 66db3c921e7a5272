"""How cameras moved, of movements that are known."""

from __future__ import annotations

import pytest
import roma
import torch

from hashpose_ns.guard.movement import movement


@pytest.fixture
def side_by_side() -> torch.Tensor:
    """Twelve cameras in a plane, that look the same way."""
    generator = torch.Generator().manual_seed(0)
    frame = roma.random_rotmat(generator=generator).double()
    centers = torch.randn(12, 3, generator=generator).double() * torch.tensor([1.0, 0.5, 0.0])
    return torch.cat([frame.expand(12, 3, 3), (centers @ frame.T)[..., None]], dim=-1)


def turned(poses: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Poses turned about their own axes by rotation vectors in radians."""
    return torch.cat([poses[:, :, :3] @ roma.rotvec_to_rotmat(by), poses[:, :, 3:]], dim=-1)


def looking_at(distance: float, poses: torch.Tensor) -> torch.Tensor:
    """Poses turned so that their axes meet in front of the middle."""
    middle = poses[:, :, 3].mean(dim=0)
    backwards = poses[:, :, 3] - (middle - distance * poses[0, :, 2])
    backwards = backwards / backwards.norm(dim=-1, keepdim=True)
    right = torch.linalg.cross(poses[:, :, 1], backwards)
    right = right / right.norm(dim=-1, keepdim=True)
    axes = torch.stack([right, torch.linalg.cross(backwards, right), backwards], dim=-1)
    return torch.cat([axes, poses[:, :, 3:]], dim=-1)


def test_each_camera_s_turn_is_told_in_degrees(side_by_side):
    by = torch.zeros(12, 3).double()
    by[3, 0], by[4, 2] = 0.1, -2.0
    degrees = movement(side_by_side, turned(side_by_side, by)).degrees
    torch.testing.assert_close(degrees, torch.rad2deg(by.norm(dim=-1)))
    assert movement(side_by_side, side_by_side).converging == 0.0


def test_turning_towards_each_other_or_apart_is_converging(side_by_side):
    towards = looking_at(20.0, side_by_side)
    assert movement(side_by_side, towards).converging > 0.98
    assert movement(towards, side_by_side).converging > 0.98


def test_random_turns_are_not(side_by_side):
    shares = []
    for seed in range(20):
        by = 0.1 * torch.randn(12, 3, generator=torch.Generator().manual_seed(seed)).double()
        shares.append(movement(side_by_side, turned(side_by_side, by)).converging)
    assert max(shares) < 0.3


def test_cameras_around_an_object_cannot_converge(side_by_side):
    """They look at its middle before, and some of them past it after."""
    directions = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).double()
    directions = torch.cat([directions, -directions])
    ring = side_by_side.repeat(2, 1, 1)
    ring[:, :, 3] = 4.0 * directions / directions.norm(dim=-1, keepdim=True)
    around = looking_at(0.0, ring)
    by = 0.1 * torch.randn(24, 3, generator=torch.Generator().manual_seed(2)).double()
    assert movement(around, turned(around, by)).converging < 1e-6
