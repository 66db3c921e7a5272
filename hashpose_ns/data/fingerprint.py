"""What training images look like from outside: to notice that a run continues with others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras

SAMPLE = 4096
"""Bytes that are read at the start, in the middle and at the end of a file."""
KEYS = ("image_digests", "image_cameras")
"""What images are compared by."""
NAMES = "image_names"
"""What else a fingerprint has: a number for the name of each file."""


def fingerprint(filenames: Sequence[Path], cameras: Cameras) -> Dict[str, Tensor]:
    """What is remembered of images and of their cameras, on the CPU.

    Args:
        filenames: the image files.
        cameras: theirs, at the files' resolution.
    Returns:
        `image_digests` [N], a number for the size and some bytes of each file; `image_cameras` [N, 6 + distortion],
        width, height, focal lengths and principal point in pixels, and distortion parameters; `image_names` [N], a
        number for each file's name, by which images are found again whose content has changed.

    Raises:
        OSError: a file cannot be read.
    """
    digests = torch.tensor([image_digest(filename) for filename in filenames], dtype=torch.long)
    names = [_number(hashlib.blake2b(Path(filename).name.encode(), digest_size=8)) for filename in filenames]
    return {**dict(zip(KEYS, (digests, _intrinsics(cameras)))), NAMES: torch.tensor(names, dtype=torch.long)}


def image_digest(filename: Path) -> int:
    """A number for the size and some bytes of a file. Raises OSError where it cannot be read."""
    with open(filename, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=8)
        # Of compressed pictures the last bytes depend on all pixels
        for start in sorted({0, max(size // 2 - SAMPLE // 2, 0), max(size - SAMPLE, 0)}):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return _number(digest)


def _number(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "big", signed=True)


def _intrinsics(cameras: Cameras) -> Float[Tensor, "num_images numbers"]:
    lens = (cameras.width, cameras.height, cameras.fx, cameras.fy, cameras.cx, cameras.cy)
    distortion = cameras.distortion_params
    if distortion is None:
        distortion = torch.zeros(len(cameras), 6)
    columns = [column.reshape(len(cameras), 1).float() for column in lens]
    return torch.cat([*columns, distortion.float()], dim=1).cpu()


def difference(
    saved: Mapping[str, Tensor], now: Mapping[str, Tensor], filenames: Sequence[Path], any_size: bool
) -> Optional[str]:
    """How images differ from those of an earlier fingerprint, as a clause; None if they do not, or there is none.

    Args:
        saved: the earlier fingerprint, or a mapping without one.
        now: the fingerprint of the images.
        filenames: of the images.
        any_size: whether the same images at another resolution pass, which cannot be compared.
    """
    if not set(KEYS) <= set(saved):
        return None
    (digests, cameras), (new_digests, new_cameras) = ([x[key].cpu() for key in KEYS] for x in (saved, now))
    if any_size and not torch.equal(cameras[:, :2], new_cameras[:, :2]):
        return None
    others, what = torch.ones(len(new_cameras), dtype=torch.bool), "other intrinsics"
    if cameras.shape == new_cameras.shape and digests.shape == new_digests.shape:
        others = ~torch.isclose(cameras.float(), new_cameras, rtol=1e-4, atol=1e-5).all(dim=1)
        if not others.any():
            others, what = digests != new_digests, "another content"
    if not others.any():
        return None
    first = filenames[int(others.int().argmax())]
    return f"{int(others.sum())} of {len(others)} images have {what} now, the first is {first.name}"
