"""Makes a transforms.json of a SLAM system's trajectory and its images, for `ns-train hashpose`.

    python examples/slam/tum_to_transforms.py --trajectory logs/seq.txt --images logs/keyframes/seq \\
        --camera 517.3 516.5 318.6 255.3

A line of the trajectory is `time x y z qx qy qz qw`, as ORB-SLAM3, DROID-SLAM, DPVO, MASt3R-SLAM and the TUM RGB-D data
set write it: the camera's place in the world, OpenCV axes. Images are found by the time in their names, or by a list.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Tuple

import numpy as np
import tyro
from PIL import Image
from scipy.spatial.transform import Rotation

SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass
class Settings:
    """A trajectory, its images and their lens."""

    trajectory: Path
    """Text file of times and poses."""
    images: Path
    """Folder of the images."""
    camera: Tuple[float, float, float, float]
    """fx, fy, cx, cy in pixels."""
    distortion: Tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    """k1, k2, p1, p2, k3 of OpenCV."""
    image_list: Optional[Path] = None
    """Text file of `time name` lines, names relative to `images`. By default the times are the images' names."""
    unit: float = 1.0
    """What a time of an image has to be multiplied by; 1e-9 for names in nanoseconds beside a trajectory in seconds."""
    tolerance: float = 0.02
    """Difference between the times of an image and of its pose at most, in the trajectory's unit."""
    output: Optional[Path] = None
    """The file to write; by default transforms.json beside the folder of images."""


def read_trajectory(path: Path) -> Tuple[np.ndarray, np.ndarray]:
    """Times [N] and camera-to-world poses [N, 4, 4] with OpenGL axes, by time.

    Raises:
        ValueError: a line is not eight numbers, or a quaternion is zero.
    """
    rows = np.loadtxt(path, dtype=np.float64, comments="#", ndmin=2)
    if rows.shape[1:] != (8,):
        raise ValueError(f"{path}: a line should be `time x y z qx qy qz qw`, eight numbers.")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(rows[:, 4:]).as_matrix() * [1.0, -1.0, -1.0]
    poses[:, :3, 3] = rows[:, 1:4]
    return rows[:, 0], poses


def image_times(settings: Settings) -> Dict[Path, float]:
    """The time of each image."""
    if settings.image_list is not None:
        lines = [line.split(maxsplit=1) for line in settings.image_list.read_text().splitlines()]
        pairs = [line for line in lines if len(line) == 2 and not line[0].startswith("#")]
        return {settings.images / name: settings.unit * float(time) for time, name in pairs}
    files = sorted(file for file in settings.images.iterdir() if file.suffix.lower() in SUFFIXES)
    return {file: settings.unit * float(file.stem) for file in files}


def transforms(settings: Settings, root: Path) -> dict:
    """What transforms.json holds: every pose with the image nearest in time.

    Args:
        settings: what to read.
        root: folder that the images' paths are relative to.

    Raises:
        ValueError: fewer than two poses have an image.
    """
    times, poses = read_trajectory(settings.trajectory)
    images = image_times(settings)
    frames = []
    for time, pose in zip(times, poses):
        file = min(images, key=lambda name: abs(images[name] - time), default=None)
        if file is None or abs(images[file] - time) > settings.tolerance:
            continue
        frames.append({"file_path": os.path.relpath(file, root), "transform_matrix": pose.tolist()})
        del images[file]
    if len(frames) < 2:
        raise ValueError(
            f"{len(frames)} of {len(times)} poses have an image within {settings.tolerance:g}; see --unit, --tolerance "
            "and --image-list."
        )
    with Image.open(root / frames[0]["file_path"]) as image:
        size = dict(zip(("w", "h"), image.size))
    print(f"{len(frames)} of {len(times)} poses have an image; {len(images)} images have no pose.")
    camera = dict(zip(("fl_x", "fl_y", "cx", "cy"), settings.camera))
    distortion = dict(zip(("k1", "k2", "p1", "p2", "k3"), settings.distortion))
    return {"camera_model": "OPENCV", **size, **camera, **distortion, "frames": frames}


def main(settings: Settings) -> None:
    """Writes the file, never over another one."""
    output = settings.output or settings.images.parent / "transforms.json"
    content = json.dumps(transforms(settings, output.parent), indent=1)
    with open(output, "x") as file:
        file.write(content)
    print(f"Now: ns-train hashpose --data {output.parent}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings))
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
