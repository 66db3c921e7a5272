"""The term of matches: against lines drawn by OpenCV, finite differences, and cameras that it has to bring back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from synthetic import pulled
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses
from hashpose_ns.errors import HashPoseError
from hashpose_ns.matches.config import MatchTermConfig
from hashpose_ns.matches.epipolar import MatchTerm, epipolar_distances, match_loss
from hashpose_ns.matches.matches import Matches

N, FOCALS = 6, torch.tensor([400.0, 410.0, 420.0, 430.0, 440.0, 450.0])


def make_poses(count: int = N) -> Tensor:
    """Cameras on an arc around the origin that look at it; float64."""
    poses = []
    for angle in torch.linspace(-0.9, 0.9, count, dtype=torch.float64):
        backwards = torch.stack([angle.sin(), 0.3 * angle, angle.cos()])
        backwards = backwards / backwards.norm()
        right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), backwards)
        right = right / right.norm()
        poses.append(torch.stack([right, torch.linalg.cross(backwards, right), backwards, 4 * backwards], dim=-1))
    return torch.stack(poses)


def seen_from(poses: Tensor, points: Tensor) -> Tensor:
    """[N, points, 2] places on the planes at depth 1 of all cameras, x right and y down."""
    x, y, z = ((points[None] - poses[:, None, :, 3]) @ poses[..., :3]).unbind(-1)
    return torch.stack([x / -z, -y / -z], dim=-1)


def make_matches(poses: Tensor, points: int = 40, wrong: float = 0.0) -> Matches:
    """Matches of random points in all pairs of cameras, a share of which is wrong."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(points, 3, generator=generator, dtype=torch.float64).clamp(-1.5, 1.5)
    seen = seen_from(poses, cloud)
    pairs = torch.combinations(torch.arange(len(poses)))
    found = torch.stack([seen[pairs[:, 0]], seen[pairs[:, 1]]], dim=-2).flatten(0, 1)
    lost = torch.rand(len(found), generator=generator) < wrong
    found[lost, 1] = found[lost, 1].flip(0)
    return Matches(pairs.repeat_interleave(points, 0), found, FOCALS[: len(poses)])


def turned(poses: Tensor, noise: float) -> Tensor:
    return perturb_poses(poses, PerturbationConfig(rotation=noise, translation=noise))


def test_distances_are_those_to_the_lines_that_opencv_draws():
    poses = turned(make_poses(), 0.05)
    matches = make_matches(make_poses())
    found = epipolar_distances(matches, poses)
    assert found.dtype == torch.float64
    axes = np.diag([1.0, -1.0, -1.0])
    for row in range(0, len(matches), 7):
        first, second = matches.images[row].tolist()
        rotations = [poses[i, :, :3].numpy() @ axes for i in (first, second)]
        relative = rotations[1].T @ rotations[0]
        x, y, z = rotations[1].T @ (poses[first, :, 3] - poses[second, :, 3]).numpy()
        essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ relative
        one, two = (np.diag([float(FOCALS[i])] * 2 + [1.0]) for i in (first, second))
        fundamental = np.linalg.inv(two).T @ essential @ np.linalg.inv(one)
        pixels = [point.numpy() * float(FOCALS[i]) for point, i in zip(matches.points[row], (first, second))]
        for which, other in ((0, 1), (1, 0)):
            line = cv2.computeCorrespondEpilines(pixels[other][None, None], other + 1, fundamental)[0, 0]
            expected = abs(line[:2] @ pixels[which] + line[2])  # OpenCV's lines are normalised
            assert float(found[row, which].abs()) == pytest.approx(expected, rel=0.01, abs=1e-6)


def test_true_poses_have_no_distance_in_any_world():
    poses = make_poses()
    matches = make_matches(poses)
    assert float(epipolar_distances(matches, poses).abs().max()) < 1e-9
    moved = turned(poses, 0.05)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -1, 2], [1, 0, 0.5], [-2, -0.5, 0]], dtype=torch.float64))
    other = Similarity(torch.tensor(0.01, dtype=torch.float64), turn, torch.ones(3, dtype=torch.float64))
    distances = epipolar_distances(matches, moved)
    assert float(distances.abs().median()) > 1
    torch.testing.assert_close(epipolar_distances(matches, other.apply_to_poses(moved)), distances)


