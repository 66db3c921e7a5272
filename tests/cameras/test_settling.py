"""Poses that have settled: told from poses on their way by their motion alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.cameras.settling import Settling, SettlingConfig
from hashpose_ns.errors import HashPoseError

N = 30
ALL = torch.ones(N, dtype=torch.bool)


def trembling(looks: int) -> Tensor:
    """Independent places about a fixed one."""
    return torch.randn(looks, N, 6, generator=torch.Generator().manual_seed(1))


def on_their_way(looks: int) -> Tensor:
    """Every camera along a line of its own, trembling by a quarter of what it moves between looks."""
    lines = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    return torch.arange(looks)[:, None, None] * lines + 0.25 * trembling(looks)


def look_at(corrections: Tensor, **settings) -> Settling:
    settling = Settling(SettlingConfig(decay=0.5, freeze=0.1, **settings), N)
    for some in corrections:
        settling.look(some, ALL)
    return settling


def test_poses_on_their_way_keep_their_rate_and_those_that_tremble_come_to_rest():
    assert look_at(on_their_way(20)).factor == 1.0
    # The first two looks have nothing to compare; then each finds them settled: 0.5, 0.25, 0.125, and below 0.1 is 0.
    assert [look_at(trembling(looks)).factor for looks in (2, 3, 4, 5, 6, 9)] == [1.0, 0.5, 0.25, 0.125, 0.0, 0.0]
    # The expected cosine of successive differences of independent places
    assert Settling(SettlingConfig(decay=0.5), N).look(trembling(1)[0], ALL) is None
    settling = look_at(trembling(2))
    assert settling.look(trembling(3)[2], ALL) == pytest.approx(-0.5, abs=0.1)


def test_one_lost_camera_decides_nothing_and_frozen_ones_are_not_asked():
    corrections = trembling(8)
    corrections[:, 3] = 1000 * on_their_way(8)[:, 3]
    assert look_at(corrections).factor == 0.0
    settling, moving = Settling(SettlingConfig(decay=0.5), N), ALL.clone()
    moving[:20] = False
    for trembles, goes in zip(trembling(8), on_their_way(8)):
        settling.look(torch.where(moving[:, None], goes, trembles), moving)
    assert settling.factor == 1.0
    for _ in range(4):
        assert settling.look(trembling(1)[0], ~ALL) is None, "nobody moves"


def test_a_checkpoint_goes_on_where_it_was():
    through, corrections = look_at(trembling(3)), trembling(6)
    resumed = Settling(SettlingConfig(decay=0.5), N)
    resumed.load_state_dict(through.state_dict())
    assert resumed.factor == through.factor == 0.5
    assert resumed.look(corrections[4], ALL) == through.look(corrections[4], ALL)
    assert resumed.factor == through.factor == 0.25


def test_the_rate_of_poses_falls_with_it_and_old_checkpoints_have_nothing_of_it():
    plain = PoseOptimizer(PoseOptimizerConfig(), N, "cpu")
    assert plain.settling is None and not any("settling" in key for key in plain.state_dict())
    config = PoseOptimizerConfig(start=0.2, warmup=0.0, settling=SettlingConfig(decay=0.5))
    optimizer = PoseOptimizer(config, N, "cpu")
    for some in trembling(4):
        optimizer.settling.look(some, ALL)
    assert [optimizer.rate_factor(progress) for progress in (0.1, 0.2, 1.0)] == [0.0, 0.25, 0.25]


@pytest.mark.parametrize(
    "settings", [{"decay": 0.0}, {"decay": 1.1}, {"window": 0.0}, {"window": 1.0}, {"freeze": 1.0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(HashPoseError, match="settling"):
        PoseOptimizer(PoseOptimizerConfig(settling=SettlingConfig(**{"decay": 0.5, **settings})), N, "cpu")
