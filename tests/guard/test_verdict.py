"""The guard's statistics, on paired errors whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hashpose_ns.guard.verdict import HeldOutErrors, decide, holm


def simulated(
    seed: int, cameras: int = 12, blocks: int = 20, effect: float = 0.0, camera_effects=None
) -> HeldOutErrors:
    """Errors of blocks, log-normal as images' are, some of them empty; cameras fit better or worse by chance.
    `effect` is added to the second errors' logarithm, for all cameras or for single ones."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(cameras).repeat_interleave(blocks)
    level = torch.randn(cameras * blocks, generator=generator, dtype=torch.float64).exp()
    level[torch.rand(cameras * blocks, generator=generator) < 0.2] = 0.0
    of_camera = 0.05 * torch.randn(cameras, generator=generator, dtype=torch.float64) + effect
    if camera_effects is not None:
        of_camera = torch.zeros(cameras, dtype=torch.float64)
        for camera, value in camera_effects.items():
            of_camera[camera] = value
    noise = 0.1 * torch.randn(cameras * blocks, generator=generator, dtype=torch.float64)
    return HeldOutErrors(0.01 * level, 0.01 * level * (noise + of_camera[index]).exp(), index)


def swapped(errors: HeldOutErrors) -> HeldOutErrors:
    return HeldOutErrors(errors.second, errors.first, errors.block_cameras)


def test_false_alarms_are_as_rare_as_promised():
    verdicts = [decide(simulated(seed, cameras=8, blocks=5)).verdict for seed in range(120)]
    helped, hurt = verdicts.count("helped") / 120, verdicts.count("hurt") / 120
    # 2.5 % each way; 8 % lies four standard deviations above that
    assert helped < 0.08 and hurt < 0.08
    assert helped + hurt > 0.01, "a test that never rejects has no power either"


def test_no_camera_is_called_hurt_where_none_is():
    alarms = [bool(decide(simulated(seed, cameras=8, camera_effects={})).hurt_cameras) for seed in range(100)]
    assert np.mean(alarms) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100)


def test_a_clear_difference_is_seen_either_way():
    for seed in range(20):
        errors = simulated(seed, effect=0.2)
        hurt, helped = decide(errors), decide(swapped(errors))
        assert (hurt.verdict, helped.verdict) == ("hurt", "helped")
        assert hurt.p_hurt == pytest.approx(helped.p_helped) and hurt.p_hurt < 1e-3 < 0.9 < hurt.p_helped
        assert hurt.log_ratio == pytest.approx(-helped.log_ratio) and hurt.log_ratio == pytest.approx(0.2, abs=0.1)


def test_single_cameras_are_found_among_others_that_are_well():
    verdict = decide(simulated(0, cameras=30, blocks=25, camera_effects={7: 0.8, 21: 1.5, 3: -1.0}))
    assert verdict.verdict == "undecided" and verdict.hurt_cameras == [7, 21]


def test_small_differences_decide_nothing_however_sure_they_are():
    """Of fields that differ by rounding, and of cameras that look at what a lost one spoils."""
    index = torch.arange(20).repeat_interleave(20)
    first = 0.01 * torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ratio, verdict, hurt in ((1.002, "undecided", 0), (1.1, "hurt", 0), (1.3, "hurt", 20)):
        decided = decide(HeldOutErrors(first, ratio * first, index))
        assert decided.p_hurt < 1e-3 and bool((decided.p_camera_hurt < 0.05).all())
        assert (decided.verdict, len(decided.hurt_cameras)) == (verdict, hurt)


def test_help_takes_more_than_harm():
    """Refined poses were fitted to the pixels that are held out from the fields."""
    index = torch.arange(20).repeat_interleave(20)
    first = 0.01 * torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ratio, verdict in ((0.96, "helped"), (0.985, "undecided"), (1.015, "hurt")):
        assert decide(HeldOutErrors(first, ratio * first, index)).verdict == verdict


def test_no_difference_at_all_is_undecided():
    errors = simulated(0)
    verdict = decide(HeldOutErrors(errors.first, errors.first.clone(), errors.block_cameras))
    assert verdict.verdict == "undecided" and verdict.log_ratio == 0
    assert verdict.p_helped == verdict.p_hurt == 1 and verdict.hurt_cameras == []
    assert torch.equal(verdict.first, verdict.second)


def test_a_camera_s_error_is_the_mean_of_its_blocks():
    errors = HeldOutErrors(
        torch.tensor([1.0, 3.0, 5.0]).double(), torch.tensor([2.0, 2.0, 6.0]).double(), torch.tensor([0, 0, 1])
    )
    verdict = decide(errors)
    assert verdict.first.tolist() == [2, 5] and verdict.second.tolist() == [2, 6]
    assert verdict.log_ratio == pytest.approx(0.5 * np.log(6 / 5))


@pytest.mark.parametrize("cameras, verdict", [(5, "undecided"), (6, "hurt")])
def test_six_images_is_the_least_that_can_decide(cameras, verdict):
    assert decide(simulated(0, cameras=cameras, effect=2.0)).verdict == verdict


def test_holm_on_a_textbook_case():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])


@pytest.mark.parametrize("bad", [float("nan"), -1.0, float("inf")])
def test_errors_that_are_none_are_refused(bad):
    errors = simulated(0)
    errors.second[3] = bad
    with pytest.raises(ValueError, match="negative or not a number"):
        decide(errors)
