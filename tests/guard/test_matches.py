"""Matches as a second opinion of the guard."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.matches import FARTHEST, Disagreement, disagreement
from hashpose_ns.guard.movement import Movement
from hashpose_ns.guard.verdict import HeldOutErrors, contradict, decide
from hashpose_ns.matches.features import MatchedImages

FLIP = np.diag([1.0, -1.0, -1.0])


def ring(count: int) -> np.ndarray:
    """Cameras around the origin, looking in."""
    poses = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        center = 4 * np.array([np.cos(angle), np.sin(angle), 0.3])
        back = center / np.linalg.norm(center)
        right = np.cross([0, 0, 1.0], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, center], axis=1))
    return np.array(poses)


def matched(poses: np.ndarray, per_pair: int = 30, noise: float = 0.3) -> MatchedImages:
    """Matches of neighbours, with Gaussian errors in pixels."""
    random = np.random.default_rng(0)
    points = random.uniform(-0.7, 0.7, (per_pair, 3))
    seen = []
    for pose in poses:
        x, y, z = FLIP @ pose[:, :3].T @ (points - pose[:, 3]).T
        seen.append(np.stack([x / z, y / z], axis=1) + noise / 500 * random.standard_normal((per_pair, 2)))
    pairs = np.array([(i, j) for i in range(len(poses)) for j in range(i + 1, min(i + 3, len(poses)))])
    all_of_them = np.stack([np.arange(per_pair)] * 2, axis=1)
    return MatchedImages(
        pixels=[500 * each + 250 for each in seen],
        points=seen,
        focals=np.full(len(poses), 500.0),
        pairs=pairs,
        matches=[all_of_them] * len(pairs),
        rotations=np.full((len(pairs), 3, 3), np.nan),
    )


def turned(poses: np.ndarray, degrees: float, seed: int = 0) -> np.ndarray:
    """Each camera turned about an axis of its own."""
    import roma

    axes = np.random.default_rng(seed).standard_normal((len(poses), 3))
    axes *= np.radians(degrees) / np.linalg.norm(axes, axis=1, keepdims=True)
    turns = roma.rotvec_to_rotmat(torch.from_numpy(axes)).numpy()
    return np.concatenate([turns @ poses[:, :, :3], poses[:, :, 3:]], axis=2)


def of(images: MatchedImages, first: np.ndarray, second: np.ndarray) -> Disagreement:
    return disagreement(images, torch.from_numpy(first), torch.from_numpy(second))


def test_matches_prefer_the_true_poses_either_way_round():
    true = ring(12)
    images = matched(true)
    worse = of(images, true, turned(true, 1.0))
    assert contradict(worse) and worse.log_ratios.mean() > 1
    assert not contradict(of(images, turned(true, 1.0), true))
    assert 0.1 < np.median(worse.first) < 0.5  # the keypoints' own errors


def test_differences_within_the_keypoints_errors_are_none():
    true = ring(12)
    assert not contradict(of(matched(true), true, turned(true, 0.005)))


def test_few_matches_and_few_cameras_say_nothing():
    true = ring(12)
    few = of(matched(true, per_pair=4), true, turned(true, 5.0))
    assert np.isnan(few.first).all() and not contradict(few)
    some = ring(5)
    assert not contradict(of(matched(some), some, turned(some, 5.0)))


def test_matches_behind_a_camera_count_as_far_off():
    true = ring(8)
    behind = true.copy()
    behind[0, :, 0] *= -1
    behind[0, :, 2] *= -1  # looks outwards
    found = of(matched(true), true, behind)
    assert found.second[0] == FARTHEST
    assert found.first[0] < 1


@pytest.mark.parametrize("worse, verdict", [(True, "undecided"), (False, "helped")])
def test_help_is_doubted_where_matches_contradict(worse: bool, verdict: str):
    cameras = torch.arange(12).repeat_interleave(4)
    first = torch.full((48,), 0.02, dtype=torch.float64)
    errors = HeldOutErrors(first, 0.5 * first, 10 * first, cameras)
    moved = Movement(torch.full((12,), 1.0, dtype=torch.float64), 0.0)
    medians = np.full(12, 0.5)
    matches = Disagreement(medians, medians * (2.0 if worse else 0.7))
    found = decide(errors, moved, GuardConfig(), matches)
    assert (found.verdict, found.doubt) == (verdict, "matches" if worse else None)


def test_matches_contradict_whatever_pixels_say():
    cameras = torch.arange(12).repeat_interleave(4)
    first = torch.full((48,), 0.02, dtype=torch.float64)
    medians = np.full(12, 0.5)
    moved = Movement(torch.full((12,), 1.0, dtype=torch.float64), 0.0)
    found = decide(
        HeldOutErrors(first, first, 10 * first, cameras), moved, GuardConfig(), Disagreement(medians, 1.2 * medians)
    )
    assert found.verdict == "undecided" and found.matches_contradict


@pytest.mark.parametrize("cameras, focal, doubt", [(12, 50.0, "far"), (12, 1000.0, None), (5, 50.0, None)])
def test_help_is_doubted_where_matches_are_still_far_off(cameras: int, focal: float, doubt: str):
    """4 pixels are 4.6 degrees of a small picture, and a quarter of one of a large one; few cameras say nothing."""
    first = torch.full((48,), 0.02, dtype=torch.float64)
    errors = HeldOutErrors(first, 0.5 * first, 10 * first, torch.arange(12).repeat_interleave(4))
    moved = Movement(torch.full((12,), 1.0, dtype=torch.float64), 0.0)
    medians = np.where(np.arange(12) < cameras, 12.0, np.nan)
    found = decide(errors, moved, GuardConfig(), Disagreement(medians, medians / 3, focal))
    assert (found.verdict, found.doubt) == ("undecided" if doubt else "helped", doubt)


def test_a_field_alone_must_show_more_than_one_that_matches_agree_with():
    config = GuardConfig()
    assert config.with_matches(True).coarse == config.coarse < config.with_matches(False).coarse == config.coarse_alone
