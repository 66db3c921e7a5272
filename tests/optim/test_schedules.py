"""Learning rates per level over training, levels that are not open yet, and exact resuming."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig
from hashpose_ns.optim.schedules import AdamConfig, GroupedAdam, ScheduleConfig
from nerfstudio.engine.optimizers import Optimizers

STEPS = 50
LEVELS = 3


class Training:
    """An encoding under the curriculum, and poses under their delay, in nerfstudio's optimizers."""

    def __init__(self, lr_final=1e-4) -> None:
        torch.manual_seed(0)
        self.encoding = HashEncodingConfig(
            num_levels=LEVELS, base_resolution=2, max_resolution=8, log2_hashmap_size=8, init_scale=1.0, backend="eager"
        ).setup(num_dims=3)
        self.curriculum = Curriculum(CurriculumConfig(window=(0.2, 0.8)), LEVELS, STEPS)
        self.poses = PoseOptimizerConfig(start=0.2, warmup=0.4).setup(num_cameras=2, device="cpu")
        factors = {
            "encoding": self.curriculum.learning_rate_weights,
            "camera_opt": lambda step: [self.poses.rate_factor(step / STEPS)],
        }
        config = {
            name: {
                "optimizer": AdamConfig(lr=1e-2),
                "scheduler": ScheduleConfig(lr_final=lr_final, total_steps=STEPS, factors=factors[name]),
            }
            for name in factors
        }
        groups = {
            "encoding": [{"params": [table], "level": level} for level, table in enumerate(self.encoding.tables)],
            "camera_opt": [self.poses.pose_adjustment],
        }
        self.optimizers = Optimizers(config, groups)

    def step(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        open_levels = [factor > 0 for factor in self.curriculum.learning_rate_weights(step)]
        self.optimizers.zero_grad_all()
        points = torch.rand(64, 3, generator=generator)
        loss = (self.encoding(points, open_levels) - torch.rand(64, 2 * LEVELS, generator=generator)).square().mean()
        if self.poses.rate_factor(step / STEPS) > 0:
            loss = loss + (self.poses.pose_adjustment - 1).square().mean()
        loss.backward()
        for optimizer in self.optimizers.optimizers.values():
            optimizer.step()
        for scheduler in self.optimizers.schedulers.values():
            scheduler.step()

    def rates(self) -> dict[str, list[float]]:
        return {name: [group["lr"] for group in opt.param_groups] for name, opt in self.optimizers.optimizers.items()}

    def tables(self) -> list[Tensor]:
        return [table.detach().clone() for table in self.encoding.tables]

    def state(self) -> dict:
        return {
            "encoding": self.encoding.state_dict(),
            "poses": self.poses.state_dict(),
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.optimizers.items()},
            "schedulers": {name: schedule.state_dict() for name, schedule in self.optimizers.schedulers.items()},
        }

    def load(self, state: dict) -> None:
        self.encoding.load_state_dict(state["encoding"])
        self.poses.load_state_dict(state["poses"])
        self.optimizers.load_optimizers(state["optimizers"])
        self.optimizers.load_schedulers(state["schedulers"])


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_rates_decay_exponentially_times_the_levels_weight():
    training = Training()
    for step in range(STEPS):
        decay = 1e-2 * (1e-4 / 1e-2) ** (step / STEPS)
        weights = training.curriculum.weights(step)
        rates = training.rates()
        assert rates["encoding"] == pytest.approx([decay * weight for weight in weights], rel=1e-9, abs=1e-15)
        factor = min(max((step / STEPS - 0.2) / 0.4, 0.0), 1.0)  # still for a fifth of training, then up in two fifths
        assert rates["camera_opt"] == pytest.approx([decay * factor], rel=1e-9, abs=1e-15)
        training.step(step)
    assert training.rates()["encoding"] == pytest.approx([1e-4] * LEVELS)


def test_a_cooldown_takes_the_rate_linearly_to_nothing_at_the_end():
    parameter = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([parameter], lr=1e-2)
    config = ScheduleConfig(lr_final=1e-3, decay_until=0.5, cooldown=0.2, total_steps=STEPS)
    schedule = config.setup().get_scheduler(adam, 1e-2)
    for step in range(STEPS):
        decayed = 1e-2 * 0.1 ** min(step / (0.5 * STEPS), 1.0)
        expected = decayed if step <= 0.8 * STEPS else decayed * (STEPS - step) / (0.2 * STEPS)
        assert adam.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9)
        adam.step()
        schedule.step()
    assert adam.param_groups[0]["lr"] == 0.0
    with pytest.raises(HashPoseError, match="cooldown"):
        ScheduleConfig(cooldown=1.5, total_steps=STEPS).setup().get_scheduler(adam, 1e-2)


def test_without_a_final_rate_the_rate_stays():
    training = Training(lr_final=None)
    for step in range(STEPS):
        training.step(step)
    assert training.rates()["encoding"] == pytest.approx([1e-2] * LEVELS)


