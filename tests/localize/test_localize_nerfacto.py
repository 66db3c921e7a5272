"""A run of nerfacto, which knows nothing of this package, localises a photograph."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import roma
import torch
from scenes import chair_frames, chair_image, nerfstudio_scene

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.frame import rigid
from hashpose_ns.localize.api import Search
from hashpose_ns.localize.cli import entrypoint
from hashpose_ns.localize.foreign import scene_of
from hashpose_ns.photometry.localize import SearchConfig
from hashpose_ns.photometry.scene import ImageRenderer
from hashpose_ns.photometry.scores import image_error
from hashpose_ns.runs.load import load_trained_pipeline


class NoNetwork(torch.nn.Module):
    """In the place of LPIPS, whose weights nerfstudio downloads."""

    def __init__(self, **kwargs) -> None:
        super().__init__()


@pytest.fixture
def nerfacto_run(tmp_path: Path, monkeypatch) -> Path:
    """config.yml of a nerfacto that was trained for a few steps on ten small images."""
    from nerfstudio.configs.method_configs import method_configs

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", NoNetwork)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = copy.deepcopy(method_configs["nerfacto"])
    config.experiment_name, config.timestamp, config.output_dir = "chair", "run", tmp_path / "runs"
    config.machine.device_type, config.vis, config.max_num_iterations = "cpu", "tensorboard", 3
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.data = config.pipeline.datamanager.data = nerfstudio_scene(tmp_path / "chair", num_images=10, size=24)
    config.pipeline.datamanager.dataparser.downscale_factor = 1
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    model = config.pipeline.model
    model.implementation, model.num_levels, model.log2_hashmap_size, model.max_res = "torch", 4, 11, 64
    model.hidden_dim = model.hidden_dim_color = 16
    model.num_proposal_samples_per_ray, model.num_nerf_samples_per_ray = (16, 8), 8
    config.set_timestamp()
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return config.get_base_dir() / "config.yml"


def test_a_photograph_is_looked_for_in_a_run_of_nerfacto(tmp_path, nerfacto_run, in_process):
    pipeline = load_trained_pipeline(nerfacto_run, any_method=True)
    scene = scene_of(pipeline)
    assert isinstance(scene.renderer, ImageRenderer)
    # where nerfstudio's corrections move rays of training cameras is where its cameras are taken to be
    cameras = torch.tensor([[2], [5]])
    coordinates = torch.tensor([[5.5, 7.5], [3.5, 20.5]])
    rays = scene.train.cameras.generate_rays(cameras, coords=coordinates)
    rays.camera_indices = cameras
    with torch.no_grad():
        pipeline.model.camera_optimizer.pose_adjustment[2] += torch.tensor([0.02, 0.01, -0.03, 0.1, -0.05, 0.02])
        scene = scene_of(pipeline)
        pipeline.model.camera_optimizer.apply_to_raybundle(rays)
        posed = copy.deepcopy(scene.train.cameras)
        posed.camera_to_worlds = scene.poses.refined_camera_to_worlds()
    expected = posed.generate_rays(cameras, coords=coordinates)
    torch.testing.assert_close(rays.origins, expected.origins, rtol=0, atol=1e-5)
    torch.testing.assert_close(rays.directions, expected.directions, rtol=0, atol=1e-5)

    given = rigid(torch.tensor([chair_frames("train", 10)[1][4]["transform_matrix"]]).double()[:, :3])
    chair_image(chair_frames("train", 10)[1][4], 24, white=True).save(tmp_path / "photo.png")
    start = tmp_path / "start.json"
    turn = roma.rotvec_to_rotmat(torch.tensor([0.05, -0.04, 0.06], dtype=torch.float64))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = turn @ given[0]
    start.write_text(json.dumps({"frames": [{"file_path": "photo.png", "transform_matrix": matrix.tolist()}]}))
    search = Search(scene, SearchConfig())
    learned = search.to_learned(given)[0]
    photograph = search.photographs([tmp_path / "photo.png"], _nothing())
    assert image_error(scene.renderer, photograph, 0, learned) < 0.3
    done = in_process(
        entrypoint,
        *("--load-config", nerfacto_run, "--output-dir", tmp_path / "found", "--images", tmp_path / "photo.png"),
        *("--start", start, "--hypotheses", 1, "--rays", 1024, "--overlay-size", 8),
    )
    # some steps make no field: what counts is that the search runs to its end and gives a verdict
    assert "Where the photographs were taken" in done.output, done.output[-2000:]
    assert (done.code == 0) == (tmp_path / "found" / "poses.json").exists()


def _nothing():
    from hashpose_ns.localize.starts import KnownStarts

    return KnownStarts.none(1)


def test_what_renders_no_rays_is_refused(unchecked):
    class Splats:
        model = torch.nn.Linear(1, 1)
        datamanager = None

    with pytest.raises(HashPoseError, match="Linear renders no rays"):
        scene_of(Splats())
