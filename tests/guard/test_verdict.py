"""The guard's statistics, on paired errors whose answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.movement import Movement
from hashpose_ns.guard.verdict import HeldOutErrors, Verdict, decide, holm


def errors_of(first: torch.Tensor, second: torch.Tensor, cameras: torch.Tensor) -> HeldOutErrors:
    """Errors that are far below those of a shrunk photograph."""
    return HeldOutErrors(first, second, torch.full_like(first, 1e3), cameras)


def decided(errors: HeldOutErrors, turned=0.0, converging: float = 0.0) -> Verdict:
    """The verdict on poses whose cameras turned by some degrees, all of them or each."""
    cameras = int(errors.block_cameras.max()) + 1
    degrees = torch.as_tensor(turned, dtype=torch.float64).expand(cameras)
    return decide(errors, Movement(degrees, converging), GuardConfig())


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
    return errors_of(0.01 * level, 0.01 * level * (noise + of_camera[index]).exp(), index)


def swapped(errors: HeldOutErrors) -> HeldOutErrors:
    return errors_of(errors.second, errors.first, errors.block_cameras)


def test_false_alarms_are_as_rare_as_promised():
    verdicts = [decided(simulated(seed, cameras=8, blocks=5)).verdict for seed in range(120)]
    helped, hurt = verdicts.count("helped") / 120, verdicts.count("hurt") / 120
    # 2.5 % each way; 8 % lies four standard deviations above that
    assert helped < 0.08 and hurt < 0.08
    assert helped + hurt > 0.01, "a test that never rejects has no power either"


def test_no_camera_is_called_hurt_where_none_is():
    alarms = [bool(decided(simulated(seed, cameras=8, camera_effects={})).hurt_cameras) for seed in range(100)]
    assert np.mean(alarms) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100)


def test_a_clear_difference_is_seen_either_way():
    for seed in range(20):
        errors = simulated(seed, effect=0.2)
        hurt, helped = decided(errors), decided(swapped(errors))
        assert (hurt.verdict, helped.verdict) == ("hurt", "helped")
        assert hurt.p_hurt == pytest.approx(helped.p_helped) and hurt.p_hurt < 1e-3 < 0.9 < hurt.p_helped
        assert hurt.log_ratio == pytest.approx(-helped.log_ratio) and hurt.log_ratio == pytest.approx(0.2, abs=0.1)


def test_single_cameras_are_found_among_others_that_are_well():
    verdict = decided(simulated(0, cameras=30, blocks=25, camera_effects={7: 0.8, 21: 1.5, 3: -1.0}))
    assert verdict.verdict == "undecided" and verdict.hurt_cameras == [7, 21]


def test_small_differences_decide_nothing_however_sure_they_are():
    """Of fields that differ by rounding, and of cameras that look at what a lost one spoils."""
    index = torch.arange(20).repeat_interleave(20)
    first = 0.01 * torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ratio, verdict, hurt in ((1.002, "undecided", 0), (1.1, "hurt", 0), (1.3, "hurt", 20)):
        found = decided(errors_of(first, ratio * first, index))
        assert found.p_hurt < 1e-3 and bool((found.p_camera_hurt < 0.05).all())
        assert (found.verdict, len(found.hurt_cameras)) == (verdict, hurt)


def test_help_takes_more_than_harm():
    """Refined poses were fitted to the pixels that are held out from the fields."""
    index = torch.arange(20).repeat_interleave(20)
    first = 0.01 * torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ratio, verdict in ((0.96, "helped"), (0.985, "undecided"), (1.015, "hurt")):
        assert decided(errors_of(first, ratio * first, index)).verdict == verdict


def test_help_is_not_believed_of_a_blur():
    """Poses fit better by 0.9 dB, and no better than thumbnails of the photographs would, or by a little better."""
    errors = swapped(simulated(0, effect=0.2))
    for factor, verdict, doubt in ((0.98, "undecided", "coarse"), (1.02, "helped", None)):
        found = decided(dataclasses.replace(errors, coarse=factor * errors.second))
        assert (found.verdict, found.doubt) == (verdict, doubt)
    hurt = decided(dataclasses.replace(swapped(errors), coarse=errors.second))
    assert (hurt.verdict, hurt.doubt) == ("hurt", None), "harm needs no sharp field"


def test_help_is_not_believed_of_cameras_that_converge():
    errors = swapped(simulated(0, effect=0.2))
    assert (decided(errors, 3.0, 0.45).verdict, decided(errors, 3.0, 0.55).doubt) == ("helped", "converging")
    assert decided(swapped(errors), 3.0, 0.9).verdict == "hurt"
    assert decided(simulated(0), 3.0, 0.9).doubt is None, "nothing to doubt where nothing is said"


def test_cameras_that_moved_far_have_to_fit_better_for_it():
    errors = simulated(0, cameras=30, blocks=25, camera_effects={3: -1.0, 7: 1.0, 21: 0.1})
    turned = torch.zeros(30)
    turned[[3, 7, 12, 21]] = 40.0
    found = decided(errors, turned)
    assert found.hurt_cameras == [7] and found.doubtful_cameras == [12, 21]
    assert decided(errors, turned / 2).doubtful_cameras == []


def test_help_is_not_believed_where_strays_did_most_of_the_turning():
    """Two of 30 cameras are thrown away without fitting clearly better or worse, and the others improve."""
    effects = {camera: -0.4 for camera in range(30)} | {12: 0.1, 21: 0.0}
    errors = simulated(0, cameras=30, blocks=25, camera_effects=effects)
    for others, doubt in ((2.0, "strays"), (10.0, None)):
        turned = torch.full((30,), others)
        turned[[12, 21]] = 90.0
        found = decided(errors, turned)
        assert (found.doubt, found.doubtful_cameras) == (doubt, [12, 21])
        assert found.verdict == ("undecided" if doubt else "helped")
    turned[[12, 21]], turned[[3, 4]] = 10.0, 90.0
    assert decided(errors, turned).doubt is None, "cameras that came home from afar fit better"


def test_no_difference_at_all_is_undecided():
    errors = simulated(0)
    verdict = decided(errors_of(errors.first, errors.first.clone(), errors.block_cameras))
    assert verdict.verdict == "undecided" and verdict.log_ratio == 0
    assert verdict.p_helped == verdict.p_hurt == 1 and verdict.hurt_cameras == []
    assert torch.equal(verdict.first, verdict.second)


def test_a_camera_s_error_is_the_mean_of_its_blocks():
    errors = errors_of(
        torch.tensor([1.0, 3.0, 5.0]).double(), torch.tensor([2.0, 2.0, 6.0]).double(), torch.tensor([0, 0, 1])
    )
    verdict = decided(errors)
    assert verdict.first.tolist() == [2, 5] and verdict.second.tolist() == [2, 6]
    assert verdict.log_ratio == pytest.approx(0.5 * np.log(6 / 5))


@pytest.mark.parametrize("cameras, verdict", [(5, "undecided"), (6, "hurt")])
def test_six_images_is_the_least_that_can_decide(cameras, verdict):
    assert decided(simulated(0, cameras=cameras, effect=2.0)).verdict == verdict


def test_holm_on_a_textbook_case():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])


@pytest.mark.parametrize("bad", [float("nan"), -1.0, float("inf")])
def test_errors_that_are_none_are_refused(bad):
    errors = simulated(0)
    errors.second[3] = bad
    with pytest.raises(ValueError, match="negative or not a number"):
        decided(errors)
