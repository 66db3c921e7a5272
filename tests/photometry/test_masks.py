"""No operation on poses looks outside of masks: every way to a pixel, with half of each image masked out."""

from __future__ import annotations

import math
from typing import Callable, Dict, Iterator, List

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import edit_json, nerfstudio_scene

from hashpose_ns.cameras.recovery import RecoveryConfig
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.export.held_out import optimized_held_out_cameras
from hashpose_ns.export.per_image import image_losses
from hashpose_ns.export.poses import exported_cameras
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.guard.compare import run_guard
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.photometry.align import optimize_cameras, optimized_held_out_poses
from hashpose_ns.photometry.evaluate import evaluate_images
from hashpose_ns.photometry.image_metrics import image_metrics
from hashpose_ns.photometry.pixels import ImagePixels, draw_pixels
from hashpose_ns.photometry.recovery import recover_cameras
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.scores import HeldOutPixels, PoseJudge, image_error
from hashpose_ns.photometry.uncertainty import PRIOR_STD, pose_covariances
from hashpose_ns.pipeline import HashPosePipeline, HashPosePipelineConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

SIDE = 24


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> HashPosePipeline:
    """A capture whose masks leave the left half of every image, which is all that may be looked at."""
    folder = nerfstudio_scene(tmp_path_factory.mktemp("masked"), num_images=10, size=SIDE)
    (folder / "masks").mkdir()
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, : SIDE // 2] = 255

    def add_masks(content: Dict) -> None:
        for i, frame in enumerate(content["frames"]):
            Image.fromarray(mask).save(folder / f"masks/{i:02d}.png")
            frame["mask_path"] = f"masks/{i:02d}.png"

    edit_json(folder / "transforms.json", add_masks)
    torch.manual_seed(0)
    encoding = HashEncodingConfig(num_levels=3, log2_hashmap_size=12, base_resolution=4, max_resolution=12)
    return HashPosePipelineConfig(
        datamanager=HashPoseDataManagerConfig(
            dataparser=NerfstudioDataParserConfig(data=folder),
            train_num_rays_per_batch=256,
            eval_num_rays_per_batch=256,
        ),
        model=HashPoseModelConfig(
            field=HashPoseFieldConfig(encoding=encoding, decoder=DecoderConfig(width=16, precision="float32")),
            num_samples=8,
        ),
        tto_steps=2,
        tto_rays=64,
    ).setup(device="cpu", test_mode="test")


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[List[torch.Tensor]]:
    """Columns of the pixels that rays were made for."""
    columns: List[torch.Tensor] = []
    made = Cameras.generate_rays

    def generate_rays(self, camera_indices, coords=None, **kwargs):
        if coords is not None:
            columns.append(coords[..., 1].flatten())
        return made(self, camera_indices, coords=coords, **kwargs)

    monkeypatch.setattr(Cameras, "generate_rays", generate_rays)
    return columns


