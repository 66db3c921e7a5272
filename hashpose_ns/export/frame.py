"""The way from the frame that poses were learned in to the frame of the input dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np
import roma
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, align_poses, centers_coincide
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.data.added import source_with_added
from hashpose_ns.data.checks import check_transform, dataparser_similarity, one_way
from hashpose_ns.data.source import SourceCameras
from hashpose_ns.errors import HashPoseError
from hashpose_ns.photometry.scene import PosedImages
from nerfstudio.data.dataparsers.base_dataparser import (
    DataParser,
    DataparserOutputs,
    transform_poses_to_original_space,
)


@dataclass(frozen=True, eq=False)
class GivenPoses:
    """The dataset's own poses and frame, from its files where these are known."""

    frame: str
    """Which frame that is, in words."""
    to_nerfstudio: Similarity
    """From it to the frame in which training started."""
    source: Optional[SourceCameras]
    """The cameras of the files; None where only the dataparser knows them."""
    outputs: DataparserOutputs
    """Of the dataparser, for the training images."""

    @classmethod
    def of(cls, scene: PosedImages) -> GivenPoses:
        """Those of a run.

        Raises:
            HashPoseError: the run's poses are not those of the files in another frame, or nobody says in which.
        """
        outputs = scene.train_outputs
        source = source_with_added(scene.dataparser, outputs.metadata)
        if source is None:
            check_invertible(scene.dataparser, outputs)
            to_nerfstudio = dataparser_similarity(outputs)
            furthest = float(to_input_frame(outputs.cameras.camera_to_worlds, outputs)[:, :, 3].abs().max())
            precision = furthest * float(np.finfo(np.float32).eps)
            frame = f"the input's as {type(scene.dataparser).__name__} reads it, to {precision:.1g} units"
            return cls(frame, to_nerfstudio, None, outputs)
        reference = scene.poses.reference_camera_to_worlds
        found = source.similarity(outputs.image_filenames, reference)
        if found is None:
            raise HashPoseError(
                f"The poses in {source.path} are not those that the run was trained with; export with the dataset as "
                "it was then, or retrain."
            )
        return cls(source.frame, found, source, outputs)

    def poses(self, outputs: DataparserOutputs) -> Float[Tensor, "num_cameras 3 4"]:
        """Of a split's images: float64, OpenGL axes, rotations orthonormal to 1e-15."""
        if self.source is None:
            return to_input_frame(outputs.cameras.camera_to_worlds, self.outputs)
        return rigid(self.source.camera_to_worlds[self.source.rows(outputs.image_filenames)])


