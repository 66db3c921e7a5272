"""Strategies of the trainer: when they intervene, and what they say."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import List

import pytest
import torch
from type_checker import unchecked

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.cameras.recovery import RecoveryConfig
from hashpose_ns.cameras.settling import SettlingConfig
from hashpose_ns.coarse import CoarseFirst
from hashpose_ns.errors import HashPoseError
from hashpose_ns.guard import fallback
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.fallback import FallBack
from hashpose_ns.guard.verdict import Verdict
from hashpose_ns.matches.strategy import StartFromMatches
from hashpose_ns.methods import object_
from hashpose_ns.photometry import strategy
from hashpose_ns.photometry.centering import CentrePictures
from hashpose_ns.photometry.scene import PosedScene, TestTimeOptimization
from hashpose_ns.photometry.strategy import Recovery, Settle, steps_at

TOTAL = 100


@pytest.fixture
def scene() -> PosedScene:
    """Poses of five cameras that move freely; nothing that could render."""
    poses = PoseOptimizer(PoseOptimizerConfig(start=0.1, warmup=0.1, settling=SettlingConfig(decay=0.1)), 5, "cpu")
    poses.set_progress(0.5)
    dataset = SimpleNamespace()
    with unchecked():
        return PosedScene(poses, dataset, dataset, None, None, None, None, TestTimeOptimization(0, 0, 1, 0.0), TOTAL)


@pytest.fixture
def adam(scene) -> torch.optim.Adam:
    """The poses' optimizer after a step, so that it has moments."""
    adam = torch.optim.Adam(scene.poses.parameters(), lr=1e-2)
    scene.poses.pose_adjustment.grad = torch.ones_like(scene.poses.pose_adjustment)
    adam.step()
    return adam


def test_lost_cameras_are_looked_for_at_their_steps_and_adam_forgets_them(scene, adam, monkeypatch):
    said: List[str] = []
    looks: List[bool] = []
    monkeypatch.setattr(
        strategy, "recover_cameras", lambda scene, config, late: looks.append(late) or ([] if late else [1, 3])
    )
    recovery = Recovery(RecoveryConfig(at=(0.3, 0.456), late_at=(0.75,)))
    for step in range(TOTAL):
        recovery.before_step(scene, adam, step, lambda sentence: said.append(f"{step} {sentence}"))
    assert said == ["30 lost cameras moved: 2 [1, 3]", "46 lost cameras moved: 2 [1, 3]"]
    assert looks == [False, False, True], "a late look that finds nobody has nothing to say"
    moment = adam.state[scene.poses.pose_adjustment]["exp_avg"]
    assert not moment[[1, 3]].any() and bool(moment[[0, 2, 4]].all())
    scene.poses.fall_back(0.0)  # for good: there is nothing to recover
    recovery.before_step(scene, adam, 30, said.append)
    assert len(said) == 2


def test_no_camera_is_looked_for_where_all_start_at_trusted_poses(scene, adam, monkeypatch):
    said: List[str] = []
    monkeypatch.setattr(strategy, "recover_cameras", lambda scene, config, late: [])
    start = scene.poses.initial_camera_to_worlds.clone()
    scene.poses.rebase(start, trusted=True)
    Recovery(RecoveryConfig(at=(0.3,))).before_step(scene, adam, 30, said.append)
    assert said == []
    start[1:, 0, 3] += 1.0  # matches could not place the first camera
    scene.poses.rebase(start, trusted=True)
    Recovery(RecoveryConfig(at=(0.3,))).before_step(scene, adam, 30, said.append)
    assert said == ["lost cameras moved: 0 "]


