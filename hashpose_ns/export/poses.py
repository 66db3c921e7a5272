"""From a trained pipeline to refined cameras in the frame of the input dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Collection, List, Literal, Optional

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import PoseErrors, Similarity, align_poses, pose_errors
from hashpose_ns.cameras.perturbation import validate_poses
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.frame import InputFrame, check_invertible, input_frame, to_input_frame
from hashpose_ns.export.held_out import ALIGNED, optimized_held_out_cameras
from hashpose_ns.export.names import image_folder_and_names
from hashpose_ns.export.points import ExportedPoints
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.io import load_from_json

if TYPE_CHECKING:
    from hashpose_ns.guard.report import GuardReport
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import Pipeline

TRAINED = "training"
FROZEN = "nothing: frozen"
KEPT = "nothing: put back to where training started"
NOT_TRAINED = "nothing: the run refines no poses"


@dataclass(frozen=True, eq=False)
class ExportedCameras:
    """Refined cameras in the frame of the input dataset: everything a writer needs."""

    camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """Rigid poses, float64, OpenGL axes."""
    learned_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """The same poses in the frame of the trained field."""
    given_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """The poses that the dataset came with, float64, OpenGL axes."""
    start_camera_to_worlds: Optional[Float[Tensor, "num_cameras 3 4"]]
    """The poses that training started from; the given ones for evaluation images. None for an identity start."""
    cameras: Cameras
    """Intrinsics at the full resolution of the images. The poses in it are not the refined ones."""
    image_filenames: List[Path]
    """The original images, absolute."""
    image_folder: Path
    """The folder that names are relative to, absolute."""
    names: List[str]
    """Unique name of each image, relative to the folder, with forward slashes."""
    splits: List[str]
    """Of each image, ``train`` or ``eval``."""
    indices: List[int]
    """Index of each image within its split."""
    refined_by: List[str]
    """What moved each camera, in words."""
    frame: InputFrame
    """The frame of the poses."""
    movement: Optional[PoseErrors]
    """How far each camera is from where it started, in units of the input; None for an identity start."""
    num_left_out: int
    """Number of evaluation images that were left out."""
    mask_filenames: Optional[List[Path]] = None
    """Mask of each image, if there are any, absolute."""
    depth_filenames: Optional[List[Path]] = None
    """Depth map of each image, if there are any, absolute."""
    points: Optional[ExportedPoints] = None
    """Points beside the cameras, if they were asked for."""
    verdict: Optional[GuardReport] = None
    """Whether refinement helped, if that was judged."""

    @property
    def is_refined(self) -> List[bool]:
        """Whether each camera is where the field was trained with it, or was optimised against the field."""
        return [how not in (KEPT, ALIGNED) for how in self.refined_by]


def load_trained_pipeline(
    load_config: Path, load_points: bool = False, test_mode: Literal["inference", "val"] = "inference"
) -> Pipeline:
    """Load a run in nerfstudio's inference mode, with the images at full resolution, or as it was trained.

    Args:
        load_config: the run's config.yml. The checkpoint is looked for beside it, wherever the run was moved to and
            whatever the current folder is.
        load_points: ask the dataparser for the input's 3-D points where it has a setting for that.
        test_mode: `val` reads the images as training did.

    Returns:
        The run's pipeline, with the last checkpoint loaded.

    Raises:
        HashPoseError: if the config, the checkpoint or the dataset is not there.
    """
    if not load_config.is_file():
        raise HashPoseError(f"There is no file {load_config}; --load-config takes the config.yml of a trained run.")
    run = load_config.resolve().parent

    def adapt(config: TrainerConfig) -> TrainerConfig:
        # The checkpoint's place is put together from these four, as they were at training time
        config.output_dir = run.parent.parent.parent
        config.experiment_name, config.method_name, config.timestamp = run.parent.parent.name, run.parent.name, run.name
        if config.get_base_dir().resolve() != run or not any(config.get_checkpoint_dir().glob("step-*.ckpt")):
            raise HashPoseError(f"There is no checkpoint of the run in {run / config.relative_model_dir}.")
        datamanager = config.pipeline.datamanager
        data = datamanager.data if datamanager.data is not None else datamanager.dataparser.data
        if not Path(data).exists():
            raise HashPoseError(
                f"The dataset of the run, {data}, is not there; if that is a relative path, start the export from the "
                "folder the training was started from."
            )
        # In inference mode nerfstudio sets this on the dataparser, which colmap's does not read
        if test_mode == "inference" and hasattr(datamanager.dataparser, "downscale_factor"):
            datamanager.dataparser.downscale_factor = 1
        if hasattr(datamanager.dataparser, "load_3D_points"):
            datamanager.dataparser.load_3D_points = load_points and _has_points(datamanager.dataparser, Path(data))
        return config

    from nerfstudio.utils.eval_utils import eval_setup

    return eval_setup(load_config, test_mode=test_mode, update_config_callback=adapt)[1]


def _has_points(dataparser: Any, data: Path) -> bool:
    """Whether a dataparser can load points without asking questions: nerfstudio-data offers to rewrite a dataset that
    lists none."""
    if not isinstance(dataparser, NerfstudioDataParserConfig):
        return True
    return "ply_file_path" in load_from_json(data if data.suffix == ".json" else data / "transforms.json")


def exported_cameras(
    pipeline: Any,
    align: Literal["input", "none"] = "input",
    split: Literal["train", "all"] = "train",
    put_back: Collection[int] = (),
) -> ExportedCameras:
    """The refined cameras of a pipeline, in the frame of its input.

    Args:
        pipeline: anything with ``model.camera_optimizer`` (``refined_camera_to_worlds()`` and
            ``initial_camera_to_worlds``, both [N, 3, 4] in nerfstudio's frame, and maybe ``trainable`` [N]) and a
            ``datamanager``; for ``split="all"`` a HashPosePipeline.
        align: how to fix the similarity that training leaves open, see ``input_frame``.
        split: ``all`` adds the evaluation images, their cameras aligned by the training cameras and then optimised
            against the field; images are then sorted by name.
        put_back: training cameras that get the pose training started from.

    Raises:
        HashPoseError: if the pipeline refines no poses, its dataparser cannot be undone, or a refined pose is broken.
    """
    optimizer = getattr(pipeline.model, "camera_optimizer", None)
    if not hasattr(optimizer, "refined_camera_to_worlds"):
        raise HashPoseError(
            f"{type(pipeline.model).__name__} has no refined poses to export; train with one of the hashpose methods."
        )
    datamanager = pipeline.datamanager
    outputs: DataparserOutputs = datamanager.train_dataparser_outputs
    check_invertible(datamanager.dataparser, outputs)
    refined = optimizer.refined_camera_to_worlds().detach().cpu()
    initial = optimizer.initial_camera_to_worlds.detach().cpu()
    if not len(refined) == len(initial) == len(outputs.image_filenames):
        raise HashPoseError(
            f"The run refined {len(refined)} poses but its dataset now has {len(outputs.image_filenames)} training "
            "images; export with the dataset and the split of the training."
        )
    validate_poses(refined, [Path(filename).name for filename in outputs.image_filenames])
    frame = input_frame(optimizer, outputs, align)
    if put_back and frame.arbitrary:
        raise HashPoseError(
            "Cameras cannot be put back to where training started, as it started from the identity; export with "
            "--on-hurt warn."
        )
    learned, refined_by = refined.double().clone(), _moved_by(optimizer, len(refined))
    if put_back:
        # where training started, in the learned frame, also where the export keeps that frame's drift
        kept_drift = align == "none" and FROZEN not in refined_by
        drift = align_poses(refined, initial) if kept_drift else frame.similarity
        start = drift.inverse().apply_to_poses(initial.double())
        for index in put_back:
            learned[index], refined_by[index] = start[index], KEPT

    held_out = _held_out(pipeline, outputs)
    splits, indices = ["train"] * len(refined), list(range(len(refined)))
    start, given = initial.double(), outputs.cameras.camera_to_worlds.double()
    parts = [outputs]
    if split == "all" and held_out:
        eval_outputs = datamanager.eval_dataset._dataparser_outputs
        poses, how = optimized_held_out_cameras(pipeline, held_out)
        learned = torch.cat([learned, poses.double().cpu()])
        refined_by += how
        splits, indices = splits + ["eval"] * len(held_out), indices + held_out
        eval_given = eval_outputs.cameras.camera_to_worlds[held_out].double()
        start, given = torch.cat([start, eval_given]), torch.cat([given, eval_given])
        parts.append(eval_outputs)

    def collect(values_of: Any) -> Optional[List[Path]]:
        lists = [values_of(part) for part in parts]
        if not all(lists):
            return None
        values = [lists[int(kind == "eval")][index] for kind, index in zip(splits, indices)]
        return [Path(os.path.normpath(value.absolute())) for value in values]

    filenames = collect(lambda part: part.image_filenames) or []
    settings = datamanager.dataparser.config
    folder, names = image_folder_and_names(filenames, Path(settings.data), getattr(settings, "images_path", None))
    masks, depths = (
        collect(lambda part: part.mask_filenames),
        collect(lambda part: part.metadata.get("depth_filenames")),
    )
    cameras = _joined(outputs.cameras, parts[1].cameras[torch.tensor(held_out)]) if len(parts) > 1 else outputs.cameras
    order = sorted(range(len(names)), key=names.__getitem__) if len(parts) > 1 else list(range(len(names)))

    def ordered(values: List) -> List:
        return [values[index] for index in order]

    camera_to_worlds = frame.poses(learned)[order]
    start_in_input = None if frame.arbitrary else to_input_frame(start, outputs)[order]
    return ExportedCameras(
        camera_to_worlds=camera_to_worlds,
        learned_camera_to_worlds=learned[order],
        given_camera_to_worlds=to_input_frame(given, outputs)[order],
        start_camera_to_worlds=start_in_input,
        cameras=cameras[torch.tensor(order)] if len(parts) > 1 else cameras,
        image_filenames=ordered(filenames),
        image_folder=folder,
        names=ordered(names),
        splits=ordered(splits),
        indices=ordered(indices),
        refined_by=ordered(refined_by),
        frame=frame,
        movement=None
        if start_in_input is None
        else pose_errors(camera_to_worlds, start_in_input, similarity=Similarity.identity()),
        num_left_out=len(held_out) if len(parts) == 1 else 0,
        mask_filenames=ordered(masks) if masks else None,
        depth_filenames=ordered(depths) if depths else None,
    )


def _moved_by(optimizer: Any, count: int) -> List[str]:
    if getattr(getattr(optimizer, "config", None), "mode", "SE3") == "off":
        return [NOT_TRAINED] * count
    trainable = getattr(optimizer, "trainable", None)
    return [TRAINED if trainable is None or bool(trainable[index]) else FROZEN for index in range(count)]


def _held_out(pipeline: Any, outputs: DataparserOutputs) -> List[int]:
    """Indices of the evaluation images that are no training images."""
    trained = set(outputs.image_filenames)
    filenames = getattr(getattr(pipeline.datamanager, "eval_dataset", None), "image_filenames", [])
    return [index for index, filename in enumerate(filenames) if filename not in trained]


def _joined(first: Cameras, second: Cameras) -> Cameras:
    """Intrinsics of two sets of cameras in one, without poses."""

    def both(name: str) -> Tensor:
        return torch.cat([getattr(cameras, name).reshape(len(cameras), -1) for cameras in (first, second)])

    distortions = [
        torch.zeros(len(cameras), 6) if cameras.distortion_params is None else cameras.distortion_params
        for cameras in (first, second)
    ]
    return Cameras(
        camera_to_worlds=torch.eye(4)[:3].repeat(len(first) + len(second), 1, 1),
        distortion_params=torch.cat(distortions),
        **{name: both(name) for name in ("fx", "fy", "cx", "cy", "width", "height", "camera_type")},
    )
