"""Photographs are found in a trained field, pictures of other things are not, and no start is made worse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from ball_world import SIZE, BallRenderer, ball_picture, ball_world, looking_in, shorten_searches
from PIL import Image
from scipy import ndimage

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.cameras.pose_optimizer import corrections_to_world
from hashpose_ns.errors import HashPoseError
from hashpose_ns.localize.photographs import Photographs, lens_of
from hashpose_ns.photometry.align import optimize_cameras
from hashpose_ns.photometry.interest import interest_points, interest_region, pixels_of_interest
from hashpose_ns.photometry.localize import (
    CONFIRMING,
    LARGEST,
    LEAST,
    Acceptance,
    Localization,
    Localizer,
    SearchConfig,
    Start,
    acceptance,
    check_visible,
)
from hashpose_ns.photometry.pixels import ImagePixels, posed_cameras
from hashpose_ns.photometry.scene import PosedScene
from nerfstudio.utils import poses as pose_utils

FEW = dict(hypotheses=16, rays=10_000, images=5)


@pytest.fixture(autouse=True)
def short_searches(monkeypatch):
    shorten_searches(monkeypatch)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> PosedScene:
    """A run that has learned a ball exactly."""
    return ball_world(tmp_path_factory.mktemp("ball") / "data")[0]


@pytest.fixture(scope="module")
def photographs(scene, tmp_path_factory) -> Photographs:
    """Five pictures of the ball from `VIEWS`, and noise."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = [ball_picture(scene, pose, folder / f"{number}.png") for number, pose in enumerate(VIEWS)]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.NEAREST).save(folder / "noise.png")
    paths.append(folder / "noise.png")
    return Photographs(scene, paths, [lens_of(path, scene) for path in paths])


def apart(pose, truth) -> tuple[float, float]:
    """Degrees between two poses, and the distance of their centres."""
    angle = roma.rotmat_geodesic_distance(pose[:, :3].double(), truth[:, :3].double())
    return math.degrees(float(angle)), float((pose[:, 3] - truth[:, 3]).norm())


VIEWS = looking_in(12, seed=5).float()[[5, 7, 9, 11]]
NOISE = len(VIEWS)


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


@pytest.mark.parametrize("loss", ["training", "mse", "huber"])
@pytest.mark.parametrize("side", ["orbit", "camera", "world"])
def test_losses_of_colours_bring_a_camera_home(scene, photographs, loss, side):
    start = turned_about_origin(VIEWS[0], 5.0, -4.0, 3.0)
    cameras = posed_cameras(photographs, start[None], scene.device, [0])
    found = optimize_cameras(
        scene.renderer, cameras, [ImagePixels(photographs, 0)], side, 60, 128, 0.02,
        last_rate=0.05, loss=loss, unit=1.6,
    )[0]  # fmt: skip
    # about its own centre, a camera loses the ball from sight before it is where it was
    limit = 6.0 if side == "camera" else 0.8
    assert apart(start, VIEWS[0])[0] > 6 and apart(found, VIEWS[0])[0] < limit


# -- the search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["regions", "random"])
def test_photographs_are_found_from_a_rough_start(scene, photographs, strategy):
    starts = [turned_about_origin(VIEWS[0], 20.0, -15.0, 10.0), turned_about_origin(VIEWS[1], -20.0, 5.0, 15.0)]
    localizer = Localizer(scene, SearchConfig(strategy=strategy, **FEW))
    found = localizer.localize(photographs, [0, 1], [Start(pose) for pose in starts])
    limits = acceptance(scene)
    for localization, start, true in zip(found, starts, VIEWS):
        assert apart(start, true)[0] > 24
        assert apart(localization.pose, true)[0] < 1.5 and apart(localization.pose, true)[1] < 0.05
        assert localization.residual < localization.start_residual and not localization.kept_start
        assert limits.found(localization)


def test_photographs_are_found_without_a_start_and_noise_is_not(scene, photographs):
    indices = [*range(len(VIEWS)), NOISE]
    *found, noise = Localizer(scene, SearchConfig(**FEW)).localize(photographs, indices)
    limits = acceptance(scene)
    for localization, true in zip(found, VIEWS):
        assert apart(localization.pose, true)[0] < 1.5 and limits.found(localization)
        assert localization.start_residual is None and localization.agreement > 0.5
    assert not limits.found(noise) and noise.residual > 0.5


