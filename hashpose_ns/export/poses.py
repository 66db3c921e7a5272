"""From a trained pipeline to refined cameras in the frame of the input dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Literal, Optional, Tuple

import numpy as np
import roma
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hashpose_ns.cameras.alignment import PoseErrors, Similarity, align_poses, centers_coincide, pose_errors
from hashpose_ns.cameras.perturbation import validate_poses
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs, transform_poses_to_original_space

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import Pipeline

ONE_WAY_DATAPARSERS = {
    "NeRFOSR": "nerfosr-data",
    "SDFStudio": "sdfstudio-data",
    "NuScenes": "nuscenes-data",
    "Dycheck": "dycheck-data",
    "Sitcoms3D": "sitcoms3d-data",
}
"""nerfstudio's dataparsers that move the poses without saying how in their outputs, by class name."""


@dataclass(frozen=True, eq=False)
class ExportedPoints:
    """Sparse 3-D points of the input dataset, in its own frame."""

    xyz: Float[np.ndarray, "num_points 3"]
    """Positions."""
    rgb: UInt8[np.ndarray, "num_points 3"]
    """Colours."""
    error: Float[np.ndarray, "num_points"]
    """Mean reprojection errors in pixels; -1 where unknown, as COLMAP has it."""


@dataclass(frozen=True, eq=False)
class ExportedCameras:
    """Refined cameras in the frame of the input dataset: everything a writer needs."""

    camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """Rigid poses, float64, OpenGL axes."""
    cameras: Cameras
    """Intrinsics at the full resolution of the images. The poses in it are not the refined ones."""
    image_filenames: List[Path]
    """The original images, absolute."""
    image_folder: Path
    """The folder that names are relative to, absolute."""
    names: List[str]
    """Unique name of each image, relative to the folder, with forward slashes."""
    frame: str
    """Which frame the poses are in, and how the similarity that joint optimisation leaves open was fixed, in words."""
    movement: Optional[PoseErrors]
    """How far each camera is from where training started, in units of the input; None for an identity start."""
    num_left_out: int
    """Number of evaluation images, which have no refined pose."""
    has_eval_mode: bool = False
    """Whether the dataparser can be told to train on all images."""
    mask_filenames: Optional[List[Path]] = None
    """Mask of each image, if there are any, absolute."""
    depth_filenames: Optional[List[Path]] = None
    """Depth map of each image, if there are any, absolute."""
    points: Optional[ExportedPoints] = None
    """The input's points, if they were asked for."""


