"""Small scenes on disk, made from the packaged chair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional, Tuple

import numpy as np
import torch
from PIL import Image

import hashpose_ns
from hashpose_ns.cameras.start import TrainingCameras

CHAIR = Path(hashpose_ns.__file__).parent / "data" / "demo_chair"
"""Blender format, 40 training and 10 test images of 100x100 with alpha."""


def chair_frames(split: str, count: Optional[int] = None) -> tuple[float, list[dict]]:
    """Horizontal field of view in radians, and `count` frames of a split, evenly spread."""
    meta = json.loads((CHAIR / f"transforms_{split}.json").read_text())
    frames = meta["frames"]
    if count is not None:
        frames = [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]
    return meta["camera_angle_x"], frames


def chair_image(frame: dict, size: int, white: bool = False) -> Image.Image:
    """A frame's photograph at size x size, with alpha or composited on white."""
    image = Image.open(CHAIR / (frame["file_path"].removeprefix("./") + ".png")).convert("RGBA")
    image = image.resize((size, size), Image.Resampling.BOX)
    if white:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def blender_scene(folder: Path, num_train: int = 6, num_test: int = 2, size: int = 24) -> Path:
    """A subset of the chair in Blender's format, without a validation split."""
    for split, count in (("train", num_train), ("test", num_test)):
        angle, frames = chair_frames(split, count)
        (folder / split).mkdir(parents=True, exist_ok=True)
        frames = [dict(frame) for frame in frames]
        for i, frame in enumerate(frames):
            chair_image(frame, size).save(folder / split / f"r_{i}.png")
            frame["file_path"] = f"./{split}/r_{i}"
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return folder


def nerfstudio_scene(folder: Path, num_images: int = 10, size: int = 24, white: bool = True) -> Path:
    """A subset of the chair in nerfstudio's format, transforms.json beside images."""
    angle, frames = chair_frames("train", num_images)
    focal = 0.5 * size / np.tan(0.5 * angle)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for i, frame in enumerate(frames):
        chair_image(frame, size, white).save(folder / "images" / f"frame_{i:02d}.png")
        entries.append({"file_path": f"images/frame_{i:02d}.png", "transform_matrix": frame["transform_matrix"]})
    intrinsics = {"w": size, "h": size, "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2}
    meta = {"camera_model": "OPENCV", **intrinsics, "frames": entries}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def colmap_scene(folder: Path, num_images: int = 10, size: int = 24, binary: bool = True) -> Path:
    """A subset of the chair as a COLMAP model without points in sparse/0, beside images."""
    from nerfstudio.data.utils import colmap_parsing_utils as colmap

    meta = json.loads((nerfstudio_scene(folder, num_images, size) / "transforms.json").read_text())
    (folder / "transforms.json").unlink()
    focal = meta["fl_x"]
    camera = colmap.Camera(1, "PINHOLE", size, size, np.array([focal, focal, size / 2, size / 2]))
    images = {}
    for i, frame in enumerate(meta["frames"], 1):
        rotation = (np.array(frame["transform_matrix"])[:3, :3] * [1, -1, -1]).T
        translation = -rotation @ np.array(frame["transform_matrix"])[:3, 3]
        name = Path(frame["file_path"]).name
        observed = np.full((3, 2), 5.0), np.full(3, -1)
        images[i] = colmap.Image(i, colmap.rotmat2qvec(rotation), translation, 1, name, *observed)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    if binary:
        colmap.write_cameras_binary({1: camera}, model / "cameras.bin")
        colmap.write_images_binary(images, model / "images.bin")
    else:
        colmap.write_cameras_text({1: camera}, model / "cameras.txt")
        colmap.write_images_text(images, model / "images.txt")
    return folder


def llff_scene(folder: Path, num_images: int = 10, size: int = 24) -> Path:
    """A forward-facing capture: poses_bounds.npy and images of cameras side by side that look the same way."""
    _, frames = chair_frames("train", num_images)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i, frame in enumerate(frames):
        chair_image(frame, size, white=True).save(folder / "images" / f"image_{i:02d}.png")
        down_right_backwards = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        center = np.array([[0.2 * (i % 4)], [0.2 * (i // 4)], [0.02 * i]])
        image = np.array([[size], [size], [1.2 * size]])
        rows.append(np.concatenate([np.hstack([down_right_backwards, center, image]).ravel(), [2.0, 20.0]]))
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def training_metadata(poses: torch.Tensor, half_extent: Tuple[float, float] = (1.0, 1.0)) -> dict:
    """What a model is told of training cameras that start at their reference poses."""
    metadata: dict = {}
    names = tuple(f"{index}.png" for index in range(len(poses)))
    TrainingCameras(poses, poses, names, half_extent).into(metadata)
    return metadata


def edit_json(path: Path, edit) -> None:
    """Reads a JSON file, lets `edit` change it in place, writes it back."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
