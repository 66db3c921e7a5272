"""Large pictures: which settings they get, and poses that come from small copies of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scenes import blender_scene

from hashpose_ns.cameras.alignment import pose_errors
from hashpose_ns.coarse import LARGE, CoarseFirstConfig, coarse_config, fit_to_pictures, get_setting, pixels_of
from hashpose_ns.data.picture_size import shorter_side
from hashpose_ns.errors import HashPoseError
from hashpose_ns.methods import OBJECT_BY_SIZE, object_, object_fine, small
from hashpose_ns.runs.config import read_config
from nerfstudio.scripts.train import main


def of_size(folder: Path, width: int, height: int) -> Path:
    """A capture with one picture, as Blender's list names it: without an ending."""
    Image.new("RGBA", (width, height)).save(folder / "r_0.png")
    (folder / "transforms_train.json").write_text(json.dumps({"frames": [{"file_path": "./r_0"}]}))
    return folder


def config_for(data: Path, **settings: Any) -> Any:
    config = copy.deepcopy(object_.config)
    config.data = config.pipeline.datamanager.data = data
    for name, value in settings.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("size, taken", [((800, 400), 1), ((400, 299), 0)])
def test_settings_follow_the_shorter_side_of_pictures(tmp_path: Path, size, taken: int):
    config = config_for(of_size(tmp_path, *size))
    fit_to_pictures(config)
    assert {path: get_setting(config, path) for path in OBJECT_BY_SIZE} == {
        path: values[taken] for path, values in OBJECT_BY_SIZE.items()
    }
    again = copy.deepcopy(config)
    fit_to_pictures(again)
    assert again == config


def test_pictures_count_as_training_sees_them(tmp_path: Path):
    config = config_for(of_size(tmp_path, 800, 800))
    config.pipeline.datamanager.camera_res_scale_factor = 0.25
    assert pixels_of(config) == 200
    fit_to_pictures(config)
    assert config.picture_size == "small" and config.max_num_iterations == object_.config.max_num_iterations


def test_what_the_user_chose_stays(tmp_path: Path):
    config = config_for(of_size(tmp_path, 400, 400), max_num_iterations=60)
    fit_to_pictures(config)
    assert config.max_num_iterations == 60 and config.pipeline.model.num_samples == 96
    config = config_for(tmp_path, picture_size="small")
    fit_to_pictures(config)
    assert config.max_num_iterations == 2500


def test_a_setting_on_the_command_line_stays_though_it_is_the_methods_own(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ns-train", "hashpose-object", "--max-num-iterations=2500"])
    config = config_for(of_size(tmp_path, 400, 400))
    fit_to_pictures(config)
    assert config.max_num_iterations == 2500 and config.pipeline.model.num_samples == 96


def test_a_capture_that_cannot_be_read_is_left_to_its_reader(tmp_path: Path):
    for content in ("", "{", '{"frames": []}', '{"frames": [{"file_path": "./missing"}]}', "[1]"):
        (tmp_path / "transforms_train.json").write_text(content)
        assert shorter_side(tmp_path) is None
    config = config_for(tmp_path)
    fit_to_pictures(config)
    assert config.picture_size == "auto"


def test_the_size_of_nerfstudios_and_colmaps_captures(tmp_path: Path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (640, 480)).save(tmp_path / "images" / "a.jpg")
    assert shorter_side(tmp_path) == 480
    (tmp_path / "transforms.json").write_text(json.dumps({"w": 1000, "h": 700, "frames": [{"file_path": "a.jpg"}]}))
    assert shorter_side(tmp_path) == shorter_side(tmp_path / "transforms.json") == 700


def test_the_fine_method_has_the_settings_for_large_pictures_and_left_the_other_as_it_was():
    assert object_fine.config.method_name == "hashpose-object-fine" and object_.config.method_name == "hashpose-object"
    for path, values in OBJECT_BY_SIZE.items():
        if path != "max_num_iterations":
            assert (get_setting(object_.config, path), get_setting(object_fine.config, path)) == values
    assert object_fine.config.max_num_iterations > OBJECT_BY_SIZE["max_num_iterations"][1]
    assert small.config.by_size is None and small.config.coarse_first.mode == "off"


def test_copies_have_the_size_that_was_asked_for_and_their_share_of_steps():
    config = copy.deepcopy(object_fine.config)
    config.max_num_iterations, config.timestamp, config.experiment_name = 6000, "t", "e"
    coarse = coarse_config(config, 400)
    assert coarse.pipeline.datamanager.camera_res_scale_factor == 0.25 and coarse.max_num_iterations == 1250
    assert coarse.pipeline.model == object_.config.pipeline.model and coarse.coarse_first.mode == "off"
    assert config.pipeline.datamanager.camera_res_scale_factor == 1.0


@pytest.mark.parametrize("pixels", [0, LARGE])
def test_copies_of_no_use_are_refused(pixels: int):
    with pytest.raises(HashPoseError, match="coarse-first.pixels"):
        CoarseFirstConfig(pixels=pixels).validate()


def test_training_starts_at_what_small_copies_gave(tmp_path: Path, capfd):
    config = config_for(blender_scene(tmp_path / "scene", 6, size=64), picture_size="large")
    config.pipeline.datamanager.initial_poses = "perturbed"
    config.output_dir, config.experiment_name, config.timestamp = tmp_path, "e", "t"
    config.vis, config.matches.start, config.guard.mode = "tensorboard", "off", "off"
    config.steps_per_eval_image = config.steps_per_eval_batch = 10**6
    config.by_size, config.max_num_iterations = {"max_num_iterations": (30, 5)}, 5
    config.coarse_first.pixels, config.pipeline.datamanager.train_num_rays_per_batch = 32, 64
    encoding = config.pipeline.model.field.encoding
    encoding.num_levels, encoding.log2_hashmap_size = 4, 12
    main(config)
    run = tmp_path / "e" / "hashpose-object" / "t"
    said = capfd.readouterr().out
    assert "training on pictures of 32 pixels" in said and "the poses that pictures of 32 pixels gave" in said
    inner = run / "coarse" / "e" / "hashpose-object" / "t"
    assert read_config(inner / "config.yml").pipeline.datamanager.camera_res_scale_factor == 0.5
    poses = torch.load(inner / "camera_to_worlds.pt", weights_only=True)
    state = torch.load(run / "nerfstudio_models" / "step-000000004.ckpt", weights_only=True)["pipeline"]
    base = next(value for name, value in state.items() if name.endswith("base_camera_to_worlds"))
    initial = next(value for name, value in state.items() if name.endswith("initial_camera_to_worlds"))
    torch.testing.assert_close(base, poses)
    assert float(pose_errors(base, initial, None).rotation_deg.mean()) > 0.1  # and they are others than the given ones
