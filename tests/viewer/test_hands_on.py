"""Pausing, holding, resetting and turning poses from the browser, with the trainer's own steps and Adam."""

from __future__ import annotations

import pytest
import torch
from client import eventually

from hashpose_ns.cameras.alignment import rotation_angle


def act(live_run, client, label, value=True) -> None:
    """Presses or sets, and waits until it was done; training is paused, so the panel's thread does it."""
    revisions = live_run.live.state
    client.set(label, value)
    eventually(lambda: live_run.live.state is not revisions and live_run.is_shown())


def test_paused_poses_stay_bit_for_bit_and_go_on_as_they_were(live_run, client):
    act(live_run, client, "Pause poses", True)
    eventually(lambda: live_run.poses.paused)
    parameter, state = live_run.poses.pose_adjustment, live_run.adam.state[live_run.poses.pose_adjustment]
    before = parameter.detach().clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone(), state["step"].clone()
    tables = [table.detach().clone() for table in live_run.trainer.pipeline.model.field.encoding.tables]
    live_run.advance(8)
    after = parameter.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"]
    assert all(torch.equal(one, other) for one, other in zip(before, after))
    assert parameter.grad is None
    now = live_run.trainer.pipeline.model.field.encoding.tables
    assert any(not torch.equal(one, other) for one, other in zip(tables, now))  # the field goes on
    eventually(lambda: "**Poses are paused.**" in client.texts())
    act(live_run, client, "Pause poses", False)
    eventually(lambda: not live_run.poses.paused)
    live_run.advance(2)
    assert not torch.equal(parameter, before[0])


def test_held_camera_stays_bit_for_bit_with_its_moments_and_the_others_go_on(live_run, client):
    client.set("Camera", "r_2.png")
    eventually(lambda: "camera 3 of 6" in client.texts())
    act(live_run, client, "Hold", True)
    eventually(lambda: live_run.poses.held == {2})
    parameter, state = live_run.poses.pose_adjustment, live_run.adam.state[live_run.poses.pose_adjustment]
    values = (parameter.detach(), state["exp_avg"], state["exp_avg_sq"])
    before = [value.clone() for value in values]
    pose = live_run.now()[2]
    live_run.advance(10)
    others = torch.arange(6) != 2
    for value, earlier in zip(values, before):
        assert torch.equal(value[2], earlier[2])
        assert (value[others] != earlier[others]).any(dim=1).all()
    assert torch.equal(live_run.now()[2], pose)
    assert float(parameter.grad[2].abs().max()) == 0.0  # its rays carry no gradient
    eventually(lambda: "Held: 1 cameras." in client.texts() and "**Held.**" in client.texts())
    act(live_run, client, "Hold", False)
    live_run.advance(3)
    assert not torch.equal(live_run.now()[2], pose)


def test_reset_camera_is_at_its_initial_pose_and_adam_forgot_it(live_run, client):
    client.set("Camera", "r_4.png")
    eventually(lambda: "camera 5 of 6" in client.texts())
    others = torch.arange(6) != 4
    before, state = live_run.now(), live_run.adam.state[live_run.poses.pose_adjustment]
    moments = state["exp_avg"].clone(), state["exp_avg_sq"].clone()
    assert not torch.equal(before[4], live_run.poses.initial_camera_to_worlds[4])
    act(live_run, client, "Reset to start")
    eventually(lambda: "is back at its initial pose" in client.texts())
    torch.testing.assert_close(live_run.now()[4], live_run.poses.initial_camera_to_worlds[4], rtol=0, atol=0)
    assert torch.equal(live_run.now()[others], before[others])
    for moment, earlier in zip((state["exp_avg"], state["exp_avg_sq"]), moments):
        assert not moment[4].any() and torch.equal(moment[others], earlier[others])
    live_run.advance(1)
    step = (live_run.poses.pose_adjustment[4]).abs().max()
    assert 0 < float(step) < 2 * live_run.adam.param_groups[0]["lr"]  # no kick from what Adam remembered


def test_turned_camera_stays_at_its_place_and_looks_elsewhere_by_the_angle(live_run, client):
    client.set("Camera", "r_1.png")
    eventually(lambda: "camera 2 of 6" in client.texts())
    client.set("Degrees", 12.5)
    before = live_run.now()
    act(live_run, client, "Turn")
    eventually(lambda: "was turned by 12.5 deg" in client.texts())
    after = live_run.now()
    angle = torch.rad2deg(rotation_angle(before[1, :, :3].double().T @ after[1, :, :3].double()))
    assert float(angle) == pytest.approx(12.5, abs=1e-3)
    torch.testing.assert_close(after[1, :, 3], before[1, :, 3], rtol=0, atol=1e-5)
    others = torch.arange(6) != 1
    assert torch.equal(after[others], before[others])
    assert not live_run.adam.state[live_run.poses.pose_adjustment]["exp_avg"][1].any()


def test_what_is_asked_for_during_training_happens_between_steps(live_run, client):
    client.set("Camera", "r_5.png")
    eventually(lambda: "camera 6 of 6" in client.texts())
    begin = len(live_run.refined)
    live_run._target = begin + 10_000
    live_run.trainer.training_state = "training"
    client.press("Reset to start")
    eventually(lambda: "r&#95;5.png is back at its initial pose" in client.texts())
    live_run._target = 0
    eventually(lambda: live_run.trainer.training_state == "paused")
    initial = live_run.poses.initial_camera_to_worlds[5]
    distances = torch.stack([live_run.refined[s][5] - initial for s in sorted(live_run.refined)[begin:]]).abs()
    # one step after the reset it is at most a step's length away, in every component of the twist
    assert float(distances.flatten(1).amax(1).min()) < 10 * live_run.adam.param_groups[0]["lr"]


def test_checkpoint_knows_nothing_of_what_is_held(live_run, client):
    keys = set(live_run.trainer.pipeline.state_dict())
    act(live_run, client, "Hold", True)
    act(live_run, client, "Pause poses", True)
    assert set(live_run.trainer.pipeline.state_dict()) == keys
    act(live_run, client, "Hold", False)
    act(live_run, client, "Pause poses", False)
    assert not live_run.poses.held and not live_run.poses.paused
