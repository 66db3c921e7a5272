"""BARF's and GARF's networks against their formulas, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hashpose_ns.errors import HashPoseError
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig
from hashpose_ns.peers.coordinate_fields import BARFFieldConfig, GARFFieldConfig, frequency_encoding
from nerfstudio.cameras.rays import Frustums, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])
MASK = CurriculumConfig(mode="mask", window=(0.1, 0.5), indexing="barf")
RAYS, SAMPLES = 7, 5


def make_field(config, curriculum=None, warp="none"):
    torch.manual_seed(0)
    curriculum = curriculum or (MASK if isinstance(config, BARFFieldConfig) else CurriculumConfig(mode="none"))
    schedule = Curriculum(curriculum, config.num_levels, total_steps=1000)
    return config.setup(warp=warp, aabb=BOX, num_images=3, curriculum=schedule)


def make_samples(scale: float = 1.0) -> RaySamples:
    generator = torch.Generator().manual_seed(3)
    origins = scale * torch.randn(RAYS, 1, 3, generator=generator).expand(-1, SAMPLES, -1)
    directions = torch.nn.functional.normalize(torch.randn(RAYS, 1, 3, generator=generator), dim=-1)
    starts = scale * torch.rand(RAYS, SAMPLES, 1, generator=generator)
    return RaySamples(
        Frustums(origins, directions.expand(-1, SAMPLES, -1), starts, starts + 0.1, torch.ones_like(starts))
    )


def points_and_directions(samples: RaySamples) -> tuple[np.ndarray, np.ndarray]:
    return samples.frustums.get_positions().numpy(), samples.frustums.directions.numpy()


def weights_of(module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def linear(weights: dict, name: str, values: np.ndarray) -> np.ndarray:
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def relu(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def softplus(values: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(values))


# -- encoding and mask -------------------------------------------------------------------------------------------------


def barf_encoding(values: np.ndarray, count: int, progress: float) -> np.ndarray:
    """gamma_k(x) = w_k(alpha) [sin(2^k pi x), cos(2^k pi x)] (Lin et al. 2021, Eq. 13-14), alpha over [0.1, 0.5]."""
    alpha = count * (progress - 0.1) / 0.4
    parts = [values.astype(np.float64)]
    for k in range(count):
        weight = 0.0 if alpha < k else 1.0 if alpha - k >= 1 else (1 - np.cos((alpha - k) * np.pi)) / 2
        parts += [weight * np.sin(2**k * np.pi * parts[0]), weight * np.cos(2**k * np.pi * parts[0])]
    return np.concatenate(parts, axis=-1)


def test_frequency_encoding_is_sines_and_cosines_of_powers_of_two_times_pi():
    values = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    expected = [[[1.0, 0.5**0.5, 0.0, 0.5**0.5], [0.0, 1.0, -1.0, 0.0]]]
    torch.testing.assert_close(frequency_encoding(values, 2), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("step", [0, 100, 120, 137, 250, 333, 499, 500, 900])
def test_barf_is_its_formula_at_every_stage_of_the_curriculum(step):
    config = BARFFieldConfig(frequencies=6, direction_frequencies=4, layers=5, width=16, skip=3, color_width=8)
    field = make_field(config).double()
    field.step = step
    samples = make_samples()
    samples.frustums = Frustums(
        *(getattr(samples.frustums, name).double() for name in ("origins", "directions", "starts", "ends")),
        pixel_area=samples.frustums.pixel_area,
    )
    outputs = field(samples)
    weights = weights_of(field)
    points, directions = points_and_directions(samples)
    encoded = barf_encoding(points, 6, step / 1000)
    hidden = encoded
    for index in range(5):
        if index == 3:
            hidden = np.concatenate([hidden, encoded], axis=-1)
        hidden = linear(weights, f"layers.{index}", hidden)
        if index < 4:
            hidden = relu(hidden)
    np.testing.assert_allclose(outputs[FieldHeadNames.DENSITY].detach(), softplus(hidden[..., :1]), rtol=1e-9)
    views = barf_encoding(directions, 4, step / 1000)
    hidden = relu(linear(weights, "color_hidden", np.concatenate([relu(hidden[..., 1:]), views], axis=-1)))
    expected = sigmoid(linear(weights, "color_out", hidden))
    np.testing.assert_allclose(outputs[FieldHeadNames.RGB].detach(), expected, rtol=1e-9)


def test_masked_frequencies_get_no_gradient_and_plain_coordinates_do():
    field = make_field(BARFFieldConfig(frequencies=4, layers=3, width=8, skip=3))
    field.step = 250  # alpha = 1.5: level 0 is open, level 1 half
    field(make_samples())[FieldHeadNames.DENSITY].sum().backward()
    gradient = field.layers[0].weight.grad.abs().sum(0)
    plain, levels = gradient[:3], gradient[3:].view(4, 6).sum(-1)
    assert (plain > 0).all() and (levels[:2] > 0).all() and (levels[2:] == 0).all()


# -- layout ------------------------------------------------------------------------------------------------------------


def test_barf_has_the_released_layers():
    field = make_field(BARFFieldConfig())
    shapes = [tuple(layer.weight.shape) for layer in field.layers]
    assert shapes == [(256, 63), *[(256, 256)] * 3, (256, 256 + 63), *[(256, 256)] * 2, (257, 256)]
    assert tuple(field.color_hidden.weight.shape) == (128, 256 + 27)
    assert tuple(field.color_out.weight.shape) == (3, 128)
    # 63*256+256 + 5*(256*256+256) + 319*256+256 + 256*257+257 + 283*128+128 + 128*3+3
    assert sum(parameter.numel() for parameter in field.parameters()) == 530_052


def test_barf_starts_as_tensorflow_would():
    field = make_field(BARFFieldConfig(layers=3, width=64, skip=1))

    def bound(fan_in: int, fan_out: int, gain: float) -> float:
        return gain * (6 / (fan_in + fan_out)) ** 0.5

    def assert_uniform(values: Tensor, limit: float) -> None:
        assert values.abs().max() <= limit
        assert float(values.std()) == pytest.approx(limit / 3**0.5, rel=0.15)

    assert_uniform(field.layers[0].weight, bound(63, 64, 2**0.5))
    assert_uniform(field.layers[1].weight, bound(64 + 63, 64, 2**0.5))
    assert_uniform(field.layers[2].weight[:1], bound(64, 1, 1.0))
    assert_uniform(field.layers[2].weight[1:], bound(64, 64, 2**0.5))
    assert_uniform(field.color_hidden.weight, bound(64 + 27, 128, 2**0.5))
    assert_uniform(field.color_out.weight, bound(128, 3, 1.0))
    assert all((layer.bias == 0).all() for layer in [*field.layers, field.color_hidden, field.color_out])


def test_garf_is_its_formula():
    config = GARFFieldConfig(layers=3, width=16, skip=2)
    field = make_field(config)
    samples = make_samples(0.3)
    outputs = field(samples)
    weights = weights_of(field)
    points, directions = points_and_directions(samples)

    def gaussian(values: np.ndarray) -> np.ndarray:
        return np.exp(-(values**2) / (2 * 0.1**2))

    def centred(values: np.ndarray) -> np.ndarray:
        return values - values.mean(axis=-1, keepdims=True)

    first = hidden = gaussian(centred(linear(weights, "position_in", points)))
    for index in range(3):
        if index == 2:
            hidden = np.concatenate([first, hidden], axis=-1)
        hidden = gaussian(linear(weights, f"layers.{index}", hidden))
    density = softplus(linear(weights, "density_out", hidden))
    views = gaussian(centred(linear(weights, "direction_in", directions)))
    hidden = np.concatenate([linear(weights, "features_out", hidden), views], axis=-1)
    color = sigmoid(linear(weights, "color_out", gaussian(linear(weights, "color_hidden", hidden))))
    np.testing.assert_allclose(outputs[FieldHeadNames.DENSITY].detach(), density, rtol=1e-3)
    np.testing.assert_allclose(outputs[FieldHeadNames.RGB].detach(), color, rtol=1e-3)


def test_garf_has_the_released_layers():
    field = make_field(GARFFieldConfig())
    shapes = [tuple(layer.weight.shape) for layer in field.layers]
    assert shapes == [*[(256, 256)] * 5, (256, 512)]
    # 2*(3*256+256) + 5*(256*256+256) + 512*256+256 + 256+1 + 256*256+256 + 512*128+128 + 128*3+3
    assert sum(parameter.numel() for parameter in field.parameters()) == 594_436


@pytest.mark.parametrize("config", [BARFFieldConfig(layers=2, width=8, skip=2), GARFFieldConfig(layers=2, width=8)])
def test_all_parameters_are_in_the_decoders_group(config):
    field = make_field(config)
    (group,) = field.get_param_groups().values()
    assert list(field.get_param_groups()) == ["decoder"]
    assert {id(parameter) for parameter in group} == {id(parameter) for parameter in field.parameters()}


# -- space -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_config", [BARFFieldConfig, GARFFieldConfig])
@pytest.mark.parametrize("warp", ["none", "forward-facing", "contraction"])
def test_space_has_no_edge_and_gradients_reach_positions_and_directions(make_config, warp):
    field = make_field(make_config(width=32), warp=warp)
    field.step = 400
    samples = make_samples(2.0)
    samples.frustums.origins = samples.frustums.origins.clone().requires_grad_()
    samples.frustums.directions = samples.frustums.directions.clone().requires_grad_()
    outputs = field(samples)
    positions = samples.frustums.get_positions()
    assert (positions.abs() > 1).any() and (outputs[FieldHeadNames.DENSITY] > 0).all()
    outputs[FieldHeadNames.DENSITY].sum().backward(retain_graph=True)
    assert (samples.frustums.origins.grad.abs().amax(-1) > 0).all()
    outputs[FieldHeadNames.RGB].sum().backward()
    for gradient in (samples.frustums.origins.grad, samples.frustums.directions.grad):
        assert torch.isfinite(gradient).all()
    assert (samples.frustums.directions.grad.abs().amax(-1).amax(-1) > 0).all()


def test_only_captures_are_contracted():
    samples = make_samples(4.0)
    positions = samples.frustums.get_positions()
    for warp in ("none", "forward-facing"):
        assert torch.equal(make_field(BARFFieldConfig(width=8), warp=warp).positions(samples), positions)
    contracted = make_field(BARFFieldConfig(width=8), warp="contraction").positions(samples)
    assert contracted.abs().max() < 2 < positions.abs().max()


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, mode",
    [(BARFFieldConfig(), "lr"), (BARFFieldConfig(), "repeat"), (GARFFieldConfig(), "mask"), (GARFFieldConfig(), "lr")],
)
def test_curricula_that_do_nothing_for_a_network_are_refused(config, mode):
    with pytest.raises(HashPoseError, match="curriculum"):
        make_field(config, CurriculumConfig(mode=mode))


def test_a_gaussian_needs_a_width():
    with pytest.raises(HashPoseError, match="sigma"):
        make_field(GARFFieldConfig(sigma=0.0))
