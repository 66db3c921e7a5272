"""Structure from motion on matches with known truth, and what the gate says of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import FOCAL, arc, looking_at, matched, seen_from, turned

from hashpose_ns.cameras.alignment import align_poses, pose_errors
from hashpose_ns.matches import sfm, uncertainty
from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.gate import CONFIRMING, DETERMINED, Evidence, support
from hashpose_ns.matches.sfm import epipolar_errors, explained, resected, structure_from_given, structure_from_none
from hashpose_ns.matches.start import matches_report, start_from_matches
from hashpose_ns.matches.uncertainty import pose_deviations

library = pytest.importorskip("pycolmap", reason="matches need it")

COUNT = 10
NOISE = 0.7
"""Degrees: twice what the noise of the keypoints leaves of the worst camera, started from the true poses."""


def error_deg(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return pose_errors(torch.from_numpy(found), torch.from_numpy(true)).rotation_deg.numpy()


@pytest.fixture(scope="module")
def true() -> np.ndarray:
    return arc(COUNT)


@pytest.fixture(scope="module")
def noisy(true) -> MatchedImages:
    """A third of a pixel of noise, and a tenth of all matches wrong."""
    return matched(true, false=0.1)


# -- distances by hand -------------------------------------------------------------------------------------------------


def pair_of(first, second, x, y, focals=(100.0, 100.0)) -> tuple[MatchedImages, np.ndarray]:
    """One match between two cameras, which see it at x and y."""
    images = MatchedImages(
        pixels=[np.zeros((1, 2))] * 2,
        points=[np.array([x], dtype=float), np.array([y], dtype=float)],
        focals=np.array(focals, dtype=float),
        pairs=np.array([[0, 1]]),
        matches=[np.array([[0, 0]])],
        rotations=np.full((1, 3, 3), np.nan),
    )
    return images, np.stack([first, second])


def at(x: float, y: float, z: float) -> np.ndarray:
    return np.concatenate([np.eye(3), np.array([[x], [y], [z]])], axis=1)


def test_epipolar_errors_by_hand():
    side_by_side = at(0, 0, 0), at(1, 0, 0)
    # side by side, looking along -z: epipolar lines are rows
    assert epipolar_errors(*pair_of(*side_by_side, (0.3, 0.1), (0.1, 0.1)))[0][0] == pytest.approx(0, abs=1e-12)
    assert epipolar_errors(*pair_of(*side_by_side, (0.3, 0.1), (0.1, 0.13)))[0][0] == pytest.approx(3.0)
    # in pixels of either image: the mean of 3 and 6
    assert epipolar_errors(*pair_of(*side_by_side, (0.3, 0.1), (0.1, 0.13), (100, 200)))[0][0] == pytest.approx(4.5)
    # the camera to the right sees it further to the right: the rays meet behind the cameras
    assert np.isinf(epipolar_errors(*pair_of(*side_by_side, (0.1, 0.1), (0.3, 0.1)))[0][0])
    # one behind the other: epipolar lines pass through the image's centre, where (3, 4) is seen at (6, 8)
    forward = at(0, 0, 0), at(0, 0, -1)
    assert epipolar_errors(*pair_of(*forward, (0.03, 0.04), (0.06, 0.08)))[0][0] == pytest.approx(0, abs=1e-12)
    assert epipolar_errors(*pair_of(*forward, (0.03, 0.04), (0.068, 0.074)))[0][0] > 0.3
    # no baseline, and no pose
    assert np.isinf(epipolar_errors(*pair_of(at(0, 0, 0), at(0, 0, 0), (0, 0), (0, 0)))[0][0])
    assert np.isinf(epipolar_errors(*pair_of(at(0, 0, 0), at(np.nan, 0, 0), (0, 0), (0, 0)))[0][0])


def test_support_of_true_mirrored_and_unknown_poses(true, noisy):
    exact = matched(true, noise=0.0)
    assert support(exact, true).share == 1.0 and support(exact, true).median < 1e-8
    agrees = support(noisy, true)
    assert 0.87 < agrees.share < 0.95 and agrees.confirms
    assert np.nanmin(agrees.of_camera) > 0.75 and agrees.agreeing.min() >= CONFIRMING
    # a mirrored world has the same epipolar lines, with every point behind the cameras
    flipped = true.copy()
    flipped[:, :, 3] = -true[:, :, 3]
    assert support(exact, flipped).share < 0.1
    alike = np.repeat(true[:1], COUNT, axis=0)
    assert support(exact, alike).share == 0.0 and not np.isfinite(support(exact, alike).median)
    assert explained(exact, true).all() and not explained(exact, turned(true, 15.0)).all()


# -- structure ---------------------------------------------------------------------------------------------------------


def test_structure_from_poses_fifteen_degrees_off(true, noisy):
    given = turned(true, 10.0)
    assert error_deg(given, true).mean() > 10
    found = structure_from_given(noisy, given)
    assert found.placed.all() and error_deg(found.camera_to_worlds, true).max() < NOISE
    assert found.reprojection < 1.0 and found.observations().min() > 40 and found.three_view_tracks().min() > 20
    # points lie where they were: on the shell
    similarity = align_poses(torch.from_numpy(found.camera_to_worlds), torch.from_numpy(true))
    radii = similarity.apply_to_points(torch.from_numpy(found.points)).norm(dim=1)
    assert 0.78 < float(radii.quantile(0.05)) and float(radii.quantile(0.95)) < 1.22


def test_structure_from_none(true, noisy):
    found = structure_from_none(noisy)
    assert found.placed.all() and error_deg(found.camera_to_worlds, true).max() < NOISE


def test_a_camera_in_a_wrong_place_is_resected(true):
    images = matched(true)
    found = structure_from_given(images, true, angles=())
    lost = found.camera_to_worlds.copy()
    lost[4] = looking_at(np.array([[-4.0, 1.0, 1.0]]), (0, 0, 0))[0]
    moved = resected(library, images, replace(found, camera_to_worlds=lost))
    assert error_deg(moved, true).max() < NOISE
    others = np.arange(COUNT) != 4
    np.testing.assert_array_equal(moved[others], lost[others])
    assert resected(library, images, found) is None


def test_deviations_are_the_spread_over_noise(true, monkeypatch):
    """Predicted standard deviations against those of estimates from other draws of the noise, which is Gaussian here:
    so the loss is wide enough to be least squares for it."""
    monkeypatch.setattr(sfm, "_scale", lambda reconstruction: 1.0)
    exact, errors, predicted = matched(true, noise=0.0, seed=5), [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        images = replace(exact, points=[p + 0.3 / FOCAL * random.standard_normal(p.shape) for p in exact.points])
        found = structure_from_given(images, true, angles=())
        errors.append(error_deg(found.camera_to_worlds, true))
        predicted.append(pose_deviations(images, found, DETERMINED)[0])
    spread, expected = np.sqrt(np.square(errors).mean(axis=0)), np.median(predicted, axis=0)
    assert 0.05 < spread.mean() < 0.3
    assert 0.5 < expected.mean() / spread.mean() < 1.4
    assert 0.3 < (expected / spread).min() and (expected / spread).max() < 2.0


def test_deviations_of_more_cameras_than_are_inverted_together_are_smaller_and_of_the_same_size(true, monkeypatch):
    images = matched(true, noise=0.3, seed=5)
    found = structure_from_given(images, true, angles=())
    together, steps = pose_deviations(images, found, DETERMINED)
    monkeypatch.setattr(uncertainty, "MAX_CAMERAS", 2)
    alone, steps_alone = pose_deviations(images, found, DETERMINED)
    assert (alone > 0).all() and (alone < together).all() and alone.mean() > 0.1 * together.mean()
    assert (steps_alone < steps).all() and (steps_alone > 0).all()


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_poses_from_matches_are_accepted_and_right_ones_confirmed(true, noisy):
    given = turned(true, 4.0)
    start = start_from_matches(noisy, given, MatchConfig(start="auto"))
    assert start.verdict == "matches" and start.trusted and start.placed.all()
    assert error_deg(start.camera_to_worlds, true).max() < NOISE
    # in the frame of the given poses
    assert pose_errors(torch.from_numpy(start.camera_to_worlds), torch.from_numpy(given)).center.mean() < 1.0
    confirmed = start_from_matches(noisy, true, MatchConfig(start="auto"))
    assert confirmed.verdict == "given" and confirmed.camera_to_worlds.tolist() == true.tolist()
    report = matches_report(start, noisy, given, [str(index) for index in range(COUNT)], 1.0)
    for index, camera in enumerate(report.cameras):
        count = sum(len(match) for pair, match in zip(noisy.pairs, noisy.matches) if index in pair)
        assert camera.placed and camera.matches == count
        assert camera.agreeing_given < 0.7 < camera.agreeing_found and 0 < camera.deviation_deg < 0.5


def refusals() -> dict[str, MatchedImages]:
    true = arc(COUNT)
    no_pairs = matched(true, groups=range(COUNT))
    two_parts = matched(true, groups=[0] * 5 + [1] * 5)
    few = matched(true)
    few.matches[:] = [match[:5] for match in few.matches]
    return {
        "nothing": no_pairs,
        "two parts that nothing ties together": two_parts,
        "five matches a pair": few,
    }


@pytest.mark.parametrize("name", list(refusals()))
def test_what_matches_do_not_determine_is_refused(true, name):
    given = turned(true, 12.0)
    start = start_from_matches(refusals()[name], given, MatchConfig(start="auto"))
    if start.verdict != "refused":  # what is said to be placed is right
        worst = error_deg(start.camera_to_worlds[start.placed], true[start.placed]).max()
        pytest.fail(f"{start.verdict}: {start.sentence}; worst {worst:.2f} degrees")
    assert not start.trusted and not start.placed.any() and start.camera_to_worlds.tolist() == given.tolist()
    assert start.sentence and not start.sentence.endswith(".")


def test_thirty_percent_of_false_matches_are_seen_through_or_refused(true):
    start = start_from_matches(matched(true, false=0.3), turned(true, 6.0), MatchConfig(start="always"))
    assert start.verdict == "matches" and error_deg(start.camera_to_worlds, true).max() < NOISE
    auto = start_from_matches(matched(true, false=0.3), turned(true, 6.0), MatchConfig(start="auto"))
    assert auto.verdict in ("matches", "refused")


def test_two_images(true):
    start = start_from_matches(matched(true[4:6]), turned(true[4:6], 3.0), MatchConfig(start="auto"))
    assert start.verdict == "refused"


def test_evidence_is_made_of_numbers(true, noisy):
    found = structure_from_given(noisy, true, angles=())
    numbers = Evidence.of(noisy, found).numbers()
    assert all(np.isfinite(value) for value in numbers.values()) and numbers["determined"] == COUNT
    assert numbers["turns_agree"] == 1.0  # true rotations


def test_projections_of_the_helper():
    """Where the helper says that points are seen, against the definition."""
    pose = looking_at(np.array([[4.0, 0.0, 0.0]]), (0, 0, 0))
    (seen,) = seen_from(pose, np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(seen, [[0, 0], [0, -0.25], [0.25, 0]], atol=1e-12)
