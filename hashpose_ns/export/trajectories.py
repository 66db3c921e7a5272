"""Cameras as trajectories, for evo and other tools of the SLAM world."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Literal, Sequence

import numpy as np
import roma
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.errors import HashPoseError


def timestamps(names: Sequence[str], source: Literal["index", "names"]) -> List[float]:
    """A time for each image, in the images' order.

    Args:
        names: image names.
        source: ``index`` counts from 0 in the order of the names, ``names`` takes the last number in each file name.

    Raises:
        HashPoseError: if a name holds no number, or two hold the same.
    """
    if source == "index":
        place = {name: float(index) for index, name in enumerate(sorted(names))}
        return [place[name] for name in names]
    numbers = []
    for name in names:
        found = re.findall(r"\d+(?:\.\d+)?", Path(name).stem)
        if not found:
            raise HashPoseError(f"There is no number in the image name {name}; use --timestamps index.")
        numbers.append(float(found[-1]))
    if len(set(numbers)) < len(numbers):
        raise HashPoseError("Two image names end in the same number; use --timestamps index.")
    return numbers


def write_trajectory(
    path: Path,
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    times: Sequence[float],
    format: Literal["tum", "kitti"],
) -> None:
    """Writes poses in the order of their times.

    TUM: ``time tx ty tz qx qy qz qw``. KITTI: the twelve numbers of the matrix, row by row.

    Args:
        path: the file.
        camera_to_worlds: rigid camera-to-world poses, OpenCV axes (right, down, forwards).
        times: time of each.
        format: which of the two.
    """
    order = np.argsort(times, kind="stable")
    poses = camera_to_worlds.detach().cpu().double()[torch.from_numpy(order)]
    if format == "kitti":
        rows = poses.flatten(1).numpy()
    else:
        quaternions = roma.rotmat_to_unitquat(poses[:, :, :3])
        rows = torch.cat([torch.tensor(times, dtype=torch.float64)[order, None], poses[:, :, 3], quaternions], dim=1)
        rows = rows.numpy()
    # 17 digits give back every float64, and hold times of a year in nanoseconds
    np.savetxt(path, rows, fmt="%.17g")
