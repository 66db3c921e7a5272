"""Every method trains without a device flag, and the rest of nerfstudio goes on working beside the plugin."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from commands import FEW_RAYS, NO_EVAL, SMALL_FIELD, checkpoints, environment, model_state, pose_log, run
from scenes import blender_scene, llff_scene, nerfstudio_scene

from hashpose_ns.guard.report import read_verdict

STEPS = 6


@pytest.fixture
def trained(ns_train, tmp_path):
    """Trains a few steps; the run's folder."""

    def train(method: str, data, *arguments):
        outcome = ns_train(
            *(method, "--output-dir", tmp_path / "out", "--experiment-name", "e", "--timestamp", "t", "--data", data),
            # The poses are right: on the way they would go back
            *("--guard.fallback-at", "--guard.steps", 4, "--guard.rays", 64, "--max-num-iterations", STEPS),
            *("--steps-per-save", 4, "--pipeline.model.camera-optimizer.start", 0),
            *("--logging.local-writer.enable", "False", *NO_EVAL, *FEW_RAYS, *arguments),
        )
        assert outcome.code == 0, outcome.output[-3000:]
        folder = tmp_path / "out" / "e" / method / "t"
        assert [path.name for path in checkpoints(folder)] == [f"step-{STEPS - 1:09d}.ckpt"]
        assert [record["step"] for record in pose_log(folder)] == [0, STEPS - 1]
        state = model_state(folder)
        assert all(torch.isfinite(value).all() for value in state.values())
        assert (state["camera_optimizer.pose_adjustment"].abs().amax(dim=1) > 0).any(), "poses were refined"
        return folder

    return train


def test_hashpose_on_a_capture_in_nerfstudio_format(trained, tmp_path):
    scene = nerfstudio_scene(tmp_path / "scene", num_images=10)
    # The default grid and decoder, at fewer samples
    folder = trained("hashpose", scene, "--pipeline.model.num-samples", 8)
    state = model_state(folder)
    assert len(state["camera_optimizer.pose_adjustment"]) == 9, "nerfstudio holds a tenth out"
    assert state["field.density_network.layers.0.weight"].shape[0] == 256
    # The poses are given ones: there is no error to speak of, only a change
    assert "pose_change_rotation_deg_mean" in pose_log(folder)[-1]
    assert pose_log(folder)[0]["pose_change_rotation_deg_mean"] == pytest.approx(0, abs=1e-4)
    assert len(read_verdict(folder).cameras) == 9, "the guard is on where poses are one's own"


def test_hashpose_small_on_images_with_alpha(trained, tmp_path):
    trained("hashpose-small", nerfstudio_scene(tmp_path / "scene", white=False))


def test_hashpose_small_on_images_of_two_sizes(trained, tmp_path):
    scene = nerfstudio_scene(tmp_path / "scene", num_images=6)
    from PIL import Image
    from scenes import edit_json

    def halve_two(meta):
        for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
            value = meta.pop(key)
            for i, frame in enumerate(meta["frames"]):
                frame[key] = type(value)(value / 2) if i in (1, 4) else value
        for i in (1, 4):
            path = scene / meta["frames"][i]["file_path"]
            Image.open(path).resize((12, 12)).save(path)

    edit_json(scene / "transforms.json", halve_two)
    trained("hashpose-small", scene)


def test_hashpose_llff_from_identity(trained, tmp_path):
    folder = trained("hashpose-llff", llff_scene(tmp_path / "scene"), *SMALL_FIELD)
    state = model_state(folder)
    initial = state["camera_optimizer.initial_camera_to_worlds"]
    assert torch.equal(initial, torch.eye(4)[:3].expand(9, 3, 4)), "a tenth of ten images is held out"
    assert pose_log(folder)[0]["pose_error_before_center_mean"] > 0.05


