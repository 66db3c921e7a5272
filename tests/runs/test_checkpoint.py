"""Checkpoints that are damaged, foreign or hostile: each is refused by one sentence, or makes no difference."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch

from hashpose_ns.optim.schedules import AdamConfig, ScheduleConfig
from hashpose_ns.runs.checkpoint import (
    DamagedCheckpoint,
    check_training_state,
    older_offered,
    read_checkpoint,
    read_last_checkpoint,
)

STEP = 2
POSES = "_model.camera_optimizer."


class Training:
    """Parameters, their optimizer and its schedule, as in a run."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((30, 2), (7,))]
        adam = AdamConfig(lr=1e-3).setup([{"params": [parameter]} for parameter in self.parameters])
        self.optimizers = {"field": adam}
        self.schedulers = {"field": ScheduleConfig(lr_final=1e-4, total_steps=9).setup().get_scheduler(adam, 1e-3)}

    def train(self) -> None:
        for _ in range(STEP + 1):
            for parameter in self.parameters:
                parameter.grad = parameter.detach().clone()
            self.optimizers["field"].step()
            self.schedulers["field"].step()

    def state(self) -> Dict[str, Any]:
        """What nerfstudio saves."""
        start = torch.eye(4)[:3].repeat(5, 1, 1)
        start[:, :, 3] = torch.arange(15.0).reshape(5, 3)
        model = {f"_model.field.{index}": parameter.detach() for index, parameter in enumerate(self.parameters)}
        model |= {f"{POSES}initial_camera_to_worlds": start, f"{POSES}reference_camera_to_worlds": start.clone()}
        model |= {f"{POSES}pose_adjustment": torch.zeros(5, 6), f"{POSES}fallen_back": torch.ones(())}
        return {
            "step": STEP,
            "pipeline": {**model, "_model.progress": torch.tensor([STEP, 9])},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
            "scalers": {},
        }


@pytest.fixture(scope="module")
def trained() -> Training:
    training = Training()
    training.train()
    return training


@pytest.fixture
def saved(trained, tmp_path) -> Path:
    path = tmp_path / "step-000000002.ckpt"
    torch.save(trained.state(), path)
    return path


