"""From a trained run to refined cameras in the frame of the input dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Collection, List, Literal, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, align_poses, pose_errors
from hashpose_ns.cameras.perturbation import validate_poses
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.data.added import joined_cameras
from hashpose_ns.data.names import image_folder_and_names, images_folder
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.exported import FROZEN, KEPT, NOT_TRAINED, TRAINED, ExportedCameras
from hashpose_ns.export.frame import GivenPoses, InputFrame, corrected, input_frame
from hashpose_ns.export.held_out import optimized_held_out_cameras
from hashpose_ns.export.sources import dataset_files
from hashpose_ns.photometry.scene import PosedImages, PosedScene
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The images that are exported, training images first."""

    splits: List[str]
    indices: List[int]
    """Of each image within its split."""
    learned: Float[Tensor, "num_cameras 3 4"]
    """Poses in the learned frame, float64."""
    start: Float[Tensor, "num_cameras 3 4"]
    """Where training started, or the given poses of evaluation images; nerfstudio's frame, float64."""
    reference: Float[Tensor, "num_cameras 3 4"]
    """The dataset's poses in nerfstudio's frame, float64."""
    given: Float[Tensor, "num_cameras 3 4"]
    """The dataset's poses in its own frame, float64."""
    refined_by: List[str]
    """What moved each camera, in words."""

    def __add__(self, other: _Chosen) -> _Chosen:
        """Both, one after the other."""
        return _Chosen(
            self.splits + other.splits,
            self.indices + other.indices,
            torch.cat([self.learned, other.learned]),
            torch.cat([self.start, other.start]),
            torch.cat([self.reference, other.reference]),
            torch.cat([self.given, other.given]),
            self.refined_by + other.refined_by,
        )


def exported_cameras(
    scene: PosedImages,
    align: Literal["input", "none"] = "input",
    split: Literal["train", "all"] = "train",
    put_back: Collection[int] = (),
) -> ExportedCameras:
    """The refined cameras of a run, in the frame of its input.

    Args:
        scene: the run; of a capture without a field the training images alone can be exported.
        align: how to fix the similarity that training leaves open, see ``input_frame``.
        split: ``all`` adds the evaluation images, their cameras aligned by the training cameras and then optimised
            against the field; images are then sorted by name.
        put_back: training cameras that get the pose training started from.

    Raises:
        HashPoseError: if the dataparser cannot be undone, or a refined pose is broken.
    """
    outputs = scene.train_outputs
    _check_poses(scene)
    given = GivenPoses.of(scene)
    frame = input_frame(scene.poses, given, align)
    chosen = _training_cameras(scene, given, frame, align, put_back)
    held_out = _held_out(scene)
    with_held_out = split == "all" and bool(held_out)
    cameras = outputs.cameras
    if with_held_out:
        assert isinstance(scene, PosedScene)
        chosen += _held_out_cameras(scene, given, held_out)
        cameras = joined_cameras(cameras, scene.held_out_outputs.cameras[torch.tensor(held_out)])

    def files(of: Callable[[DataparserOutputs], Optional[Sequence[Path]]]) -> Optional[List[Path]]:
        """A file of each image, absolute; None if a split has none."""
        lists = {"train": of(outputs) or (), "eval": (of(scene.held_out_outputs) or ()) if with_held_out else ()}
        if not all(lists[kind] for kind in set(chosen.splits)):
            return None
        found = (lists[kind][index] for kind, index in zip(chosen.splits, chosen.indices))
        return [Path(os.path.normpath(path.absolute())) for path in found]

    filenames = files(lambda part: part.image_filenames) or []
    settings = scene.dataparser.config
    folder, names = image_folder_and_names(filenames, Path(settings.data), images_folder(settings))
    masks, depths = files(lambda part: part.mask_filenames), files(lambda part: part.metadata.get("depth_filenames"))
    order = sorted(range(len(names)), key=names.__getitem__) if with_held_out else list(range(len(names)))

    def ordered(values: List) -> List:
        return [values[index] for index in order]

    camera_to_worlds = frame.moved(chosen.given, chosen.reference, chosen.learned)[order]
    started = corrected(chosen.given, chosen.reference, chosen.start, 1.0 / float(given.to_nerfstudio.scale))
    start = None if frame.arbitrary else started[order]
    movement = None if start is None else pose_errors(camera_to_worlds, start, similarity=Similarity.identity())
    return ExportedCameras(
        camera_to_worlds=camera_to_worlds,
        learned_camera_to_worlds=chosen.learned[order],
        given_camera_to_worlds=chosen.given[order],
        start_camera_to_worlds=start,
        cameras=cameras[torch.tensor(order)] if with_held_out else cameras,
        image_filenames=ordered(filenames),
        image_folder=folder,
        names=ordered(names),
        splits=ordered(chosen.splits),
        indices=ordered(chosen.indices),
        refined_by=ordered(chosen.refined_by),
        frame=frame,
        movement=movement,
        num_left_out=0 if with_held_out else len(held_out),
        sources=dataset_files(scene),
        mask_filenames=ordered(masks) if masks else None,
        depth_filenames=ordered(depths) if depths else None,
    )