def test_a_decay_can_end_before_training_does():
    adam = AdamConfig(lr=1e-2).setup([torch.nn.Parameter(torch.zeros(1))])
    schedule = ScheduleConfig(lr_final=1e-4, decay_until=0.2, total_steps=100).setup().get_scheduler(adam, 1e-2)
    rates = []
    for _ in range(100):
        rates += schedule.get_last_lr()
        adam.step()
        schedule.step()
    assert rates[:21] == pytest.approx([1e-2 * 10 ** (-2 * step / 20) for step in range(21)])
    assert rates[20:] == pytest.approx([1e-4] * 80)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_a_decay_until_no_fraction_of_training_is_refused(fraction):
    adam = AdamConfig().setup([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(HashPoseError, match="fraction of training"):
        ScheduleConfig(lr_final=1e-4, decay_until=fraction, total_steps=10).setup().get_scheduler(adam, 5e-4)


def test_levels_that_are_not_open_keep_their_bits_and_have_no_adam_state():
    training = Training()
    start = training.tables()
    adam = training.optimizers.optimizers["encoding"]
    opened = {}
    for step in range(STEPS):
        before = training.tables()
        weights = training.curriculum.weights(step)
        training.step(step)
        for level, table in enumerate(training.encoding.tables):
            if weights[level] > 0:
                opened.setdefault(level, step)
                assert not torch.equal(table, before[level])
            else:
                assert torch.equal(table, start[level]) and table.grad is None
                assert table not in adam.state, "moments would remember gradients from before the level opened"
    # alpha = L (step - 10) / 30; level l opens when alpha > l
    assert opened == {0: 0, 1: 21, 2: 31}
    assert [int(adam.state[table]["step"]) for table in training.encoding.tables] == [50, 29, 19]


def test_poses_that_stand_still_have_no_adam_state():
    training = Training()
    for step in range(11):  # the factor at the start of the warm-up is still 0
        training.step(step)
        assert not training.optimizers.optimizers["camera_opt"].state
        assert torch.equal(training.poses.pose_adjustment, torch.zeros(2, 6))
    training.step(11)
    assert training.poses.pose_adjustment.abs().min() > 0


def test_the_state_holds_python_numbers_and_loads_safely():
    training = Training()
    for step in range(30):
        training.step(step)
    state = through_a_file(training.state())  # numpy scalars would make this raise
    rates = [group["lr"] for group in state["optimizers"]["encoding"]["param_groups"]]
    assert [type(rate) for rate in rates] == [float] * LEVELS
    assert all(type(rate) is float for rate in state["schedulers"]["encoding"]["_last_lr"])


@pytest.mark.parametrize("interrupted_at", [5, 25, 40])
def test_resuming_is_exact(interrupted_at):
    through, first, second = Training(), Training(), Training()
    for step in range(STEPS):
        through.step(step)
    for step in range(interrupted_at):
        first.step(step)
    second.load(through_a_file(first.state()))
    assert second.rates() == first.rates()
    for step in range(interrupted_at, STEPS):
        second.step(step)
    assert second.rates() == through.rates()
    for ours, theirs in zip(second.tables(), through.tables()):
        assert torch.equal(ours, theirs)
    assert torch.equal(second.poses.pose_adjustment, through.poses.pose_adjustment)


def test_other_trainers_are_told_that_the_schedule_needs_this_one():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(HashPoseError, match="hashpose trainer"):
        ScheduleConfig(lr_final=1e-4).setup().get_scheduler(optimizer, 1e-2)


@pytest.mark.parametrize("lr_final", [0.0, -1e-3, float("nan")])
def test_a_final_rate_that_no_decay_reaches_is_refused(lr_final):
    with pytest.raises(HashPoseError, match="above 0"):
        Training(lr_final=lr_final)


def test_a_rate_of_zero_stays_zero_and_a_negative_one_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(1))
    adam = AdamConfig(lr=0.0).setup([parameter])
    schedule = ScheduleConfig(lr_final=1e-4, total_steps=10).setup().get_scheduler(adam, 0.0)
    adam.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.0]
    with pytest.raises(HashPoseError, match="out of range"):
        AdamConfig(lr=-1.0).setup([parameter])


# -- groups in one launch ----------------------------------------------------------------------------------------------


class FusedLaunches(TorchDispatchMode):
    """Counts launches of the fused Adam."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._fused_adam_.default
        return func(*args, **(kwargs or {}))


def test_groups_with_the_same_rate_take_one_launch_and_get_the_bits_that_single_ones_would():
    def make(adam):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.randn(50, 2, generator=generator).requires_grad_() for _ in range(6)]
        groups = [{"params": [parameter], "level": level} for level, parameter in enumerate(parameters)]
        return parameters, adam(groups, lr=1e-2, eps=1e-15, betas=(0.9, 0.99), fused=True)

    (ours, grouped), (theirs, plain) = make(GroupedAdam), make(torch.optim.Adam)
    # The curriculum's course: closed levels without a gradient, one that opens, open ones.
    for rates in ([1.0, 0.3, 0, 0, 0, 0], [1.0, 1.0, 1.0, 0.2, 0, 0], [1.0] * 6):
        for _ in range(3):
            generator = torch.Generator().manual_seed(7)
            for a, b, group_a, group_b, rate in zip(ours, theirs, grouped.param_groups, plain.param_groups, rates):
                group_a["lr"] = group_b["lr"] = 1e-2 * rate
                gradient = torch.randn(50, 2, generator=generator)
                a.grad, b.grad = (gradient.clone(), gradient) if rate > 0 else (None, None)
            plain.step()
            with FusedLaunches() as launches:
                grouped.step()
            assert launches.count == len(set(rates) - {0})
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert [group["level"] for group in grouped.param_groups] == list(range(6))
    one, other = grouped.state_dict(), plain.state_dict()
    assert one["param_groups"] == other["param_groups"]
    for index, state in other["state"].items():
        assert all(torch.equal(one["state"][index][name], value) for name, value in state.items())


def test_hooks_run_once_a_step_whoever_else_has_made_an_adam():
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # from then on Adam's own step runs hooks
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamConfig(lr=0.1).setup([parameter])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert calls == ["before", "after"]
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9))
