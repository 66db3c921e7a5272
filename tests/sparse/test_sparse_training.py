"""The network and its training, tiny."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from hashpose_ns.errors import HashPoseError
from hashpose_ns.sparse.geometry import angles
from hashpose_ns.sparse.network import Cameras, SparsePoseNet
from hashpose_ns.sparse.scenes import Scenes, random_scenes
from hashpose_ns.sparse.settings import CaptureConfig, NetworkConfig, TrainSettings
from hashpose_ns.sparse.training import CHECKPOINT, LOG, Pool, Training, disturbed, pose_loss, surface_loss
from hashpose_ns.sparse.weights import load_weights, save_weights
from hashpose_ns.stopping import StopSignals

CPU = torch.device("cpu")


def tiny(**changes) -> TrainSettings:
    network = NetworkConfig(size=32, width=32, layers=1, hidden=32, points=16, steps=2)
    settings = dict(steps=50, images=16, fresh=1, pool=6, lr=3e-3, refine_from=0.0, freeze_from=1.0, fewest=3, most=4)
    return TrainSettings(network=network, **{**settings, **changes})


def training_in(folder: Path, settings: TrainSettings, allow_change: bool = False) -> Training:
    folder.mkdir(exist_ok=True)
    training = Training(folder, settings, CPU, "float32")
    training.resume(allow_change)
    return training


def take_steps(training: Training, count: int) -> list[list[float]]:
    """Losses, coarse and after each refinement step."""
    pool, losses = Pool(training.settings, training.step, CPU), []
    for _ in range(count):
        losses.append([float(loss) for loss in training.train_step(pool.draw(training.step))])
        pool.renew(training.step - 1)
    return losses


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return random_scenes("articulated", 3, 4, 32, CaptureConfig(), torch.Generator().manual_seed(0))


def test_fifty_steps_lower_the_loss(tmp_path, scenes):
    training = training_in(tmp_path / "run", tiny(refine_from=0.8))
    losses = [float(training.train_step(scenes)[0]) for _ in range(50)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    training.save()
    assert load_weights(tmp_path / "run" / "weights.npz")[1]["step"] == 50


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = training_in(tmp_path / "whole", tiny(family="both", widen_until=0.5, pool=4))
    expected = take_steps(whole, 6)
    first = training_in(tmp_path / "parts", tiny(family="both", widen_until=0.5, pool=4))
    losses = take_steps(first, 4)
    first.save()
    second = training_in(tmp_path / "parts", tiny(family="both", widen_until=0.5, pool=4))
    assert second.step == 4
    assert losses + take_steps(second, 2) == expected
    for name, value in whole.averaged.state_dict().items():
        assert torch.equal(value, second.averaged.state_dict()[name]), name


def test_the_log_has_chance_and_every_stage_and_forgets_what_the_checkpoint_does_not_know(tmp_path):
    settings = tiny(steps=4, refine_from=0.5)
    said: list[str] = []
    training = training_in(tmp_path / "run", settings)
    training.run(StopSignals(), report_every=2, say=said.append)
    log = tmp_path / "run" / LOG
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and len(said) == 2
    assert [len(row["articulated"]) for row in rows] == [1, 3] and rows[0]["chance"]["median_deg"] > 30
    with log.open("a") as file:
        file.write(json.dumps({"step": 6}) + "\n" + '{"step": 8, "sec')
    assert training_in(tmp_path / "run", settings).step == 4
    assert [json.loads(line) for line in log.read_text().splitlines()] == rows


def test_other_settings_and_damaged_checkpoints_are_refused(tmp_path):
    take_steps(training := training_in(tmp_path / "run", tiny()), 1)
    training.save()
    with pytest.raises(HashPoseError, match=r"other settings \(lr\)"):
        training_in(tmp_path / "run", tiny(lr=1e-3))
    assert training_in(tmp_path / "run", tiny(lr=1e-3), allow_change=True).changes == [[1, {"lr": 1e-3}]]
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(HashPoseError, match="cannot be read"):
        training_in(tmp_path / "run", tiny())
    for wrong in (dict(fewest=1), dict(fewest=5, most=4), dict(most=9), dict(steps=0), dict(images=2)):
        with pytest.raises(HashPoseError):
            tiny(**wrong).validate()
    with pytest.raises(HashPoseError, match="multiple of 16"):
        TrainSettings(network=NetworkConfig(size=50)).validate()


def test_after_freezing_only_refinement_learns(tmp_path, scenes):
    training = training_in(tmp_path / "run", tiny(steps=8, freeze_from=0.5))
    for _ in range(5):
        training.train_step(scenes)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    training.save()
    training = training_in(tmp_path / "run", tiny(steps=8, freeze_from=0.5))
    training.train_step(scenes)
    for name, value in training.network.state_dict().items():
        if value.is_floating_point():
            learns = name.startswith(("refinement.", "to_map."))
            assert learns != torch.equal(value, before[name]), name
    rates = [training.learning_rate(step) for step in range(8)]
    assert rates[4] == rates[0] > rates[3]


def test_a_run_can_start_from_the_coarse_part_of_weights(tmp_path):
    first = training_in(tmp_path / "first", tiny())
    first.save()
    second = training_in(tmp_path / "second", tiny(seed=1))
    second.start_from(tmp_path / "first" / "weights.npz")
    ours, theirs = second.averaged.state_dict(), first.averaged.state_dict()
    torch.testing.assert_close(ours["coarse.0.weight"], theirs["coarse.0.weight"], atol=1e-3, rtol=1e-3)
    assert not torch.equal(ours["refinement.lstm.weight_hh"], theirs["refinement.lstm.weight_hh"])
    other = TrainSettings(network=NetworkConfig(size=32, width=64, layers=1, hidden=32))
    with pytest.raises(HashPoseError, match="of another network"):
        training_in(tmp_path / "third", other).start_from(tmp_path / "first" / "weights.npz")


def test_blind_refinement_sees_the_map_alone(scenes):
    network = SparsePoseNet(tiny().network).eval()
    torch.nn.init.normal_(network.refinement.head[-1].weight, std=0.1)
    blind = torch.tensor([True, False, True])
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    coarse, seeing = network(scenes.images, scenes.tangents, None, 1, seeds[0])
    blinded = network(scenes.images, scenes.tangents, None, 1, seeds[1], blind)[1]
    moved = angles(seeing.rotations, blinded.rotations).amax(1)
    assert float(moved[1]) < 1e-3 < float(moved[[0, 2]].min())
    assert bool((angles(blinded.rotations, coarse.rotations) > 0.01).any())


def test_refinement_starts_at_no_update_and_gets_gradients(scenes):
    network = SparsePoseNet(tiny().network)
    stages = network(scenes.images, scenes.tangents)
    for stage in stages[1:]:
        torch.testing.assert_close(stage.rotations, stages[0].rotations)
        torch.testing.assert_close(stage.centers, stages[0].centers)
    pose_loss(stages[-1], scenes, 1.0).backward()
    assert float(network.refinement.head[-1].weight.grad.abs().max()) > 0


@pytest.mark.parametrize("surface", [True, False])
def test_half_precision_leaves_poses_single(scenes, surface):
    """Rotations stay orthonormal under autocast, with the map's surface and without."""
    config = tiny().network
    config.surface, config.map_stride = surface, 2 if surface else 4
    network = SparsePoseNet(config).eval()
    torch.nn.init.normal_(network.refinement.head[-1].weight, std=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(scenes.images, scenes.tangents, generator=torch.Generator().manual_seed(1))[-1].rotations
    assert found.dtype == torch.float32
    torch.testing.assert_close(found @ found.transpose(-1, -2), torch.eye(3).expand_as(found), atol=1e-5, rtol=0)


def test_the_surface_loss_is_zero_for_a_true_map_and_asks_nothing_of_blobs(scenes):
    points = scenes.surface.flatten(0, 1)
    there = torch.where(points[:, :1].isnan(), -30.0, 30.0)
    true = torch.cat([points.nan_to_num() / 0.5, there], 1)
    assert float(surface_loss(true, scenes)) < 1e-5
    wrong = torch.cat([true[:, :3] + 0.1, there], 1)
    assert float(surface_loss(wrong, scenes)) == pytest.approx(0.3, abs=1e-3)
    blobs = Scenes(**{**vars(scenes), "canonical": torch.zeros(3, dtype=torch.bool)})
    assert float(surface_loss(wrong, blobs)) < 1e-5


def test_later_views_are_a_set(scenes):
    """The network knows which view is first, and no order of the others."""
    network = SparsePoseNet(tiny().network).eval()
    torch.nn.init.normal_(network.refinement.head[-1].weight, std=0.1)
    order = torch.tensor([0, 3, 1, 2])
    found = network(scenes.images, scenes.tangents, generator=torch.Generator().manual_seed(1))[-1]
    other = network(scenes.images[:, order], scenes.tangents[:, order], generator=torch.Generator().manual_seed(1))[-1]
    torch.testing.assert_close(found.rotations[:, order], other.rotations, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.centers[:, order], other.centers, atol=1e-4, rtol=0)
    assert float(angles(found.rotations, network(scenes.images, scenes.tangents, steps=0)[0].rotations).max()) > 0.1


def test_disturbed_starts_are_as_far_off_as_asked(scenes):
    settings = tiny(disturbed=1.0, disturbed_deg=(10.0, 20.0))
    start = disturbed(scenes, settings, torch.Generator().manual_seed(0))
    off = angles(start.rotations, scenes.rotations)
    assert 2.9 < float(off.min()) and float(off.max()) < 20.1
    settings.disturbed = 0.0
    assert bool(disturbed(scenes, settings, torch.Generator()).rotations.isnan().all())
    # What refinement starts from where nothing is given is the coarse estimate.
    network = SparsePoseNet(settings.network).eval()
    nothing = Cameras(torch.full((3, 4, 3, 3), math.nan), torch.zeros(3, 4, 3))
    coarse, refined = network(scenes.images, scenes.tangents, nothing, 1)
    torch.testing.assert_close(coarse.rotations, refined.rotations)


def test_the_loss_is_zero_at_the_truth_and_knows_no_frame_of_blobs(scenes):
    true = Cameras(scenes.rotations, scenes.unit_centers)
    assert float(pose_loss(true, scenes, 1.0)) < 1e-6
    turned = Cameras(scenes.rotations @ scenes.rotations[:1, :1].squeeze(), scenes.unit_centers)
    assert float(pose_loss(turned, scenes, 1.0)) > 0.05
    blobs = Scenes(**{**vars(scenes), "canonical": torch.zeros(3, dtype=torch.bool)})
    assert float(pose_loss(turned, blobs, 1.0)) < 1e-5


def test_weights_come_back_and_others_are_refused(tmp_path):
    network = SparsePoseNet(tiny().network)
    save_weights(tmp_path / "weights.npz", network, {"step": 3})
    loaded, note = load_weights(tmp_path / "weights.npz")
    assert note["step"] == 3 and not loaded.training
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    (tmp_path / "broken.npz").write_bytes((tmp_path / "weights.npz").read_bytes()[:5000])
    with pytest.raises(HashPoseError, match="holds no weights"):
        load_weights(tmp_path / "broken.npz")
    with pytest.raises(HashPoseError, match="There is no file"):
        load_weights(tmp_path / "nowhere.npz")
