"""Rendering that passes over empty space: where rays meet something, and that pictures stay the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scenes import CHAIR
from torch import Tensor

from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.empty_space import OccupiedSpace
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.field import HashPoseFieldConfig
from hashpose_ns.model import HashPoseModel, HashPoseModelConfig
from hashpose_ns.pipeline import HashPosePipeline, HashPosePipelineConfig
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

CPU = torch.device("cpu")


def ball(points: Tensor, center: float = 0.5, radius: float = 0.2) -> Tensor:
    """Density of a ball in the unit cube."""
    return 50.0 * ((points - center).norm(dim=-1) < radius).float()


def rays(origins: Tensor, directions: Tensor, near: float = 0.0, far: float = 4.0) -> RayBundle:
    plane = torch.ones(len(origins), 1)
    return RayBundle(
        origins=origins,
        directions=torch.nn.functional.normalize(directions, dim=-1),
        pixel_area=1e-6 * plane,
        camera_indices=torch.zeros(len(origins), 1, dtype=torch.long),
        nears=near * plane,
        fars=far * plane,
    )


def as_it_is(points: Tensor) -> tuple[Tensor, Tensor]:
    return points, ((points > 0) & (points < 1)).all(dim=-1)


def test_spans_hold_whatever_a_ray_meets():
    """Against the exact intersections of a ball."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.tensor([0.5, 0.5, 0.5]) + 1.5 * torch.nn.functional.normalize(
        torch.randn(500, 3, generator=generator), dim=-1
    )
    directions = 0.5 + 0.25 * torch.randn(500, 3, generator=generator) - origins
    bundle = rays(origins, directions)
    some, near, far = OccupiedSpace(ball, CPU).spans(bundle, as_it_is)
    along = ((0.5 - bundle.origins) * bundle.directions).sum(-1)
    distance = (bundle.origins + along[:, None] * bundle.directions - 0.5).norm(dim=-1)
    hit = distance < 0.2
    half = (0.2**2 - distance[hit] ** 2).sqrt()
    assert bool(some[hit].all()) and 50 < int(hit.sum()) < 450
    assert bool((near[hit, 0] <= along[hit] - half).all()) and bool((far[hit, 0] >= along[hit] + half).all())
    assert bool((far - near)[hit].max() < 0.75)  # 0.4, two cells to either side and the places' distance
    assert not bool(some[distance > 0.3].any())
    assert torch.equal(near[~some], bundle.nears[~some]) and torch.equal(far[~some], bundle.fars[~some])


@pytest.fixture(scope="module")
def pipeline() -> HashPosePipeline:
    """The chair, untrained, as commands load a run."""
    torch.manual_seed(0)
    encoding = HashEncodingConfig(num_levels=4, log2_hashmap_size=12, base_resolution=8, max_resolution=32)
    return HashPosePipelineConfig(
        datamanager=HashPoseDataManagerConfig(
            dataparser=BlenderDataParserConfig(data=CHAIR), camera_res_scale_factor=0.2
        ),
        model=HashPoseModelConfig(
            field=HashPoseFieldConfig(encoding=encoding),
            scene="none",
            clip_to_box=True,
            sampler="uniform",
            num_samples=24,
            num_importance_samples=24,
            eval_num_samples=48,
            eval_skips_empty_space=True,
            background_color="white",
            far_plane=20.0,
        ),
    ).setup(device="cpu", test_mode="inference")


@pytest.fixture
def model(pipeline, monkeypatch) -> HashPoseModel:
    """Its field is a ball of radius 0.3 of the cube's side, of one colour where it is dense."""
    field, network = pipeline.model.field, pipeline.model.field.decode_density

    def to_grid(positions):
        unit, inside = type(field).to_grid(field, positions)
        field.dense = ball(unit, radius=0.3)
        return unit, inside

    def decode_density(features, inside, bfloat16):
        geometry = network(features, inside, bfloat16)[1]
        return (field.dense * inside)[..., None], geometry

    monkeypatch.setattr(field, "to_grid", to_grid)
    monkeypatch.setattr(field, "decode_density", decode_density)
    monkeypatch.setattr(field, "density_at", lambda unit: ball(unit, radius=0.3))
    monkeypatch.setattr(pipeline.model, "_occupied", None)
    return pipeline.model


def pictures(pipeline, **config) -> dict[str, Tensor]:
    model = pipeline.model
    before, model.config = model.config, dataclasses.replace(model.config, **config)
    camera = pipeline.datamanager.train_dataset.cameras[:1]
    outputs = model.get_outputs_for_camera(camera)
    model.config = before
    return outputs


def test_pictures_stay_as_they_are(pipeline, model):
    fine = pictures(pipeline, eval_skips_empty_space=False, eval_num_samples=192)
    skipping = pictures(pipeline)
    assert 0.05 < float((fine["accumulation"] > 0.5).float().mean()) < 0.95
    difference = (skipping["rgb"] - fine["rgb"]).abs()
    assert float(difference.mean()) < 0.005
    untouched = fine["accumulation"][..., 0] == 0
    assert torch.equal(skipping["rgb"][untouched], torch.ones_like(skipping["rgb"][untouched]))


def test_a_field_in_training_is_not_looked_through(pipeline, model):
    assert model.is_at_rest
    model.is_at_rest = False
    try:
        assert model._occupied_space() is None
    finally:
        model.is_at_rest = True


def test_what_is_occupied_follows_the_field(pipeline, model):
    first = model._occupied_space()
    assert model._occupied_space() is first
    with torch.no_grad():
        next(model.field.parameters()).add_(0.0)
    assert model._occupied_space() is not first


def test_rays_that_all_miss_have_a_gradient_of_zero(pipeline, model):
    """Localisation starts at poses that see nothing."""
    away = rays(torch.tensor([[0.0, 0.0, 9.0]] * 4), torch.tensor([[0.0, 0.0, 1.0]] * 4))
    away.origins = away.origins.requires_grad_()
    colors = model.colors(away)
    assert torch.equal(colors, torch.ones(4, 3))
    colors.sum().backward()
    assert away.origins.grad is None or not bool(away.origins.grad.any())
