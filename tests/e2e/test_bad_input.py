"""Bad input ends training with one sentence, exit code 1, and nothing left behind."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import FEW_RAYS, NO_EVAL, SMALL_FIELD, checkpoints, model_state, run
from PIL import Image
from scenes import blender_scene, edit_json, llff_scene, nerfstudio_scene

from hashpose_ns.runs.folder import RunFolder

QUICK = (*SMALL_FIELD, *FEW_RAYS, *NO_EVAL, "--experiment-name", "e", "--timestamp", "t")


def assert_one_sentence(code: int, output: str, *contents: str) -> None:
    assert code == 1, output[-3000:]
    assert "Traceback" not in output, output[-3000:]
    errors = re.findall(r"^Error: (.*)$", output, flags=re.MULTILINE)
    assert len(errors) == 1, output[-3000:]
    for content in contents:
        assert content in errors[0]
    assert errors[0].endswith(".")


@pytest.fixture
def scene(tmp_path) -> Path:
    return blender_scene(tmp_path / "scene")


@pytest.fixture
def refused(ns_train, tmp_path):
    """Runs ns-train on what it must refuse with a sentence that holds the given words."""

    def check(*arguments, contents, method: str = "hashpose-blender") -> None:
        output = tmp_path / "outputs"
        outcome = ns_train(method, *QUICK, "--output-dir", output, "--max-num-iterations", 5, *arguments)
        assert_one_sentence(outcome.code, outcome.output, *contents)
        assert not output.exists(), sorted(output.rglob("*"))

    return check


# -- in a process of its own, as a shell sees it -----------------------------------------------------------------------


def test_missing_image_as_a_command(scene, tmp_path):
    (scene / "train" / "r_3.png").unlink()
    process = run("ns-train", "hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene)
    assert_one_sentence(process.returncode, process.stdout, "1 of 6 images are missing", "r_3.png")
    assert not (tmp_path / "outputs").exists()


def test_unfit_checkpoint_with_the_viewer_running_as_a_command(tiny_run, tmp_path):
    process = run(
        "ns-train",
        *tiny_run.arguments,
        *("--output-dir", tmp_path / "outputs", "--load-dir", tiny_run.folder / "nerfstudio_models"),
        *("--pipeline.model.field.decoder.width", 48, "--vis", "viewer"),
    )
    assert_one_sentence(process.returncode, process.stdout, "doesn't fit this configuration", "field.")
    assert not (tmp_path / "outputs").exists()


# -- images ------------------------------------------------------------------------------------------------------------


def test_first_image_missing(scene, refused):
    (scene / "train" / "r_0.png").unlink()  # Blender's dataparser opens this one itself
    refused("--data", scene, contents=["r_0.png"])


def test_held_out_image_missing(scene, refused):
    (scene / "test" / "r_1.png").unlink()
    refused("--data", scene, contents=["1 of 2 images are missing", "test/r_1.png"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_truncated_image(scene, refused, split):
    image = scene / split / "r_1.png"
    image.write_bytes(image.read_bytes()[:200])
    refused("--data", scene, contents=["The image", "r_1.png", "cannot be read"])


def test_file_that_is_no_image(scene, refused):
    (scene / "train" / "r_2.png").write_text("not a picture")
    refused("--data", scene, contents=["r_2.png", "cannot be read"])


def test_pixel_format_that_would_be_misread(scene, refused):
    image = scene / "train" / "r_2.png"
    Image.open(image).convert("P").save(image)
    refused("--data", scene, contents=["r_2.png", "pixel format P"])


def test_one_image(tmp_path, refused):
    refused("--data", blender_scene(tmp_path / "one", num_train=1), contents=["1 training image", "at least 2"])


def test_image_of_another_size_than_its_camera(tmp_path, refused):
    scene = nerfstudio_scene(tmp_path / "scene")
    image = scene / "images" / "frame_04.png"
    Image.open(image).resize((30, 20)).save(image)
    refused("--data", scene, contents=["frame_04.png is 30x20", "24x24"], method="hashpose-small")


def test_some_images_with_alpha(tmp_path, refused):
    scene = nerfstudio_scene(tmp_path / "scene")
    image = scene / "images" / "frame_04.png"
    Image.open(image).convert("RGBA").save(image)
    refused("--data", scene, contents=["alpha channel"], method="hashpose-small")


# -- poses and data ----------------------------------------------------------------------------------------------------


def test_nan_pose(scene, refused):
    edit_json(
        scene / "transforms_train.json",
        lambda meta: meta["frames"][2]["transform_matrix"][0].__setitem__(3, float("nan")),
    )
    refused("--data", scene, contents=["The pose of camera ./train/r_2", "not a finite number"])


def test_pose_that_is_not_rigid(scene, refused):
    def double(meta):
        matrix = np.array(meta["frames"][1]["transform_matrix"])
        matrix[:3, :3] *= 2
        meta["frames"][1]["transform_matrix"] = matrix.tolist()

    edit_json(scene / "transforms_train.json", double)
    refused("--data", scene, contents=["The pose of camera ./train/r_1", "not rigid"])


def test_folder_without_data(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    refused("--data", tmp_path / "empty", contents=["transforms_train.json"])


def test_file_that_is_no_json(scene, refused):
    (scene / "transforms_train.json").write_text("{")
    refused("--data", scene, contents=["The data cannot be read"])


def test_frame_without_a_pose(scene, refused):
    edit_json(scene / "transforms_train.json", lambda meta: meta["frames"][1].pop("transform_matrix"))
    refused("--data", scene, contents=["'transform_matrix' is missing"])


def test_more_poses_than_images(tmp_path, refused):
    scene = llff_scene(tmp_path / "scene")
    (scene / "images" / "image_03.png").unlink()
    refused("--data", scene, contents=["10 poses", "9 images"], method="hashpose-llff")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_frozen_camera_that_is_not_there(scene, refused):
    contents = ["The frozen camera 'r_33.png' is not one of the 6 training images", "the nearest name is 'r_3.png'"]
    refused("--pipeline.model.camera-optimizer.frozen-cameras", "r_33.png", "--data", scene, contents=contents)


@pytest.mark.parametrize("window", [("0.5", "0.5"), ("0.6", "0.2"), ("0.1", "1.5")])
def test_curriculum_window_that_is_none(scene, refused, window):
    refused("--pipeline.model.curriculum.window", *window, "--data", scene, contents=["curriculum's window"])


@pytest.mark.parametrize(
    "setting, value, content",
    [
        ("model.camera-optimizer.start", "1.5", "fractions of training"),
        ("model.num-samples", "1", "at least 2 samples"),
        ("model.far-plane", "1", "near plane"),
        ("model.field.encoding.num-levels", "0", "num_levels"),
        ("datamanager.perturbation.rotation", "-1", "cannot be negative"),
        ("datamanager.pixel-sampler.edge-fraction", "2", "between 0 and 1"),
        ("model.field.decoder.implementation", "tcnn", "tinycudann cannot be used here"),
        ("tto-images", "0", "tto-images must be at least 1"),
    ],
)
def test_setting_out_of_range(scene, refused, setting, value, content):
    if value == "tcnn" and importlib.util.find_spec("tinycudann") is not None:
        pytest.skip("tinycudann is installed here")
    refused(f"--pipeline.{setting}", value, "--data", scene, contents=[content])


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tiny_run) -> Path:
    return tiny_run.folder / "nerfstudio_models"


def resumed(tiny_run, refused, *arguments, contents) -> None:
    refused(*tiny_run.arguments[1:], "--timestamp", "t", *arguments, contents=contents)


def test_nothing_left_to_train(tiny_run, models, refused):
    contents = [f"The checkpoint is at step {tiny_run.steps - 1}", "nothing is left to train"]
    resumed(tiny_run, refused, "--load-dir", models, contents=contents)
    resumed(tiny_run, refused, "--load-checkpoint", checkpoints(tiny_run.folder)[0], contents=contents)


def test_checkpoint_of_other_images(tiny_run, models, refused, tmp_path):
    fewer = blender_scene(tmp_path / "fewer", num_train=7)
    resumed(tiny_run, refused, "--load-dir", models, "--data", fewer, contents=["40 images", "7 now"])
    others = blender_scene(tmp_path / "others", num_train=40)

    def turn_round(meta):
        meta["frames"] = meta["frames"][::-1]

    edit_json(others / "transforms_train.json", turn_round)
    resumed(tiny_run, refused, "--load-dir", models, "--data", others, contents=["trained on other cameras"])


def test_checkpoint_with_other_modules(tiny_run, models, refused):
    for setting, value in (("decoder.width", 48), ("decoder.appearance-dim", 4), ("encoding.num-levels", 4)):
        arguments = ("--load-dir", models, f"--pipeline.model.field.{setting}", value)
        resumed(tiny_run, refused, *arguments, contents=["doesn't fit this configuration"])


def test_checkpoint_that_is_not_there(tiny_run, models, refused, tmp_path):
    resumed(tiny_run, refused, "--load-dir", tmp_path / "nowhere", contents=["nowhere holds no checkpoint"])
    resumed(tiny_run, refused, "--load-dir", models, "--load-step", 7, contents=["step-000000007.ckpt"])
    resumed(tiny_run, refused, "--load-checkpoint", tmp_path / "no.ckpt", contents=["no checkpoint", "no.ckpt"])


def test_checkpoint_that_is_cut_off(tiny_run, refused, tmp_path):
    cut = tmp_path / "step-000000100.ckpt"
    cut.write_bytes(checkpoints(tiny_run.folder)[0].read_bytes()[:5000])
    resumed(tiny_run, refused, "--load-checkpoint", cut, contents=["step-000000100.ckpt cannot be used"])


def test_evaluation_of_other_images_than_those_trained_on(ns_train, ns_eval, tmp_path):
    scene = blender_scene(tmp_path / "scene")
    trained = ns_train(
        *("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--max-num-iterations", 2, "--data", scene)
    )
    assert trained.code == 0, trained.output[-3000:]
    config = tmp_path / "outputs" / "e" / "hashpose-blender" / "t" / "config.yml"
    edit_json(scene / "transforms_train.json", lambda meta: meta["frames"].pop())
    outcome = ns_eval("--load-config", config, "--output-path", tmp_path / "eval.json")
    assert_one_sentence(outcome.code, outcome.output, "6 images", "5 now")
    (scene / "train" / "r_1.png").unlink()
    outcome = ns_eval("--load-config", config, "--output-path", tmp_path / "eval.json")
    assert_one_sentence(outcome.code, outcome.output, "1 of 5 images are missing")
    assert not (tmp_path / "eval.json").exists()


def test_other_files_in_the_output_folder_survive(scene, ns_train, tmp_path):
    folder = tmp_path / "outputs" / "e" / "hashpose-blender" / "t"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (scene / "train" / "r_3.png").unlink()
    outcome = ns_train("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene)
    assert_one_sentence(outcome.code, outcome.output, "missing")
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_earlier_run_in_the_folder_survives_one_that_fails(scene, ns_train, tmp_path):
    def train(*arguments):
        return ns_train("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene, *arguments)

    assert train("--max-num-iterations", 3).code == 0
    folder = tmp_path / "outputs" / "e" / "hashpose-blender" / "t"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    failed = train("--max-num-iterations", 9, "--pipeline.model.num-samples", 1)
    assert_one_sentence(failed.code, failed.output, "at least 2 samples")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_failure_of_the_first_step_leaves_nothing(scene, refused, sabotage):
    def spoil(pipeline, step, losses):
        losses["rgb_loss"] = losses["rgb_loss"] * float("nan")

    sabotage(spoil)
    refused("--data", scene, contents=["The loss of step 0 is NaN"])


# -- the run's folder --------------------------------------------------------------------------------------------------


def test_two_runs_do_not_share_a_folder(scene, ns_train, tmp_path):
    other = RunFolder(tmp_path / "outputs" / "e" / "hashpose-blender" / "t")  # as another process has it
    try:
        outcome = ns_train("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene)
        assert_one_sentence(outcome.code, outcome.output, "Another process", str(other.path), "--timestamp")
        assert sorted(path.name for path in other.path.iterdir()) == [".lock"]
    finally:
        other.take_back()


def test_output_folder_that_cannot_be_made(scene, ns_train, tmp_path):
    (tmp_path / "outputs").touch()
    outcome = ns_train("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene)
    assert_one_sentence(outcome.code, outcome.output, "Not a directory", str(tmp_path / "outputs"))


def test_a_full_disk_keeps_the_last_good_checkpoint(scene, ns_train, monkeypatch, tmp_path):
    save = torch.save

    def full_after_the_first(state, path):
        save(state, path)
        if state["step"] > 4:
            path.write_bytes(path.read_bytes()[:1000])
            raise RuntimeError("unexpected pos 64 vs 0")  # torch's word for it

    monkeypatch.setattr(torch, "save", full_after_the_first)
    outcome = ns_train(
        *("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene),
        *("--max-num-iterations", 20, "--steps-per-save", 4),
    )
    assert_one_sentence(outcome.code, outcome.output, "The checkpoint of step 8 cannot be written", "step-000000004")
    folder = tmp_path / "outputs" / "e" / "hashpose-blender" / "t"
    assert [path.name for path in checkpoints(folder)] == ["step-000000004.ckpt"]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_logs_that_cannot_be_written_end_training_in_a_sentence(scene, ns_train, monkeypatch, tmp_path):
    """TensorBoard's are written by a thread of its own, which dies there."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    written = []

    def full_after_some(writer, data):
        if len(written) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(data)

    monkeypatch.setattr(RecordWriter, "write", full_after_some)
    outcome = ns_train(
        *("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene),
        *("--max-num-iterations", 2000, "--logging.steps-per-log", 1, "--steps-per-save", 4),
    )
    assert_one_sentence(outcome.code, outcome.output, "Training cannot continue: No space left on device")
    assert "A file could not be written in the background: No space left on device." in outcome.output


# -- signals -----------------------------------------------------------------------------------------------------------


def test_stopped_runs_are_saved_and_go_on_as_if_they_had_not_been(scene, ns_train, sabotage, tmp_path):
    def train(name, *arguments):
        outcome = ns_train(
            *("hashpose-blender", *QUICK, "--output-dir", tmp_path / name, "--data", scene),
            *("--pipeline.model.camera-optimizer.start", 0, "--max-num-iterations", 12, *arguments),
        )
        return outcome, tmp_path / name / "e" / "hashpose-blender" / "t"

    whole = train("whole")[1]
    signals = {3: signal.SIGINT, 7: signal.SIGTERM}
    sabotage(lambda pipeline, step, losses: step in signals and os.kill(os.getpid(), signals.pop(step)))
    resume = ()
    for step, name, code in ((3, "SIGINT", 130), (7, "SIGTERM", 143)):
        stopped, folder = train("stopped", *resume)
        assert stopped.code == code and "Traceback" not in stopped.output
        assert f"Stopped by {name} after {step + 1} of 12 steps" in stopped.output
        assert f"--load-dir {folder / 'nerfstudio_models'}" in stopped.output
        assert [path.name for path in checkpoints(folder)] == [f"step-{step:09d}.ckpt"]
        resume = ("--load-dir", folder / "nerfstudio_models")
    assert train("stopped", *resume)[0].code == 0
    expected, resumed = model_state(whole), model_state(folder)
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())


