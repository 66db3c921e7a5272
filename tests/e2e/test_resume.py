"""Training that was killed and resumed ends where uninterrupted training ends."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import (
    FEW_RAYS,
    NO_EVAL,
    SMALL_FIELD,
    checkpoints,
    command,
    environment,
    model_state,
    pose_log,
    succeed,
)
from scenes import CHAIR, blender_scene

from hashpose_ns.runs.history import read_pose_history


@pytest.fixture(scope="module")
def killed_run(tiny_run, tmp_path_factory) -> Path:
    """The same training, killed without warning after its first checkpoint; its folder."""
    output = tmp_path_factory.mktemp("killed")
    folder = output / tiny_run.folder.relative_to(tiny_run.folder.parents[2])
    first = folder / "nerfstudio_models" / f"step-{tiny_run.steps_per_save:09d}.ckpt"
    with open(output / "log.txt", "w") as log:
        process = subprocess.Popen(
            command("ns-train", *tiny_run.arguments, "--output-dir", output), env=environment(), stdout=log, stderr=log
        )
        deadline = time.monotonic() + 240
        while not first.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (output / "log.txt").read_text()[-3000:]
    assert checkpoints(folder)[-1].name < f"step-{tiny_run.steps - 1:09d}.ckpt", "it was to be killed half-way"
    return folder


def assert_same_end(resumed: Path, uninterrupted: Path) -> None:
    ours, theirs = (torch.load(checkpoints(folder)[-1], map_location="cpu") for folder in (resumed, uninterrupted))
    assert ours["step"] == theirs["step"]
    poses = "camera_optimizer.pose_adjustment"
    torch.testing.assert_close(model_state(resumed)[poses], model_state(uninterrupted)[poses], rtol=0, atol=1e-7)
    assert ours["pipeline"].keys() == theirs["pipeline"].keys()
    for key, value in theirs["pipeline"].items():
        torch.testing.assert_close(ours["pipeline"][key], value, rtol=1e-5, atol=1e-7, msg=lambda m: f"{key}: {m}")
    for name, optimizer in theirs["optimizers"].items():
        rates = [[group["lr"] for group in state["param_groups"]] for state in (ours["optimizers"][name], optimizer)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-12)


def test_a_killed_run_resumed_from_its_folder_ends_with_the_same_poses(tiny_run, killed_run, tmp_path):
    succeed("ns-train", *tiny_run.arguments, "--output-dir", tmp_path, "--load-dir", killed_run / "nerfstudio_models")
    resumed = tmp_path / "chair" / "hashpose-blender" / "run"
    assert_same_end(resumed, tiny_run.folder)

    # The log goes on where the checkpoint was made, in errors and in seconds, as if nothing had happened
    ours, theirs = pose_log(resumed), pose_log(tiny_run.folder)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for mine, other in zip(ours, theirs):
        key = "pose_error_after_rotation_deg_mean"
        assert mine[key] == pytest.approx(other[key], rel=1e-6)
    seconds = [record["train_seconds"] for record in ours]
    assert seconds == sorted(seconds)
    histories = [read_pose_history(run / "pose_history.npys") for run in (resumed, tiny_run.folder)]
    for mine, other in zip(*histories):
        np.testing.assert_allclose(mine, other, atol=1e-6)


def test_resuming_from_a_file_ends_at_the_same_step_with_the_same_poses(tiny_run, killed_run, ns_train, tmp_path):
    checkpoint = checkpoints(killed_run)[-1]
    outcome = ns_train(*tiny_run.arguments, "--output-dir", tmp_path, "--load-checkpoint", checkpoint)
    assert outcome.code == 0, outcome.output[-3000:]
    assert_same_end(tmp_path / "chair" / "hashpose-blender" / "run", tiny_run.folder)


def test_a_longer_run_goes_on_from_a_finished_one(tiny_run, ns_train, tmp_path):
    more = tiny_run.steps + 20
    outcome = ns_train(
        *tiny_run.arguments,
        *("--output-dir", tmp_path, "--load-dir", tiny_run.folder / "nerfstudio_models", "--max-num-iterations", more),
    )
    assert outcome.code == 0, outcome.output[-3000:]
    folder = tmp_path / "chair" / "hashpose-blender" / "run"
    assert torch.load(checkpoints(folder)[-1])["step"] == more - 1
    assert model_state(folder)["progress"].tolist() == [more - 1, more]
    assert f"was planned for {tiny_run.steps} steps and this one for {more}" in outcome.output


def test_a_save_that_is_cut_off_leaves_the_checkpoint_before_it(ns_train, monkeypatch, tmp_path):
    save, saves = torch.save, []

    def cut_off(state, path, *args, **kwargs):
        saves.append(path)
        save(state, path, *args, **kwargs)
        if len(saves) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise KeyboardInterrupt

    arguments = [
        *("hashpose-blender", "--experiment-name", "e", "--timestamp", "t", "--output-dir", tmp_path / "out"),
        *("--data", blender_scene(tmp_path / "scene"), "--max-num-iterations", 10, "--steps-per-save", 3),
        *(*SMALL_FIELD, *FEW_RAYS, *NO_EVAL),
    ]
    monkeypatch.setattr(torch, "save", cut_off)
    ns_train(*arguments)
    monkeypatch.setattr(torch, "save", save)
    folder = tmp_path / "out" / "e" / "hashpose-blender" / "t"
    assert [path.name for path in checkpoints(folder)] == ["step-000000003.ckpt"]
    resumed = ns_train(*arguments, "--load-dir", folder / "nerfstudio_models")
    assert resumed.code == 0, resumed.output[-3000:]
    assert [path.name for path in checkpoints(folder)] == ["step-000000009.ckpt"]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["nerfstudio_models"]
    assert [record["step"] for record in pose_log(folder)] == [0, 9]


WARP = "--pipeline.model.camera-optimizer.warp"
LOCAL_TO_GLOBAL = [
    *("--pipeline.model.camera-optimizer.model", "local-to-global", "--pipeline.datamanager.pixel-sampler.cameras"),
    *("equal", f"{WARP}.width", 16, f"{WARP}.embedding", 8, f"{WARP}.until", 0.7),
]


@pytest.mark.parametrize("more", [[], LOCAL_TO_GLOBAL], ids=["se3", "local-to-global"])
def test_resuming_is_exact_with_every_part_that_has_a_state(more, ns_train, tmp_path):
    """Edge-guided pixels, appearance, masked features, camera-side twists, rates by the poses' motion, importance
    samples, or rays that move by themselves and hand over to twists: one step in the middle and on."""
    arguments = [
        *("hashpose-blender", "--experiment-name", "e", "--data", CHAIR, "--max-num-iterations", 41),
        *("--save-only-latest-checkpoint", "False", "--steps-per-save", 20, "--steps-per-pose-log", 7),
        *("--pipeline.datamanager.camera-res-scale-factor", 0.32),
        *("--pipeline.datamanager.pixel-sampler.edge-fraction", 0.5),
        *("--pipeline.model.field.decoder.density-activation", "exp"),
        *("--pipeline.model.field.decoder.appearance-dim", 4),
        *("--pipeline.model.curriculum.mode", "mask", "--pipeline.model.camera-optimizer.side", "camera"),
        *("--pipeline.model.camera-optimizer.settling.decay", 0.7),
        *("--pipeline.model.camera-optimizer.settling.threshold", 0.9),
        *("--pipeline.model.num-importance-samples", 4, "--pipeline.model.importance-start", 0.2),
        *("--pipeline.model.clip-to-box", "True", "--output-dir", tmp_path, *more),
        *(*SMALL_FIELD, *FEW_RAYS, *NO_EVAL),
    ]
    through = ns_train(*arguments, "--timestamp", "through")
    assert through.code == 0, through.output[-3000:]
    folder = tmp_path / "e" / "hashpose-blender"
    assert [path.stem for path in checkpoints(folder / "through")] == ["step-000000020", "step-000000040"]
    resumed = ns_train(
        *(*arguments, "--timestamp", "resumed", "--load-step", 20),
        *("--load-dir", folder / "through" / "nerfstudio_models"),
    )
    assert resumed.code == 0, resumed.output[-3000:]
    assert_same_end(folder / "resumed", folder / "through")
