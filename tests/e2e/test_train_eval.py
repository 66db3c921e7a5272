"""ns-train and ns-eval on the packaged scene, and what they leave on disk."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from commands import checkpoints, model_state, pose_log, succeed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hashpose_ns.runs.history import read_pose_history

POSE_KEYS = [
    f"pose_error_{when}_{measure}_{statistic}"
    for when in ("before", "after")
    for measure in ("rotation_deg", "translation", "center")
    for statistic in ("mean", "median", "max")
]


def test_training_says_that_it_uses_the_cpu_and_finishes(tiny_run):
    assert "No CUDA device found: training on the CPU." in tiny_run.output
    assert "Training Finished" in tiny_run.output


def test_pose_errors_are_logged_to_a_file(tiny_run):
    records = pose_log(tiny_run.folder)
    assert [record["step"] for record in records] == [*range(0, tiny_run.steps, 20), tiny_run.steps - 1]
    for record in records:
        assert set(POSE_KEYS) <= set(record)
        assert all(math.isfinite(value) for value in record.values())
    seconds = [record["train_seconds"] for record in records]
    assert seconds == sorted(seconds) and seconds[0] > 0
    first, last = records[0], records[-1]
    # BARF's noise of 0.15 on 40 cameras, and poses that stand still before the delayed start
    assert 8 < first["pose_error_before_rotation_deg_mean"] < 20
    assert first["pose_error_after_rotation_deg_mean"] == first["pose_error_before_rotation_deg_mean"]
    assert last["pose_error_before_rotation_deg_mean"] == first["pose_error_before_rotation_deg_mean"]
    assert last["pose_error_after_rotation_deg_mean"] != first["pose_error_after_rotation_deg_mean"]
    assert last["train_loss"] < 0.8 * first["train_loss"]


def test_the_history_of_poses_begins_at_the_initial_ones_and_ends_at_the_refined_ones(tiny_run):
    steps, poses = read_pose_history(tiny_run.folder / "pose_history.npys")
    assert steps[0] == 0 and steps[-1] == tiny_run.steps - 1 and (np.diff(steps) > 0).all()
    state = model_state(tiny_run.folder)
    initial = state["camera_optimizer.initial_camera_to_worlds"].double().numpy()
    np.testing.assert_allclose(poses[0], initial, atol=1e-6)
    for pose, twist, start in zip(poses[-1], state["camera_optimizer.pose_adjustment"].double().numpy(), initial):
        generator = np.zeros((4, 4))
        generator[:3, :3], generator[:3, 3] = np.cross(twist[3:], -np.eye(3)), twist[:3]
        np.testing.assert_allclose(
            pose, (scipy.linalg.expm(generator) @ np.vstack([start, [0, 0, 0, 1]]))[:3], atol=1e-5
        )


def test_the_psnr_of_held_out_pixels_is_followed(tiny_run):
    psnr = [record["held_out_psnr"] for record in pose_log(tiny_run.folder)]
    assert psnr[-1] > psnr[0] + 1.0
    assert f"held-out PSNR {psnr[-1]:.2f} dB" in tiny_run.output


def test_pose_errors_and_rates_of_every_level_are_in_tensorboard(tiny_run):
    (events,) = tiny_run.folder.glob("events.out.tfevents.*")
    log = EventAccumulator(str(events))
    log.Reload()
    tags = set(log.Tags()["scalars"])
    assert {f"Pose Errors/{key}" for key in POSE_KEYS} <= tags
    assert {f"learning_rate/encoding_level_{level:02d}" for level in range(5)} <= tags
    logged = {event.step: event.value for event in log.Scalars("Pose Errors/pose_error_after_rotation_deg_mean")}
    for record in pose_log(tiny_run.folder):
        assert logged[record["step"]] == pytest.approx(record["pose_error_after_rotation_deg_mean"], rel=1e-6)
    finest = {event.step: event.value for event in log.Scalars("learning_rate/encoding_level_04")}
    coarsest = {event.step: event.value for event in log.Scalars("learning_rate/encoding_level_00")}
    assert finest[0] == 0 < coarsest[0]
    # The window ends at half of training; the logged rate is the next step's
    assert finest[150] == pytest.approx(coarsest[150], rel=1e-6)


def test_only_the_latest_checkpoint_is_kept_and_loads_safely(tiny_run):
    (checkpoint,) = checkpoints(tiny_run.folder)
    assert checkpoint.name == f"step-{tiny_run.steps - 1:09d}.ckpt"
    assert not (tiny_run.folder / ".saving").exists()
    state = torch.load(checkpoint, map_location="cpu")  # weights_only is torch's default
    assert state["step"] == tiny_run.steps - 1
    assert set(state["optimizers"]) == {"encoding", "decoder", "camera_opt"}
    names = [key for key in state["pipeline"] if "lpips" in key.lower()]
    assert not names, "weights of LPIPS do not belong into a checkpoint"


def test_eval_writes_finite_flat_floats(tiny_run, tmp_path):
    succeed("ns-eval", "--load-config", tiny_run.folder / "config.yml", "--output-path", tmp_path / "eval.json")
    content = json.loads((tmp_path / "eval.json").read_text())
    results = content["results"]
    assert content["method_name"] == "hashpose-blender"
    expected = [f"{metric}_{variant}" for metric in ("psnr", "ssim") for variant in ("aligned", "tto")]
    expected += [f"{name}_std" for name in expected] + POSE_KEYS + ["fps", "num_rays_per_sec"]
    assert set(expected) <= set(results)
    for name, value in results.items():
        assert isinstance(value, float) and math.isfinite(value), name
    assert results["num_eval_images"] == 2.0
    last = pose_log(tiny_run.folder)[-1]
    for key in POSE_KEYS:
        assert results[key] == pytest.approx(last[key], rel=1e-5, abs=1e-7)


def test_export_takes_the_refined_poses_away(tiny_run, tmp_path):
    succeed(
        *("hashpose-export", "nerfstudio", "--load-config", tiny_run.folder / "config.yml"),
        *("--output-dir", tmp_path / "export", "--align", "none"),
    )
    frames = json.loads((tmp_path / "export" / "transforms.json").read_text())["frames"]
    exported = torch.tensor([frame["transform_matrix"] for frame in frames])[:, :3]
    state = model_state(tiny_run.folder)
    initial = state["camera_optimizer.initial_camera_to_worlds"]
    assert exported.shape == initial.shape
    moved = (exported - initial).abs().amax(dim=(1, 2))
    assert (moved > 1e-4).all(), "every camera was refined"
    assert moved.max() < 0.5
