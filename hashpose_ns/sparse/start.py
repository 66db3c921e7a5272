"""Cameras of photographs by the network: for hashpose-sparse poses, and as a start of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.errors import HashPoseError
from hashpose_ns.sparse.crops import MARGIN, Crops, crops_of
from hashpose_ns.sparse.evaluation import camera_centers
from hashpose_ns.sparse.network import Cameras
from hashpose_ns.sparse.weights import load_weights
from nerfstudio.cameras.cameras import Cameras as Lenses

GROUP = 8
"""Views that the network sees at once. More are taken in groups that share the first."""
MOST = 9
"""Training images beyond which no start is looked for."""
OBJECT = 0.6
"""Half the longer side of the object's largest box, which is the unit of what is written: it fits into the box of
hashpose-object, of 0.8, whatever the lens."""
FRAME = (
    f"the object's centre at the origin, {OBJECT} half the object's width where it looks widest, z upwards as far as "
    "the network could tell"
)


@dataclass
class SparseStartConfig:
    """Where `initial-poses sparse` takes poses from."""

    weights: Optional[Path] = None
    """A weights.npz of hashpose-sparse train; by default the package's, if it has any."""
    steps: int = 5
    """Refinement steps."""
    seed: int = 0
    """Seed of the points that refinement draws."""


def sparse_poses(
    filenames: Sequence[Path], lenses: Lenses, masks: Optional[Sequence[Path]], config: SparseStartConfig
) -> Float[Tensor, "views 3 4"]:
    """Where training images were taken: camera-to-world poses, OpenGL axes, see `FRAME`.

    Args:
        filenames: the images.
        lenses: their intrinsics at their size; poses are not read.
        masks: a mask for each, white where the object is.
        config: of the network.

    Raises:
        HashPoseError: there are too many images, no weights, or `crops_of` refuses an image.
    """
    if len(filenames) > MOST:
        raise HashPoseError(
            f"There are {len(filenames)} training images, and initial-poses sparse is for {MOST} at most; start from "
            "given poses, or from matches."
        )
    if config.steps < 0:
        raise HashPoseError("sparse.steps is the number of refinement steps, 0 or more.")
    with torch.random.fork_rng(devices=[]):  # a network is made before it is filled
        network, _ = load_weights(config.weights)
    crops = crops_of(list(filenames), lenses, None if masks is None else list(masks), network.config.size)
    return find_cameras(network, crops, config.steps, config.seed).float()


@torch.no_grad()
def find_cameras(
    network: Callable[..., list[Cameras]], crops: Crops, steps: int, seed: int = 0
) -> Float[Tensor, "views 3 4"]:
    """Cameras of the crops' photographs: camera-to-world poses, float64, OpenGL axes, see `FRAME`.

    Args:
        network: a `SparsePoseNet` in evaluation mode.
        crops: of 2 views or more.
        steps: of refinement.
        seed: of the points.
    """
    count = len(crops.tangents)
    rotations, centers = torch.zeros(count, 3, 3).double(), torch.zeros(count, 3).double()
    for number, part in enumerate(torch.arange(1, count).split(GROUP - 1)):
        group = torch.cat([torch.zeros(1, dtype=torch.long), part])
        generator = torch.Generator().manual_seed(seed)
        found = network(crops.images[group][None], crops.tangents[group][None], steps=steps, generator=generator)[-1]
        turns, places = found.rotations[0].double(), found.centers[0].double()
        if number:  # into the first group's frame and unit, by the view that they share
            turns = turns @ turns[0].T @ rotations[0]
            places = places / places[0].norm() * centers[0].norm()
        rotations[group], centers[group] = turns, places
    widths = crops.tangents.double() / MARGIN * centers[:, 2]
    # The crops' cameras are turned ones of the photographs.
    back = crops.turns.double().transpose(-1, -2)
    rotations, centers = back @ rotations, (back @ centers[..., None])[..., 0] * (OBJECT / widths.max())
    positions = camera_centers(rotations, centers)
    poses = torch.cat([rotations.transpose(-1, -2), positions[..., None]], -1)
    return poses * poses.new_tensor([1.0, -1.0, -1.0, 1.0])  # from OpenCV's camera axes
