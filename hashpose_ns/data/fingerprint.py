"""What images look like from outside: to notice that a run is resumed on others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras

SAMPLE = 4096
"""Bytes that are read at the start, in the middle and at the end of a file."""


def image_digests(filenames: Sequence[Path]) -> Int[Tensor, "num_images"]:
    """A number for each image file, of its size and of some of its bytes. Names do not count.

    Raises:
        OSError: a file cannot be read.
    """
    return torch.tensor([_digest(filename) for filename in filenames], dtype=torch.long)


def _digest(filename: Path) -> int:
    with open(filename, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=8)
        # Of compressed pictures the last bytes depend on all pixels
        for start in sorted({0, max(size // 2 - SAMPLE // 2, 0), max(size - SAMPLE, 0)}):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return int.from_bytes(digest.digest(), "big", signed=True)


def intrinsics(cameras: Cameras) -> Float[Tensor, "num_images numbers"]:
    """Width, height, focal lengths and principal point in pixels, and distortion parameters (zeros where there are
    none) of each camera."""
    size_and_lens = (cameras.width, cameras.height, cameras.fx, cameras.fy, cameras.cx, cameras.cy)
    distortion = cameras.distortion_params
    if distortion is None:
        distortion = torch.zeros(len(cameras), 6)
    columns = [column.reshape(len(cameras), 1).float() for column in size_and_lens]
    return torch.cat([*columns, distortion.float()], dim=1).cpu()
