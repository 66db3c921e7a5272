"""Evaluation images in an export, losses and uncertainties of images: on a field that shows a known ball."""

import json

import numpy as np
import pytest
import torch

from hashpose_ns.cameras.alignment import Similarity, pose_errors, rotation_angle
from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses
from hashpose_ns.export.exported import ALIGNED, OPTIMIZED, TRAINED
from hashpose_ns.export.poses import exported_cameras
from hashpose_ns.photometry.scores import image_error
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig

NUM = 12
HELD_OUT = 10
"""The image of the twelve that nerfstudio-data keeps for evaluation."""
TRAIN = [i for i in range(NUM) if i != HELD_OUT]


@pytest.fixture
def ball(tmp_path, helpers):
    """The dataset gives the held-out image a pose that is degrees off."""
    given = helpers.orbit(NUM)
    noise = PerturbationConfig(protocol="l2g", rotation=0.02, translation=0.01, seed=3)
    given[[HELD_OUT]] = perturb_poses(given[[HELD_OUT]], noise)
    pipeline, true = helpers.ball(tmp_path / "data", NUM, given=given)
    assert [int(path.stem) for path in pipeline.datamanager.eval_dataset.image_filenames] == [HELD_OUT]
    return pipeline, true


def test_held_out_cameras_are_found_against_the_field(ball):
    pipeline, true = ball
    exported = exported_cameras(pipeline.scene, split="all")
    assert exported.names == [f"{i:02d}.png" for i in range(NUM)]
    assert exported.splits == ["train"] * 10 + ["eval", "train"] and exported.indices == [*range(10), 0, 10]
    assert exported.refined_by == [TRAINED] * 10 + [OPTIMIZED, TRAINED] and exported.num_left_out == 0
    np.testing.assert_allclose(exported.camera_to_worlds[TRAIN], true[TRAIN], atol=1e-5)
    before = pose_errors(exported.given_camera_to_worlds, true, Similarity.identity())
    after = pose_errors(exported.camera_to_worlds, true, Similarity.identity())
    assert float(before.rotation_deg[HELD_OUT]) > 0.9
    assert float(after.rotation_deg[HELD_OUT]) < 0.25 * float(before.rotation_deg[HELD_OUT])
    assert float(after.center[HELD_OUT]) < 0.5 * float(before.center[HELD_OUT])
    moved = rotation_angle(
        exported.camera_to_worlds[HELD_OUT, :, :3].T @ exported.given_camera_to_worlds[HELD_OUT, :, :3]
    )
    assert float(exported.movement.rotation_deg[HELD_OUT]) == pytest.approx(float(torch.rad2deg(moved)), abs=1e-6)
    assert len(exported.cameras) == NUM and float(exported.cameras.distortion_params[HELD_OUT, 0]) == pytest.approx(
        0.02
    )


def test_optimisation_that_makes_it_worse_is_not_taken(ball, monkeypatch):
    pipeline, _ = ball
    monkeypatch.setattr(
        "hashpose_ns.photometry.align.optimize_cameras", lambda model, cameras, *_: cameras.camera_to_worlds + 1
    )
    exported = exported_cameras(pipeline.scene, split="all")
    assert exported.refined_by[HELD_OUT] == ALIGNED
    torch.testing.assert_close(
        exported.camera_to_worlds[HELD_OUT], exported.given_camera_to_worlds[HELD_OUT], atol=1e-5, rtol=0
    )
    assert exported.is_refined == [True] * 10 + [False, True]
    pipeline.config.tto_steps = 0
    assert exported_cameras(pipeline.scene, split="all").refined_by[HELD_OUT] == ALIGNED


def test_all_images_go_out_as_colmap_and_as_transforms(tmp_path, ball, call, capsys):
    pipeline, true = ball
    assert call(pipeline.scene, "colmap", "--split", "all", "--images", "link", "--num-points", 300) == 0
    output = capsys.readouterr().out
    assert "with     the evaluation images (1), 1 of their cameras optimised against the field" in output
    assert "left out" not in output
    config = ColmapDataParserConfig(data=tmp_path / "out", colmap_path="sparse/0", eval_mode="all")
    outputs = config.setup().get_dataparser_outputs("train")
    assert [path.name for path in outputs.image_filenames] == [f"{i:02d}.png" for i in range(NUM)]
    original = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    np.testing.assert_allclose(original[TRAIN], true[TRAIN], atol=1e-5)
    np.testing.assert_allclose(original[HELD_OUT], true[HELD_OUT], atol=0.05)

    assert call(pipeline.scene, "nerfstudio", "--split", "all", "--points", "empty", output="transforms") == 0
    frames = json.loads((tmp_path / "transforms/transforms.json").read_text())["frames"]
    assert [frame["split"] for frame in frames] == ["train"] * 10 + ["eval", "train"]
    assert frames[HELD_OUT]["refined_by"] == "test-time optimisation"


def test_json_says_what_is_known_about_every_image(tmp_path, ball, call):
    pipeline, true = ball
    assert call(pipeline.scene, "json", "--split", "all", "--uncertainty", "True") == 0
    content = json.loads((tmp_path / "out/poses.json").read_text())
    assert content["axes"].startswith("camera-to-world, OpenGL") and "aligned" in content["frame"]
    images = content["images"]
    assert [image["name"] for image in images] == [f"{i:02d}.png" for i in range(NUM)]
    np.testing.assert_allclose([images[i]["camera_to_world"] for i in TRAIN], true[TRAIN], atol=1e-5)
    for image in images:
        assert image["file_path"] == str(tmp_path / "data/images" / image["name"])
        # the photographs are the field's own renders, rounded to 8 bits
        assert image["mse"] < 1e-3 and image["psnr"] == pytest.approx(-10 * np.log10(image["mse"]))
    assert images[0]["mse"] < 1e-5 < images[HELD_OUT]["mse"], "the camera that was only found by optimisation"
    assert images[0]["movement"]["rotation_deg"] < 0.01 < 0.5 < images[HELD_OUT]["movement"]["rotation_deg"]
    assert images[HELD_OUT]["uncertainty"] is None
    from hashpose_ns.photometry.uncertainty import pose_covariances

    expected = pose_covariances(pipeline.scene).scaled(2.5).as_dict(4)  # in the dataset's units
    np.testing.assert_allclose(images[4]["uncertainty"]["translation_std"], expected["translation_std"], rtol=1e-4)
    assert np.array(images[4]["uncertainty"]["covariance"]).shape == (6, 6)


def test_losses_are_of_the_exported_poses_and_outside_of_masks(tmp_path, helpers):
    pipeline, _ = helpers.ball(tmp_path / "data", NUM, masks=True)
    dataset = pipeline.datamanager.train_dataset
    pose = dataset.cameras.camera_to_worlds[0]
    assert image_error(pipeline.model, dataset, 0, pose) < 1e-5
    moved = pose.clone()
    moved[:, 3] += 0.05
    assert image_error(pipeline.model, dataset, 0, moved) > 1e-3
    # spoil what is masked, the upper half
    from PIL import Image

    pixels = np.array(Image.open(dataset.image_filenames[0]))
    pixels[:24] = 255 - pixels[:24]
    Image.fromarray(pixels).save(dataset.image_filenames[0])
    assert image_error(pipeline.model, dataset, 0, pose) < 1e-5
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(tmp_path / "data/masks/00.png")
    assert image_error(pipeline.model, dataset, 0, pose) is None
    assert not pipeline.model.field.training
