"""The term of tracks: chains of matches, the gradient of the eliminated points, cameras that it has to bring back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import arc, matched, pulled, seen_from, turned

from hashpose_ns.cameras.alignment import pose_errors
from hashpose_ns.matches.config import MatchTermConfig
from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.tracks import VIEWS, Tracks, TrackTerm, chained, residuals, track_loss, triangulate

N = 8


def make_tracks(poses: np.ndarray, count: int = 200, false: float = 0.0, noise: float = 0.0) -> Tracks:
    """Tracks of random points over all cameras; a share of them sees another point in every other image."""
    random = np.random.default_rng(0)
    cloud = random.uniform(-1, 1, (count, 3))
    seen = seen_from(poses, cloud).transpose(1, 0, 2) + noise / 500 * random.standard_normal((count, len(poses), 2))
    lost = random.random(count) < false
    seen[lost, ::2] = seen_from(poses, random.uniform(-1, 1, (lost.sum(), 3))).transpose(1, 0, 2)[:, ::2]
    images = torch.arange(len(poses)).repeat(count, 1)
    return Tracks(images, torch.from_numpy(seen), torch.ones_like(images).bool(), torch.full((len(poses),), 500.0))


def test_matches_are_chained_and_contradictions_left_out():
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    # two points in three images; the last pair, which has fewest matches, mistakes one for the other
    matches = [np.array([[0, 1], [1, 0], [2, 2]]), np.array([[0, 0], [1, 1]]), np.array([[0, 0]])]
    points = [np.arange(6.0).reshape(3, 2) + 10 * image for image in range(3)]
    images = MatchedImages(points, points, np.full(3, 500.0), pairs, matches, np.full((3, 3, 3), np.nan))
    tracks = chained(images)
    found = {
        frozenset((int(i), tuple(p.tolist())) for i, p, s in zip(*row) if s)
        for row in zip(tracks.images, tracks.points, tracks.seen)
    }
    keypoints = [[(0, 0), (1, 1), (2, 1)], [(0, 1), (1, 0), (2, 0)], [(0, 2), (1, 2)]]
    assert found == {frozenset((i, tuple(points[i][k].tolist())) for i, k in track) for track in keypoints}


def test_long_tracks_are_cut_into_bounded_ones():
    tracks = chained(matched(arc(20), noise=0.0))
    lengths = tracks.seen.sum(-1)
    assert tracks.images.shape[1] == VIEWS and int(lengths.min()) >= 2 and int(lengths.max()) > 2
    poses = torch.from_numpy(arc(20))
    assert float(track_loss(tracks, poses, MatchTermConfig(per_step=10**6))) < 1e-6


def test_exact_tracks_are_triangulated_where_the_points_are():
    poses, random = arc(N), np.random.default_rng(0)
    places, wide = triangulate(make_tracks(poses), torch.from_numpy(poses), 0.5)
    assert bool(wide.all())
    np.testing.assert_allclose(places.numpy(), random.uniform(-1, 1, (200, 3)), atol=1e-9)


def test_gradient_is_that_of_the_loss_whose_points_follow_the_poses():
    """Finite differences triangulate anew, autograd holds the points: equal by the envelope theorem."""
    tracks = make_tracks(arc(3), count=5, noise=1.0)
    poses = torch.from_numpy(turned(arc(3), 0.3)).requires_grad_()
    config = MatchTermConfig(scale=3.0)
    assert torch.autograd.gradcheck(lambda p: track_loss(tracks, p, config, steps=40), poses, eps=1e-6, atol=1e-3)
    # and what the loss's own number of steps leaves of it
    exact, own = (torch.autograd.grad(track_loss(tracks, poses, config, steps), poses)[0] for steps in (40, 5))
    assert float((exact - own).norm()) < 0.01 * float(exact.norm())


def test_points_behind_cameras_and_narrow_angles_leave_the_loss():
    poses = torch.from_numpy(arc(N))
    tracks = make_tracks(arc(N), count=20)
    behind = poses.clone()
    behind[:, :, 0], behind[:, :, 2] = -poses[:, :, 0], -poses[:, :, 2]
    one_place = poses.clone()
    one_place[:] = poses[0]
    for start in (behind, one_place, torch.eye(3, 4, dtype=torch.float64).repeat(N, 1, 1)):
        for dtype in (torch.float32, torch.float64):
            start = start.detach().to(dtype).requires_grad_()
            loss = track_loss(tracks, start, MatchTermConfig())
            (gradient,) = torch.autograd.grad(loss, start)
            assert bool(loss.isfinite()) and bool(gradient.isfinite().all())
    one = poses.clone()  # one camera that has turned its back on all points: it is left out, the others count
    one[0, :, 0], one[0, :, 2] = -poses[0, :, 0], -poses[0, :, 2]
    _, _, valid = residuals(tracks, one, triangulate(tracks, one, 0.5)[0])
    assert not valid[:, 0].any() and bool(valid[:, 1:].all())


@pytest.mark.parametrize("false", [0.0, 0.1])
def test_cameras_two_degrees_off_come_back_by_the_term_alone(false):
    torch.manual_seed(0)
    true = torch.from_numpy(arc(N)).float()
    start = torch.from_numpy(turned(arc(N), 2.0)).float()
    end = pulled(start, true, TrackTerm(make_tracks(arc(N), 60, false), MatchTermConfig(weight=1.0)), steps=200)
    assert float(pose_errors(start, true).rotation_deg.mean()) > 1.5
    assert float(pose_errors(end, true).rotation_deg.mean()) < 0.1


def test_a_step_draws_an_eighth_as_many_tracks_as_matches():
    tracks, poses = make_tracks(arc(N)), torch.from_numpy(turned(arc(N), 1.0))
    config = MatchTermConfig(per_step=80)
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(float(track_loss(tracks, poses, config)))
        torch.manual_seed(seed)
        drawn = tracks.chosen(torch.randint(len(tracks), (10,)))
        assert losses[-1] == float(track_loss(drawn, poses, MatchTermConfig(per_step=10**6)))
    assert losses[0] == losses[2] != losses[1]