def test_a_mask_of_thin_stripes_is_looked_through(scene, photographs, monkeypatch):
    monkeypatch.setattr("hashpose_ns.photometry.localize.SMALLEST", 8)  # squares of pixels all hold a stripe
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[::2] = True
    shown = photographs[0]["image"]

    class Striped(Photographs):
        def get_data(self, image_idx, image_type="float32"):
            return {"image_idx": image_idx, "image": shown * mask[..., None], "mask": mask[..., None]}

    path = photographs.image_filenames[0]
    striped = Striped(scene, [path], [lens_of(path, scene)])
    start = turned_about_origin(VIEWS[0], 8.0, -5.0, 3.0)
    found = Localizer(scene, SearchConfig(**FEW)).localize(striped, [0], [Start(start)])[0]
    assert apart(found.pose, VIEWS[0])[0] < 1.5 and acceptance(scene).found(found)


def test_photographs_found_at_once_are_found_alone(scene, photographs):
    localizer = Localizer(scene, SearchConfig(hypotheses=4, rays=6_000))
    together = localizer.localize(photographs, [2, 3])
    alone = localizer.localize(photographs, [3])[0]
    assert apart(together[1].pose, alone.pose)[0] < 0.5
    assert together[1].residual == pytest.approx(alone.residual, abs=2e-3)


def test_the_limit_follows_how_well_training_images_are_explained(scene):
    exact = acceptance(scene)
    assert exact.typical < 1e-3 and exact.limit == LEAST

    class Blurred(BallRenderer):
        def colors(self, rays, **kwargs):
            return 0.5 * super().colors(rays) + 0.25

    worse = acceptance(replace(scene, renderer=Blurred()))
    assert worse.typical > 0.1 and worse.typical < worse.limit <= 0.5


def test_no_start_is_made_worse(scene, photographs):
    wild = SearchConfig(hypotheses=1, rays=1024, lr=3.0)
    found = Localizer(scene, wild).localize(photographs, [1], [Start(VIEWS[1])])[0]
    assert found.kept_start and torch.equal(found.pose, VIEWS[1]) and found.residual == found.start_residual


def test_proposals_take_part(scene, photographs):
    asked = []

    class Matches:
        def __call__(self, of, dataset, index):
            asked.append((of is scene, dataset is photographs, index))
            return VIEWS[2][None]

        def agreeing(self, of, dataset, index, pose):
            return 7

    localizer = Localizer(scene, SearchConfig(hypotheses=1, rays=2048), sources=[Matches()])
    localizer.training = localizer.training[:2]
    found = localizer.localize(photographs, [2])[0]
    assert asked == [(True, True, 2)] and apart(found.pose, VIEWS[2])[0] < 3.0 and found.matches == 7
    same = Localizer(scene, SearchConfig(hypotheses=1, rays=2048))
    same.training = same.training[:2]
    given = same.localize(photographs, [2], [Start(candidates=VIEWS[2][None])])[0]
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

    def found(residual: float, agreement: float, matches: int = 0) -> bool:
        return limits.found(Localization(torch.eye(4)[:3], residual, 0.0, None, agreement, False, matches))

    assert found(0.09, 1.0) and not found(0.09, 0.0) and found(0.05, 0.0) and not found(0.11, 1.0)
    assert found(0.2, 0.0, CONFIRMING) and not found(0.2, 1.0, CONFIRMING - 1) and not found(0.3, 1.0, 100)
    limits = Acceptance(typical=0.2, limit=LARGEST)
    assert not found(0.45, 1.0) and found(0.45, 0.0, CONFIRMING) and not found(0.6, 1.0, CONFIRMING)


@pytest.mark.parametrize("settings", [{"hypotheses": 0}, {"rays": 100}, {"lr": 0.0}, {"angle": 200.0}, {"images": 0}])
def test_searches_that_cannot_be_made_are_refused(settings):
    with pytest.raises(HashPoseError, match="search"):
        SearchConfig(**settings).validate()