def same(one: Any, two: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def test_a_whole_one_is_read_and_goes_on_to_the_same_bits(trained, saved):
    state = read_checkpoint(saved)
    assert same(state, trained.state())
    resumed = Training()
    with torch.no_grad():
        for index, parameter in enumerate(resumed.parameters):
            parameter.copy_(state["pipeline"][f"_model.field.{index}"])
    check_training_state(saved, state, resumed.optimizers, resumed.schedulers)
    resumed.optimizers["field"].load_state_dict(state["optimizers"]["field"])
    resumed.schedulers["field"].load_state_dict(state["schedulers"]["field"])
    uninterrupted = Training()
    for training, rounds in ((uninterrupted, 2), (resumed, 1)):
        for _ in range(rounds):
            training.train()
    assert same(resumed.state(), uninterrupted.state())


def test_what_goes_on_with_a_checkpoint_does_not_look_into_its_file_any_more(trained, saved):
    state, resumed = read_checkpoint(saved), Training()
    check_training_state(saved, state, resumed.optimizers, resumed.schedulers)
    with open(saved, "r+b") as file:
        file.write(bytes(saved.stat().st_size))
    assert same(state["optimizers"], trained.state()["optimizers"])


def test_a_file_system_without_maps(trained, saved, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refused)
    assert same(read_checkpoint(saved), trained.state())


def test_a_file_that_is_replaced_while_it_is_read_is_not_taken_unseen(saved, monkeypatch):
    def replaced(*args, load=torch.load, **kwargs):
        other = saved.with_name("other")
        other.write_bytes(saved.read_bytes())
        os.replace(other, saved)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", replaced)
    with pytest.raises(DamagedCheckpoint, match="replaced while it was read"):
        read_checkpoint(saved)


def test_flipped_bits_and_cuts_are_refused_or_make_no_difference(trained, saved):
    whole, generator = saved.read_bytes(), random.Random(0)
    refused = 0
    for number in range(200):
        damaged = bytearray(whole)
        if number % 4 == 0:
            del damaged[generator.randrange(len(whole)) :]
        else:
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        saved.write_bytes(damaged)
        try:
            assert same(read_checkpoint(saved), trained.state())
        except DamagedCheckpoint as error:
            refused += 1
            assert str(error).startswith(f"The checkpoint {saved} cannot be used: ") and "\n" not in str(error)
    assert refused > 100  # much of so small a file is padding, which nothing reads


class Code:
    def __reduce__(self):
        return os.system, ("false",)


def with_entry(*keys: Any, value: Any) -> Callable[[Any], Any]:
    """A change that sets an entry of a state, or changes it by a function."""

    def change(state: Any) -> Any:
        inner = state
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value(inner[keys[-1]]) if callable(value) else value
        return state

    return change


def without(*keys: Any) -> Callable[[Any], Any]:
    def change(state: Any) -> Any:
        inner = state
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return state

    return change


def at(index: Any, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


FIELD = ("pipeline", "_model.field.0")
MOMENT = ("optimizers", "field", "state", 0, "exp_avg")


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda state: [state], "it holds a list"),
        (lambda state: None, "it holds a NoneType"),
        (lambda state: {**state, "more": Code()}, "something other than numbers"),
        *((with_entry("step", value=step), "its step is") for step in ("x", None, -5, 1.5, True)),
        (without("step"), "its step is None"),
        *((without(part), f"it has no {part}") for part in ("pipeline", "optimizers", "schedulers", "scalers")),
        *((with_entry(part, value="x"), f"its {part} are a 'x'") for part in ("pipeline", "optimizers", "schedulers")),
        (with_entry(*FIELD, value="x"), "'_model.field.0' is not a tensor"),
        (with_entry(*FIELD, value=None), "is not a tensor"),
        (with_entry(*FIELD, value=lambda x: x.to_sparse()), "not a plain tensor"),
        (with_entry(*FIELD, value=lambda x: x.to("meta")), "not a plain tensor"),
        (with_entry(*FIELD, value=at(3, float("nan"))), "_model.field.0 is not finite"),
        (with_entry(*MOMENT, value=at(3, float("inf"))), "optimizers.field.exp_avg is not finite"),
        (with_entry("pipeline", "_model.progress", value=torch.tensor([-1, 9])), "progress is negative"),
        (with_entry("optimizers", "field", value=[]), "no state"),
        (with_entry("optimizers", "field", "state", 0, value=3), "no state"),
        (with_entry("optimizers", "field", "param_groups", value=None), "no parameter groups"),
        (with_entry("pipeline", f"{POSES}initial_camera_to_worlds", value=torch.ones(())), "its poses are ()"),
        (with_entry("pipeline", f"{POSES}initial_camera_to_worlds", value=torch.zeros(5, 3, 4)), "not rigid"),
        (
            with_entry("pipeline", f"{POSES}initial_camera_to_worlds", value=at((2, 0, 3), 1e20)),
            "start pose of camera 2 is impossibly large (1e+20)",
        ),
        (
            with_entry("pipeline", f"{POSES}reference_camera_to_worlds", value=at((1, 0, 0), -1.0)),
            "camera 1 is not rig",
        ),
        (with_entry("pipeline", f"{POSES}pose_adjustment", value=at((4, 1), 1e20)), "correction of camera 4"),
        (with_entry("pipeline", f"{POSES}pose_adjustment", value=at((4, 5), -1e20)), "correction of camera 4"),
        (with_entry("pipeline", f"{POSES}pose_adjustment", value=torch.zeros(4, 6)), "are (4, 6) numbers"),
        (with_entry("pipeline", f"{POSES}fallen_back", value=torch.tensor(2.0)), "not between 0 and 1"),
    ],
)
def test_content_that_is_no_checkpoint_is_refused(trained, saved, change, reason):
    torch.save(change(copy.deepcopy(trained.state())), saved)
    with pytest.raises(DamagedCheckpoint, match=r"cannot be used: [^\n]*\.$") as refusal:
        read_checkpoint(saved)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("content, reason", [(b"", "it is empty"), (bytes(9000), "no checkpoint"), (b"no", "cut off")])
def test_files_that_are_no_archive(saved, content, reason):
    saved.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=reason):
        read_checkpoint(saved)


SCHEDULE = ("schedulers", "field")
GROUP = ("optimizers", "field", "param_groups", 0)


