"""Pictures brought upon each other: against a ball whose place is known, and on photographs of the chair."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scenes import CHAIR

from hashpose_ns.cameras.alignment import pose_errors
from hashpose_ns.cameras.centering import CenteringConfig, centred
from hashpose_ns.errors import HashPoseError
from hashpose_ns.methods import object_, object_fine, small
from hashpose_ns.photometry import centering
from hashpose_ns.photometry.centering import CentrePictures, silhouettes
from hashpose_ns.photometry.pixels import ImagePixels

RADIUS, COUNT = 0.05, 12


def looking_at(point: torch.Tensor, distance: float, seed: int = 0) -> torch.Tensor:
    """Cameras that look near a point from all around."""
    generator = torch.Generator().manual_seed(seed)
    backwards = torch.nn.functional.normalize(torch.randn(COUNT, 3, dtype=torch.float64, generator=generator), dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([[0.1, 0.2, 1.0]]).double(), backwards))
    axes = torch.stack([right, torch.linalg.cross(backwards, right), backwards], dim=-1)
    aside = 0.3 * torch.randn(COUNT, 3, dtype=torch.float64, generator=generator)
    return torch.cat([axes, (point + distance * backwards + aside)[..., None]], dim=-1)


def test_cameras_come_to_where_they_see_a_small_ball_in_one_place():
    ball = torch.tensor([0.3, -0.2, 0.1]).double()
    poses = looking_at(ball, 4.0)
    local = ((ball - poses[:, :, 3])[:, None] @ poses[:, :, :3])[:, 0]
    centres = local[:, :2] / -local[:, 2:]
    distances = local.norm(dim=-1)
    # A small ball covers the solid angle pi r^2 / d^2; on the plane one unit in front, that over the slant.
    areas = math.pi * (RADIUS / distances) ** 2 * (1 + centres.square().sum(-1))
    still, apart = centred(poses, centres, areas)
    assert apart < 1e-3
    # The true distances differ among each other, and sizes say so: nobody has to move.
    torch.testing.assert_close(still, poses, rtol=0, atol=1e-4)

    across = torch.randn(COUNT, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.4
    rays = (ball - poses[:, :, 3]) / distances[:, None]
    across = across - (across * rays).sum(-1, keepdim=True) * rays
    shifted = poses.clone()
    shifted[:, :, 3] += across
    found, apart = centred(shifted, centres, areas)
    assert apart == pytest.approx(float(across.square().sum(-1).mean().sqrt()) / RADIUS, rel=0.25)
    torch.testing.assert_close(found[:, :, :3], poses[:, :, :3], rtol=0, atol=0)
    seen = found[:, :, 3] + distances[:, None] * rays
    assert (seen - seen.mean(0)).norm(dim=-1).max() < 0.1 * across.norm(dim=-1).max(), "one place, wherever it is"


def test_cameras_go_as_far_as_silhouettes_can_be_believed():
    """Objects look different from all sides, so silhouettes have errors of their own: cameras do not follow these where
    they are right, and end nearer than they began where they are not."""
    radius, generator = 0.8, torch.Generator().manual_seed(3)

    def noise(count: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(len(truth), count, dtype=torch.float64, generator=generator)

    truth = torch.cat([looking_at(torch.zeros(3).double(), 4.0, seed=seed) for seed in range(20)])
    middles = noise(3, 0.15 * radius / math.sqrt(2))  # of the silhouettes, for each camera
    local = ((middles - truth[:, :, 3])[:, None] @ truth[:, :, :3])[:, 0]
    centres = local[:, :2] / -local[:, 2:]
    seen = radius * torch.exp(noise(1, 0.15))[:, 0]
    areas = math.pi * (seen / local.norm(dim=-1)) ** 2 * (1 + centres.square().sum(-1))

    def away(poses: torch.Tensor) -> float:
        moved = poses[:, :, 3] - truth[:, :, 3]
        return float((moved - moved.mean(0)).norm(dim=-1).mean())

    still, apart = centred(truth, centres, areas)
    assert apart == pytest.approx(0.15, abs=0.02) and away(still) < 0.01
    for error, left in ((0.3, 0.7), (1.0, 0.45)):
        start = truth.clone()
        start[:, :, 3] += noise(3, error)
        assert away(centred(start, centres, areas)[0]) < left * away(start), error


@pytest.fixture
def pipeline_of():
    """The chair's pipeline from the truth or under L2G-NeRF's noise."""

    def make(noise: float):
        config = copy.deepcopy(object_.config.pipeline)
        manager = config.datamanager
        manager.dataparser.data, manager.camera_res_scale_factor = CHAIR, 0.32
        manager.initial_poses, manager.perturbation.protocol = "perturbed", "l2g"
        manager.perturbation.rotation, manager.perturbation.translation = 0.01 * noise, 0.1 * noise
        return config.setup(device="cpu", test_mode="val")

    return make


def test_far_pictures_are_centred_and_a_camera_that_is_frozen_is_not(pipeline_of):
    pipeline = pipeline_of(7)
    poses, said = pipeline.model.camera_optimizer, []
    poses.trainable[4] = False
    CentrePictures(CenteringConfig("auto")).prepare(pipeline.scene, False, said.append)
    assert len(said) == 1 and "centering.mode off" in said[0]
    reference = poses.reference_camera_to_worlds
    before, after = (
        float(pose_errors(each, reference).translation.mean())
        for each in (poses.initial_camera_to_worlds, poses.refined_camera_to_worlds().detach())
    )
    assert after < 0.5 * before
    assert torch.equal(poses.base_camera_to_worlds[4], poses.initial_camera_to_worlds[4])
    assert not poses.is_trusted and poses.doubtful_cameras() == set(range(40))


def test_an_object_that_the_frame_cuts_and_a_picture_without_background_are_no_silhouettes(pipeline_of, monkeypatch):
    scene = pipeline_of(7).scene

    def seen(image: torch.Tensor, mask: torch.Tensor | None = None) -> int:
        """How many silhouettes there are, if all photographs are this one."""
        monkeypatch.setattr(centering, "ImagePixels", lambda _, index: ImagePixels.of(index, image, mask))
        return sum(found is not None for found in silhouettes(scene))

    height, width = scene.train[0]["image"].shape[:2]
    whole = torch.ones(height, width, 3)
    whole[2:20, 3:15] = torch.tensor([0.2, 0.9, 0.4])
    cut = whole.clone()
    cut[:20] = whole[2:22].flip(1)
    cut[0, 3:15] = 0.0
    street = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.4
    assert seen(whole) == len(scene.train) and seen(cut) == seen(street) == 0
    assert seen(torch.cat([whole, whole[..., 1:2] < 1], dim=-1).float()) == len(scene.train)
    inner = torch.zeros(height, width, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    assert seen(whole, inner) == 0, "a mask hides whether the object is whole"


def test_methods_for_objects_look_at_their_pictures_and_others_do_not():
    modes = [method.config.centering.mode for method in (object_, object_fine, small)]
    assert modes == ["auto", "auto", "off"]


def test_nobody_moves_where_pictures_agree_or_it_is_not_asked_for(pipeline_of):
    def moved(pipeline, resumed: bool = False, mode: str = "auto") -> bool:
        CentrePictures(CenteringConfig(mode)).prepare(pipeline.scene, resumed, lambda said: None)
        return pipeline.model.camera_optimizer.rebased

    assert not moved(pipeline_of(0))
    pipeline = pipeline_of(7)
    assert not moved(pipeline, mode="off") and not moved(pipeline, resumed=True)
    pipeline.model.camera_optimizer.trusted.fill_(True)
    pipeline.model.camera_optimizer.is_trusted = True
    assert not moved(pipeline)
    with pytest.raises(HashPoseError, match="above 0"):
        CentrePictures(CenteringConfig("auto", threshold=0.0)).validate()
