"""Random cameras, a dataset on disk and a pipeline that only knows poses."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import roma
import torch
from PIL import Image

from hashpose_ns.cameras.alignment import Similarity
from nerfstudio.cameras.cameras import Cameras, CameraType


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


def make_pipeline(outputs, dataparser, refined, initial=None, held_out=(), trainable=None) -> SimpleNamespace:
    """A stand-in for a trained pipeline: ``refined`` and ``initial`` are poses in nerfstudio's frame."""
    initial = outputs.cameras.camera_to_worlds if initial is None else initial
    optimizer = SimpleNamespace(
        refined_camera_to_worlds=lambda: refined.float(), initial_camera_to_worlds=initial.float()
    )
    if trainable is not None:
        optimizer.trainable = trainable
    return SimpleNamespace(
        model=SimpleNamespace(camera_optimizer=optimizer),
        datamanager=SimpleNamespace(
            train_dataparser_outputs=outputs,
            dataparser=dataparser,
            eval_dataset=SimpleNamespace(image_filenames=list(held_out)),
        ),
    )


@pytest.fixture
def helpers() -> SimpleNamespace:
    """The functions above, for test modules."""
    return SimpleNamespace(
        poses=make_poses,
        cameras=make_cameras,
        similarity=make_similarity,
        write_images=write_images,
        pipeline=make_pipeline,
    )