@pytest.mark.parametrize(
    "change, reason",
    [
        (with_entry(*MOMENT, value=lambda x: x[:-1].clone()), "exp_avg of parameter 0"),
        (with_entry(*MOMENT, value=lambda x: torch.cat([x, x])), "(60, 2)"),
        (with_entry(*MOMENT, value=lambda x: x[:1].expand(30, 2)), "exp_avg of parameter 0"),
        (with_entry(*MOMENT, value=lambda x: x.double()), "float64"),
        (with_entry(*MOMENT, value=lambda x: x.flatten()), "(60,)"),
        (without(*MOMENT), "has the state ['exp_avg_sq', 'step']"),
        (with_entry(*MOMENT[:-1], "exp_avg_sq", value=at(3, -1.0)), "exp_avg_sq of parameter 0"),
        (with_entry(*MOMENT[:-1], "step", value=torch.tensor(-1.0)), "step of parameter 0"),
        (with_entry(*MOMENT[:-1], "step", value=torch.tensor([1.0, 2.0])), "step of parameter 0"),
        (with_entry("optimizers", "field", "state", 7, value={}), "parameters that do not exist"),
        (without(*GROUP), "other parameters"),
        (with_entry(*GROUP, "params", value=[1]), "other parameters"),
        (with_entry(*GROUP, "lr", value="x"), "lr 'x'"),
        (with_entry(*GROUP, "lr", value=float("nan")), "lr nan"),
        (with_entry(*GROUP, "betas", value=(0.9,)), "betas (0.9,)"),
        (with_entry("optimizers", "other", value={"state": {}, "param_groups": []}), "those of ['field', 'other']"),
        (without("optimizers", "field"), "those of []"),
        (with_entry(*SCHEDULE, value="x"), "no steps"),
        (with_entry(*SCHEDULE, "last_epoch", value="x"), "last_epoch 'x'"),
        (with_entry(*SCHEDULE, "last_epoch", value=99), "at step 99"),
        (with_entry(*SCHEDULE, "base_lrs", value=[1.0]), "base_lrs [1.0]"),
        (with_entry("scalers", "scale", value="x"), "gradient scaler's 'scale'"),
    ],
)
def test_memory_of_optimizers_that_does_not_fit_is_refused(trained, saved, change, reason):
    state = change(copy.deepcopy(trained.state()))
    resumed = Training()
    with pytest.raises(DamagedCheckpoint, match=r"cannot be used: [^\n]*\.$") as refusal:
        check_training_state(saved, state, resumed.optimizers, resumed.schedulers)
    assert reason in str(refusal.value)


def test_a_checkpoint_sets_no_attribute_and_does_not_say_how_adam_computes(trained, saved):
    state = copy.deepcopy(trained.state())
    state["schedulers"]["field"] |= {"step": 5, "optimizer": "x"}
    state["optimizers"]["field"]["param_groups"][0] |= {"amsgrad": True, "fused": False}
    resumed = Training()
    check_training_state(saved, state, resumed.optimizers, resumed.schedulers)
    assert same({key: state[key] for key in ("optimizers", "schedulers")}, {
        key: trained.state()[key] for key in ("optimizers", "schedulers")
    })  # fmt: skip


# -- a folder of them --------------------------------------------------------------------------------------------------


def test_an_older_one_that_is_whole_is_named(saved):
    folder = saved.parent
    for step, content in ((1, b"cut"), (3, b"cut"), (4, b"")):
        (folder / f"step-{step:09d}.ckpt").write_bytes(content)
    with pytest.raises(DamagedCheckpoint) as refusal:
        read_last_checkpoint(folder)
    newest = folder / "step-000000004.ckpt"
    assert str(refusal.value) == (
        f"The checkpoint {newest} cannot be used: it is empty; {saved} is whole: move the damaged file away to go back "
        "to it."
    )
    with pytest.raises(DamagedCheckpoint, match=f"whole: give {saved} instead"):
        with older_offered(newest, "give {older} instead"):
            read_checkpoint(newest)
    newest.unlink()
    saved.unlink()
    with pytest.raises(DamagedCheckpoint, match="000000003.ckpt cannot be used: it is cut off, or no checkpoint.$"):
        read_last_checkpoint(folder)


def test_only_what_nerfstudio_calls_a_checkpoint_is_one(saved, trained):
    folder = saved.parent
    for name in (".DS_Store", "notes.txt", "step-000000009.ckpt.bak", "step-9.ckpt", "step-latest.ckpt"):
        (folder / name).write_text("")
    (folder / "step-000000009.ckpt").mkdir()
    assert same(read_last_checkpoint(folder), trained.state())
    assert read_last_checkpoint(folder / "nowhere") is None