def test_hashpose_blender_with_poses_that_stay(ns_train, tmp_path):
    outcome = ns_train(
        *("hashpose-blender", "--output-dir", tmp_path / "out", "--experiment-name", "e", "--timestamp", "t"),
        *("--data", blender_scene(tmp_path / "scene"), "--max-num-iterations", STEPS),
        *(*SMALL_FIELD, *FEW_RAYS, *NO_EVAL, "--pipeline.model.camera-optimizer.mode", "off"),
    )
    assert outcome.code == 0, outcome.output[-3000:]
    first, last = pose_log(tmp_path / "out" / "e" / "hashpose-blender" / "t")
    assert last["pose_error_after_rotation_deg_mean"] == first["pose_error_before_rotation_deg_mean"]


def test_evaluation_of_captures(trained, ns_eval, tmp_path):
    for method, make_scene in (("hashpose-llff", llff_scene), ("hashpose-small", nerfstudio_scene)):
        scene = make_scene(tmp_path / method)
        folder = trained(method, scene, *SMALL_FIELD, "--pipeline.tto-steps", 2)
        outcome = ns_eval("--load-config", folder / "config.yml", "--output-path", tmp_path / f"{method}.json")
        assert outcome.code == 0, outcome.output[-3000:]
        results = json.loads((tmp_path / f"{method}.json").read_text())["results"]
        assert all(isinstance(value, float) and math.isfinite(value) for value in results.values())
        assert results["num_eval_images"] == 1.0 and {"psnr_aligned", "psnr_tto"} <= set(results)


# -- beside other methods ----------------------------------------------------------------------------------------------


def test_help_of_ns_train_as_a_command():
    process = run("ns-train", "--help")
    assert process.returncode == 0, process.stdout[-3000:]
    for method in (
        "hashpose",
        "hashpose-blender",
        "hashpose-llff",
        "hashpose-small",
        "hashpose-object",
        "nerfacto",
        "splatfacto",
    ):
        assert method in process.stdout


@pytest.mark.parametrize("method", ["nerfacto", "splatfacto", "hashpose"])
def test_help_of_methods(ns_train, method):
    outcome = ns_train(method, "--help")
    assert outcome.code == 0, outcome.output[-3000:]
    assert "--max-num-iterations" in outcome.output


def test_a_misspelt_setting_is_named(ns_train, tmp_path):
    outcome = ns_train(
        "hashpose-small", "--pipeline.model.curiculum.window", "0.1", "0.5", "--output-dir", tmp_path / "o"
    )
    assert outcome.code != 0
    assert "curiculum" in outcome.output and "--pipeline.model.curriculum.window" in outcome.output
    assert not (tmp_path / "o").exists()


def test_a_plugin_that_cannot_be_imported_leaves_the_other_commands_alone(tmp_path, monkeypatch):
    (tmp_path / "roma.py").write_text("raise OSError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = run("ns-train", "--help")
    assert process.returncode == 0, process.stdout[-3000:]
    assert "nerfacto" in process.stdout
    assert "hashpose-small (OSError: a broken installation)" in " ".join(process.stdout.split())


def test_entry_points_import_nothing_heavy():
    """What every ns-* command pays for the plugin: the modules that nerfstudio itself has not imported."""
    code = """
import importlib.metadata, json, sys
find = importlib.metadata.entry_points
def no_plugins(**selection):
    group = selection.get("group", "")
    return importlib.metadata.EntryPoints() if group.startswith("nerfstudio.") else find(**selection)
importlib.metadata.entry_points = no_plugins
import nerfstudio.scripts.train
importlib.metadata.entry_points = find
assert not any(name.startswith("hashpose_ns") for name in sys.modules)
before = set(sys.modules)
import hashpose_ns.data.llff_dataparser, hashpose_ns.methods
print("NEW", json.dumps(sorted(set(sys.modules) - before)))
"""
    process = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("NEW ")]
    new = {name.split(".")[0] for name in json.loads(line[4:])}
    assert "hashpose_ns" in new
    heavy = {"tinycudann", "open3d", "torchmetrics", "matplotlib", "pycolmap", "evo", "drjit", "triton", "scipy"}
    assert not new & heavy


def test_dataparser_entry_point_imports_alone():
    """nerfstudio imports dataparsers while its datamanagers are half imported: one in there would close a circle."""
    module = "nerfstudio.data.datamanagers.base_datamanager"
    code = f"import sys, hashpose_ns.data.llff_dataparser; print('{module}' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.split()[-1] == "False"
