"""What the user's files say of the cameras, against what a dataparser made of it.

nerfstudio's dataparsers leave out what they have no place for, and one bad pose spoils all others when they centre.
So the files are looked at themselves: the bad image is named, and what was left out is put back or refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.perturbation import ROUNDING_TOLERANCE, rigid_deviations, validate_poses
from hashpose_ns.data.llff_dataparser import LLFF
from hashpose_ns.data.names import printable
from hashpose_ns.data.source import SourceCameras, source_cameras
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import Blender
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRF
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGP
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from nerfstudio.data.dataparsers.phototourism_dataparser import Phototourism
from nerfstudio.data.dataparsers.scannetpp_dataparser import ScanNetpp
from nerfstudio.data.utils.colmap_parsing_utils import read_cameras_binary, read_images_binary

MAX_COORDINATE = 1e18
"""Squares of larger coordinates are no float32 numbers."""

MAX_DISTANCE = 1e4
"""Distance of a camera from the median of all, over the median distance, at which it leaves the others no digits."""

DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""nerfstudio's order of the distortion parameters."""

PRECISION = 1e-4
"""Relative difference of intrinsics that float32 and a file's digits explain."""

PHOTOTOURISM_OTHERWISE = (
    "phototourism-data needs that, so read the model with colmap --colmap-path dense/sparse --images-path dense/images"
)


def check_source(dataparser: DataParser, source: SourceCameras) -> List[str]:
    """Checks the poses and names of all images in the files, of every split.

    Returns:
        What was changed, in sentences.

    Raises:
        HashPoseError: one sentence that names the image: its pose is not finite or rigid, it is listed twice, another
            image's file or mask stands for its own, or it is so far away that the others' positions are lost beside it.
    """
    if isinstance(dataparser, Phototourism):
        _check_phototourism(dataparser)
    names = [printable(name) for name in source.names]
    validate_poses(source.camera_to_worlds, names, ROUNDING_TOLERANCE)
    check_centers(source.camera_to_worlds[:, :, 3], names)
    if not isinstance(dataparser, (Blender, DNeRF)):  # their splits have files of their own, which may share images
        _check_listed_once(dataparser, source, names)
    _check_masks(dataparser, source, names)
    if source.as_read is not None:
        off = rigid_deviations(source.as_read[:, :, :3])
        if bool((off > ROUNDING_TOLERANCE).any()):
            return [
                f"The quaternion of {names[int(off.argmax())]} is not of unit length; it is normalised, as COLMAP does."
            ]
    return []


def blame_source(dataparser: DataParser) -> None:
    """Raises HashPoseError if the files have a fault that explains why a dataparser failed on them."""
    try:
        source = source_cameras(dataparser)
    except HashPoseError:
        raise
    except Exception:  # as the dataparser's, whose own words will do
        return
    if source is not None:
        check_source(dataparser, source)


def check_centers(centers: Float[Tensor, "num_cameras 3"], names: Sequence[str]) -> None:
    """Raises HashPoseError for a camera so far away that single precision leaves nothing of the others' positions.

    Args:
        centers: of all cameras.
        names: what to call each.
    """
    furthest = centers.abs().amax(dim=1)
    if float(furthest.max()) > MAX_COORDINATE:
        name, far = names[int(furthest.argmax())], float(furthest.max())
        raise HashPoseError(f"The camera {name} has a coordinate of {far:.3g}, too large for single precision.")
    distances = (centers - centers.median(dim=0).values).norm(dim=1)
    spread, worst = float(distances.median()), int(distances.argmax())
    if spread > 0 and float(distances[worst]) > MAX_DISTANCE * spread:
        raise HashPoseError(
            f"The camera {names[worst]} is {float(distances[worst]):.3g} units away from the others, which are "
            f"some {spread:.3g} units apart; single precision cannot hold both, so correct its pose, or take the "
            "image out of the input."
        )


