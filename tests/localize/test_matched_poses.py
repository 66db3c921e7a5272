"""Poses of photographs from their matches with the training images and the field's surface."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from ball_world import RADIUS, BallRenderer, ball_picture, ball_world, looking_in
from ball_world import SIZE as SMALL
from PIL import Image

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.localize import matching
from hashpose_ns.localize.matching import MatchedPoses, Seen, keypoints_of, reprojected, resected
from hashpose_ns.localize.photographs import Lens, Photographs
from hashpose_ns.photometry.localize import Localizer, SearchConfig
from nerfstudio.utils import poses as pose_utils

SIZE = 128
LENS = Lens(1.3 * SIZE, 1.3 * SIZE, SIZE / 2, SIZE / 2, SIZE, SIZE)


class Spotted(BallRenderer):
    """The ball with three hundred dark and bright spots, which SIFT finds again from elsewhere."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.spots = RADIUS * torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=-1)
        self.sizes = 0.02 + 0.03 * torch.rand(300, generator=generator)
        self.signs = 2.0 * torch.rand(300, generator=generator) - 1.0

    def colors(self, rays, **kwargs):
        depth, opaque = self._met(rays)
        points = rays.origins + depth * rays.directions
        apart = torch.cdist(points.reshape(-1, 3), self.spots).view(*points.shape[:-1], -1)
        shade = 0.5 + 0.5 * (self.signs * torch.exp(-0.5 * (apart / self.sizes).square())).sum(-1, keepdim=True)
        return (opaque * shade + 1.0 - opaque).clamp(0.0, 1.0).expand(*shade.shape[:-1], 3)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A run that has learned the spotted ball, of which it has a dozen pictures."""
    plain = ball_world(tmp_path_factory.mktemp("ball") / "data", num_cameras=14)[0]
    plain.train.cameras.rescale_output_resolution(SIZE / SMALL)
    scene = replace(plain, renderer=Spotted())
    folder = tmp_path_factory.mktemp("training")
    poses = plain.poses.refined_camera_to_worlds().detach()
    paths = [ball_picture(scene, pose, folder / f"{row}.png", SIZE) for row, pose in enumerate(poses)]
    return replace(scene, train=Photographs(scene, paths, [LENS] * len(paths)))


TURN = exp_map_SE3(torch.deg2rad(torch.tensor([[0.0, 0.0, 0.0, 6.0, -5.0, 8.0]])))
VIEWS = pose_utils.multiply(TURN, looking_in(14).float()[[1, 4, 7]])
"""Eleven degrees from cameras of the run."""


@pytest.fixture(scope="module")
def photographs(scene, tmp_path_factory) -> Photographs:
    """Pictures from `VIEWS`, the last one of noise."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = [ball_picture(scene, pose, folder / f"{row}.png", SIZE) for row, pose in enumerate(VIEWS)]
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(folder / "noise.png")
    return Photographs(scene, [*paths, folder / "noise.png"], [LENS] * (len(paths) + 1))


def apart(pose, truth) -> tuple[float, float]:
    angle = roma.rotmat_geodesic_distance(pose[:, :3].double(), truth[:, :3].double())
    return math.degrees(float(angle)), float((pose[:, 3] - truth[:, 3]).norm())


def test_matches_and_the_surface_say_where_a_photograph_was_taken(scene, photographs):
    matched = MatchedPoses(scene)
    for index, true in enumerate(VIEWS):
        poses = matched(scene, photographs, index)
        assert len(poses) >= 1
        degrees, distance = apart(poses[0], true)
        assert degrees < 4.0 and distance < 0.1
        assert matched.agreeing(scene, photographs, index, true) > 12
        assert matched.agreeing(scene, photographs, index, VIEWS[index - 1]) < 5
    assert len(matched(scene, photographs, len(VIEWS))) == 0
    assert matched.agreeing(scene, photographs, len(VIEWS), VIEWS[0]) < 5


def test_what_matches_propose_ends_the_search(scene, photographs, monkeypatch):
    localizer = Localizer(scene, SearchConfig(rays=4_000), [MatchedPoses(scene)], lambda result: result.residual < 0.05)
    monkeypatch.setattr(localizer, "_hypotheses", lambda *args: pytest.fail("searched for"))
    found = localizer.localize(photographs, [0, 1])
    for localization, true in zip(found, VIEWS):
        assert apart(localization.pose, true)[0] < 0.5 and localization.residual < 0.05
        assert localization.matches > 12
    monkeypatch.undo()
    searched = []
    monkeypatch.setattr(localizer, "enough", lambda result: False)
    monkeypatch.setattr(localizer, "_hypotheses", lambda query, start, poses: searched.append(len(poses)) or poses[:1])
    assert localizer.localize(photographs, [0])[0].residual < 0.05 and searched[0] >= 1


def test_keypoints_lie_on_the_ball(scene, photographs):
    found = keypoints_of(scene, photographs, 0)
    assert len(found.places) > 30
    torch.testing.assert_close(found.descriptors.norm(dim=1), torch.ones(len(found.places)))
    center = photographs[0]["image"].shape[0] / 2
    assert float((found.places - center).norm(dim=1).max()) < 0.5 * SIZE


def test_resection_bears_wrong_matches():
    generator = np.random.default_rng(0)
    pose = VIEWS[0].double().numpy()
    points = generator.uniform(-0.4, 0.4, (60, 3))
    local = (points - pose[:, 3]) @ pose[:, :3] @ matching.FLIP
    seen = Seen(np.arange(60), local / np.linalg.norm(local, axis=1, keepdims=True), points)
    wrong = generator.permutation(60)[:30]
    directions = seen.directions.copy()
    directions[wrong] = np.roll(directions[wrong], 1, axis=0)
    mixed = Seen(seen.keypoints, directions, points)
    found = resected(mixed, 0.002)
    np.testing.assert_allclose(found, pose, atol=1e-4)
    assert set(range(60)) - set(wrong) <= set(np.flatnonzero(reprojected(mixed, found, 0.002)))
    assert resected(Seen(*(column[:5] for column in seen)), 0.002) is None
    mirrored = np.concatenate([pose[:, :3] * np.array([1.0, -1.0, -1.0]), pose[:, 3:]], axis=1)
    assert not reprojected(seen, mirrored, 0.002).any()  # behind the camera
