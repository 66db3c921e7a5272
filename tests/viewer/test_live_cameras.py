"""Frustums in nerfstudio's viewer stand where the refined poses are, while training goes on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import viser.transforms as vtf

from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.viewer.live_cameras import LiveCameras
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer

NUM_CAMERAS = 5


def make_trainer(side: str) -> SimpleNamespace:
    """A trainer with nerfstudio's viewer, but for the browser: frustums remember where they were put."""
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(NUM_CAMERAS, 3, 3, generator=generator)).Q
    rotations = rotations * torch.linalg.det(rotations)[:, None, None]
    initial = torch.cat([rotations, torch.randn(NUM_CAMERAS, 3, 1, generator=generator)], dim=-1)
    optimizer = PoseOptimizerConfig(side=side).setup(
        num_cameras=NUM_CAMERAS, device="cpu", initial_camera_to_worlds=initial
    )
    with torch.no_grad():
        optimizer.pose_adjustment.copy_(0.3 * torch.randn(NUM_CAMERAS, 6, generator=generator))
    viewer = Viewer.__new__(Viewer)
    viewer.camera_handles = {index: SimpleNamespace(position=None, wxyz=None) for index in range(NUM_CAMERAS)}
    viewer.original_c2w = dict(enumerate(torch.cat([initial, torch.zeros(NUM_CAMERAS, 1, 4)], 1).numpy()))
    for matrix in viewer.original_c2w.values():
        matrix[3, 3] = 1.0
    viewer.pipeline = SimpleNamespace(datamanager=SimpleNamespace(), model=SimpleNamespace(camera_optimizer=optimizer))
    return SimpleNamespace(viewer_state=viewer, optimizer=optimizer)


@pytest.mark.parametrize("side", ["world", "camera"])
def test_frustums_stand_at_the_refined_poses(side):
    trainer = make_trainer(side)
    LiveCameras(trainer)(step=0)
    refined = trainer.optimizer.refined_camera_to_worlds().detach().numpy()
    for index, handle in trainer.viewer_state.camera_handles.items():
        np.testing.assert_allclose(handle.position / VISER_NERFSTUDIO_SCALE_RATIO, refined[index, :, 3], atol=1e-5)
        # viser's cameras look along +z, nerfstudio's along -z
        drawn = (vtf.SO3(handle.wxyz) @ vtf.SO3.from_x_radians(np.pi).inverse()).as_matrix()
        np.testing.assert_allclose(drawn, refined[index, :, :3], atol=1e-5)


def test_frustums_follow_at_their_interval_only():
    trainer = make_trainer("world")
    often, seldom = LiveCameras(trainer, interval=0.0), LiveCameras(trainer, interval=3600.0)
    often(step=0), seldom(step=0)
    first = trainer.viewer_state.camera_handles[0].position
    with torch.no_grad():
        trainer.optimizer.pose_adjustment.add_(0.1)
    seldom(step=1)
    np.testing.assert_array_equal(trainer.viewer_state.camera_handles[0].position, first)
    often(step=1)
    assert np.abs(trainer.viewer_state.camera_handles[0].position - first).max() > 1e-3


@pytest.mark.parametrize("viewer", [None, SimpleNamespace(), SimpleNamespace(camera_handles={})])
def test_no_viewer_and_no_scene_yet_are_fine(viewer):
    LiveCameras(SimpleNamespace(viewer_state=viewer))(step=0)
    LiveCameras(None)(step=0)