def test_poses_that_oscillate_slow_down_and_freeze_in_the_end(scene, adam):
    said: List[str] = []
    settle = Settle()
    for step in range(TOTAL):
        with torch.no_grad():
            scene.poses.pose_adjustment.fill_(1e-3 * (-1) ** (step // 5))
        scene.poses.set_progress(step / TOTAL)
        settle.after_step(scene, adam, step, said.append)
    assert scene.poses.settling.count > 3 and scene.poses.settling.factor == 0.0
    assert said == ["poses have settled and are frozen; the rest of training fits the field alone"]


def test_a_guard_that_cannot_judge_changes_nothing(scene, adam, monkeypatch):
    said: List[str] = []

    def fail(*_, **__):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(fallback, "judge_refinement", fail)
    twists = scene.poses.pose_adjustment.detach().clone()
    guard = FallBack(GuardConfig(mode="report", fallback_at=(0.3, 0.55)))
    for step in range(TOTAL):
        guard.before_step(scene, adam, step, said.append)
    assert len(said) == 4 and said[0].startswith("guard: judging") and said[1].startswith("guard: no verdict. out of")
    assert torch.equal(scene.poses.pose_adjustment, twists) and adam.param_groups[0]["lr"] == 1e-2
    silent = FallBack(GuardConfig(mode="off", fallback_at=(0.3,)))
    silent.before_step(scene, adam, 30, said.append)
    assert len(said) == 4


@pytest.mark.parametrize("contradict", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("verdict", ["helped", "undecided", "hurt"])
def test_poses_that_started_from_matches_stay_if_they_fit_no_worse(scene, adam, monkeypatch, contradict, keep, verdict):
    seen = torch.full((8,), 1e-3)
    found = Verdict(verdict, 0.0, 0.5, 0.5, seen, seen, torch.ones(8), None, [], contradict)
    monkeypatch.setattr(fallback, "judge_refinement", lambda *_, **__: found)
    start = scene.poses.initial_camera_to_worlds.clone()
    start[0, 0, 3] += 0.1
    scene.poses.rebase(start, trusted=True)
    with torch.no_grad():
        scene.poses.pose_adjustment.fill_(1e-3)
    guard = FallBack(GuardConfig(mode="report", fallback_at=(0.5,), keep_rebased=keep))
    guard.before_step(scene, adam, 50, lambda said: None)
    stays = not contradict and (verdict == "helped" or (verdict == "undecided" and keep))
    assert scene.poses.is_corrected == stays and (scene.poses.rate_scale > 0) == stays


@pytest.mark.parametrize("verdict", ["helped", "undecided", "hurt"])
def test_cameras_that_were_shifted_answer_for_it_and_go_back_to_where_they_were_given(
    scene, adam, monkeypatch, verdict
):
    asked: List[bool] = []
    seen = torch.full((8,), 1e-3)
    found = Verdict(verdict, 0.0, 0.5, 0.5, seen, seen, torch.ones(8), None, [], False)
    monkeypatch.setattr(fallback, "judge_refinement", lambda *_, since_base, **__: asked.append(since_base) or found)
    poses = scene.poses
    start = poses.initial_camera_to_worlds.clone()
    start[:, 0, 3] += 0.1
    poses.rebase(start, trusted=False)
    poses.held = {2}
    with torch.no_grad():
        poses.pose_adjustment.fill_(1e-3)
    before = poses.refined_camera_to_worlds().detach().clone()
    guard = FallBack(GuardConfig(mode="report", fallback_at=(0.3, 0.55), keep_rebased=True))
    guard.before_step(scene, adam, 55, lambda said: None)
    after, stays = poses.refined_camera_to_worlds().detach(), verdict == "helped"
    assert asked == [False] and poses.rebased == stays and (poses.rate_scale > 0) == stays
    torch.testing.assert_close(after[2], before[2], rtol=0, atol=1e-6)
    others = [index for index in range(len(before)) if index != 2]
    assert torch.equal(after[others], (before if stays else poses.initial_camera_to_worlds)[others])


def test_settings_out_of_range_are_refused_by_each_strategy():
    for broken in (
        FallBack(GuardConfig(fallback_at=(2.0,))),
        Recovery(RecoveryConfig(at=(1.0,))),
        Recovery(RecoveryConfig(late_at=(1.0,))),
    ):
        with pytest.raises(HashPoseError):
            broken.validate()
    Settle().validate()


def test_a_method_has_them_in_the_order_in_which_they_act():
    config = dataclasses.replace(object_.config)
    assert [type(one) for one in config.strategies()] == [
        StartFromMatches,
        CoarseFirst,
        CentrePictures,
        FallBack,
        Recovery,
        Settle,
    ]
    assert steps_at((0.3, 0.45, 0.6), 2500) == {750, 1125, 1500}