OPERATIONS: Dict[str, Callable[[PosedScene], object]] = {
    "judging poses of a lost camera": lambda scene: PoseJudge(scene, 2, 64).losses(
        scene.train.cameras[:3].camera_to_worlds
    ),
    "the search for lost cameras": lambda scene: recover_cameras(
        scene, RecoveryConfig(hypotheses=6, steps=3, rays=48, suspicion=0.0, cameras=0.3)
    ),
    "uncertainties": lambda scene: pose_covariances(scene, 32),
    "PSNR of held-out pixels": lambda scene: HeldOutPixels(scene.held_out, 64).psnr(
        scene.renderer, scene.aligned_held_out_poses()
    ),
    "the error of an image": lambda scene: image_error(
        scene.renderer, scene.train, 1, scene.train.cameras.camera_to_worlds[1], 64
    ),
    "losses of exported images": lambda scene: image_losses(scene, exported_cameras(scene)),
    "the guard": lambda scene: run_guard(scene, GuardConfig(rays=32, steps=2)),
    "test-time optimisation": lambda scene: list(optimized_held_out_poses(scene, [0], scene.aligned_held_out_poses())),
    "exported evaluation images": lambda scene: optimized_held_out_cameras(scene, [0]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_looks_outside_of_masks(pipeline, looked_at, name):
    before = pipeline.model.camera_optimizer.pose_adjustment.detach().clone()
    OPERATIONS[name](pipeline.scene)
    pipeline.model.camera_optimizer.pose_adjustment.data.copy_(before)
    columns = torch.cat(looked_at)
    assert len(columns) >= 32
    assert float(columns.max()) < SIDE // 2 and float(columns.min()) > 0


def test_training_and_evaluation_rays_stay_inside_too(pipeline):
    for batch in (pipeline.datamanager.next_train(0)[1], pipeline.datamanager.next_eval(0)[1]):
        assert int(batch["indices"][:, 2].max()) < SIDE // 2


def test_quality_of_images_is_measured_inside(pipeline, monkeypatch):
    """What is spoilt outside of masks changes no score."""
    scene = pipeline.scene
    before = evaluate_images(scene, 1)
    shown = scene.held_out.get_data

    def spoilt(index, **kwargs):
        data = dict(shown(index, **kwargs))
        data["image"] = data["image"].clone()
        data["image"][:, SIDE // 2 :] = 1.0 - data["image"][:, SIDE // 2 :]
        return data

    monkeypatch.setattr(scene.held_out, "get_data", spoilt)
    after = evaluate_images(scene, 1)
    names = [name for name in before if name.startswith("psnr")]
    assert names == ["psnr_aligned", "psnr_tto"]
    assert all(after[name] == pytest.approx(before[name], abs=1e-4) for name in names)


def test_scores_of_a_masked_image_are_those_of_its_part():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(40, 48, 3, generator=generator)
    render = target + 0.05 * torch.randn(40, 48, 3, generator=generator)
    mask = torch.zeros(40, 48, dtype=torch.bool)
    mask[:, :24] = True
    part = image_metrics(render, target, mask)
    assert part["psnr"] == pytest.approx(image_metrics(render[:, :24], target[:, :24])["psnr"], abs=1e-4)
    assert part["ssim"] == pytest.approx(image_metrics(render[:, :24], target[:, :24])["ssim"], abs=0.02)
    spoilt = render.clone()
    spoilt[:, 24:] = 0.0
    assert image_metrics(spoilt, target, mask) == part
    everywhere = image_metrics(render, target, torch.ones_like(mask))
    assert everywhere["psnr"] == pytest.approx(image_metrics(render, target)["psnr"], abs=1e-4)
    assert image_metrics(render, target, torch.zeros_like(mask)) == {}


class OneImage(list):
    """A dataset of one image whose mask leaves nothing, or everything."""

    def __init__(self, keep: bool) -> None:
        mask = torch.full((4, 6, 1), keep)
        super().__init__([{"image": torch.rand(4, 6, 3), "mask": mask}])


def test_a_mask_that_leaves_nothing_gives_no_pixels(unchecked):
    generator = torch.Generator().manual_seed(0)
    assert len(draw_pixels(OneImage(False), 0, 10, generator)) == 0
    assert len(draw_pixels(OneImage(True), 0, 10, generator)) == 10
    assert ImagePixels(OneImage(False), 0).count == 0 and ImagePixels(OneImage(True), 0).count == 24


def test_pixels_are_drawn_evenly_and_carry_their_colours(unchecked):
    image = torch.rand(4, 6, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(4, 6, 1)
    mask[1:3, 2:5] = 1
    drawn = draw_pixels([{"image": image, "mask": mask}], 0, 6000, torch.Generator().manual_seed(2))
    rows, columns = drawn.coordinates.long().T
    assert torch.equal(drawn.colors, image[rows, columns]) and bool((drawn.images == 0).all())
    assert bool((drawn.coordinates % 1 == 0.5).all())
    counts = torch.bincount(rows * 6 + columns, minlength=24)
    allowed = mask[..., 0].flatten() > 0
    assert not counts[~allowed].any()
    assert float((counts[allowed] - 1000).abs().max()) < 4 * math.sqrt(1000)


def test_an_image_that_is_masked_entirely_stays_where_it_is(pipeline, monkeypatch):
    scene, shown = pipeline.scene, pipeline.scene.train.get_data

    def nothing(index, **kwargs):
        data = dict(shown(index, **kwargs))
        data["mask"] = data["mask"] & (index != 1)
        return data

    monkeypatch.setattr(scene.train, "get_data", nothing)
    judge = PoseJudge(scene, 1, 32)
    assert len(judge.pixels) == 0
    pose = scene.poses.initial_camera_to_worlds[1:2]
    found = optimize_cameras(scene.renderer, judge.cameras_at(pose), [judge.image], "world", 2, 16, 1e-2)
    assert torch.equal(found, pose)
    covariances = pose_covariances(scene, 16).covariances
    assert torch.equal(covariances[1], PRIOR_STD**2 * torch.eye(6, dtype=torch.float64))
    assert not torch.equal(covariances[0], covariances[1])