def test_gradient_against_finite_differences():
    poses = turned(make_poses(3), 0.02).requires_grad_()
    matches = make_matches(make_poses(3), points=4)
    assert torch.autograd.gradcheck(lambda p: match_loss(matches, p, MatchTermConfig(scale=3.0)), poses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_where_there_is_no_epipolar_geometry(dtype):
    poses = make_poses().to(dtype)
    poses[1] = poses[0]
    poses[3, :, 3] = poses[2, :, 3]  # one centre, another view
    poses[5, :, 3] = poses[4, :, 3] - 2 * poses[4, :, 2]  # in front of it: both epipoles are at the image's centre
    poses[5, :, :3] = poses[4, :, :3]
    matches = make_matches(make_poses())
    matches.points[-5:] = 0.0
    matches = Matches(matches.images, matches.points.to(dtype), matches.focals)
    for start in (poses, torch.eye(3, 4, dtype=dtype).repeat(N, 1, 1)):
        start = start.clone().requires_grad_()
        distances = epipolar_distances(matches, start)
        assert bool(distances.isfinite().all())
        same = (start[matches.images[:, 0], :, 3] == start[matches.images[:, 1], :, 3]).all(-1)
        assert bool(same.any()) and not distances[same].any()
        (gradient,) = torch.autograd.grad(match_loss(matches, start, MatchTermConfig()), start)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("noise, wrong, left", [(0.005, 0.2, 0.02), (0.05, 0.1, 0.1)])
def test_cameras_come_back_in_spite_of_wrong_matches(noise, wrong, left):
    torch.manual_seed(0)
    poses = make_poses().float()
    matches = make_matches(make_poses(), wrong=wrong)
    matches = Matches(matches.images, matches.points.float(), matches.focals)
    end = pulled(turned(poses, noise), poses, MatchTerm(matches, MatchTermConfig(weight=1.0)), steps=250)
    before = pose_errors(turned(poses, noise), poses).rotation_deg.mean()
    after = pose_errors(end, poses).rotation_deg.mean()
    assert float(after) < left * float(before)


def test_a_step_draws_from_torchs_generator_no_more_than_it_is_told():
    poses, matches = turned(make_poses(), 0.05), make_matches(make_poses())
    drawn = MatchTermConfig(per_step=50)
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(float(match_loss(matches, poses, drawn)))
    assert losses[0] == losses[2] != losses[1]
    every = MatchTermConfig(per_step=len(matches))
    state = torch.get_rng_state()
    assert float(match_loss(matches, poses, every)) == float(match_loss(matches, poses, every))
    assert torch.equal(torch.get_rng_state(), state), "all matches need no draw"
    assert np.mean([float(match_loss(matches, poses, drawn)) for _ in range(200)]) == pytest.approx(
        float(match_loss(matches, poses, every)), rel=0.05
    )


def test_the_term_fades_and_its_settings_are_checked():
    term = MatchTermConfig(weight=2.0, fade=0.5)
    assert [term.weight_at(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [2.0, 1.0, 0.0, 0.0]
    assert MatchTermConfig(fade=0.0).weight_at(0.0) == 0.0
    for wrong in ({"weight": -1.0}, {"per_step": 0}, {"scale": 0.0}, {"fade": 1.5}):
        with pytest.raises(HashPoseError, match="matches.term"):
            MatchTermConfig(**wrong).validate()


def test_the_term_is_the_weighted_loss():
    poses, matches = turned(make_poses(), 0.05), make_matches(make_poses())
    config = MatchTermConfig(weight=2.0, fade=0.5, per_step=len(matches))
    term = MatchTerm(matches, config)
    assert float(term(poses, 0.25)) == pytest.approx(float(match_loss(matches, poses, config)))
    assert (term.until, MatchTerm(matches, MatchTermConfig(weight=0.0)).until) == (0.5, 0.0)
