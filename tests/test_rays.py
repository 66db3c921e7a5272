"""Rays, samples and backgrounds of training against nerfstudio's own, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hashpose_ns.rays import (
    ColorRenderer,
    InverseDepthSamples,
    PiecewiseSamples,
    TrainingRays,
    UniformSamples,
    are_perspective,
    ray_weights,
)
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.model_components import ray_samplers
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.model_components.renderers import RGBRenderer, background_color_override_context

N = 5
DISTORTION = 0.1 * torch.rand(N, 6, generator=torch.Generator().manual_seed(2))


def make_cameras(dtype=torch.float32, **settings) -> Cameras:
    """Cameras with intrinsics of their own."""
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(N, 3, 3, generator=generator))[0]
    poses = torch.cat([rotations, torch.randn(N, 3, 1, generator=generator)], dim=-1)
    fx, fy, cx, cy = (torch.rand(N, 1, generator=generator, dtype=dtype) * 7 + start for start in (20, 22, 8, 5))
    return Cameras(poses, fx=fx, fy=fy, cx=cx, cy=cy, width=20, height=14, **settings)


def make_pixels(count: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(count, 3, generator=generator) * torch.tensor([N, 14, 20])).long()


def assert_same_rays(ours: RayBundle, theirs: RayBundle) -> None:
    for name in ("origins", "directions", "pixel_area", "camera_indices"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
    assert ours.times is None and theirs.times is None
    assert ours.metadata.keys() == theirs.metadata.keys()
    for name, value in theirs.metadata.items():
        assert torch.equal(ours.metadata[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distortion", [None, torch.zeros(N, 6), DISTORTION])
def test_rays_of_perspective_cameras_are_nerfstudios_to_the_bit(dtype, distortion):
    cameras = make_cameras(dtype, distortion_params=distortion, metadata={})
    rays = TrainingRays(cameras)
    assert rays.short
    assert_same_rays(rays(make_pixels()), RayGenerator(cameras)(make_pixels()))
    cameras.camera_to_worlds = cameras.camera_to_worlds.flip(0)  # as a checkpoint's initial poses
    assert_same_rays(rays(make_pixels()), RayGenerator(cameras)(make_pixels()))


@pytest.mark.parametrize(
    "settings",
    [
        {"camera_type": CameraType.FISHEYE, "distortion_params": DISTORTION},
        {"metadata": {"exposure": torch.rand(N, 1)}},
    ],
)
def test_other_cameras_go_nerfstudios_way(settings):
    cameras = make_cameras(**settings)
    assert not are_perspective(cameras)
    assert_same_rays(TrainingRays(cameras)(make_pixels()), RayGenerator(cameras)(make_pixels()))


def planes(count: int = 40) -> RayBundle:
    rays = TrainingRays(make_cameras())(make_pixels(count))
    generator = torch.Generator().manual_seed(3)
    rays.nears = 0.1 + torch.rand(count, 1, generator=generator)
    rays.fars = rays.nears + 5 * torch.rand(count, 1, generator=generator)
    return rays


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (UniformSamples, ray_samplers.UniformSampler),
        (InverseDepthSamples, ray_samplers.LinearDisparitySampler),
        (PiecewiseSamples, ray_samplers.UniformLinDispPiecewiseSampler),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_samples_are_nerfstudios_to_the_bit(ours, theirs, training):
    results = []
    for sampler in (ours(num_samples=16).train(training), theirs(num_samples=16).train(training)):
        for count in (None, 7):
            torch.manual_seed(4)
            samples = sampler(planes(), num_samples=count)
            ends = samples.frustums.ends
            results.append((samples.frustums.starts, ends, samples.deltas, samples.spacing_starts))
            assert torch.equal(samples.spacing_to_euclidean_fn(samples.spacing_ends[..., 0])[..., None], ends)
    for a, b in zip(results[:2], results[2:]):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert results[0][0].shape == (40, 16, 1) and results[1][0].shape == (40, 7, 1)


def test_bins_that_were_first_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        UniformSamples(num_samples=23).eval()(planes())
    rays = planes()
    rays.directions = rays.directions.clone().requires_grad_()
    samples = UniformSamples(num_samples=23).train()(rays)
    samples.frustums.get_positions().sum().backward()


def test_weights_are_nerfstudios_to_the_bit():
    generator = torch.Generator().manual_seed(5)
    deltas, densities = torch.rand(2, 30, 12, 1, generator=generator)
    densities[3] = torch.inf
    densities[4] = 0
    nothing = torch.zeros(30, 12, 3)
    samples = RaySamples(Frustums(nothing, nothing, deltas, deltas, deltas), deltas=deltas)
    assert torch.equal(ray_weights(deltas, densities), samples.get_weights(densities))


def test_backgrounds_are_nerfstudios_and_can_be_overridden():
    generator = torch.Generator().manual_seed(6)
    colors, weights = torch.rand(8, 6, 3, generator=generator), torch.rand(8, 6, 1, generator=generator) / 6
    rgba = torch.rand(8, 4, generator=generator)
    for color in ("white", "black", "last_sample", "random"):
        ours, theirs = ColorRenderer(color).train(), RGBRenderer(color).train()
        assert torch.equal(ours(colors, weights), theirs(colors, weights))
        assert torch.equal(ours.blend_background(rgba), theirs.blend_background(rgba))
    with background_color_override_context(torch.tensor([0.2, 0.4, 0.6])):
        assert torch.equal(ColorRenderer("white")(colors, weights), RGBRenderer("white")(colors, weights))