def _check_listed_once(dataparser: DataParser, source: SourceCameras, names: Sequence[str]) -> None:
    first: Dict[Path, int] = {}
    for row, filename in enumerate(source.filenames):
        other = first.setdefault(filename, row)
        if other == row:
            continue
        if _factor(dataparser) == 1 or Path(source.names[other]) == Path(source.names[row]):
            spelled = "" if names[other] == names[row] else f" (as {names[other]} too)"
            raise HashPoseError(f"{source.path} lists the image {names[row]} more than once{spelled}; list it once.")
        raise HashPoseError(
            f"{printable(str(filename))} would stand for two images, {names[other]} and {names[row]}; give images in "
            "different folders different names, or train on the full images (--downscale-factor 1)."
        )


def compare_with_source(dataparser: DataParser, outputs: DataparserOutputs, source: SourceCameras) -> List[str]:
    """Compares a split's cameras with what the files say.

    instant-ngp-data and blender-data have one focal length for everything, and phototourism-data takes the size of an
    image from its principal point. What their files say beyond that is put into the cameras, in place.

    Returns:
        The names of what was put there.

    Raises:
        HashPoseError: the dataparser took other cameras or images than the files have.
    """
    rows = source.rows(outputs.image_filenames)
    names = [printable(source.names[row]) for row in rows]
    said = [source.intrinsics[row] for row in rows]
    taken = _columns(outputs.cameras)
    kinds = [CameraType(kind) for kind in outputs.cameras.camera_type.reshape(-1).tolist()]
    put_back = set()
    for index, (name, entries) in enumerate(zip(names, said)):
        kind = _camera_type(entries)
        if kind not in (None, kinds[index]):
            raise HashPoseError(
                f"{source.path} says that the camera of {name} is {kind.name.lower()}, but nerfstudio takes it for "
                f"{kinds[index].name.lower()}; {_remedy(dataparser)}."
            )
        for key, value in _wanted(dataparser, entries, {key: column[index] for key, column in taken.items()}).items():
            found = taken[key][index] if key in taken else 0.0
            slack = 1e-2 * taken["w"][index] if key in ("fl_x", "fl_y", "cx", "cy", "w", "h") else 1e-2
            if math.isfinite(value) and abs(value - found) <= PRECISION * max(abs(value), slack):
                continue
            if key not in taken or not _is_certain(dataparser, key):
                raise HashPoseError(
                    f"{source.path} gives {name} {key} {value:g}, but nerfstudio takes {found:g}; "
                    f"{_remedy(dataparser)}."
                )
            taken[key][index] = value
            put_back.add(key)
    if put_back:
        _put_back(outputs.cameras, taken)
    return sorted(put_back)


def _is_certain(dataparser: DataParser, key: str) -> bool:
    """Whether the file's value can stand for the dataparser's."""
    if isinstance(dataparser, (Blender, DNeRF)):  # whose one focal length is camera_angle_x of the whole file
        return key != "fl_x"
    if isinstance(dataparser, Phototourism):  # whose images have their principal points in the middle
        return key in ("w", "h")
    return isinstance(dataparser, InstantNGP)


def _remedy(dataparser: DataParser) -> str:
    if isinstance(dataparser, Nerfstudio):
        return "what stands at the top of the file wins there, so leave it to the frames or to the top alone"
    if isinstance(dataparser, Phototourism):
        return f"camera i is not that of image i, and {PHOTOTOURISM_OTHERWISE}"
    return "read the data with nerfstudio-data, which takes all of these from a transforms.json"


def _columns(cameras: Cameras) -> Dict[str, List[float]]:
    """Intrinsics by their names in transforms.json."""
    values = dict(fl_x=cameras.fx, fl_y=cameras.fy, cx=cameras.cx, cy=cameras.cy, w=cameras.width, h=cameras.height)
    columns = {key: value.double().reshape(-1).tolist() for key, value in values.items()}
    distortion = cameras.distortion_params
    if distortion is None:
        distortion = torch.zeros(len(cameras), len(DISTORTION))
    if distortion.shape[-1] == len(DISTORTION):
        columns.update(zip(DISTORTION, distortion.double().reshape(-1, len(DISTORTION)).T.tolist()))
    return columns


def _put_back(cameras: Cameras, columns: Dict[str, List[float]]) -> None:
    values = {key: torch.tensor(column)[:, None] for key, column in columns.items()}
    cameras.fx, cameras.fy, cameras.cx, cameras.cy = (values[key].float() for key in ("fl_x", "fl_y", "cx", "cy"))
    cameras.width, cameras.height = values["w"].long(), values["h"].long()
    cameras.distortion_params = torch.cat([values[key].float() for key in DISTORTION], dim=1)