def load_trained_pipeline(load_config: Path, load_points: bool = False) -> Pipeline:
    """Load a run in nerfstudio's inference mode, with the images at full resolution.

    Args:
        load_config: the run's config.yml. The checkpoint is looked for beside it, wherever the run was moved to and
            whatever the current folder is.
        load_points: ask the dataparser for the input's 3-D points where it has a setting for that.

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
        if hasattr(datamanager.dataparser, "downscale_factor"):
            datamanager.dataparser.downscale_factor = 1
        if load_points and hasattr(datamanager.dataparser, "load_3D_points"):
            datamanager.dataparser.load_3D_points = True
        return config

    from nerfstudio.utils.eval_utils import eval_setup

    return eval_setup(load_config, test_mode="inference", update_config_callback=adapt)[1]


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


def check_invertible(dataparser: Any, outputs: DataparserOutputs) -> None:
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


def image_folder_and_names(
    image_filenames: List[Path], data: Path, images_path: Optional[Path] = None
) -> Tuple[Path, List[str]]:
    """Name images as COLMAP does: relative to one folder, sub-folders kept.

    Args:
        image_filenames: the images.
        data: the dataset's folder, or its transforms file.
        images_path: the images' folder inside it, where the dataparser has a setting for that.

    Returns:
        The folder and the names: the given folder; else the folder right inside the dataset that all lie in; else the
        dataset; else, for images elsewhere, the innermost folder that holds all of them.

    Raises:
        HashPoseError: if two images would get one name.
    """
    # .absolute() rather than .resolve(): an image that is a link keeps its own name
    filenames = [Path(os.path.normpath(filename.absolute())) for filename in image_filenames]
    folder = Path(os.path.normpath((data if data.suffix != ".json" else data.parent).absolute()))
    if images_path is not None:
        folder = Path(os.path.normpath(folder / images_path))
    if not all(folder in filename.parents for filename in filenames):
        folder = Path(os.path.commonpath([filename.parent for filename in filenames]))
    elif images_path is None:
        tops = {filename.relative_to(folder).parts[0] for filename in filenames}
        if len(tops) == 1 and all(filename.parent != folder for filename in filenames):
            folder = folder / tops.pop()
    names = [filename.relative_to(folder).as_posix() for filename in filenames]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise HashPoseError(f"The image {repeated[0]} is there more than once; exported names must be unique.")
    return folder, names


def _points(outputs: DataparserOutputs) -> ExportedPoints:
    if outputs.metadata.get("points3D_xyz") is None:
        raise HashPoseError("The dataparser of this run gives no 3-D points; export with --points empty.")
    xyz = outputs.metadata["points3D_xyz"].cpu().double()
    transform = outputs.dataparser_transform.double()
    similarity = Similarity(
        torch.tensor(float(outputs.dataparser_scale), dtype=torch.float64),
        transform[:, :3],
        transform[:, 3] * float(outputs.dataparser_scale),
    )
    rgb = outputs.metadata.get("points3D_rgb")
    error = outputs.metadata.get("points3D_error")
    return ExportedPoints(
        xyz=similarity.inverse().apply_to_points(xyz).numpy(),
        rgb=np.zeros((len(xyz), 3), np.uint8) if rgb is None else rgb.cpu().numpy().astype(np.uint8),
        error=np.full(len(xyz), -1.0) if error is None else error.cpu().double().numpy(),
    )


def exported_cameras(
    pipeline: Any, align: Literal["input", "none"] = "input", with_points: bool = False
) -> ExportedCameras:
    """The refined training cameras of a pipeline, in the frame of its input.

    Poses and field optimised together are determined up to a similarity only. ``align="input"`` fixes it by aligning
    the refined camera centres to those that training started from (never to a ground truth kept for evaluation). The
    poses stay as they are where training started from the identity, since there is nothing to align to, and where some
    cameras were frozen, since these have fixed it and must not move.

    Args:
        pipeline: anything with ``model.camera_optimizer`` (``refined_camera_to_worlds()`` and
            ``initial_camera_to_worlds``, both [N, 3, 4] in nerfstudio's frame, and maybe ``trainable`` [N]) and a
            ``datamanager``.
        align: how to fix the similarity.
        with_points: also give the input's 3-D points.

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
    settings = datamanager.dataparser.config
    folder, names = image_folder_and_names(
        outputs.image_filenames, Path(settings.data), getattr(settings, "images_path", None)
    )

    refined = optimizer.refined_camera_to_worlds().detach().cpu()
    initial = optimizer.initial_camera_to_worlds.detach().cpu()
    if not len(refined) == len(initial) == len(names):
        raise HashPoseError(
            f"The run refined {len(refined)} poses but its dataset now has {len(names)} training images; export with "
            "the dataset and the split of the training."
        )
    validate_poses(refined, names)

    started_blind = centers_coincide(initial)
    if with_points and started_blind:
        raise HashPoseError(
            "The input's 3-D points have no place among poses that were found from an identity start; export with "
            "--points empty."
        )
    trainable = getattr(optimizer, "trainable", None)
    num_frozen = 0 if trainable is None else int((~trainable).sum())
    similarity = Similarity.identity()
    if started_blind:
        frame = "arbitrary in place, orientation and scale, as training started from the identity"
    elif num_frozen:
        frame = f"the input's, as learned, held by the frozen cameras ({num_frozen})"
    elif align == "none":
        frame = "the input's, as learned"
    else:
        frame = "the input's, aligned to the poses training started from"
        similarity = align_poses(refined, initial)
    camera_to_worlds = to_input_frame(similarity.apply_to_poses(refined.double()), outputs)
    movement = None
    if not started_blind:
        movement = pose_errors(camera_to_worlds, to_input_frame(initial, outputs), similarity=Similarity.identity())

    def absolute(filenames: Optional[List[Path]]) -> Optional[List[Path]]:
        return [Path(os.path.normpath(filename.absolute())) for filename in filenames] if filenames else None

    held_out = getattr(getattr(datamanager, "eval_dataset", None), "image_filenames", [])
    return ExportedCameras(
        camera_to_worlds=camera_to_worlds,
        cameras=outputs.cameras,
        image_filenames=absolute(outputs.image_filenames) or [],
        image_folder=folder,
        names=names,
        frame=frame,
        movement=movement,
        num_left_out=len(set(held_out) - set(outputs.image_filenames)),
        has_eval_mode=hasattr(settings, "eval_mode"),
        mask_filenames=absolute(outputs.mask_filenames),
        depth_filenames=absolute(outputs.metadata.get("depth_filenames")),
        points=_points(outputs) if with_points else None,
    )
