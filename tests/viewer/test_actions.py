"""Holding, pausing, resetting and turning, with the Adam of the methods and losses that are easy to see through."""

from __future__ import annotations

import pytest
import torch

from hashpose_ns.cameras.alignment import rotation_angle
from hashpose_ns.cameras.lie import exp_map_SE3, log_map_SE3
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.optim.schedules import AdamConfig
from hashpose_ns.viewer.actions import PoseActions


def make(side: str = "world", **settings) -> tuple[PoseOptimizer, torch.optim.Optimizer, PoseActions]:
    """Five cameras, their Adam, and what can be done to them."""
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(5, 3, 3, generator=generator)).Q
    rotations = rotations * torch.linalg.det(rotations)[:, None, None]
    initial = torch.cat([rotations, torch.randn(5, 3, 1, generator=generator)], dim=-1)
    poses = PoseOptimizerConfig(side=side, **settings).setup(
        num_cameras=5, device="cpu", initial_camera_to_worlds=initial
    )
    adam = AdamConfig(lr=1e-2).setup([poses.pose_adjustment])
    return poses, adam, PoseActions(poses, [torch.optim.SGD([torch.zeros(1)], lr=0.1), adam])


def train(poses: PoseOptimizer, adam: torch.optim.Optimizer, steps: int) -> None:
    """Steps towards poses elsewhere; as nerfstudio steps an optimizer, only where there is a gradient."""
    target = poses.initial_camera_to_worlds + 0.3
    for _ in range(steps):
        adam.zero_grad()
        loss = (poses.refined_camera_to_worlds() - target).square().sum()
        if loss.requires_grad:
            loss.backward()
            adam.step()


@pytest.mark.parametrize("side", ["world", "camera"])
@pytest.mark.parametrize("first_steps", [0, 7])
def test_held_rows_and_their_moments_stay_and_the_others_do_as_without_holding(side, first_steps):
    poses, adam, actions = make(side)
    free, free_adam, _ = make(side)
    train(poses, adam, first_steps), train(free, free_adam, first_steps)
    actions.hold(1, True), actions.hold(3, True)
    before = poses.refined_camera_to_worlds().detach().clone(), poses.pose_adjustment.detach().clone()
    train(poses, adam, 9), train(free, free_adam, 9)
    rows, others = [1, 3], [0, 2, 4]
    assert torch.equal(poses.refined_camera_to_worlds()[rows], before[0][rows])
    assert torch.equal(poses.pose_adjustment[rows], before[1][rows])
    assert torch.equal(poses.pose_adjustment[others], free.pose_adjustment[others])
    state = adam.state[poses.pose_adjustment]
    if first_steps == 0:
        assert not state["exp_avg"][rows].any() and not state["exp_avg_sq"][rows].any()
    actions.hold(1, False)
    train(poses, adam, 1)
    assert not torch.equal(poses.pose_adjustment[1], before[1][1])
    assert torch.equal(poses.pose_adjustment[3], before[1][3])


def test_without_putting_back_momentum_would_move_a_held_camera():
    poses, adam, _ = make()
    train(poses, adam, 7)
    poses.held.add(1)
    before = poses.pose_adjustment[1].clone()
    adam._optimizer_step_post_hooks.clear()
    train(poses, adam, 1)
    assert not torch.equal(poses.pose_adjustment[1], before)


def test_paused_poses_get_no_gradient_at_all_also_from_penalties():
    poses, adam, actions = make(trans_l2_penalty=1.0, rot_l2_penalty=1.0)
    train(poses, adam, 3)
    actions.pause(True)
    before, steps = poses.pose_adjustment.detach().clone(), adam.state[poses.pose_adjustment]["step"].clone()
    losses: dict = {}
    poses.get_loss_dict(losses)
    assert not losses["camera_opt_regularizer"].requires_grad and losses["camera_opt_regularizer"] > 0
    train(poses, adam, 3)
    assert torch.equal(poses.pose_adjustment, before)
    assert torch.equal(adam.state[poses.pose_adjustment]["step"], steps)
    actions.pause(False)
    train(poses, adam, 1)
    assert not torch.equal(poses.pose_adjustment, before)