def _check_poses(scene: PosedImages) -> None:
    """Raises HashPoseError if the run's poses are not those of its dataset's images, or broken."""
    refined, filenames = scene.poses.refined_camera_to_worlds(), scene.train_outputs.image_filenames
    if len(refined) != len(filenames):
        raise HashPoseError(
            f"The run refined {len(refined)} poses but its dataset now has {len(filenames)} training images; export "
            "with the dataset and the split of the training."
        )
    validate_poses(refined, [Path(filename).name for filename in filenames])


def _training_cameras(
    scene: PosedImages,
    given: GivenPoses,
    frame: InputFrame,
    align: Literal["input", "none"],
    put_back: Collection[int],
) -> _Chosen:
    """The training cameras, some of them put back to where training started."""
    optimizer = scene.poses
    refined = optimizer.refined_camera_to_worlds().detach().cpu()
    initial = optimizer.initial_camera_to_worlds.detach().cpu()
    if put_back and frame.arbitrary:
        raise HashPoseError(
            "Cameras cannot be put back to where training started, as it started from the identity; export with "
            "--on-hurt warn."
        )
    learned, refined_by = refined.double().clone(), _moved_by(optimizer)
    if put_back:
        # where training started, in the learned frame, also where the export keeps that frame's drift
        kept_drift = align == "none" and FROZEN not in refined_by
        drift = align_poses(refined, initial) if kept_drift else frame.similarity
        start = drift.inverse().apply_to_poses(initial.double())
        for index in put_back:
            learned[index], refined_by[index] = start[index], KEPT
    reference = optimizer.reference_camera_to_worlds.detach().cpu().double()
    given_poses = given.poses(scene.train_outputs)
    indices = list(range(len(refined)))
    return _Chosen(["train"] * len(refined), indices, learned, initial.double(), reference, given_poses, refined_by)


def _moved_by(optimizer: PoseOptimizer) -> List[str]:
    if optimizer.config.mode == "off":
        return [NOT_TRAINED] * optimizer.num_cameras
    return [TRAINED if trainable else FROZEN for trainable in optimizer.trainable.tolist()]


def _held_out(scene: PosedImages) -> List[int]:
    """Indices of the evaluation images that are no training images."""
    trained = set(scene.train_outputs.image_filenames)
    return [index for index, name in enumerate(scene.held_out.image_filenames) if name not in trained]


def _held_out_cameras(scene: PosedScene, given: GivenPoses, indices: List[int]) -> _Chosen:
    """Evaluation images' cameras, optimised against the field."""
    poses, how = optimized_held_out_cameras(scene, indices)
    reference = scene.held_out_outputs.cameras.camera_to_worlds[indices].double()
    given_poses = given.poses(scene.held_out_outputs)[indices]
    return _Chosen(["eval"] * len(indices), indices, poses.double().cpu(), reference, reference, given_poses, how)
