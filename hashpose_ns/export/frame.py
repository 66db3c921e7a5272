"""The way from the frame that poses were learned in to the frame of the input dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, align_poses, centers_coincide
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.errors import HashPoseError
from nerfstudio.data.dataparsers.base_dataparser import (
    DataParser,
    DataparserOutputs,
    transform_poses_to_original_space,
)

ONE_WAY_DATAPARSERS = {
    "NeRFOSR": "nerfosr-data",
    "SDFStudio": "sdfstudio-data",
    "NuScenes": "nuscenes-data",
    "Dycheck": "dycheck-data",
    "Sitcoms3D": "sitcoms3d-data",
}
"""nerfstudio's dataparsers that move the poses without saying how in their outputs, by class name."""


@dataclass(frozen=True, eq=False)
class InputFrame:
    """The frame of the input dataset, as seen from the learned frame.

    The learned frame is nerfstudio's, after the drift in place, orientation and size that joint optimisation is free
    to make; the similarity undoes the drift, and what the dataparser recorded undoes its normalisation.
    """

    description: str
    """Which frame this is and how the drift was undone, in words."""
    similarity: Similarity
    """From the learned frame to nerfstudio's frame as training started in it."""
    outputs: DataparserOutputs
    """Of the dataparser that made nerfstudio's frame."""
    arbitrary: bool = False
    """Whether training started from the identity, so that nothing ties the frame to the input's."""

    @property
    def unit(self) -> float:
        """Length, in units of the input, of one unit of the learned frame."""
        return float(self.similarity.scale) / float(self.outputs.dataparser_scale)

    def poses(self, camera_to_worlds: Float[Tensor, "num_cameras 3 4"]) -> Float[Tensor, "num_cameras 3 4"]:
        """Poses of the learned frame in the input's: float64, OpenGL axes, orthonormal to 1e-15."""
        return to_input_frame(self.similarity.apply_to_poses(camera_to_worlds.detach().cpu().double()), self.outputs)

    def points(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of the learned frame in the input's, float64."""
        aligned = self.similarity.apply_to_points(points.detach().cpu().double())
        return dataparser_similarity(self.outputs).inverse().apply_to_points(aligned)


def input_frame(
    optimizer: PoseOptimizer, outputs: DataparserOutputs, align: Literal["input", "none"] = "input"
) -> InputFrame:
    """How to get from a camera optimizer's poses to the input's frame.

    Poses and field optimised together are determined up to a similarity only. ``align="input"`` fixes it by aligning
    the refined cameras to those that training started from (never to a ground truth kept for evaluation). The
    poses stay as they are where training started from the identity, since there is nothing to align to, and where some
    cameras were frozen, since these have fixed it and must not move.

    Args:
        optimizer: what holds initial and refined poses.
        outputs: of the run's dataparser.
        align: how to fix the similarity.
    """
    refined = optimizer.refined_camera_to_worlds().detach().cpu()
    initial = optimizer.initial_camera_to_worlds.detach().cpu()
    num_frozen = int((~optimizer.trainable).sum())
    if centers_coincide(initial):
        description = "arbitrary in place, orientation and scale, as training started from the identity"
        return InputFrame(description, Similarity.identity(), outputs, arbitrary=True)
    if num_frozen:
        description = f"the input's, as learned, held by the frozen cameras ({num_frozen})"
        return InputFrame(description, Similarity.identity(), outputs)
    if align == "none":
        return InputFrame("the input's, as learned", Similarity.identity(), outputs)
    description = "the input's, aligned to the poses training started from"
    return InputFrame(description, align_poses(refined, initial), outputs)


def dataparser_similarity(outputs: DataparserOutputs) -> Similarity:
    """The map from the input's frame to nerfstudio's that a dataparser recorded."""
    scale, transform = float(outputs.dataparser_scale), outputs.dataparser_transform.double()
    return Similarity(torch.tensor(scale, dtype=torch.float64), transform[:, :3], transform[:, 3] * scale)


def to_input_frame(
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"], outputs: DataparserOutputs
) -> Float[Tensor, "num_cameras 3 4"]:
    """Undo what a dataparser did to poses.

    Args:
        camera_to_worlds: poses in nerfstudio's frame, OpenGL axes.
        outputs: of the dataparser that made that frame.

    Returns:
        Poses in the frame of the input, OpenGL axes, float64, with rotations that are orthonormal to 1e-15.
    """
    poses = transform_poses_to_original_space(
        camera_to_worlds.detach().cpu().double(),
        outputs.dataparser_transform.double(),
        float(outputs.dataparser_scale),
        camera_convention="opengl",
    )
    return torch.cat([roma.special_procrustes(poses[:, :, :3]), poses[:, :, 3:]], dim=-1)


def flip_axes(camera_to_worlds: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 3 4"]:
    """Poses with OpenGL's camera axes (right, up, backwards) as OpenCV's (right, down, forwards), and the other way
    round."""
    return camera_to_worlds * camera_to_worlds.new_tensor([1.0, -1.0, -1.0, 1.0])


def check_invertible(dataparser: DataParser, outputs: DataparserOutputs) -> None:
    """Raise HashPoseError unless the outputs say truly how to get back to the input's frame."""
    for parent in type(dataparser).__mro__:
        if parent.__name__ in ONE_WAY_DATAPARSERS:
            raise HashPoseError(
                f"Poses read by {ONE_WAY_DATAPARSERS[parent.__name__]} cannot be exported, because it does not record "
                "how it moved them out of their own frame."
            )
    scale, rotation = float(outputs.dataparser_scale), outputs.dataparser_transform[:, :3].double()
    rigid = torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-3)
    if not (0 < scale < float("inf") and rigid and torch.linalg.det(rotation) > 0):
        raise HashPoseError(
            f"The poses cannot be exported, because the dataparser's scale ({scale:g}) and transform are no change of "
            "frame that could be undone."
        )
