"""HashPoseField: where space is empty, what colours depend on, precision, and what is left out."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import DecoderConfig, HashPoseField, HashPoseFieldConfig, warp_positions
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig
from nerfstudio.cameras.rays import Frustums, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.spatial_distortions import SceneContraction

LEVELS = 3
BOX = torch.tensor([[-1.0, -2.0, -0.5], [1.0, 2.0, 1.5]])


def make_field(warp="none", aabb=BOX, curriculum="none", **decoder) -> HashPoseField:
    torch.manual_seed(0)
    decoder = {"width": 16, "precision": "float32", **decoder}
    config = HashPoseFieldConfig(
        encoding=HashEncodingConfig(
            num_levels=LEVELS, base_resolution=2, max_resolution=8, log2_hashmap_size=9, init_scale=2.0, backend="eager"
        ),
        decoder=DecoderConfig(**decoder),
    )
    schedule = Curriculum(CurriculumConfig(mode=curriculum, window=(0.2, 0.8)), LEVELS, total_steps=100)
    return config.setup(warp=warp, aabb=aabb, num_images=3, curriculum=schedule)


def samples_at(positions: Tensor, directions=None, cameras=None, length: float = 0.1) -> RaySamples:
    """One sample per ray, at the given positions [n, 3]."""
    if directions is None:
        directions = torch.tensor([[0.0, 0.0, -1.0]]).expand_as(positions)
    positions, directions = positions[:, None], directions[:, None]
    half = torch.full_like(positions[..., :1], length / 2)
    if cameras is not None:
        cameras = cameras[:, None, None]
    return RaySamples(Frustums(positions, directions, -half, half, torch.ones_like(half)), camera_indices=cameras)


def density_and_color(field: HashPoseField, samples: RaySamples) -> tuple[Tensor, Tensor]:
    density, geometry = field.get_density(samples)
    return density[:, 0, 0], field.get_outputs(samples, geometry)[FieldHeadNames.RGB][:, 0]


def random_points(count: int, low=BOX[0], high=BOX[1]) -> Tensor:
    return low + (high - low) * torch.rand(count, 3, generator=torch.Generator().manual_seed(5))


# -- space -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softplus", "exp"])
def test_density_is_exactly_zero_outside_the_box_and_positive_inside(activation):
    field = make_field(density_activation=activation)
    inside = random_points(50)
    assert (density_and_color(field, samples_at(inside))[0] > 0).all()
    for axis in range(3):
        for beyond in (BOX[0, axis] - 1e-3, BOX[1, axis] + 1e-3, BOX[1, axis] + 100):
            outside = inside.clone()
            outside[:, axis] = beyond
            assert (density_and_color(field, samples_at(outside))[0] == 0).all()


def test_contraction_keeps_the_inner_cube_and_brings_all_of_space_into_the_outer_one():
    inner = random_points(20, torch.full((3,), -1.0), torch.full((3,), 1.0))
    torch.testing.assert_close(warp_positions(inner, "contraction"), inner)
    torch.testing.assert_close(
        warp_positions(torch.tensor([[4.0, 0.0, -2.0], [0.0, -1e6, 0.0]]), "contraction"),
        torch.tensor([[1.75, 0.0, -0.875], [0.0, -2.0, 0.0]]),
    )
    anywhere = 5 * random_points(200)
    torch.testing.assert_close(warp_positions(anywhere, "contraction"), SceneContraction(order=float("inf"))(anywhere))
    field = make_field("contraction", torch.tensor([[-2.0] * 3, [2.0] * 3]))
    assert (density_and_color(field, samples_at(500 * random_points(50)))[0] > 0).all(), "nowhere is outside"


def test_forward_facing_is_pixel_and_disparity():
    point = torch.tensor([[2.0, -1.0, -4.0]])
    torch.testing.assert_close(warp_positions(point, "forward-facing"), torch.tensor([[0.5, -0.25, 0.25]]))
    # Points on a ray through the origin share their pixel
    pixels = warp_positions(point * torch.tensor([[1.0], [3.0], [50.0]]), "forward-facing")[:, :2]
    torch.testing.assert_close(pixels, pixels[:1].expand(3, 2))
    field = make_field("forward-facing", torch.tensor([[-1.0, -1.0, -0.01], [1.0, 1.0, 1.25]]))
    assert (density_and_color(field, samples_at(point * torch.tensor([[0.25], [1.0], [1e5]])))[0] > 0).all()
    behind = samples_at(torch.tensor([[0.1, 0.1, 1.0], [0.0, 0.0, 0.0]]))
    assert (density_and_color(field, behind)[0] == 0).all(), "nothing is behind the cameras"


def test_no_warp_changes_nothing():
    points = 10 * random_points(5)
    assert torch.equal(warp_positions(points, "none"), points)


def test_gradients_reach_positions_inside_and_are_finite_everywhere():
    for warp in ("none", "contraction", "forward-facing"):
        field = make_field(warp, torch.tensor([[-2.0] * 3, [2.0] * 3]))
        points = torch.cat([random_points(20), torch.zeros(1, 3), 100 * random_points(5)]).requires_grad_()
        density, color = density_and_color(field, samples_at(points))
        (density.sum() + color.sum()).backward()
        assert torch.isfinite(points.grad).all()
        assert points.grad.abs().max() > 1e-3, warp


# -- colour ------------------------------------------------------------------------------------------------------------


def test_colour_depends_on_the_direction_unless_told_otherwise():
    points = random_points(20)
    one, other = torch.tensor([[0.0, 0.0, -1.0]]).expand(20, 3), torch.tensor([[0.6, 0.8, 0.0]]).expand(20, 3)
    for frequencies, same in ((4, False), (0, False), (-1, True)):
        field = make_field(direction_frequencies=frequencies)
        first, second = (density_and_color(field, samples_at(points, view)) for view in (one, other))
        assert torch.equal(first[0], second[0]), "density never does"
        assert torch.equal(first[1], second[1]) is same
        assert ((first[1] >= 0) & (first[1] <= 1)).all()


def test_appearance_belongs_to_training_images_and_others_get_the_mean():
    points = random_points(20)
    field = make_field(appearance_dim=4)
    cameras = torch.arange(20) % 3
    by_camera = density_and_color(field, samples_at(points, cameras=cameras))[1]
    same = density_and_color(field, samples_at(points, cameras=torch.zeros(20, dtype=torch.long)))[1]
    assert torch.equal(by_camera[cameras == 0], same[cameras == 0])
    assert not torch.equal(by_camera[cameras == 1], same[cameras == 1])
    field.eval()
    in_evaluation = density_and_color(field, samples_at(points))[1]
    field.train()
    with torch.no_grad():
        field.appearance.weight.copy_(field.appearance.weight.mean(0).expand(3, 4))
    torch.testing.assert_close(in_evaluation, density_and_color(field, samples_at(points, cameras=cameras))[1])


# -- decoder -----------------------------------------------------------------------------------------------------------


def test_bfloat16_decoder_is_close_to_float32():
    samples = samples_at(random_points(200))
    exact, rounded = (
        density_and_color(make_field(precision=precision), samples) for precision in ("float32", "bfloat16")
    )
    for a, b in zip(exact, rounded):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b), "it really is another precision"
        torch.testing.assert_close(a, b, rtol=3e-2, atol=1e-2)


@pytest.mark.skipif(importlib.util.find_spec("tinycudann") is not None, reason="tinycudann is installed here")
def test_asking_for_tinycudann_where_there_is_none_is_one_sentence():
    with pytest.raises(HashPoseError, match="tinycudann cannot be used here"):
        make_field(implementation="tcnn")


def test_decoder_layers_and_width():
    field = make_field(density_layers=1, color_layers=3, width=8, geometry_features=5)
    shapes = [tuple(parameter.shape) for parameter in field.decoder_parameters() if parameter.ndim == 2]
    direction = 3 + 3 * 2 * 4
    assert shapes == [(8, 2 * LEVELS), (6, 8), (8, 5 + direction), (8, 8), (8, 8), (3, 8)]


def test_every_parameter_is_a_table_or_a_decoder_parameter():
    field = make_field(appearance_dim=2)
    everything = [*field.encoding.tables, *field.decoder_parameters()]
    assert {id(parameter) for parameter in everything} == {id(parameter) for parameter in field.parameters()}
    assert len(everything) == len(list(field.parameters()))


# -- curriculum --------------------------------------------------------------------------------------------------------


def test_levels_that_are_not_open_get_no_gradient_in_training():
    field = make_field(curriculum="lr")  # alpha = (step - 20) / 20
    samples = samples_at(random_points(50))
    for step, open_levels in ((0, 1), (45, 2), (99, 3)):
        field.step = step
        field.zero_grad()
        sum(value.sum() for value in density_and_color(field, samples)).backward()
        assert [table.grad is not None for table in field.encoding.tables] == [
            level < open_levels for level in range(3)
        ]


def test_features_are_masked_by_the_step_in_training_and_evaluation():
    field = make_field(curriculum="mask")
    samples = samples_at(random_points(50))
    field.step = 99
    full = density_and_color(field, samples)[0]
    field.step = 0
    coarse = density_and_color(field, samples)[0]
    assert not torch.equal(full, coarse)
    assert torch.equal(coarse, density_and_color(field.eval(), samples)[0])
    with torch.no_grad():
        for table in field.encoding.tables[1:]:
            table.zero_()
    field.step = 99
    torch.testing.assert_close(density_and_color(field, samples)[0], coarse)
