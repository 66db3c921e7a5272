"""Random cameras, a dataset on disk, a run that only knows poses, and a pipeline that sees an analytic scene."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import roma
import torch
from PIL import Image
from type_checker import unchecked

from hashpose_ns.cameras.alignment import Similarity
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.field import FieldConfig, RenderedField
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.photometry.scene import PosedScene, TestTimeOptimization
from hashpose_ns.pipeline import HashPosePipelineConfig
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.field_components.field_heads import FieldHeadNames


def make_poses(num_cameras: int, seed: int = 0) -> torch.Tensor:
    """Rigid float64 camera-to-worlds, OpenGL axes."""
    generator = torch.Generator().manual_seed(seed)
    rotations = roma.random_rotmat(num_cameras, dtype=torch.float64, generator=generator)
    centers = torch.randn(num_cameras, 3, 1, dtype=torch.float64, generator=generator) * 2.0 + 0.5
    return torch.cat([rotations, centers], dim=-1)


def make_cameras(num_cameras: int, shared: bool = True, distortion=None, camera_type=CameraType.PERSPECTIVE) -> Cameras:
    """Cameras of 640x480 with identity poses. Without ``shared``, every camera has its own focal length and size."""
    i = torch.zeros(num_cameras) if shared else torch.arange(num_cameras, dtype=torch.float32)
    return Cameras(
        camera_to_worlds=torch.eye(4)[:3].repeat(num_cameras, 1, 1),
        fx=500.0 + i,
        fy=510.0 + 2 * i,
        cx=322.5 + i,
        cy=236.25 - i,
        width=(640 + 2 * i).int(),
        height=(480 + i).int(),
        distortion_params=None if distortion is None else torch.tensor(distortion).expand(num_cameras, 6),
        camera_type=camera_type,
    )


def make_similarity(seed: int = 5, scale: float = 1.6) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    return Similarity(
        torch.tensor(scale, dtype=torch.float64),
        roma.random_rotmat(dtype=torch.float64, generator=generator),
        torch.randn(3, dtype=torch.float64, generator=generator),
    )


def write_images(folder: Path, names, size=(8, 6)) -> list:
    """Small images; returns their paths."""
    paths = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
        paths.append(path)
    return paths


class KnownPoses(PoseOptimizer):
    """Refined poses that nothing computes."""

    def __init__(self, refined, initial, reference, names, trainable=None) -> None:
        super().__init__(PoseOptimizerConfig(), len(refined), "cpu", initial, reference, image_names=names)
        self.refined = refined.float()
        if trainable is not None:
            self.trainable.copy_(trainable)

    def refined_camera_to_worlds(self):
        return self.refined


def make_scene(outputs, dataparser, refined, initial=None, held_out=(), trainable=None) -> PosedScene:
    """A run that only knows poses: ``refined`` and ``initial``, in nerfstudio's frame."""
    reference = outputs.cameras.camera_to_worlds
    initial = reference if initial is None else initial
    names = [path.as_posix() for path in outputs.image_filenames]
    with unchecked():
        return PosedScene(
            renderer=None,
            model_config=None,
            poses=KnownPoses(refined, initial, reference, names, trainable),
            train=SimpleNamespace(_dataparser_outputs=outputs),
            held_out=SimpleNamespace(
                image_filenames=list(held_out),
                _dataparser_outputs=dataclasses.replace(outputs, image_filenames=list(held_out), mask_filenames=None),
            ),
            dataparser=dataparser,
            curriculum=None,
            test_time=TestTimeOptimization(steps=0, rays=0, images=1, lr=0.0),
            total_steps=1,
        )


RADIUS = 0.5
"""Of the ball that `BallField` shows, around the origin of nerfstudio's frame."""


class BallField(RenderedField):
    """An opaque ball whose surface is as colourful as its positions, in an empty world. Nothing of it is learned."""

    def __init__(self, config, warp, aabb, num_images, curriculum) -> None:
        super().__init__()
        self.register_buffer("aabb", aabb.clone().float())
        self.step = 0

    def get_density(self, ray_samples):
        positions = ray_samples.frustums.get_positions()
        depth = RADIUS - positions.norm(dim=-1, keepdim=True)
        return 300.0 * torch.sigmoid(400.0 * depth), positions

    def get_outputs(self, ray_samples, density_embedding=None):
        waves = torch.sin(6.0 * density_embedding + torch.tensor([0.0, 1.0, 2.0]))
        return {FieldHeadNames.RGB: 0.5 + 0.5 * waves}

    def get_param_groups(self):
        return {}


@dataclasses.dataclass
class BallFieldConfig(FieldConfig):
    _target: type = dataclasses.field(default_factory=lambda: BallField)

    @property
    def num_levels(self) -> int:
        return 1


