"""Photographs are found in a trained field, pictures of other things are not, and no start is made worse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import roma
import torch
from scipy import ndimage

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.cameras.pose_optimizer import corrections_to_world
from hashpose_ns.errors import HashPoseError
from hashpose_ns.photometry.align import optimize_cameras
from hashpose_ns.photometry.interest import interest_points, interest_region, pixels_of_interest
from hashpose_ns.photometry.localize import (
    Acceptance,
    Localization,
    Localizer,
    SearchConfig,
    Start,
    acceptance,
    check_visible,
)
from hashpose_ns.photometry.pixels import ImagePixels, posed_cameras
from nerfstudio.utils import poses as pose_utils

FEW = dict(hypotheses=16, rays=12_000)


def apart(pose, truth) -> tuple[float, float]:
    """Degrees between two poses, and the distance of their centres."""
    angle = roma.rotmat_geodesic_distance(pose[:, :3].double(), truth[:, :3].double())
    return math.degrees(float(angle)), float((pose[:, 3] - truth[:, 3]).norm())


def turned_about_origin(pose, *degrees):
    turn = torch.deg2rad(torch.tensor(degrees))
    return pose_utils.multiply(exp_map_SE3(torch.cat([torch.zeros(3), turn])[None])[0], pose)


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_reduced_pixels_are_means_of_squares_and_lie_at_their_centres():
    image = torch.rand(9, 13, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(9, 13, dtype=torch.bool)
    mask[5, 2] = False
    small = ImagePixels.of(4, image, mask).reduced(4)
    assert small.image.shape == (2, 3, 3) and small.factor == 4
    torch.testing.assert_close(small.image[1, 2], image[4:8, 8:12].mean(dim=(0, 1)))
    assert small.allowed.tolist() == [[True] * 3, [False, True, True]]
    pixels = small.at(torch.tensor([[1, 2]]))
    assert pixels.coordinates.tolist() == [[6.0, 10.0]] and pixels.images.tolist() == [4]
    twice = small.reduced(2)
    assert twice.factor == 8 and twice.at(torch.tensor([[0, 0]])).coordinates.tolist() == [[4.0, 4.0]]
    assert ImagePixels.of(0, image).reduced(1).image is image
    assert ImagePixels.of(0, image).reduced(50).image.shape == (1, 1, 3)


def test_too_small_a_region_is_filled_up_with_other_pixels_that_count():
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[:, 0] = False
    region = torch.zeros(6, 6, dtype=torch.bool)
    region[2, :3] = True
    image = ImagePixels.of(0, torch.rand(6, 6, 3), mask)
    assert image.within(region, 1).count == 2
    filled = image.within(region, 10)
    assert filled.count == 10 and bool((filled.allowed <= mask).all()) and bool(filled.allowed[2, 1:3].all())
    assert image.within(region, 1000).count == 30
    assert torch.equal(filled.allowed, image.within(region, 10).allowed)


def test_interest_regions_are_points_dilated_three_times_by_five():
    image = torch.full((60, 80, 3), 0.2)
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    image += 0.7 * torch.exp(-((rows - 20) ** 2 + (columns - 50) ** 2) / 18.0)[..., None]
    everything = torch.ones(60, 80, dtype=torch.bool)
    points = interest_points(image, everything)
    assert points.any() and bool(points[15:26, 45:56].any())
    region = interest_region(image, everything, "regions")
    assert np.array_equal(region.numpy(), ndimage.binary_dilation(points.numpy(), np.ones((13, 13))))
    right = everything.clone()
    right[:, :50] = False
    assert not interest_region(image, right, "regions")[:, :50].any()
    assert torch.equal(interest_region(image, everything, "random"), everything)
    whole = ImagePixels.of(0, image)
    assert pixels_of_interest(whole, "random", 1) is whole
    assert pixels_of_interest(whole, "points", 1).count == int(points.sum())


# -- optimisation ------------------------------------------------------------------------------------------------------


def test_a_turn_about_a_pivot_leaves_it_where_the_camera_sees_it():
    pose = torch.cat([roma.random_rotmat(2), torch.randn(2, 3, 1)], dim=-1)
    pivot = torch.tensor([0.3, -1.0, 2.0])
    twist = torch.tensor([[0.0, 0.0, 0.0, 0.2, -0.5, 0.3]]).expand(2, 6)
    moved = pose_utils.multiply(corrections_to_world(exp_map_SE3(twist), pose, "orbit", pivot), pose)
    before, after = ((pivot - c2w[:, :, 3]).norm(dim=-1) for c2w in (pose, moved))
    torch.testing.assert_close(before, after)
    assert (pose - moved).abs().max() > 0.1
    origin = corrections_to_world(exp_map_SE3(twist), pose, "orbit", torch.zeros(3))
    assert torch.equal(origin, corrections_to_world(exp_map_SE3(twist), pose, "orbit"))


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_losses_of_colours_bring_a_camera_home(trained_on_true_poses, loss):
    scene = trained_on_true_poses.scene
    truth = scene.aligned_held_out_poses()[3]
    start = turned_about_origin(truth, 5.0, -4.0, 3.0)
    cameras = posed_cameras(scene.held_out, start[None], scene.device, [3])
    found = optimize_cameras(
        scene.renderer, cameras, [ImagePixels(scene.held_out, 3)], "orbit", 50, 192, 0.01,
        last_rate=0.2, loss=loss, unit=4.0,
    )[0]  # fmt: skip
    assert apart(start, truth)[0] > 6 and apart(found, truth)[0] < 3.5


# -- the search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["regions", "random"])
def test_photographs_are_found_from_a_rough_start(trained_on_true_poses, strategy):
    scene = trained_on_true_poses.scene
    truth = scene.aligned_held_out_poses()[[2, 7]]
    starts = [turned_about_origin(truth[0], 20.0, -15.0, 10.0), turned_about_origin(truth[1], -20.0, 5.0, 15.0)]
    localizer = Localizer(scene, SearchConfig(strategy=strategy, **FEW))
    found = localizer.localize(scene.held_out, [2, 7], [Start(pose) for pose in starts])
    limits = acceptance(scene)
    for localization, start, true in zip(found, starts, truth):
        assert apart(start, true)[0] > 24
        assert apart(localization.pose, true)[0] < 5 and apart(localization.pose, true)[1] < 0.4
        assert localization.residual < localization.start_residual and not localization.kept_start
        assert limits.found(localization)


def test_photographs_are_found_without_a_start_and_noise_is_not(trained_on_true_poses, monkeypatch):
    scene = trained_on_true_poses.scene
    truth = scene.aligned_held_out_poses()[5]
    shown = scene.held_out.get_data

    def with_noise(index, **kwargs):
        data = dict(shown(index, **kwargs))
        if index == 6:
            picture = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0))
            data["image"] = picture.repeat_interleave(8, 0).repeat_interleave(8, 1)
        else:
            data["image"] = scene.renderer.composite(data["image"])
        return data

    monkeypatch.setattr(scene.held_out, "get_data", with_noise)
    found, noise = Localizer(scene, SearchConfig(**FEW)).localize(scene.held_out, [5, 6])
    limits = acceptance(scene)
    assert apart(found.pose, truth)[0] < 5 and limits.found(found) and found.start_residual is None
    assert not limits.found(noise) and noise.residual > 2 * found.residual
    assert 0 < limits.typical < limits.limit < 1


def test_no_start_is_made_worse(trained_on_true_poses):
    scene = trained_on_true_poses.scene
    truth = scene.aligned_held_out_poses()[1]
    wild = SearchConfig(hypotheses=1, rays=1024, lr=3.0)
    found = Localizer(scene, wild).localize(scene.held_out, [1], [Start(truth)])[0]
    assert found.kept_start and torch.equal(found.pose, truth) and found.residual == found.start_residual


def test_proposals_take_part(trained_on_true_poses):
    scene = trained_on_true_poses.scene
    truth = scene.aligned_held_out_poses()[4]
    asked = []

    def from_matches(of, dataset, index):
        asked.append((of is scene, dataset is scene.held_out, index))
        return truth[None]

    localizer = Localizer(scene, SearchConfig(hypotheses=1, rays=2048), sources=[from_matches])
    localizer.training = localizer.training[:2]
    found = localizer.localize(scene.held_out, [4])[0]
    assert asked == [(True, True, 4)] and apart(found.pose, truth)[0] < 5
    same = Localizer(scene, SearchConfig(hypotheses=1, rays=2048))
    same.training = same.training[:2]
    given = same.localize(scene.held_out, [4], [Start(candidates=truth[None])])[0]
    torch.testing.assert_close(given.pose, found.pose)


def test_what_shows_nothing_is_refused():
    image = torch.rand(8, 8, 3)
    check_visible(ImagePixels.of(0, image), "a.png")
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    with pytest.raises(HashPoseError, match="The mask of a.png leaves no pixel"):
        check_visible(ImagePixels.of(0, image, nothing), "a.png")
    with pytest.raises(HashPoseError, match="a.png has one colour only"):
        check_visible(ImagePixels.of(0, torch.full((8, 8, 3), 0.5)), "a.png")
    left = nothing.clone()
    left[:, :4] = True
    half = image.clone()
    half[:, :4] = 0.5
    with pytest.raises(HashPoseError, match="one colour"):
        check_visible(ImagePixels.of(0, half, left), "a.png")


def test_residuals_that_nobody_agrees_with_have_to_be_smaller():
    limits = Acceptance(typical=0.02, limit=0.1)

    def found(residual: float, agreement: float) -> bool:
        return limits.found(Localization(torch.eye(4)[:3], residual, 0.0, None, agreement, False))

    assert found(0.09, 1.0) and not found(0.09, 0.0) and found(0.05, 0.0) and not found(0.11, 1.0)


@pytest.mark.parametrize("settings", [{"hypotheses": 0}, {"rays": 100}, {"lr": 0.0}, {"angle": 200.0}, {"images": 0}])
def test_searches_that_cannot_be_made_are_refused(settings):
    with pytest.raises(HashPoseError, match="search"):
        SearchConfig(**settings).validate()
