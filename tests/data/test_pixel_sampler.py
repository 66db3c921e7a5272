"""EdgePixelSampler: where it looks, that every camera gets its share, and where it steps back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hashpose_ns.data import pixel_sampler
from hashpose_ns.data.pixel_sampler import EdgePixelSamplerConfig, edge_density
from hashpose_ns.errors import HashPoseError
from nerfstudio.data.pixel_samplers import PixelSamplerConfig

N, HEIGHT, WIDTH = 3, 40, 60


def make_images(columns=(15, 30, 45)) -> Tensor:
    """Grey images that turn white right of a column each."""
    images = torch.full((N, HEIGHT, WIDTH, 3), 0.5)
    for image, column in zip(images, columns):
        image[:, column:] = 1.0
    return images


def make_batch(images: Tensor, **extra) -> dict:
    return {"image": images, "image_idx": torch.arange(len(images)), **extra}


def sample(batch: dict, rays: int = 3000, seed: int = 0, **settings) -> dict:
    torch.manual_seed(seed)
    return EdgePixelSamplerConfig(**settings).setup(num_rays_per_batch=rays).sample(batch)


def test_density_is_where_the_edges_are_and_sums_to_one_per_image():
    density = edge_density(make_images(), radius=0.05)  # three pixels
    torch.testing.assert_close(density.sum(dim=(1, 2)), torch.ones(N))
    assert (density >= 0).all()
    for image, column in zip(density, (15, 30, 45)):
        assert image[:, column - 4 : column + 4].sum() > 0.999
        torch.testing.assert_close(image.sum(0)[column - 1], image.sum(0)[column])


def test_a_wider_radius_looks_further_from_the_edge():
    narrow, wide = (edge_density(make_images(), radius)[0].sum(0) for radius in (0.02, 0.1))
    assert narrow[15 - 5] < 1e-6 < wide[15 - 5]


def test_samples_concentrate_on_edges_by_the_fraction_asked_for():
    near = {}
    for fraction in (0.0, 0.5, 1.0):
        indices = sample(make_batch(make_images()), edge_fraction=fraction, edge_radius=0.05)["indices"]
        distance = (indices[:, 2] - torch.tensor([15, 30, 45])[indices[:, 0]]).abs()
        near[fraction] = float((distance <= 4).float().mean())
    share = 9 / WIDTH
    assert near[0.0] == pytest.approx(share, abs=0.03)
    assert near[0.5] == pytest.approx(0.5 + 0.5 * share, abs=0.03)
    assert near[1.0] > 0.999


def test_edges_between_rows_are_found_in_rows():
    images = torch.zeros(2, HEIGHT, WIDTH, 3)
    for image, row in zip(images, (8, 30)):
        image[row:] = 1.0
    indices = sample(make_batch(images), edge_fraction=1.0, edge_radius=0.05)["indices"]
    assert ((indices[:, 1] - torch.tensor([8, 30])[indices[:, 0]]).abs() <= 4).all()
    assert indices[:, 2].min() == 0 and indices[:, 2].max() == WIDTH - 1


def test_no_edges_asked_for_is_nerfstudios_sampling_to_the_bit():
    batch = make_batch(make_images())
    ours = sample(batch, edge_fraction=0.0)
    torch.manual_seed(0)
    theirs = PixelSamplerConfig().setup(num_rays_per_batch=3000).sample(batch)
    assert torch.equal(ours["indices"], theirs["indices"]) and torch.equal(ours["image"], theirs["image"])


def test_every_camera_gets_its_share_whatever_its_picture():
    images = make_images()
    images[0] = torch.rand(HEIGHT, WIDTH, 3)  # edges everywhere
    images[1] = 0.3  # none at all
    indices = sample(make_batch(images), rays=6000, edge_fraction=1.0)["indices"]
    counts = torch.bincount(indices[:, 0], minlength=N)
    assert ((counts - 2000).abs() < 200).all()
    rows, columns = (indices[indices[:, 0] == 1][:, axis].float() for axis in (1, 2))
    assert rows.mean() == pytest.approx(HEIGHT / 2, abs=1.5), "a picture of nothing is sampled evenly"
    assert columns.mean() == pytest.approx(WIDTH / 2, abs=2)


@pytest.mark.parametrize("cells", [1 << 22, 500])
def test_indices_are_in_range_and_pixels_belong_to_them(monkeypatch, cells):
    monkeypatch.setattr(pixel_sampler, "MAX_CELLS", cells)  # 500: pixels share a density
    images = torch.rand(N, 37, 53, 4)
    for column in (0, 52):
        images[:, :, column] = torch.rand(4)  # edges at the border
    batch = sample(make_batch(images), rays=4000, edge_fraction=1.0)
    image, row, column = batch["indices"].T
    for values, size in ((image, N), (row, 37), (column, 53)):
        assert values.min() == 0 and values.max() == size - 1
    assert torch.equal(batch["image"], images[image, row, column])


def test_coarse_cells_still_find_the_edges(monkeypatch):
    monkeypatch.setattr(pixel_sampler, "MAX_CELLS", N * HEIGHT * WIDTH // 4)
    density = edge_density(make_images(), radius=0.05)
    assert density.shape == (N, HEIGHT // 2, WIDTH // 2)
    indices = sample(make_batch(make_images()), edge_fraction=1.0, edge_radius=0.05)["indices"]
    distance = (indices[:, 2] - torch.tensor([15, 30, 45])[indices[:, 0]]).abs()
    assert (distance <= 8).float().mean() > 0.99


def test_camera_indices_follow_the_batch_and_new_images_are_noticed():
    sampler = EdgePixelSamplerConfig(edge_fraction=1.0, edge_radius=0.05).setup(num_rays_per_batch=500)
    for columns, order in (((15, 30, 45), [7, 5, 2]), ((50, 10, 20), [1, 0, 3])):
        batch = {"image": make_images(columns), "image_idx": torch.tensor(order)}
        indices = sampler.sample(batch)["indices"]
        assert set(indices[:, 0].tolist()) == set(order)
        where = dict(zip(order, columns))
        assert all(abs(int(column) - where[int(image)]) <= 5 for image, _, column in indices)


def test_masks_are_respected():
    mask = torch.zeros(N, HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:, :20, :40] = True
    indices = sample(make_batch(make_images(), mask=mask), rays=500, edge_fraction=1.0)["indices"]
    assert indices[:, 1].max() < 20 and indices[:, 2].max() < 40


def test_a_single_masked_image_is_sampled_within_its_mask():
    mask = torch.zeros(1, HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:, 30:, 50:] = True
    batch = make_batch(make_images()[:1], mask=mask)
    image, row, column = sample(batch, rays=500, edge_fraction=0.5)["indices"].T
    assert not image.any() and row.min() >= 30 and column.min() >= 50


def test_images_of_two_sizes_are_sampled_evenly():
    images = [torch.rand(20, 30, 3), torch.rand(10, 12, 3)]
    batch = sample({"image": images, "image_idx": torch.arange(2)}, rays=400, edge_fraction=1.0)
    image, row, column = batch["indices"].T
    assert torch.bincount(image).tolist() == [200, 200]
    assert row[image == 1].max() < 10 and column[image == 1].max() < 12
    expected = torch.stack([images[i][r, c] for i, r, c in zip(image, row, column)])
    assert torch.equal(batch["image"], expected)


def test_sampling_depends_on_the_seed_alone():
    batch = make_batch(make_images())
    sampler = EdgePixelSamplerConfig(edge_fraction=0.7).setup(num_rays_per_batch=100)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(sampler.sample(batch)["indices"])
    assert torch.equal(*draws)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(HashPoseError, match="between 0 and 1"):
        EdgePixelSamplerConfig(edge_fraction=fraction).setup(num_rays_per_batch=10)


@pytest.mark.parametrize("edges", [0.0, 0.5])
def test_equal_shares_give_each_image_as_many_fresh_pixels(edges):
    batch = make_batch(make_images(columns=(15, 15, 15)))
    first, second = (
        sample(batch, rays=302, seed=seed, edge_fraction=edges, cameras="equal")["indices"] for seed in range(2)
    )
    assert sorted(torch.bincount(first[:, 0]).tolist()) == [100, 101, 101]
    assert not torch.equal(first[:, 1:], second[:, 1:])
    pixels = {tuple(place) for place in first[:, 1:].tolist()}
    assert len(pixels) > 150, "images have pixels of their own"
    near = (first[:, 2] - 15).abs() <= 3  # the default radius is two pixels
    assert float(near.float().mean()) == pytest.approx(edges + (1 - edges) * 7 / WIDTH, abs=0.08)


def test_few_rays_go_to_some_images_three_to_each():
    seen = set()
    for seed in range(20):
        images = sample(make_batch(make_images()), rays=7, seed=seed, cameras="equal")["indices"][:, 0]
        assert sorted(torch.bincount(images, minlength=N).tolist()) == [0, 3, 4]
        seen |= set(images.tolist())
    assert seen == set(range(N))


def test_shared_places_are_those_of_all_images():
    indices = sample(make_batch(make_images()), rays=32, cameras="shared")["indices"]
    places = [indices[indices[:, 0] == image, 1:] for image in range(N)]
    assert sorted(len(each) for each in places) == [10, 11, 11], "what is left over goes to some"
    assert torch.equal(places[0][:10], places[1][:10]) and torch.equal(places[0][:10], places[2][:10])
    assert len({tuple(place) for place in places[0].tolist()}) > 8
    with pytest.raises(HashPoseError, match="edge-fraction 0"):
        sample(make_batch(make_images()), cameras="shared", edge_fraction=0.5)


def test_spread_over_images_does_not_undo_masks():
    mask = torch.zeros(N, HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:, 10:20] = True
    indices = sample(make_batch(make_images(), mask=mask), rays=300, cameras="equal")["indices"]
    assert ((indices[:, 1] >= 10) & (indices[:, 1] < 20)).all()
