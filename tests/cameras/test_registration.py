"""Rigid registration: against the motion that points went by, and its derivative against the one that is left out."""

from __future__ import annotations

import pytest
import roma
import torch

from hashpose_ns.cameras.registration import register

N = 4


def motions(count: int = N, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotations = roma.random_rotmat(count, dtype=torch.float64, generator=generator)
    return torch.cat([rotations, torch.randn(count, 3, 1, dtype=torch.float64, generator=generator)], dim=-1)


def moved(poses: torch.Tensor, points: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
    return (poses[cameras, :, :3] @ points[..., None])[..., 0] + poses[cameras, :, 3]


def grid(side: int) -> torch.Tensor:
    steps = torch.linspace(-1, 1, side, dtype=torch.float64)
    x, y = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y, -torch.ones_like(x)], dim=-1).view(-1, 3)


def with_centre(points: torch.Tensor) -> torch.Tensor:
    return torch.cat([points, torch.zeros_like(points)])


POINTS = {
    "rays": with_centre(torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))),
    "symmetric grid": with_centre(grid(3)),
    "symmetric plane": grid(3),
    "narrow": with_centre(grid(3) * torch.tensor([0.04, 0.04, 1.0])),
    "two rays": with_centre(grid(2)[:2]),
}


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("at_identity", [True, False])
def test_a_rigid_motion_is_returned_exactly_and_has_finite_gradients(name, at_identity):
    points = POINTS[name].repeat(N, 1)
    cameras = torch.arange(N).repeat_interleave(len(POINTS[name]))
    poses = torch.eye(3, 4).double().repeat(N, 1, 1) if at_identity else motions()
    target = moved(poses, points, cameras).requires_grad_()
    found, known = register(points, target, cameras, N)
    assert known.all()
    torch.testing.assert_close(found, poses, rtol=0, atol=1e-11)
    # Anything of the pose, not a sum that is smallest there.
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((weights * found).sum(), target)
    assert torch.isfinite(gradient).all() and 0 < gradient.abs().max() < 1e3


def noisy(residual: float = 1e-2, count: int = 12):
    generator = torch.Generator().manual_seed(3)
    cameras = torch.randint(N, (count * N,), generator=generator)
    points = torch.randn(len(cameras), 3, dtype=torch.float64, generator=generator)
    off = residual * torch.randn(len(cameras), 3, dtype=torch.float64, generator=generator)
    return points, moved(motions(), points, cameras) + off, cameras


def test_its_own_sum_has_the_same_gradient_with_and_without_the_solver():
    points, target, cameras = noisy()
    gradients = {}
    for detached in (True, False):
        leaf = target.clone().requires_grad_()
        poses, _ = register(points, leaf, cameras, N)
        poses = poses.detach() if detached else poses
        ((moved(poses, points, cameras) - leaf) ** 2).mean().backward()
        gradients[detached] = leaf.grad
    assert gradients[True].norm() > 1e-4
    assert (gradients[True] - gradients[False]).norm() < 1e-10 * gradients[True].norm()


def test_another_loss_needs_the_solvers_gradient_which_is_right():
    points, target, cameras = noisy()
    leaf = target.clone().requires_grad_()

    def pose_entries(values: torch.Tensor) -> torch.Tensor:
        return register(points, values, cameras, N)[0]

    assert torch.autograd.gradcheck(pose_entries, leaf, atol=1e-6)


def test_cameras_may_have_any_number_of_points_in_any_order_and_weights():
    points, target, cameras = noisy(residual=0.1)
    weights = torch.rand(len(cameras), dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 0.1
    found, known = register(points, target, cameras, N, weights)
    assert known.all()
    for index in range(N):
        of = cameras == index
        rotation, translation = roma.rigid_points_registration(points[of], target[of], weights[of])
        torch.testing.assert_close(found[index, :, :3], rotation, rtol=0, atol=1e-10)
        torch.testing.assert_close(found[index, :, 3], translation, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_on_a_line_determine_nothing_and_harm_nobody(dtype):
    one_ray, rays = with_centre(grid(3)[:1]), POINTS["rays"]
    points = torch.cat([one_ray, rays]).to(dtype)
    cameras = torch.tensor([1] * len(one_ray) + [2] * len(rays))  # camera 0 has none, camera 1 one ray
    poses = motions().to(dtype)
    target = moved(poses, points, cameras).requires_grad_()
    found, known = register(points, target, cameras, N)
    assert known.tolist() == [False, False, True, False]
    torch.testing.assert_close(found[2], poses[2], rtol=0, atol=1e-5)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(target.grad).all()