def test_penalties_do_not_pull_at_held_cameras():
    poses, _, actions = make(trans_l2_penalty=1.0)
    with torch.no_grad():
        poses.pose_adjustment.fill_(0.1)
    actions.hold(2, True)
    losses: dict = {}
    poses.get_loss_dict(losses)
    losses["camera_opt_regularizer"].backward()
    assert not poses.pose_adjustment.grad[2].any() and poses.pose_adjustment.grad[1].any()


def test_reset_is_exact_and_forgets():
    poses, adam, actions = make()
    train(poses, adam, 7)
    others = [0, 1, 2, 3]
    before = poses.pose_adjustment.detach().clone()
    actions.reset(4)
    assert torch.equal(poses.refined_camera_to_worlds()[4], poses.initial_camera_to_worlds[4])
    assert torch.equal(poses.pose_adjustment[others], before[others])
    for name in ("exp_avg", "exp_avg_sq"):
        moment = adam.state[poses.pose_adjustment][name]
        assert not moment[4].any() and moment[others].any(dim=1).all()


@pytest.mark.parametrize("side", ["world", "camera"])
@pytest.mark.parametrize("degrees", [0.0, 0.01, 12.0, 90.0])
def test_turn_is_by_the_angle_about_the_cameras_own_centre(side, degrees):
    poses, adam, actions = make(side)
    train(poses, adam, 7)
    before = poses.refined_camera_to_worlds().detach().double()
    state = torch.random.get_rng_state()
    actions.turn(2, degrees)
    assert torch.equal(torch.random.get_rng_state(), state)
    after = poses.refined_camera_to_worlds().detach().double()
    angle = torch.rad2deg(rotation_angle(before[2, :, :3].T @ after[2, :, :3]))
    assert float(angle) == pytest.approx(degrees, abs=1e-3)
    torch.testing.assert_close(after[2, :, 3], before[2, :, 3], rtol=0, atol=2e-6)
    others = [0, 1, 3, 4]
    assert torch.equal(after[others], before[others])
    assert not adam.state[poses.pose_adjustment]["exp_avg"][2].any()


def test_a_held_camera_can_be_turned_and_stays_there():
    poses, adam, actions = make()
    train(poses, adam, 3)
    actions.hold(0, True)
    actions.turn(0, 5.0)
    turned = poses.refined_camera_to_worlds()[0].detach().clone()
    train(poses, adam, 5)
    assert torch.equal(poses.refined_camera_to_worlds()[0], turned)


@pytest.mark.parametrize("settings", [{"frozen_cameras": ("1",)}, {"mode": "off"}])
def test_cameras_that_the_settings_keep_in_place_refuse(settings):
    poses = PoseOptimizerConfig(**settings).setup(num_cameras=3, device="cpu", image_names=["a", "b", "c"])
    field = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    actions = PoseActions(poses, [field])
    for action in (lambda: actions.reset(1), lambda: actions.turn(1, 3.0), lambda: actions.hold(1, True)):
        with pytest.raises(HashPoseError, match="by the run's settings"):
            action()
    assert not poses.held
    torch.testing.assert_close(poses.refined_camera_to_worlds(), poses.initial_camera_to_worlds)


def test_actions_wait_in_order_for_the_training_thread():
    poses, _, actions = make()
    done = []
    for number in range(3):
        actions.submit(lambda number=number: done.append(number))
    assert done == []
    actions.run_submitted()
    assert done == [0, 1, 2]
    actions.run_submitted()
    assert done == [0, 1, 2]


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 0.3, 3.0])
def test_log_map_inverts_the_exponential(size):
    twist = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    twist[3:] *= size / twist[3:].norm()
    motion = exp_map_SE3(twist[None])[0]
    # nerfstudio's exponential takes series with errors of 1e-10 below angles of 0.01
    torch.testing.assert_close(log_map_SE3(motion), twist, rtol=0, atol=1e-8)