def orbit(num_cameras: int, radius: float = 1.6) -> torch.Tensor:
    """Float64 camera-to-worlds on a ring with ups and downs, looking at the origin, OpenGL axes."""
    angles = torch.linspace(0.0, 2.0 * torch.pi, num_cameras + 1, dtype=torch.float64)[:-1]
    centers = torch.stack([angles.cos(), angles.sin(), 0.4 * (3.0 * angles).sin()], dim=-1) * radius
    backwards = centers / centers.norm(dim=-1, keepdim=True)
    right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(centers), backwards)
    right = right / right.norm(dim=-1, keepdim=True)
    return torch.stack([right, torch.linalg.cross(backwards, right), backwards, centers], dim=-1)


def write_transforms(folder: Path, poses, names, **meta) -> None:
    """A transforms.json beside images."""
    matrices = torch.eye(4, dtype=torch.float64).repeat(len(poses), 1, 1)
    matrices[:, :3] = poses
    meta["frames"] = [dict(file_path=name, transform_matrix=m.tolist()) for name, m in zip(names, matrices)]
    (folder / "transforms.json").write_text(json.dumps(meta))


def make_ball_pipeline(folder: Path, num_cameras: int = 12, size: int = 48, given=None, masks: bool = False):
    """A pipeline in inference mode whose images show the ball from `orbit`.

    Args:
        folder: where the dataset goes, in a frame of its own, 2.5 times as large as nerfstudio's.
        num_cameras: number of images; nerfstudio holds out a tenth of them.
        size: width and height of images.
        given: poses in nerfstudio's frame that the dataset gives instead of the true ones.
        masks: mask the upper half of every image out.

    Returns:
        The pipeline, and the true poses of all images in the dataset's frame.
    """
    true = orbit(num_cameras)
    # what nerfstudio-data undoes by its scale factor, as it leaves axes and origin alone here
    no_turn, no_shift = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    scaled = Similarity(torch.tensor(2.5, dtype=torch.float64), no_turn, no_shift)
    names = [f"images/{i:02d}.png" for i in range(num_cameras)]
    write_images(folder, names, (size, size))
    meta = dict(fl_x=1.1 * size, fl_y=1.1 * size, cx=size / 2, cy=size / 2, w=size, h=size, k1=0.02)
    parser = NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False, scale_factor=1.0 / 2.5
    )
    config = HashPosePipelineConfig(
        model=HashPoseModelConfig(
            field=BallFieldConfig(), scene="none", sampler="uniform", num_samples=128, near_plane=0.5, far_plane=3.0,
            background_color="black", scene_box_scale=4.0,
        ),
        tto_steps=60, tto_rays=256, tto_lr=3e-3,
    )  # fmt: skip
    config.datamanager.dataparser = parser

    write_transforms(folder, scaled.apply_to_poses(true), names, **meta)
    pipeline = config.setup(device="cpu", test_mode="inference").eval()
    for split in (pipeline.datamanager.train_dataset, pipeline.datamanager.eval_dataset):
        for i, filename in enumerate(split.image_filenames):
            rendered = pipeline.model.get_outputs_for_camera(split.cameras[i : i + 1])["rgb"]
            Image.fromarray((rendered * 255).round().to(torch.uint8).numpy()).save(filename)
    if given is not None:
        write_transforms(folder, scaled.apply_to_poses(given), names, **meta)
    if masks:
        content = json.loads((folder / "transforms.json").read_text())
        half = np.zeros((size, size), np.uint8)
        half[size // 2 :] = 255
        (folder / "masks").mkdir()
        for i, frame in enumerate(content["frames"]):
            Image.fromarray(half).save(folder / f"masks/{i:02d}.png")
            frame["mask_path"] = f"masks/{i:02d}.png"
        (folder / "transforms.json").write_text(json.dumps(content))
    if given is not None or masks:
        pipeline = config.setup(device="cpu", test_mode="inference").eval()
    return pipeline, scaled.apply_to_poses(true)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """hashpose-export in this process, on a scene that stands in for that of the loaded run; returns the exit code."""
    from hashpose_ns.export import cli
    from hashpose_ns.runs import load

    def export(scene, command, *options, output="out") -> int:
        monkeypatch.setattr(load, "load_trained_pipeline", lambda *args, **kwargs: SimpleNamespace(scene=scene))
        arguments = ["--load-config", str(tmp_path / "run/config.yml"), "--output-dir", str(tmp_path / output)]
        monkeypatch.setattr(sys, "argv", ["hashpose-export", command, *arguments, *map(str, options)])
        try:
            cli.entrypoint()
        except SystemExit as exit:
            return exit.code
        return 0

    return export


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """A pipeline whose field is a ball, seen from around."""
    return make_ball_pipeline(tmp_path_factory.mktemp("ball"))[0]


@pytest.fixture
def helpers() -> SimpleNamespace:
    """The functions above, for test modules."""
    return SimpleNamespace(
        poses=make_poses,
        cameras=make_cameras,
        similarity=make_similarity,
        write_images=write_images,
        scene=make_scene,
        ball=make_ball_pipeline,
        orbit=orbit,
        write_transforms=write_transforms,
        camera_types=CameraType,
    )
