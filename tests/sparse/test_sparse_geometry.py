"""Rotations, projection, objects, pictures and crops against float64 oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hashpose_ns.sparse.evaluation import camera_centers, chance, fitted, score
from hashpose_ns.sparse.geometry import (
    angles,
    balls,
    exp_map_SO3,
    left_update,
    pair_rotations,
    project,
    rotation_from_6d,
)
from hashpose_ns.sparse.network import Cameras, scaled_update, surface_step
from hashpose_ns.sparse.objects import RADIUS, Objects, Parts, random_objects
from hashpose_ns.sparse.render import pixel_grid, render
from hashpose_ns.sparse.scenes import random_scenes, turn_towards
from hashpose_ns.sparse.settings import CaptureConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_rotations(count: int) -> torch.Tensor:
    return exp_map_SO3(torch.randn(count, 3, generator=seeded(3), dtype=torch.float64))


def test_a_rotation_of_six_numbers_is_gram_schmidt_s():
    six = torch.randn(5, 6, generator=seeded(), dtype=torch.float64)
    found = rotation_from_6d(six)
    q, r = np.linalg.qr(six.numpy().reshape(5, 2, 3).transpose(0, 2, 1))
    rows = (q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]).transpose(0, 2, 1)
    expected = np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], 1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 0.5, 3.0])
def test_the_left_update_is_the_exponential_and_has_its_gradient(size):
    turns = size * torch.nn.functional.normalize(torch.randn(4, 3, generator=seeded(), dtype=torch.float64), dim=-1)
    rotations, centers = some_rotations(4), torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    shift = torch.randn(4, 3, generator=seeded(2), dtype=torch.float64)
    found, moved = left_update(rotations, centers, torch.cat([turns, shift], -1))
    skew = torch.linalg.cross(turns[:, None].expand(-1, 3, -1), torch.eye(3, dtype=torch.float64)[None], dim=-1)
    expected = torch.linalg.matrix_exp(skew.transpose(1, 2)) @ rotations
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)
    torch.testing.assert_close(moved, centers + shift)
    assert torch.autograd.gradcheck(exp_map_SO3, turns.requires_grad_())


def test_projection_is_that_of_a_pinhole_camera():
    rotations = some_rotations(6).view(2, 3, 3, 3)
    centers = torch.randn(2, 3, 3, generator=seeded(), dtype=torch.float64) + torch.tensor([0, 0, 5.0])
    tangents = torch.rand(2, 3, generator=seeded(), dtype=torch.float64) + 0.2
    points = torch.randn(2, 7, 3, generator=seeded(), dtype=torch.float64)
    seen, where = project(points, rotations, centers, tangents)
    size = 64
    for s in range(2):
        for v in range(3):
            focal = size / 2 / float(tangents[s, v])
            matrix = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
            pose = np.concatenate([rotations[s, v], centers[s, v][:, None]], 1)
            lines = matrix @ pose @ np.concatenate([points[s].numpy(), np.ones((7, 1))], 1).T
            np.testing.assert_allclose((where[s, v].numpy().T + 1) * size / 2, lines[:2] / lines[2], atol=1e-9)
            np.testing.assert_allclose(seen[s, v, :, 2], lines[2], atol=1e-12)


def test_angles_of_pairs():
    turns = torch.zeros(3, 3, dtype=torch.float64)
    turns[:, 1] = torch.deg2rad(torch.tensor([0.0, 20.0, -100.0], dtype=torch.float64))
    pairs = pair_rotations(exp_map_SO3(turns))
    identity = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    torch.testing.assert_close(angles(pairs, identity), torch.tensor([20.0, 100.0, 120.0], dtype=torch.float64))
    assert float(angles(identity, identity).max()) == 0


def test_turning_towards_a_point_takes_it_to_the_axis_by_the_shortest_way():
    points = torch.randn(20, 2, generator=seeded(), dtype=torch.float64)
    turns = turn_towards(points)
    rays = torch.nn.functional.normalize(torch.cat([points, torch.ones(20, 1)], -1), dim=-1)
    axis = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close((turns @ rays[..., None])[..., 0], axis.expand(20, 3))
    identity = torch.eye(3, dtype=torch.float64).expand(20, 3, 3)
    torch.testing.assert_close(turns @ turns.transpose(1, 2), identity)
    torch.testing.assert_close(angles(turns, identity), torch.rad2deg(torch.acos(rays[:, 2])))


@pytest.mark.parametrize("family", ["articulated", "blobs"])
def test_objects_depend_on_the_seed_and_fill_their_ball(family):
    first, again, other = (random_objects(family, 8, seeded(seed)) for seed in (1, 1, 2))
    for kind in ("ellipsoids", "boxes"):
        for name, value in vars(getattr(first, kind)).items():
            assert value.isfinite().all()
            assert torch.equal(value, getattr(getattr(again, kind), name))
        assert not torch.equal(getattr(first, kind).centers, getattr(other, kind).centers)
        assert float(getattr(first, kind).centers.norm(dim=-1).max()) < RADIUS


def inside(parts: Parts, which: int, points: torch.Tensor, boxes: bool) -> torch.Tensor:
    """Whether points [n, 3] are in any part of an object."""
    local = (points[:, None] - parts.centers[which]) @ torch.eye(3, dtype=points.dtype)
    local = torch.einsum("npi,pij->npj", local, parts.rotations[which].double()) / parts.half_sizes[which]
    return ((local.abs().amax(-1) if boxes else local.norm(dim=-1)) < 1).any(1)


def test_pictures_show_what_rays_meet():
    """Silhouettes against points along every ray, in double precision."""
    scenes = random_scenes("articulated", 2, 2, 24, CaptureConfig(), seeded(5))
    objects = random_objects("articulated", 2, seeded(5))
    grid = pixel_grid(24).double()
    for s in range(2):
        for v in range(2):
            to_world, tangent = scenes.rotations[s, v].double().T, float(scenes.tangents[s, v])
            rays = to_world @ (grid * torch.tensor([[tangent], [tangent], [1.0]]).double())
            origin = -to_world @ scenes.centers[s, v].double()
            middle = float(scenes.centers[s, v, 2])
            depths = torch.linspace(middle - 0.6, middle + 0.6, 400, dtype=torch.float64)
            points = (origin[:, None, None] + rays[:, :, None] * depths).flatten(1).T
            solid = inside(objects.ellipsoids, s, points, False) | inside(objects.boxes, s, points, True)
            expected = solid.view(-1, 400).any(1)
            picture = scenes.images[s, v].flatten(1)
            drawn = (picture - picture[:, :1]).abs().amax(0) > 1e-4  # the corner shows the background
            assert float((drawn == expected).double().mean()) > 0.985
            assert 0.1 < float(expected.double().mean()) < 0.8


def test_a_point_is_drawn_where_it_projects_and_sampled_there():
    """One small ball: its middle in the picture is its projection, and `grid_sample` finds its colour there."""
    scenes = random_scenes("blobs", 1, 6, 48, CaptureConfig(), seeded(9))
    place = torch.tensor([[[0.17, -0.12, 0.2]]])
    white = torch.ones(1, 1, 2, 3)
    ball = Parts(place, torch.eye(3)[None, None], torch.full((1, 1, 3), 0.03), white, torch.zeros(1, 1, 4))
    nothing = Parts(place * 0, torch.eye(3)[None, None], torch.full((1, 1, 3), 1e-4), white * 0, torch.zeros(1, 1, 4))
    poses = torch.cat([scenes.rotations, scenes.centers[..., None]], -1)[0]
    index = torch.zeros(6, dtype=torch.long)
    lights = torch.tensor([0.0, 0, 1]).expand(6, 3)
    tangents = torch.full((6,), 0.35)
    pictures, _ = render(Objects(ball, nothing), index, poses, tangents, lights, torch.zeros(6, 3), 48)
    where = project(place[0][None], scenes.rotations[:1], scenes.centers[:1], tangents[None])[1][0, :, 0]
    mask = (pictures.amax(1) > 0.2).float().flatten(1)
    middle = (mask[:, None] * pixel_grid(48)[:2]).sum(-1) / mask.sum(-1, keepdim=True)
    torch.testing.assert_close(middle, where, atol=0.02, rtol=0)  # half a pixel
    sampled = torch.nn.functional.grid_sample(pictures, where[:, None, None], align_corners=False)
    assert float(sampled.min()) > 0.3


def test_the_surface_projects_to_the_pixels_that_show_it():
    scenes = random_scenes("articulated", 2, 3, 48, CaptureConfig(), seeded(3))
    grid = pixel_grid(24)[:2].T
    for s, v in ((0, 0), (1, 2)):
        points = scenes.surface[s, v].flatten(1).T
        seen = ~points[:, 0].isnan()
        assert 0.1 < float(seen.double().mean()) < 0.8 and float(points[seen].norm(dim=-1).max()) < RADIUS
        camera = (value[s, v][None, None] for value in (scenes.rotations, scenes.centers, scenes.tangents))
        where = project(points[None], *camera)[1]
        off = (where[0, 0] - grid)[seen].norm(dim=-1)
        assert float(off.median()) < 1e-3 and float(off.max()) < 0.05  # a mean of four pixels across an edge


@pytest.mark.parametrize("degrees", [2.0, 8.0])
def test_the_surface_step_solves_for_the_pose(degrees):
    """In float64, from points and their true pixels: the first step removes most of the error, some steps all of it;
    points of no weight say nothing."""
    generator = seeded(5)
    points = balls(2, 60, generator, "cpu").double() * 0.3
    tangents = torch.full((2, 3), 0.35, dtype=torch.float64)
    rotations = some_rotations(6).double().unflatten(0, (2, 3))
    centers = torch.tensor([0.02, -0.03, 1.0], dtype=torch.float64).expand(2, 3, 3)
    _, where = project(points, rotations, centers, tangents)
    axis = torch.nn.functional.normalize(torch.randn(2, 3, 3, generator=generator, dtype=torch.float64), dim=-1)
    moved = exp_map_SO3(axis * math.radians(degrees)) @ rotations
    current = Cameras(moved, centers + torch.tensor([0.02, 0.01, 0.05], dtype=torch.float64))
    weights = torch.ones(2, 3, 60, dtype=torch.float64)
    where[:, :, :10], weights[:, :, :10] = 0.7, 0.0
    errors = [float(angles(current.rotations, rotations).max())]
    for _ in range(8):
        turned = torch.einsum("svij,spj->svpi", current.rotations, points)
        step = surface_step(turned, where, weights, current.centers, tangents)
        update = scaled_update(step, current, tangents)
        current = Cameras(*left_update(current.rotations, current.centers, update))
        errors.append(float(angles(current.rotations, rotations).max()))
    assert errors[1] < 0.5 * errors[0] and errors[-1] < 0.1
    torch.testing.assert_close(current.centers, centers, atol=2e-3, rtol=0)


def test_crops_show_the_whole_object():
    scenes = random_scenes("articulated", 4, 4, 32, CaptureConfig(), seeded(2))
    edge = torch.cat(
        [scenes.images[..., 0, :], scenes.images[..., -1, :], scenes.images[..., 0], scenes.images[..., -1]], -1
    )
    cut = ((edge - edge[..., :1]).abs().amax(2) > 1e-4).double().mean()
    assert float(cut) < 0.02


def test_scores():
    scenes = random_scenes("blobs", 6, 5, 32, CaptureConfig(), seeded(2))
    # The same cameras in another frame and unit are perfect.
    turn = exp_map_SO3(torch.tensor([0.3, -0.8, 0.4]))
    perfect = score(Cameras(scenes.rotations @ turn, 3 * scenes.centers), scenes)
    assert perfect.median_deg < 0.1 and perfect.within_deg[5] == 1 and perfect.within_center == {0.1: 1.0, 0.2: 1.0}
    by_chance = chance(scenes)
    assert by_chance.median_deg > 40 and by_chance.within_deg[30] < 0.5
    few = scenes.views(torch.arange(6), torch.arange(3).expand(6, 3))
    assert score(Cameras(few.rotations, few.centers), few).within_center is None


def test_the_fit_of_centres_undoes_a_similarity_and_no_reflection():
    points = torch.randn(2, 6, 3, generator=seeded(), dtype=torch.float64)
    turn = some_rotations(2)
    moved = 2.5 * points @ turn.transpose(1, 2) + torch.tensor([1.0, 2, 3])
    torch.testing.assert_close(fitted(points, moved), moved)
    mirrored = points * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    assert float((fitted(mirrored, points) - points).norm(dim=-1).mean()) > 0.3
    centers = camera_centers(turn, points[:, 0])
    torch.testing.assert_close(
        (turn @ centers[..., None])[..., 0] + points[:, 0], torch.zeros_like(centers), atol=1e-12, rtol=0
    )
