"""nerfstudio's commands that take cameras from the dataset show a run's field from where its cameras are now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hashpose_ns.photometry.pixels import posed_cameras
from nerfstudio.utils.eval_utils import eval_setup


@pytest.fixture(scope="module")
def pipeline(tiny_run):
    """The finished run, as ns-render interpolate, ns-export, ns-eval and ns-viewer load it."""
    return eval_setup(tiny_run.folder / "config.yml", test_mode="test")[1]


@pytest.fixture
def ns_render(in_process, tiny_run, tmp_path, monkeypatch):
    """ns-render in this process; all frames of a path as pictures."""
    from nerfstudio.scripts.render import entrypoint
    from nerfstudio.utils import install_checks

    monkeypatch.setattr(install_checks, "check_ffmpeg_installed", lambda: None)  # pictures need none

    def render(command: str, *options):
        config = ("--load-config", tiny_run.folder / "config.yml")
        return in_process(entrypoint, command, *config, "--image-format", "png", *options)

    return render


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"), dtype=np.float64) / 255.0


def render(pipeline, dataset, poses: torch.Tensor, index: int) -> np.ndarray:
    camera = posed_cameras(dataset, poses[index : index + 1], "cpu", [index])
    return pipeline.model.get_outputs_for_camera(camera)["rgb"].clamp(0.0, 1.0).numpy()


def test_a_finished_run_hands_out_its_cameras_where_the_field_sees_them(pipeline):
    manager, scene = pipeline.datamanager, pipeline.scene
    refined, aligned = scene.poses.refined_camera_to_worlds().detach(), scene.aligned_held_out_poses()
    given = scene.held_out_outputs.cameras.camera_to_worlds
    assert (refined - scene.poses.initial_camera_to_worlds).abs().max() > 1e-3
    assert (aligned - given).abs().max() > 1e-3
    assert torch.equal(manager.train_dataset.cameras.camera_to_worlds, refined)
    for held_out in (manager.eval_dataset, manager.eval_dataloader, manager.fixed_indices_eval_dataloader):
        assert torch.equal(held_out.cameras.camera_to_worlds, aligned)
    rays, batch = manager.next_train(0)  # what ns-export makes points of
    assert torch.equal(rays.origins, refined[batch["indices"][:, 0], :, 3])
    # what ns-export cameras writes: as nerfstudio asks for it
    assert torch.equal(scene.poses.apply_to_camera(manager.train_dataset.cameras[3:4])[0], refined[3])


def test_every_image_of_the_dataset_is_rendered_from_its_refined_or_aligned_pose(pipeline, ns_render, tmp_path):
    only = ("--output-path", tmp_path, "--rendered-output-names", "rgb")
    assert ns_render("dataset", "--split", "train+test", *only).code == 0
    scene = pipeline.scene
    splits = {
        "train": (scene.train, scene.poses.refined_camera_to_worlds().detach()),
        "test": (scene.held_out, scene.aligned_held_out_poses()),
    }
    for split, (dataset, poses) in splits.items():
        for index in (0, len(dataset) - 1):
            written = pixels(tmp_path / split / "rgb" / dataset.image_filenames[index].name)
            assert np.abs(written - render(pipeline, dataset, poses, index)).max() < 1.5 / 255
    start = render(pipeline, scene.train, scene.poses.initial_camera_to_worlds, 0)
    assert np.abs(start - render(pipeline, *splits["train"], 0)).max() > 0.02, "the poses make a difference"


@pytest.mark.parametrize("source", ["train", "eval"])
def test_interpolation_goes_through_the_cameras_where_they_are_now(source, pipeline, ns_render, tmp_path):
    steps = ("--interpolation-steps", 2, "--pose-source", source, "--downscale-factor", 2)
    images = ("--output-format", "images", "--output-path", tmp_path / "path.mp4")
    assert ns_render("interpolate", *steps, *images).code == 0
    scene = pipeline.scene
    poses = scene.aligned_held_out_poses() if source == "eval" else scene.poses.refined_camera_to_worlds().detach()
    dataset = scene.held_out if source == "eval" else scene.train
    camera = posed_cameras(dataset, poses[:1], "cpu", [0])
    camera.rescale_output_resolution(0.5)
    expected = pipeline.model.get_outputs_for_camera(camera)["rgb"].clamp(0.0, 1.0).numpy()
    assert np.abs(pixels(tmp_path / "path" / "00000.png") - expected).max() < 1.5 / 255
