"""A world whose field is known exactly and rendered at once: a ball as colourful as its positions, on white."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import roma
import torch
from PIL import Image
from torch import Tensor, nn

from hashpose_ns.cameras.alignment import Similarity
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.data.reading import NamedImages
from hashpose_ns.photometry.scene import PosedScene, TestTimeOptimization
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

RADIUS = 0.5
"""Of the ball, around the origin of the learned frame."""
SIZE = 48
FOCAL = 1.3 * SIZE
UNITS = 2.5
"""Units of the input in one of nerfstudio's."""


class BallRenderer:
    """`hashpose_ns.photometry.scene.ImageRenderer` of the ball, without any parameter."""

    current_step = 0
    device = torch.device("cpu")

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def colors(self, rays: Any, *, own_appearance: bool = False, smoothed: bool = False) -> Tensor:
        depth, opaque = self._met(rays)
        points = rays.origins + depth * rays.directions
        waves = torch.sin(5.0 * points + torch.tensor([0.0, 1.0, 2.0]) + 2.0 * points.roll(1, -1))
        return (opaque * (0.5 + 0.4 * waves) + 1.0 - opaque).clamp(0.0, 1.0)

    def photometric_loss(self, rays: Any, photograph: Tensor, **kwargs: Any) -> Tensor:
        return (self.colors(rays) - self.composite(photograph)).square().mean()

    def composite(self, photograph: Tensor) -> Tensor:
        if photograph.shape[-1] == 3:
            return photograph
        return photograph[..., :3] * photograph[..., 3:] + 1.0 - photograph[..., 3:]

    def surfaces(self, rays: Any) -> Dict[str, Tensor]:
        depth, opaque = self._met(rays)
        return {"rgb": self.colors(rays), "accumulation": opaque, "depth": depth}

    def _met(self, rays: Any) -> Tuple[Tensor, Tensor]:
        along = (rays.origins * rays.directions).sum(-1, keepdim=True)
        inside = along.square() - rays.origins.square().sum(-1, keepdim=True) + RADIUS**2
        return -along - inside.clamp(min=1e-6).sqrt(), torch.sigmoid(100.0 * inside)

    def rays_per_chunk(self) -> int:
        return 1 << 16

    def get_outputs_for_camera(self, camera: Any, obb_box: Any = None) -> Dict[str, Tensor]:
        return {"rgb": self.colors(camera.generate_rays(camera_indices=0))}

    def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        raise NotImplementedError

    def observe_errors(self, observer: Any) -> None:
        raise NotImplementedError


def looking_in(count: int, seed: int = 0, distance: float = 1.6) -> Tensor:
    """Float64 camera-to-worlds all around that look at the origin, OpenGL axes."""
    generator = torch.Generator().manual_seed(seed)
    backwards = torch.nn.functional.normalize(
        torch.randn(count, 3, dtype=torch.float64, generator=generator) + torch.tensor([0.0, 0.0, 0.8]), dim=-1
    )
    right = torch.nn.functional.normalize(
        torch.linalg.cross(torch.tensor([0.0, 1e-3, 1.0], dtype=torch.float64).expand_as(backwards), backwards), dim=-1
    )
    return torch.stack([right, torch.linalg.cross(backwards, right), backwards, distance * backwards], dim=-1)


def ball_world(folder: Path, num_cameras: int = 20, drift: bool = False) -> Tuple[PosedScene, Similarity]:
    """A dataset of pictures of the ball, and a run that has learned it.

    Args:
        folder: where the dataset goes, as `nerfstudio-data` reads it.
        num_cameras: number of images; nerfstudio holds out a tenth of them.
        drift: the learned frame is another one than nerfstudio's.
    Returns:
        The run, and the map from its learned frame to the input's.
    """
    learned = looking_in(num_cameras)
    turn = roma.rotvec_to_rotmat(torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64))
    moved = Similarity(torch.tensor(0.8, dtype=torch.float64), turn, torch.tensor([0.1, 0.2, -0.3]).double())
    drifted = moved if drift else Similarity.identity()
    to_input = Similarity(UNITS * drifted.scale, drifted.rotation, UNITS * drifted.translation)
    given = to_input.apply_to_poses(learned)
    (folder / "images").mkdir(parents=True)
    frames: List[Dict[str, Any]] = []
    for index, pose in enumerate(given):
        name = f"images/{index:02d}.png"
        matrix = torch.cat([pose, torch.tensor([[0.0, 0.0, 0.0, 1.0]]).double()])
        frames.append({"file_path": name, "transform_matrix": matrix.tolist()})
        Image.new("RGB", (SIZE, SIZE)).save(folder / name)
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2, "w": SIZE, "h": SIZE}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    parser: Any = NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False, scale_factor=1 / UNITS,
        downscale_factor=1,
    ).setup()  # fmt: skip
    outputs = {split: parser.get_dataparser_outputs(split) for split in ("train", "val")}
    renderer = BallRenderer()
    datasets = {}
    for split, part in outputs.items():
        datasets[split] = NamedImages(part)
        cameras = datasets[split].cameras
        for index, filename in enumerate(part.image_filenames):
            cameras.camera_to_worlds[index] = learned[int(filename.stem)].float()
            picture = renderer.get_outputs_for_camera(cameras[index : index + 1])["rgb"]
            Image.fromarray((255 * picture).round().byte().numpy()).save(filename)
    reference = outputs["train"].cameras.camera_to_worlds.float()
    names = [path.as_posix() for path in outputs["train"].image_filenames]
    poses = PoseOptimizer(PoseOptimizerConfig(), len(reference), "cpu", reference, reference, names)
    for index, filename in enumerate(outputs["train"].image_filenames):
        poses.set_refined(index, learned[int(filename.stem)].float())
    scene = PosedScene(
        renderer=renderer,
        model_config=None,
        poses=poses,
        train=datasets["train"],
        held_out=datasets["val"],
        dataparser=parser,
        curriculum=None,
        test_time=TestTimeOptimization(steps=0, rays=64, images=1, lr=1e-3),
        total_steps=1,
    )
    return scene, to_input


def ball_picture(scene: PosedScene, learned: Tensor, path: Path, size: int = SIZE) -> Path:
    """Writes what a camera of the run's lens sees from a pose of the learned frame."""
    cameras = scene.train_outputs.cameras[0:1]
    cameras.rescale_output_resolution(size / SIZE)
    cameras.camera_to_worlds = learned[None].float()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.asarray((255 * scene.renderer.get_outputs_for_camera(cameras)["rgb"]).round().byte())
    Image.fromarray(picture).save(path)
    return path


def shorten_searches(monkeypatch: Any) -> None:
    """Less that is judged without gradients."""
    from hashpose_ns.photometry import localize

    for name, value in (("TRAINING_IMAGES", 10), ("RANKING_RAYS", 96), ("JUDGING_RAYS", 64), ("FINAL_RAYS", 800)):
        monkeypatch.setattr(localize, name, value)