def test_a_run_that_is_stopped_before_the_first_step_leaves_nothing(scene, ns_train, monkeypatch, tmp_path):
    from hashpose_ns.datamanager import HashPoseDataManager

    monkeypatch.setattr(HashPoseDataManager, "setup_eval", lambda self: os.kill(os.getpid(), signal.SIGINT))
    outcome = ns_train("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene)
    assert outcome.code == 130 and "Traceback" not in outcome.output
    assert "Stopped by SIGINT before the first step" in outcome.output
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "moment", ["nerfstudio.configs.experiment_config.CONSOLE.rule", "nerfstudio.scripts.train._set_random_seed"]
)
def test_ctrl_c_while_nerfstudio_prints_or_launches_is_no_traceback(scene, ns_train, monkeypatch, tmp_path, moment):
    monkeypatch.setattr(moment, lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    outcome = ns_train("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene)
    assert outcome.code == 130 and "Traceback" not in outcome.output, outcome.output[-3000:]
    assert "Stopped by SIGINT before training began." in outcome.output


# -- numbers that stop being numbers -----------------------------------------------------------------------------------


def test_absurd_learning_rate_stops_with_the_step_and_keeps_the_checkpoint(scene, ns_train, tmp_path):
    def train(*arguments):
        return ns_train(
            *("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--steps-per-save", 10),
            *(*arguments, "--pipeline.model.camera-optimizer.start", 0, "--data", scene),
        )

    good = train("--max-num-iterations", 11)
    assert good.code == 0, good.output[-3000:]
    folder = tmp_path / "outputs" / "e" / "hashpose-blender" / "t"
    (checkpoint,) = checkpoints(folder)
    content = checkpoint.read_bytes()

    # Loaded rates would be the checkpoint's, so the bad rate arrives with new optimizers
    for group in ("decoder", "camera-opt"):
        bad = train(f"--optimizers.{group}.optimizer.lr", 1e30, f"--optimizers.{group}.scheduler.lr-final", 1e30)
        assert_one_sentence(bad.code, bad.output, "step", "learning rate that is too high", checkpoint.name)
        step = int(re.search(r"step (\d+)", bad.output.split("Error:")[1]).group(1))
        assert step <= 3, "the stop comes at once"
        assert checkpoints(folder) == [checkpoint] and checkpoint.read_bytes() == content
    resumed = train("--max-num-iterations", 13, "--load-dir", checkpoint.parent)
    assert resumed.code == 0, resumed.output[-3000:]


@pytest.fixture
def sabotage(monkeypatch):
    """Lets a function change the pipeline or the losses of each step; the steps that were taken come back."""
    from hashpose_ns.pipeline import HashPosePipeline

    steps, original = [], HashPosePipeline.get_train_loss_dict

    def install(change) -> list:
        def spoilt(pipeline, step):
            outputs, losses, metrics = original(pipeline, step)
            steps.append(step)
            change(pipeline, step, losses)
            return outputs, losses, metrics

        monkeypatch.setattr(HashPosePipeline, "get_train_loss_dict", spoilt)
        return steps

    return install


@pytest.mark.parametrize("looks_every_step", [True, False])
def test_loss_that_is_no_number_is_named(scene, ns_train, sabotage, monkeypatch, tmp_path, looks_every_step):
    def spoil(pipeline, step, losses):
        if step == 7:
            losses["rgb_loss"] = losses["rgb_loss"] * float("nan")

    steps = sabotage(spoil)
    if not looks_every_step:  # as on a GPU, where every look waits for it
        from hashpose_ns.trainer import HashPoseTrainer

        monkeypatch.setattr(HashPoseTrainer, "_is_checked", lambda trainer, step: step % 5 == 0)
    outcome = ns_train(
        *("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene),
        *("--max-num-iterations", 30, "--steps-per-save", 6),
    )
    assert_one_sentence(outcome.code, outcome.output, "The loss of step 7 is NaN", "step-000000006.ckpt")
    assert steps[-1] == (7 if looks_every_step else 10)
    (kept,) = checkpoints(tmp_path / "outputs" / "e" / "hashpose-blender" / "t")
    assert kept.name == "step-000000006.ckpt"
    assert all(torch.isfinite(value).all() for value in torch.load(kept)["pipeline"].values())


def test_parameters_that_are_no_numbers_are_not_saved(scene, ns_train, sabotage, tmp_path):
    def spoil(pipeline, step, losses):
        if step == 9:
            pipeline.model.field.color_network.layers[-1].bias.data[0] = float("nan")  # which no gradient depends on

    sabotage(spoil)
    outcome = ns_train(
        *("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene),
        *("--max-num-iterations", 10, "--steps-per-save", 4),
    )
    assert_one_sentence(
        outcome.code, outcome.output, "Poses or field are NaN or infinite after step 9", "step-000000008.ckpt"
    )
    (kept,) = checkpoints(tmp_path / "outputs" / "e" / "hashpose-blender" / "t")
    assert kept.name == "step-000000008.ckpt"


def test_without_a_checkpoint_the_message_says_so(scene, ns_train, sabotage, tmp_path):
    sabotage(lambda pipeline, step, losses: losses.update(rgb_loss=losses["rgb_loss"] * float("inf")))
    outcome = ns_train("hashpose-blender", *QUICK, "--output-dir", tmp_path / "outputs", "--data", scene)
    assert_one_sentence(outcome.code, outcome.output, "The loss of step 0", "no checkpoint had been saved")