def _factor(dataparser: DataParser) -> int:
    """How much smaller than the file says the images are that a dataparser took."""
    return getattr(dataparser, "downscale_factor", None) or getattr(dataparser, "_downscale_factor", None) or 1


def _camera_type(entries: Dict[str, Any]) -> Optional[CameraType]:
    """What a file says of a camera's kind; None if nothing that nerfstudio knows."""
    if entries.get("is_fisheye"):
        return CameraType.FISHEYE
    return CAMERA_MODEL_TO_TYPE.get(entries.get("camera_model", ""))


def _wanted(dataparser: DataParser, entries: Dict[str, Any], taken: Dict[str, float]) -> Dict[str, float]:
    """The intrinsics that a file gives a camera, at the resolution of its image.

    Args:
        dataparser: that reads the file.
        entries: of the file.
        taken: what the dataparser made of them.
    """
    said = {key: value for key, value in entries.items() if value is not None}
    wanted = {key: float(said[key]) for key in (*DISTORTION, "k5", "k6") if key in said}
    if "distortion_params" in said:  # which wins
        wanted = dict(zip(DISTORTION, map(float, said["distortion_params"]))) if "k1" in taken else {}
    for axis, size, center in (("x", "w", "cx"), ("y", "h", "cy")):
        scale = 1.0 / _factor(dataparser)
        if isinstance(dataparser, (InstantNGP, Phototourism)) and size in said:
            wanted[size] = float(int(said[size]))
        elif isinstance(dataparser, (Blender, DNeRF, LLFF)) and size in said:  # whatever size the images have now
            scale = taken[size] / float(said[size])
        if center in said:
            wanted[center] = float(said[center]) * scale
        if f"fl_{axis}" in said:
            wanted[f"fl_{axis}"] = float(said[f"fl_{axis}"]) * scale
        elif f"{axis}_fov" in said or f"camera_angle_{axis}" in said:
            degrees = said.get(f"{axis}_fov")
            angle = float(said[f"camera_angle_{axis}"]) if degrees is None else math.radians(float(degrees))
            tangent = math.tan(0.5 * angle)
            wanted[f"fl_{axis}"] = 0.5 * taken[size] / tangent if tangent else math.inf
    return wanted


def _check_masks(dataparser: DataParser, source: SourceCameras, names: Sequence[str]) -> None:
    """Raises HashPoseError if the dataparser would give images other masks than the file does, or none."""
    masks: List[str] = [entries.get("mask_path") or "" for entries in source.intrinsics]
    if not any(masks) or isinstance(dataparser, ScanNetpp):  # whose has_mask switches them off
        return
    if isinstance(dataparser, (Blender, DNeRF)):
        raise HashPoseError(
            f"The file gives {names[0]} a mask_path, but blender-data reads no masks; read the data with "
            "nerfstudio-data, or take mask_path out."
        )
    missing = [name for name, mask in zip(names, masks) if not mask]
    if missing:
        raise HashPoseError(f"{missing[0]} has no mask_path and other images have; give all of them one, or none.")
    if _factor(dataparser) > 1:  # one flat folder of downscaled masks
        first: Dict[str, str] = {}
        for mask in masks:
            other = first.setdefault(Path(mask).name, mask)
            if other != mask:
                raise HashPoseError(
                    f"One downscaled mask would stand for {printable(other)} and {printable(mask)}; give masks in "
                    "different folders different names, or train on the full images (--downscale-factor 1)."
                )


def _check_phototourism(dataparser: Phototourism) -> None:
    """Raises HashPoseError if the dataparser, which takes image i for camera i, leaves images out."""
    model = dataparser.data / "dense/sparse"
    cameras, images = read_cameras_binary(model / "cameras.bin"), read_images_binary(model / "images.bin")
    if set(cameras) != set(images):
        raise HashPoseError(
            f"The model {model} has {len(images)} images and {len(cameras)} cameras, not one camera of the same number "
            f"for each image: {PHOTOTOURISM_OTHERWISE}."
        )
