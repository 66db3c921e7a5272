"""What training does with matches before it begins, and without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import arc, matched, turned

from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.matches import strategy
from hashpose_ns.matches.config import MatchConfig, MatchTermConfig
from hashpose_ns.matches.epipolar import MatchTerm
from hashpose_ns.matches.features import NoMatches
from hashpose_ns.matches.strategy import StartFromMatches
from hashpose_ns.matches.tracks import TrackTerm
from hashpose_ns.photometry.scene import PosedScene


@pytest.fixture(scope="module")
def true() -> np.ndarray:
    return arc(10)


@pytest.fixture(scope="module")
def noisy(true):
    return matched(true, false=0.08)


def scene_of(initial: np.ndarray, mode: str) -> PosedScene:
    """A scene of which there are poses alone."""
    poses = PoseOptimizerConfig(mode=mode).setup(
        num_cameras=len(initial), device="cpu", initial_camera_to_worlds=torch.from_numpy(initial).float()
    )
    scene = PosedScene.__new__(PosedScene)
    object.__setattr__(scene, "poses", poses)
    return scene


def prepared(
    monkeypatch, initial: np.ndarray, images, mode: str = "SE3", resumed: bool = False, start: str = "auto", **term
):
    """A scene after `prepare`, the strategy, and what was said. `images` may be an error to raise."""

    def found(*_):
        if isinstance(images, Exception):
            raise images
        return images

    monkeypatch.setattr(strategy, "matched_images", found)
    scene, said, one = (
        scene_of(initial, mode),
        [],
        StartFromMatches(MatchConfig(start=start, term=MatchTermConfig(**term))),
    )
    one.prepare(scene, resumed, said.append)
    return scene.poses, one, said


def test_poses_that_are_off_are_replaced_and_right_ones_are_trusted(true, noisy, monkeypatch):
    poses, one, said = prepared(monkeypatch, turned(true, 4.0), noisy)
    assert one.start.verdict == "matches" and poses.rebased and poses.is_trusted and "match_loss" in poses.terms
    assert "poses from matches" in said[0]
    poses, one, said = prepared(monkeypatch, true, noisy)
    assert one.start.verdict == "given" and poses.is_trusted and not poses.rebased and not poses.has_moved


def test_resuming_takes_matches_and_leaves_the_start_to_the_checkpoint(true, noisy, monkeypatch):
    poses, one, said = prepared(monkeypatch, turned(true, 4.0), noisy, resumed=True)
    assert one.images is noisy and one.start is None and not poses.rebased and not said
    assert "match_loss" in poses.terms


def test_tracks_pull_poses_where_they_are_asked_for(true, noisy, monkeypatch):
    poses, _, _ = prepared(monkeypatch, turned(true, 4.0), noisy, resumed=True, kind="tracks")
    assert isinstance(poses.terms["match_loss"], TrackTerm)
    poses, _, _ = prepared(monkeypatch, turned(true, 4.0), noisy, resumed=True)
    assert isinstance(poses.terms["match_loss"], MatchTerm)


def test_poses_that_are_not_refined_stay(true, noisy, monkeypatch):
    poses, one, said = prepared(monkeypatch, turned(true, 4.0), noisy, mode="off")
    assert not poses.rebased and one.images is None and not said


def test_few_matches_pull_nobody(true, monkeypatch):
    poses, _, _ = prepared(monkeypatch, turned(true, 4.0), matched(true, per_image=8))
    assert not poses.terms


@pytest.mark.parametrize("error", [NoMatches("nobody took photographs"), RuntimeError("check failed"), MemoryError()])
def test_failures_cost_no_training_unless_matches_were_demanded(true, monkeypatch, error):
    poses, one, said = prepared(monkeypatch, true, error)
    assert not poses.rebased and len(said) == 1 and "as they are, because" in said[0]
    with pytest.raises(HashPoseError, match="because"):
        prepared(monkeypatch, true, error, start="always")
