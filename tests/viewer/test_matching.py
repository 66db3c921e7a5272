"""What the viewer shows of matches: distances, points and pictures of matches that are known, and the panel."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from client import eventually
from conftest import LiveRun
from scenes import blender_scene

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.matches.features import MatchedImages, NoMatches
from hashpose_ns.matches.gate import support
from hashpose_ns.matches.sfm import epipolar_errors
from hashpose_ns.matches.strategy import matched_images
from hashpose_ns.viewer.colors import FAR_OFF, NEAR, OFF
from hashpose_ns.viewer.curves import match_figure
from hashpose_ns.viewer.matching import (
    CameraMatches,
    Residuals,
    ShownMatches,
    Supports,
    meeting_points,
    residual_colors,
    residual_picture,
    residuals,
    thinned,
)
from hashpose_ns.viewer.state import PoseReading, PoseState
from hashpose_ns.viewer.widgets import camera_matches_text, matches_text

NUM_POINTS = 60


def looking_inwards(count: int) -> np.ndarray:
    """Poses [count, 3, 4] on a circle, OpenGL axes, that look at the origin."""
    poses = []
    for angle in np.linspace(0.0, 1.5, count):
        back = np.array([np.sin(angle), 0.2, np.cos(angle)])
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, 4.0 * back], axis=1))
    return np.array(poses)


def seen_from(poses: np.ndarray, points: np.ndarray, noise: float = 0.0) -> MatchedImages:
    """Images that see all points, matched in all pairs; keypoint n of every image is point n.

    Args:
        poses: [N, 3, 4].
        points: [n, 3].
        noise: of keypoints, in pixels.
    """
    generator = np.random.default_rng(1)
    focals = np.linspace(80.0, 120.0, len(poses))
    plane, pixels = [], []
    for pose, focal in zip(poses, focals):
        x, y, z = np.linalg.inv(np.concatenate([pose, [[0, 0, 0, 1]]]))[:3] @ np.c_[points, np.ones(len(points))].T
        seen = np.stack([x / -z, -y / -z], axis=1) + noise / focal * generator.normal(size=(len(points), 2))
        plane.append(seen)
        pixels.append(focal * seen + 50.0)
    pairs = np.stack(np.triu_indices(len(poses), k=1), axis=1)
    same = np.repeat(np.arange(len(points))[:, None], 2, axis=1)
    return MatchedImages(
        pixels=pixels,
        points=plane,
        focals=focals,
        pairs=pairs,
        matches=[same] * len(pairs),
        rotations=np.tile(np.eye(3), (len(pairs), 1, 1)),
    )


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, size=(NUM_POINTS, 3))


def poses_of(initial: np.ndarray, base: np.ndarray | None = None) -> PoseOptimizer:
    poses = PoseOptimizerConfig().setup(
        num_cameras=len(initial), device="cpu", initial_camera_to_worlds=torch.from_numpy(initial)
    )
    if base is not None:
        poses.rebase(torch.from_numpy(base), trusted=True)
    return poses


def state_of(poses: PoseOptimizer) -> PoseState:
    return PoseState.of(PoseReading.of(poses, step=3))


def turned(poses: np.ndarray, degrees: float) -> np.ndarray:
    """Poses with each camera turned about its own centre, one way or the other."""
    off = poses.copy()
    for index in range(len(poses)):
        angle = np.radians(degrees) * (1 if index % 2 else -1)
        c, s = np.cos(angle), np.sin(angle)
        off[index, :, :3] = poses[index, :, :3] @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return off


# -- distances and points ----------------------------------------------------------------------------------------------


def test_lines_lead_to_the_epipolar_line_and_are_as_long_as_the_gate_says(points):
    poses = looking_inwards(2)
    images, off = seen_from(poses, points, noise=0.3), turned(poses, 1.0)
    first, second = residuals(images, 0, off), residuals(images, 1, off)
    np.testing.assert_allclose(0.5 * (first.distances + second.distances), epipolar_errors(images, off)[0], rtol=1e-9)
    np.testing.assert_array_equal(second.pixels, images.pixels[1])
    # E in OpenCV's axes, from 4x4 matrices
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    matrices = [np.concatenate([pose, [[0, 0, 0, 1]]]) @ flip for pose in off]
    relative = np.linalg.inv(matrices[1]) @ matrices[0]
    x, y, z = relative[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ relative[:3, :3]
    on_line = np.c_[images.points[1] + second.offsets / images.focals[1], np.ones(NUM_POINTS)]
    there = np.c_[images.points[0], np.ones(NUM_POINTS)]
    np.testing.assert_allclose(((on_line @ essential) * there).sum(axis=1), 0.0, atol=1e-12)
    assert 0.5 < np.median(second.distances) < 5.0


def test_matches_behind_a_camera_and_of_cameras_in_one_place_have_no_line(points):
    poses = looking_inwards(3)
    images = seen_from(poses, points)
    behind = poses.copy()
    behind[1, :, 0], behind[1, :, 2] = -poses[1, :, 0], -poses[1, :, 2]  # looks the other way
    assert np.isinf(residuals(images, 0, behind).distances[:NUM_POINTS]).mean() > 0.9
    together = poses.copy()
    together[:, :, 3] = poses[0, :, 3]
    found = residuals(images, 2, together)
    assert np.isinf(found.distances).all() and np.isfinite(found.offsets).all()


def test_rays_meet_at_the_points(points):
    poses = looking_inwards(4)
    images = seen_from(poses, points)
    found, angles = meeting_points(images, poses)
    np.testing.assert_allclose(found, np.tile(points, (6, 1)), atol=1e-9)
    to_points = points - poses[[0, 1], :, 3][:, None]
    directions = to_points / np.linalg.norm(to_points, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.cos(angles[:NUM_POINTS]), directions.prod(axis=0).sum(axis=-1), atol=1e-9)


def test_a_part_of_the_matches_is_spread_evenly_and_bounded(points):
    images = seen_from(looking_inwards(8), points)  # 28 pairs of 60 matches
    part = thinned(images, np.arange(28), most_pairs=10, most_matches=100)
    assert len(part.pairs) == len(part.matches) == len(part.rotations) == 10
    counts = [len(match) for match in part.matches]
    assert 90 <= sum(counts) <= 100 and max(counts) - min(counts) <= 1
    assert {tuple(pair) for pair in part.pairs} <= {tuple(pair) for pair in images.pairs}
    assert part.pairs[0].tolist() == [0, 1] and part.pairs[-1].tolist() == [6, 7]
    everything = thinned(images, np.arange(28), most_pairs=28, most_matches=28 * NUM_POINTS)
    assert all(np.array_equal(one, other) for one, other in zip(everything.matches, images.matches))
    nothing = thinned(images, np.arange(0), most_pairs=5, most_matches=5)
    assert len(nothing.pairs) == 0 and nothing.matches == []
    assert residuals(nothing, 0, looking_inwards(8)).distances.shape == (0,)


def test_what_is_shown_is_what_the_gate_says_of_poses_now_given_and_at_the_start(points):
    true = looking_inwards(5)
    images, given, start = seen_from(true, points, noise=0.3), turned(true, 6.0), turned(true, 0.1)
    shown, poses = ShownMatches(images), poses_of(given, start)
    state = state_of(poses)
    assert shown.is_new(state, 2, True, False)
    shown.look(state, 2, True, None)
    assert not shown.is_new(state_of(poses), 2, True, False) and shown.is_new(state, 1, True, False)
    for found, expected in ((shown.supports.now, start), (shown.supports.start, start), (shown.supports.given, given)):
        gate = support(images, expected)  # there are fewer matches than what is left out
        assert found.share == pytest.approx(gate.share, abs=0.01) and found.median == pytest.approx(gate.median, 1e-3)
    assert shown.supports.given.share < 0.5 < 0.95 < shown.supports.now.share
    assert (shown.camera.count, shown.camera.others) == (4 * NUM_POINTS, 4)
    assert {2} <= set.intersection(*({int(i) for i in pair} for pair in shown.camera.shown.pairs))
    with torch.no_grad():
        poses.pose_adjustment[:, 3] += 0.05 * torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert shown.is_new(state_of(poses), 2, True, False)
    shown.look(state_of(poses), 2, True, None)
    assert shown.supports.now.share < 0.9 < shown.supports.start.share
    # not rebased: the poses that came in are the start
    shown.look(state_of(poses_of(given)), 2, False, None)
    assert shown.supports.start is None and shown.points is None


def test_points_far_off_or_without_depth_are_left_out(points):
    poses = looking_inwards(3)
    images = seen_from(poses, points)
    wrong = [match.copy() for match in images.matches]
    wrong[0][:30, 1] = np.roll(wrong[0][:30, 1], 7)  # matches of other points
    shown = ShownMatches(dataclasses.replace(images, matches=wrong))
    shown.look(state_of(poses_of(poses)), 0, True, None)
    found, colors = shown.points
    nearest = np.linalg.norm(found[:, None] - points, axis=-1).min(axis=1)
    green = (colors == NEAR).all(axis=1)
    assert (nearest < 1e-4).sum() == 3 * NUM_POINTS - 30 and green[nearest < 1e-4].all()
    close = np.tile(poses[:1], (3, 1, 1))  # rays a tenth of a degree apart
    close[:, :, 3] = poses[0, :, 3] + 3e-3 * (poses[:, :, 3] - poses[0, :, 3])
    shown = ShownMatches(seen_from(close, points))
    shown.look(state_of(poses_of(close)), 0, True, None)
    assert len(shown.points[0]) == 0


def test_the_curve_has_medians_of_earlier_poses_a_few_at_a_time(points):
    true = looking_inwards(3)
    shown = ShownMatches(seen_from(true, points, noise=0.3))
    steps, poses = list(range(0, 120, 10)), [turned(true, 6.0 - 0.5 * i).astype(np.float32) for i in range(12)]
    assert not shown.follow([], [])
    assert shown.follow(steps, poses) and set(shown.medians) < set(steps) and len(shown.medians) == 5
    assert shown.follow(steps, poses) and not shown.follow(steps, poses) and set(shown.medians) == set(steps)
    for step, pose in zip(steps, poses):
        assert shown.medians[step] == pytest.approx(support(shown.sample, pose.astype(float)).median)
    assert not shown.follow(steps, poses)
    state = state_of(poses_of(turned(true, 6.0), true))
    shown.look(state, 0, False, None)
    now, given, start = match_figure(shown.medians, shown.supports, 130, log=True).content["data"]
    assert now["x"] == [*steps, 130] and now["y"][0] == pytest.approx(given["y"][0], rel=1e-3) and now["y"][0] > 2
    assert now["y"][-1] == start["y"][0] < 1.0
    assert match_figure({}, None, 130, log=True).content["data"] == []


# -- pictures and texts ------------------------------------------------------------------------------------------------


def test_picture_has_dots_where_keypoints_are_and_lines_to_where_they_should_be():
    assert residual_colors(np.array([0.2, 2.0, 4.1, np.inf])).tolist() == [
        list(c) for c in (NEAR, OFF, FAR_OFF, FAR_OFF)
    ]
    shown = Residuals(
        pixels=np.array([[10.0, 10.0], [30.0, 10.0], [10.0, 30.0]]),
        offsets=np.array([[0.5, 0.0], [0.0, 20.0], [0.0, 0.0]]),
        distances=np.array([0.5, 20.0, np.inf]),
    )
    picture = residual_picture(np.full((200, 200, 3), 128, dtype=np.uint8), shown, size=(40, 40))  # 5 times as large
    assert tuple(picture[50, 50]) == NEAR and tuple(picture[50, 150]) == FAR_OFF and tuple(picture[150, 50]) == FAR_OFF
    assert tuple(picture[100, 150]) == FAR_OFF and tuple(picture[148, 150]) == FAR_OFF  # the line, to (30, 30)
    assert tuple(picture[165, 150]) == (128, 128, 128) and tuple(picture[165, 50]) == (128, 128, 128)


def test_texts_say_how_many_agree_now_and_before(points):
    images = seen_from(looking_inwards(3), points)
    now = support(images, looking_inwards(3))
    lost = dataclasses.replace(now, share=0.126, median=math.inf)
    supports = Supports(now=now, given=lost, start=dataclasses.replace(now, share=0.98, median=0.314))
    text = matches_text("training starts at poses from matches: 3 of 3 cameras", supports)
    assert text.startswith("Matches: training starts at poses from matches: 3 of 3 cameras.")
    assert "**100 % agree, median " in text and "(13 % agree as given; 98 % agree, median 0.31 px at the start)" in text
    assert matches_text("", None) == "" and "at the start" not in matches_text("", Supports(now, lost, None))
    part = thinned(images, np.arange(2), 2, 30)
    said = camera_matches_text(CameraMatches(0, 120, 2, part), supports)
    assert said.startswith("120 matches with 2 images, of which 30 count here: **100 % agree")
    assert camera_matches_text(CameraMatches(0, 0, 0, part), supports) == "No matches."
    assert camera_matches_text(None, None) == ""


# -- the panel ---------------------------------------------------------------------------------------------------------


def test_the_panel_shows_matches_of_the_selected_camera(live_run, client, points):
    live, panel = live_run.live, live_run.trainer.pipeline.pose_panel
    hidden = ("Matches on photograph", "Matched points", "Start of training")
    assert not any(client.control(label)["visible"] for label in hidden) and "Matches now" not in client.texts()
    reference = live_run.poses.reference_camera_to_worlds.double().numpy()
    panel.show_matches(seen_from(reference, 0.2 * points), "training starts at the poses as they are: they agree")
    eventually(lambda: "Matches: training starts at the poses as they are: they agree." in client.texts())
    now = support(live._matches.images, live_run.now().double().numpy())
    eventually(lambda: f"Matches now: **{100 * now.share:.0f} % agree" in client.texts())
    assert client.control("Matches on photograph")["visible"] and client.control("Matched points")["visible"]
    assert not client.control("Start of training")["visible"]  # training did not start there
    client.set("Matches on photograph", True), client.set("Matched points", True)
    eventually(lambda: "![matches on the photograph](data:image/jpeg;base64," in client.texts())
    eventually(lambda: "/hashpose/points" in client.nodes)
    first = live._matches.picture
    client.set("Camera", "r_2.png")
    eventually(lambda: live._matches.picture != first and "300 matches with 5 images" in client.texts())
    client.set("Matches on photograph", False), client.set("Matched points", False)
    eventually(lambda: "matches on the photograph" not in client.texts())
    eventually(lambda: client.nodes["/hashpose/points"]["visible"] is False)
    live._matches = None


def test_the_trainer_hands_its_matches_to_the_panel_and_the_cache_does_later(tmp_path, monkeypatch):
    pytest.importorskip("pycolmap", reason="pycolmap finds matches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = LiveRun(blender_scene(tmp_path / "scene", 6, size=64), tmp_path, "--matches.start", "auto")
    strategy = run.trainer.strategies[0]
    assert run.live._matches.images is strategy.images
    assert run.live._matches_said == strategy.report.outcome != ""
    run.live._matches = None
    run.live._look_for_matches()  # as in ns-viewer, and where training is resumed
    for name in ("pixels", "matches"):
        pairs = zip(getattr(run.live._matches.images, name), getattr(strategy.images, name))
        assert all(np.array_equal(one, other) for one, other in pairs)
    run.advance(1)
    run.end()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(NoMatches, match="not in the cache"):
        matched_images(run.trainer.scene, MatchConfig(start="auto"), only_cached=True)
