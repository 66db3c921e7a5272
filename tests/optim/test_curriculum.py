"""Eq. 14-15 at values worked out by hand, and what each mode acts on."""

from __future__ import annotations

import math

import pytest
import torch

from hashpose_ns.errors import HashPoseError
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig

L = 4
# Four levels, window from step 20 to 60 of 100: alpha = (step - 20) / 10.
QUARTER = (1 - math.sqrt(0.5)) / 2  # (1 - cos(pi / 4)) / 2


def make(**settings) -> Curriculum:
    return Curriculum(CurriculumConfig(window=(0.2, 0.6), **settings), num_levels=L, total_steps=100)


@pytest.mark.parametrize(
    "step, weights",
    [
        (0, [1, 0, 0, 0]),
        (20, [1, 0, 0, 0]),
        (25, [1, 0, 0, 0]),  # level 0 would be half open: it is always on
        (30, [1, 0, 0, 0]),
        (35, [1, 0.5, 0, 0]),
        (42.5, [1, 1, QUARTER, 0]),
        (50, [1, 1, 1, 0]),
        (55, [1, 1, 1, 0.5]),
        (60, [1, 1, 1, 1]),
        (99, [1, 1, 1, 1]),
    ],
)
def test_anchored_weights(step, weights):
    assert make().weights(step) == pytest.approx(weights, abs=1e-12)


@pytest.mark.parametrize(
    "step, weights",
    [
        (0, [0, 0, 0, 0]),
        (30, [0, 0, 0, 0]),
        (35, [0.5, 0, 0, 0]),
        (42.5, [1, QUARTER, 0, 0]),
        (60, [1, 1, 1, 0]),
        (61, [1, 1, 1, 0]),  # alpha ends at L: as printed, the finest level never trains
        (99, [1, 1, 1, 0]),
    ],
)
def test_literal_weights(step, weights):
    assert make(indexing="literal").weights(step) == pytest.approx(weights, abs=1e-12)


@pytest.mark.parametrize(
    "step, weights",
    [
        (0, [0, 0, 0, 0]),
        (25, [0.5, 0, 0, 0]),
        (42.5, [1, 1, QUARTER, 0]),
        (60, [1, 1, 1, 1]),
    ],
)
def test_barfs_weights(step, weights):
    """Nothing is always on."""
    assert make(indexing="barf").weights(step) == pytest.approx(weights, abs=1e-12)


@pytest.mark.parametrize(
    "step, weights",
    [
        (0, [1, 0, 0, 0]),
        (20, [1, 0, 0, 0]),
        (20 + 20 / 3, [1, 0.5, 0, 0]),  # three levels share forty steps: alpha = 3 (step - 20) / 40
        (40, [1, 1, 0.5, 0]),
        (20 + 100 / 3, [1, 1, 1, 0.5]),
        (60, [1, 1, 1, 1]),
        (99, [1, 1, 1, 1]),
    ],
)
def test_baa_ngps_weights(step, weights):
    """The coarsest level is always on, the others share the whole window."""
    assert make(indexing="baa-ngp").weights(step) == pytest.approx(weights, abs=1e-12)


def test_another_number_of_levels_opens_over_the_same_window():
    curriculum = make(indexing="barf", mode="mask")
    assert curriculum.weights(30, num_levels=2) == pytest.approx([0.5, 0])
    features = torch.ones(1, 2, 3)
    torch.testing.assert_close(curriculum.mask_features(features, 30)[0, :, 0], torch.tensor([0.5, 0.0]))


def test_the_papers_own_numbers():
    """200K steps, 16 levels, 20K to 100K: a level opens every 5K steps."""
    curriculum = Curriculum(CurriculumConfig(), num_levels=16, total_steps=200_000)
    for level in range(1, 16):
        opens = 20_000 + 5_000 * level
        assert curriculum.weights(opens)[level] == 0
        assert 0 < curriculum.weights(opens + 1)[level] < 1e-6
        assert curriculum.weights(opens + 2_500)[level] == pytest.approx(0.5)
        assert curriculum.weights(opens + 5_000)[level] == 1


def test_weights_are_monotonic_python_floats():
    curriculum = make()
    before = [0.0] * L
    for step in range(100):
        weights = curriculum.weights(step)
        assert all(type(weight) is float and 0 <= weight <= 1 for weight in weights)
        assert all(later >= earlier for earlier, later in zip(before, weights))
        assert weights == sorted(weights, reverse=True), "coarse levels first"
        before = weights


def test_a_window_over_all_of_training_ends_with_it():
    curriculum = Curriculum(CurriculumConfig(window=(0.0, 1.0)), num_levels=2, total_steps=10)
    assert curriculum.weights(0) == [1.0, 0.0]
    assert curriculum.weights(10) == [1.0, 1.0]


@pytest.mark.parametrize("mode", ["lr", "mask", "repeat", "none"])
def test_only_lr_scales_rates_and_only_masks_change_features(mode):
    curriculum = make(mode=mode)
    features = torch.arange(1.0, 1 + 3 * L * 2).view(3, L, 2)
    step = 35  # weights 1, 0.5, 0, 0
    assert curriculum.learning_rate_weights(step) == pytest.approx([1, 0.5, 0, 0] if mode == "lr" else [1] * L)
    out = curriculum.mask_features(features, step)
    if mode == "mask":
        expected = features * torch.tensor([1, 0.5, 0, 0])[:, None]
    elif mode == "repeat":  # what is masked shows the finest open level, here level 1
        finest = features[:, 1]
        expected = torch.stack([features[:, 0], finest, finest, finest], dim=1)
    else:
        expected = features
    torch.testing.assert_close(out, expected)
    assert torch.equal(curriculum.mask_features(features, 99), features)


def test_masked_levels_get_no_gradient_and_open_ones_do():
    features = torch.rand(5, L, 2, requires_grad=True)
    make(mode="mask").mask_features(features, 35).sum().backward()
    torch.testing.assert_close(features.grad[0, :, 0], torch.tensor([1.0, 0.5, 0.0, 0.0]))


def test_none_trains_all_levels_from_the_start():
    assert make(mode="none").weights(0) == [1.0] * L


@pytest.mark.parametrize("window", [(0.5, 0.5), (0.5, 0.1), (-0.1, 0.5), (0.1, 1.1), (math.nan, 0.5), (0.1, math.nan)])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(HashPoseError, match="window"):
        Curriculum(CurriculumConfig(window=window), num_levels=L, total_steps=100)
