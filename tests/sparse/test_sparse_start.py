"""`initial-poses sparse`: training starts where the network sees the images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenes import blender_scene

from hashpose_ns.datamanager import HashPoseDataManager, HashPoseDataManagerConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.sparse.crops import crops_of
from hashpose_ns.sparse.start import SparseStartConfig, find_cameras, sparse_poses
from hashpose_ns.sparse.weights import load_weights
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return blender_scene(tmp_path_factory.mktemp("data") / "scene")


def manager(data: Path, test_mode: str = "val", **settings) -> HashPoseDataManager:
    config = HashPoseDataManagerConfig(
        dataparser=BlenderDataParserConfig(data=data),
        train_num_rays_per_batch=8,
        eval_num_rays_per_batch=8,
        initial_poses="sparse",
        **settings,
    )
    return config.setup(device="cpu", test_mode=test_mode)


def test_training_starts_at_the_networks_poses_and_keeps_the_reference(data, weights):
    made = manager(data, sparse=SparseStartConfig(weights=weights, steps=1, seed=2))
    outputs = made.train_dataparser_outputs
    crops = crops_of(list(outputs.image_filenames), outputs.cameras, None, 32)
    expected = find_cameras(load_weights(weights)[0], crops, 1, 2).float()
    known = made.train_dataset.metadata["training_cameras"]
    torch.testing.assert_close(known.initial_camera_to_worlds, expected)
    torch.testing.assert_close(made.train_ray_generator.cameras.camera_to_worlds, expected)
    assert torch.equal(known.reference_camera_to_worlds, outputs.cameras.camera_to_worlds)
    # What training draws does not depend on it.
    state = torch.get_rng_state()
    sparse_poses(outputs.image_filenames, outputs.cameras, None, SparseStartConfig(weights=weights))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_run_needs_no_weights_and_training_says_what_is_wrong(data, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("hashpose_ns.sparse.weights.PACKAGED", tmp_path / "none.npz")
    manager(data, test_mode="inference")  # the checkpoint has the poses
    with pytest.raises(HashPoseError, match="comes without weights"):
        manager(data)
    given = SparseStartConfig(weights=weights)
    with pytest.raises(HashPoseError, match="added images"):
        manager(data, sparse=given, added_images=data / "transforms_train.json")
    monkeypatch.setattr("hashpose_ns.sparse.start.MOST", 5)
    with pytest.raises(HashPoseError, match="There are 6 training images"):
        manager(data, sparse=given)