@dataclass(frozen=True, eq=False)
class InputFrame:
    """The frame of the input dataset, as seen from the learned frame.

    The learned frame is nerfstudio's, after the drift in place, orientation and size that joint optimisation is free
    to make.
    """

    name: str
    """Which frame this is, in words."""
    how: str
    """How the drift was undone, in words."""
    similarity: Similarity
    """From the learned frame to nerfstudio's frame as training started in it."""
    to_nerfstudio: Similarity
    """From the input's frame to nerfstudio's."""
    arbitrary: bool = False
    """Whether training started from the identity, so that nothing ties the frame to the input's."""

    @property
    def description(self) -> str:
        """Both in one."""
        return self.how if self.arbitrary else f"{self.name}, {self.how}"

    @property
    def unit(self) -> float:
        """Length, in units of the input, of one unit of the learned frame."""
        return float(self.similarity.scale) / float(self.to_nerfstudio.scale)

    def moved(
        self,
        given: Float[Tensor, "num_cameras 3 4"],
        reference: Float[Tensor, "num_cameras 3 4"],
        learned: Float[Tensor, "num_cameras 3 4"],
    ) -> Float[Tensor, "num_cameras 3 4"]:
        """Poses of the learned frame in the input's, as corrections of the given ones.

        The correction, in the camera's own axes, is what separates two poses of nerfstudio's small centred frame. So
        neither its single precision nor large coordinates of the input cost digits: what did not move is given back bit
        by bit. After an identity start poses are no corrections of the given ones, whose rounding in nerfstudio's frame
        would enter: all of them are moved as one.

        Args:
            given: in the input's frame, float64, orthonormal.
            reference: the same poses in nerfstudio's frame.
            learned: the poses in the learned frame.
        """
        after = self.similarity.apply_to_poses(learned.detach().cpu().double())
        if self.arbitrary:
            return rigid(self.to_nerfstudio.inverse().apply_to_poses(after))
        return corrected(given, reference, after, 1.0 / float(self.to_nerfstudio.scale))

    def points(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of the learned frame in the input's, float64."""
        aligned = self.similarity.apply_to_points(points.detach().cpu().double())
        return self.to_nerfstudio.inverse().apply_to_points(aligned)


def input_frame(optimizer: PoseOptimizer, given: GivenPoses, align: Literal["input", "none"] = "input") -> InputFrame:
    """How to get from a camera optimizer's poses to the input's frame.

    Poses and field optimised together are determined up to a similarity only. ``align="input"`` fixes it by aligning
    the refined cameras to those that training started from (never to a ground truth kept for evaluation). The
    poses stay as they are where training started from the identity, since there is nothing to align to, and where some
    cameras were frozen, since these have fixed it and must not move.

    Args:
        optimizer: what holds initial and refined poses.
        given: the dataset's poses and frame.
        align: how to fix the similarity.
    """
    refined = optimizer.refined_camera_to_worlds().detach().cpu()
    initial = optimizer.initial_camera_to_worlds.detach().cpu()
    num_frozen = int((~optimizer.trainable).sum())
    identity = Similarity.identity()
    # cameras on a tripod share a centre too, but that is where the input has them
    if centers_coincide(initial) and not torch.equal(initial, optimizer.reference_camera_to_worlds.cpu()):
        how = "arbitrary in place, orientation and scale, as training started from the identity"
        return InputFrame(given.frame, how, identity, given.to_nerfstudio, arbitrary=True)
    if num_frozen:
        how = f"as learned, held by the frozen cameras ({num_frozen})"
        return InputFrame(given.frame, how, identity, given.to_nerfstudio)
    if align == "none":
        return InputFrame(given.frame, "as learned", identity, given.to_nerfstudio)
    how = "aligned to the poses training started from"
    return InputFrame(given.frame, how, align_poses(refined, initial), given.to_nerfstudio)


def corrected(
    poses: Float[Tensor, "num_cameras 3 4"],
    before: Float[Tensor, "num_cameras 3 4"],
    after: Float[Tensor, "num_cameras 3 4"],
    scale: float,
) -> Float[Tensor, "num_cameras 3 4"]:
    """Poses moved in their own axes as others were.

    Args:
        poses: float64, orthonormal.
        before: the others.
        after: where they went.
        scale: length in the frame of `poses` of one unit in the frame of the others.
    """
    before, after = before.detach().cpu().double(), after.detach().cpu().double()
    rotations, back = poses[:, :, :3], rigid(before)[:, :, :3].mT
    turns = back @ rigid(after)[:, :, :3]
    shifts = scale * (back @ (after - before)[:, :, 3:])
    moved = rigid(torch.cat([rotations @ turns, poses[:, :, 3:] + rotations @ shifts], dim=-1))
    return torch.where((before == after).all(dim=2).all(dim=1)[:, None, None], poses, moved)


def rigid(camera_to_worlds: Float[Tensor, "num_cameras 3 4"]) -> Float[Tensor, "num_cameras 3 4"]:
    """The same poses in float64 with the nearest rotations, orthonormal to 1e-15."""
    poses = camera_to_worlds.detach().cpu().double()
    return torch.cat([roma.special_procrustes(poses[:, :, :3]), poses[:, :, 3:]], dim=-1)


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
    return rigid(poses)


def flip_axes(camera_to_worlds: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 3 4"]:
    """Poses with OpenGL's camera axes (right, up, backwards) as OpenCV's (right, down, forwards), and the other way
    round."""
    return camera_to_worlds * camera_to_worlds.new_tensor([1.0, -1.0, -1.0, 1.0])


def check_invertible(dataparser: DataParser, outputs: DataparserOutputs) -> None:
    """Raise HashPoseError unless the outputs say truly how to get back to the input's frame."""
    reason = one_way(dataparser)
    if reason is not None:
        raise HashPoseError(f"The poses cannot be exported, because {reason}.")
    check_transform(outputs)
