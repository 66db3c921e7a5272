"""Photographs that join a capture after a field was trained on it: listed in a transforms.json of their own, with poses
in the frame of the capture's own files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity
from hashpose_ns.data.downscaled import in_full_order
from hashpose_ns.data.reading import reading
from hashpose_ns.data.source import SourceCameras, source_cameras
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

METADATA_KEY = "added_images"
"""Where outputs, and datasets, name the file: in their metadata."""

FILE = Path("added") / "transforms.json"
"""Where the file is in the folder of a run that hashpose-localize has begun."""


def added_outputs(path: Path, factor: int) -> Tuple[DataparserOutputs, SourceCameras]:
    """What a file of added photographs holds.

    Args:
        path: a transforms.json.
        factor: downscale factor of the capture's images; smaller photographs are expected in a folder `images_FACTOR`
            beside the file then.
    Returns:
        Images and cameras, poses as in the file, rounded; the same cameras in double precision.

    Raises:
        HashPoseError: it is not there, or cannot be read.
    """
    if not path.is_file():
        raise HashPoseError(
            f"There is no file {path}; --pipeline.datamanager.added-images takes the transforms.json of photographs "
            "that are trained on as well."
        )
    config = NerfstudioDataParserConfig(
        data=path,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        eval_mode="fraction",
        train_split_fraction=1.0,
        downscale_factor=factor,
        load_3D_points=False,
    )
    with reading("The file of added images", config):
        parser: Any = config.setup()
        outputs = in_full_order(parser, "train", parser.get_dataparser_outputs("train"))
        source = source_cameras(parser)
    if source is None or not outputs.image_filenames:
        raise HashPoseError(f"The file {path} names no image.")
    return outputs, source


def with_added(
    outputs: DataparserOutputs, path: Path, dataparser: DataParser, to_nerfstudio: Similarity
) -> DataparserOutputs:
    """A capture's training images, and behind them the photographs of a file.

    Args:
        outputs: of the capture.
        path: the file.
        dataparser: that read the capture.
        to_nerfstudio: from the frame of the capture's files to that of its outputs.

    Raises:
        HashPoseError: the file cannot be read, names an image of the capture, or has masks where the capture has none,
            or none where the capture has masks.
    """
    added, source = added_outputs(path, downscale_factor(dataparser))
    both = sorted({file.name for file in added.image_filenames if file in set(outputs.image_filenames)})
    if both:
        raise HashPoseError(f"{path} names {both[0]}, which is one of the training images already; take it out.")
    if (outputs.mask_filenames is None) != (added.mask_filenames is None):
        with_masks = "The capture" if outputs.mask_filenames is not None else str(path)
        raise HashPoseError(f"{with_masks} has masks and the other images have none; give all images masks, or none.")
    poses = to_nerfstudio.apply_to_poses(source.camera_to_worlds[source.rows(added.image_filenames)])
    cameras = joined_cameras(outputs.cameras, added.cameras)
    cameras.camera_to_worlds = torch.cat([outputs.cameras.camera_to_worlds, poses.to(outputs.cameras.camera_to_worlds)])
    cameras.metadata = outputs.cameras.metadata
    metadata = {
        name: value for name, value in outputs.metadata.items() if not _is_per_image(value, len(outputs.cameras))
    }
    return dataclasses.replace(
        outputs,
        image_filenames=[*outputs.image_filenames, *added.image_filenames],
        cameras=cameras,
        mask_filenames=None
        if outputs.mask_filenames is None
        else [*outputs.mask_filenames, *(added.mask_filenames or ())],
        metadata={**metadata, METADATA_KEY: path},
    )


def _is_per_image(value: Any, count: int) -> bool:
    """Whether an entry of metadata, such as depth images, says something of each image. Nothing here reads one."""
    return isinstance(value, (list, tuple, Tensor)) and len(value) == count


def source_with_added(dataparser: DataParser, metadata: Dict[str, Any]) -> Optional[SourceCameras]:
    """The cameras in a capture's files and those of added photographs, as `hashpose_ns.data.source.source_cameras`.

    Args:
        dataparser: that read the capture.
        metadata: of its outputs for the training images.
    """
    source = source_cameras(dataparser)
    path = metadata.get(METADATA_KEY)
    if source is None or path is None:
        return source
    return source.with_others(added_outputs(path, downscale_factor(dataparser))[1])


def downscale_factor(dataparser: DataParser) -> int:
    """How much smaller than the full images those are that a dataparser takes."""
    return getattr(dataparser, "downscale_factor", None) or getattr(dataparser, "_downscale_factor", None) or 1


def joined_cameras(first: Cameras, second: Cameras) -> Cameras:
    """Intrinsics of two sets of cameras in one, without poses; without distortion where none has any."""

    def both(name: str) -> Tensor:
        return torch.cat([getattr(cameras, name).reshape(len(cameras), -1) for cameras in (first, second)])

    known: List[Optional[Tensor]] = [first.distortion_params, second.distortion_params]
    distortion = None
    if known[0] is not None or (known[1] is not None and bool(known[1].any())):
        distortion = torch.cat(
            [torch.zeros(len(cameras), 6) if cameras.distortion_params is None else cameras.distortion_params
             for cameras in (first, second)]
        )  # fmt: skip
    columns: Dict[str, Any] = {name: both(name) for name in ("fx", "fy", "cx", "cy", "width", "height", "camera_type")}
    poses = torch.eye(4)[:3].repeat(len(first) + len(second), 1, 1)
    return Cameras(camera_to_worlds=poses, distortion_params=distortion, **columns)
