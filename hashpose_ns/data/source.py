"""The cameras as the user's own files have them, in double precision.

nerfstudio's dataparsers cast poses to float32 before they centre them, and leave out what they have no place for. Here
the files are read again, so that both can be compared with them, and so that exports lose nothing.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import roma
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, centers_coincide
from hashpose_ns.data.colmap_files import check_colmap_model
from hashpose_ns.data.full_opencv import as_opencv
from hashpose_ns.data.llff_dataparser import LLFF, read_poses_bounds
from hashpose_ns.data.reading import reading
from hashpose_ns.errors import HashPoseError
from nerfstudio.data.dataparsers.base_dataparser import DataParser
from nerfstudio.data.dataparsers.blender_dataparser import Blender
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRF
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGP
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from nerfstudio.data.dataparsers.phototourism_dataparser import Phototourism
from nerfstudio.data.dataparsers.scannetpp_dataparser import ScanNetpp
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils
from nerfstudio.process_data.colmap_utils import parse_colmap_camera_params
from nerfstudio.utils.io import load_from_json

INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
"""Numbers of a camera, by their names in transforms.json."""
INTRINSICS_OTHERWISE = (
    *("camera_model", "is_fisheye", "distortion_params", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov"),
    "mask_path",
)
"""Other entries of a transforms.json that say something about a camera's lens, and what masks it."""

SAME_ROTATION, SAME_CENTER = 2e-3, 1e-3
"""Poses are the same when no entry of their rotations differs by more than this, and no centre by more than this
fraction of the cameras' spread."""
ROUNDING = 32 * float(np.finfo(np.float32).eps)
"""How far off, as a fraction of the largest coordinate, nerfstudio's float32 arithmetic may put a centre."""
TOO_FAR = 1e-4
"""Poses whose float32 rounding is a larger fraction of the cameras' spread cannot be refined."""

LEGACY_APPLIED_TRANSFORM = ((0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0))
"""What nerfstudio-data assumes for a transforms.json without applied_transform that has a COLMAP model beside it."""


@dataclass(frozen=True, eq=False)
class SourceCameras:
    """All cameras of a dataset, of every split, in the order of its files."""

    path: Path
    """The file that holds the poses, or the folder of the COLMAP model."""
    frame: str
    """The frame of the poses, in words: "the frame of ..."."""
    names: List[str]
    """The images as the file spells them."""
    filenames: List[Path]
    """Where the dataparser looks for them: absolute, links not followed; of downscaled images where it takes these."""
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """Poses as they stand in the file: float64, OpenGL axes, not necessarily finite or rigid."""
    intrinsics: List[Dict[str, Any]]
    """Of each camera what the file says, at full resolution: `INTRINSICS` as it spells them, `INTRINSICS_OTHERWISE`.
    Entries of a frame win over those of the whole file; what the file does not say is not there."""
    applied_transform: Optional[Float[Tensor, "3 4"]] = None
    """From COLMAP's frame to that of the poses, where a transforms.json says so."""
    applied_scale: float = 1.0
    """The scale that goes with it."""
    as_read: Optional[Float[Tensor, "num_cameras 3 4"]] = None
    """The poses as nerfstudio reads them, where that is something else: of quaternions that are not normalised."""

    def rows(self, filenames: Sequence[Path]) -> List[int]:
        """The camera of each image of a split.

        Args:
            filenames: of the dataparser's outputs.

        Raises:
            HashPoseError: an image has no camera, or several with different poses.
        """
        places: Dict[Path, List[int]] = {}
        for row, filename in enumerate(self.filenames):
            places.setdefault(filename, []).append(row)
        found = []
        for filename in (_absolute(filename) for filename in filenames):
            if filename not in places:
                raise HashPoseError(f"{self.path} has no camera for the image {filename}.")
            first, *others = places[filename]
            for other in others:
                if not torch.equal(self.camera_to_worlds[first], self.camera_to_worlds[other]):
                    raise HashPoseError(
                        f"{self.path} gives the image {filename} two poses, as {self.names[first]} and as "
                        f"{self.names[other]}; take one of them out, or give the images names of their own."
                    )
            found.append(first)
        return found

    def with_others(self, others: SourceCameras) -> SourceCameras:
        """These cameras and, behind them, those of another file in the same frame."""
        as_read = None
        if self.as_read is not None:
            as_read = torch.cat([self.as_read, others.camera_to_worlds])
        return dataclasses.replace(
            self,
            names=[*self.names, *others.names],
            filenames=[*self.filenames, *others.filenames],
            camera_to_worlds=torch.cat([self.camera_to_worlds, others.camera_to_worlds]),
            intrinsics=[*self.intrinsics, *others.intrinsics],
            as_read=as_read,
        )

    def similarity(
        self, filenames: Sequence[Path], camera_to_worlds: Float[Tensor, "num_images 3 4"]
    ) -> Optional[Similarity]:
        """The map from this frame to another one that the same cameras are in.

        Args:
            filenames: images of a split.
            camera_to_worlds: their poses in the other frame, as a dataparser made them of these, or more precise ones.

        Returns:
            The map; None if no similarity takes the poses there.
        """
        rows = self.rows(filenames)
        other = camera_to_worlds.detach().cpu().double()
        for poses in (self.camera_to_worlds, self.as_read):
            if poses is not None and bool(torch.isfinite(poses[rows]).all()) and bool(torch.isfinite(other).all()):
                found = _similarity(poses[rows], other)
                if _takes(found, poses[rows], other):
                    return found
        return None


def source_cameras(dataparser: DataParser) -> Optional[SourceCameras]:
    """The cameras in the files that a dataparser has read.

    Args:
        dataparser: after it has read a split, as the size of images is settled then.

    Returns:
        The cameras; None for dataparsers whose files are not known here, such as users' own.
    """
    return next((read(dataparser) for known, read in READERS.items() if _is(dataparser, known)), None)


def cameras_of_file(path: Path) -> SourceCameras:
    """The cameras in a file that no dataparser has read.

    Args:
        path: a transforms.json, a folder that holds one, or a COLMAP model or a folder with one in sparse/0.

    Raises:
        HashPoseError: there is none, or it cannot be read.
    """
    if not path.exists():
        raise HashPoseError(f"There is no {path}; give a transforms.json or the folder of a COLMAP model.")
    with reading(f"The file {path}"):
        transforms = path / "transforms.json" if path.is_dir() else path
        if transforms.is_file():
            meta = load_from_json(transforms)
            frames = meta["frames"]
            return _of_transforms(
                transforms, meta, frames, [transforms.parent / frame["file_path"] for frame in frames]
            )
        for folder in (path, path / "sparse" / "0", path / "sparse", path / "colmap" / "sparse" / "0"):
            for format in ("txt", "bin"):
                if (folder / f"images.{format}").is_file():
                    check_colmap_model(folder, with_points=False)
                    return _of_colmap_model(folder, format, lambda name: path / "images" / name)
    raise HashPoseError(f"{path} holds neither a transforms.json nor a COLMAP model.")


def source_points(dataparser: DataParser) -> Optional[Float[np.ndarray, "num_points 3"]]:
    """The input's 3-D points in the frame of `source_cameras`, float64, in the order of the dataparser's.

    Args:
        dataparser: one that has read such points.

    Returns:
        Their positions; None for dataparsers whose files are not known here.
    """
    config: Any = dataparser.config
    if _is(dataparser, ColmapDataParser):
        model = config.data / config.colmap_path
        if (model / "points3D.bin").exists():
            points = colmap_utils.read_points3D_binary(model / "points3D.bin")
        else:
            points = colmap_utils.read_points3D_text(model / "points3D.txt")
        return np.array([point.xyz for point in points.values()], dtype=np.float64).reshape(-1, 3)
    if _is(dataparser, Nerfstudio):
        path = config.data if config.data.suffix == ".json" else config.data / "transforms.json"
        ply = path.parent / load_from_json(path)["ply_file_path"]
    elif _is(dataparser, Blender):
        ply = config.data / config.ply_path
    else:
        return None
    import open3d  # slow to import; what nerfstudio reads these files with

    return np.asarray(open3d.io.read_point_cloud(ply).points, dtype=np.float64)


def _is(dataparser: DataParser, known: Any) -> bool:
    """Whether it reads files as a known class does; a subclass that reads in another way may read other ones."""
    return type(dataparser)._generate_dataparser_outputs is known._generate_dataparser_outputs


def _similarity(source: Float[Tensor, "num_cameras 3 4"], target: Float[Tensor, "num_cameras 3 4"]) -> Similarity:
    """The similarity between two sets of poses that are the same but for rounding of the target's centres.

    The rotation comes from the orientations, which have lost nothing. The scale is 1 where the centres are one point.
    """
    rotation = roma.special_procrustes((target[:, :, :3] @ source[:, :, :3].mT).sum(dim=0))
    source_mean, target_mean = source[:, :, 3].mean(dim=0), target[:, :, 3].mean(dim=0)
    centers = (source[:, :, 3] - source_mean) @ rotation.T
    scale = ((target[:, :, 3] - target_mean) * centers).sum() / centers.square().sum()
    if centers_coincide(source) or not float(scale) > 0.0:
        scale = torch.ones_like(scale)
    return Similarity(scale, rotation, target_mean - scale * (rotation @ source_mean))


def _takes(
    similarity: Similarity, source: Float[Tensor, "num_cameras 3 4"], target: Float[Tensor, "num_cameras 3 4"]
) -> bool:
    """Whether it takes poses to where others are, up to the rounding of float32 before these were centred."""
    difference = (similarity.apply_to_poses(source) - target).abs()
    spread = float((target[:, :, 3] - target[:, :, 3].mean(dim=0)).norm(dim=-1).max())
    rounding = ROUNDING * float(similarity.scale) * float(source[:, :, 3].abs().max())
    same_rotations = float(difference[:, :, :3].max()) <= SAME_ROTATION
    return same_rotations and float(difference[:, :, 3].max()) <= SAME_CENTER * spread + rounding


def check_float32(camera_to_worlds: Float[Tensor, "num_cameras 3 4"]) -> None:
    """Raises HashPoseError if cameras are so far from the origin that float32 cannot tell their centres apart.

    Args:
        camera_to_worlds: all cameras of a capture, in the frame that they are refined in.
    """
    centers = camera_to_worlds[:, :, 3].double()
    spread = float((centers - centers.mean(dim=0)).norm(dim=-1).max())
    furthest = float(centers.abs().max())
    if spread > 0.0 and float(np.finfo(np.float32).eps) * furthest > TOO_FAR * spread:
        raise HashPoseError(
            f"The cameras lie {furthest / spread:.2g} times as far from the origin as from one another, too far for "
            "nerfstudio's single precision; let the dataparser centre them (--center-method poses), or subtract an "
            "offset from the input's coordinates."
        )


def colmap_poses(images: Sequence[Any], normalise: bool = True) -> Float[Tensor, "num_images 3 4"]:
    """Camera-to-world poses of a COLMAP model's images, float64, OpenGL axes.

    Args:
        images: as nerfstudio's reader has them.
        normalise: quaternions that are not normalised, which nerfstudio turns into matrices that are not rigid.
    """
    quaternions = np.stack([np.asarray(image.qvec, dtype=np.float64) for image in images])
    if normalise:
        norms = np.linalg.norm(quaternions, axis=1, keepdims=True)
        quaternions = np.where(norms > 0, quaternions / np.where(norms > 0, norms, 1.0), np.nan)
    world_to_cameras = np.tile(np.eye(4), (len(images), 1, 1))
    world_to_cameras[:, :3, :3] = np.stack([colmap_utils.qvec2rotmat(quaternion) for quaternion in quaternions])
    world_to_cameras[:, :3, 3] = np.stack([np.asarray(image.tvec, dtype=np.float64) for image in images])
    rotations, translations = world_to_cameras[:, :3, :3], world_to_cameras[:, :3, 3:]
    inverses = rotations.transpose(0, 2, 1) if normalise else np.linalg.pinv(np.nan_to_num(rotations))
    poses = np.concatenate([inverses, -inverses @ translations], axis=2)
    return torch.from_numpy(poses * [1.0, -1.0, -1.0, 1.0])


def _absolute(filename: Path) -> Path:
    return Path(os.path.normpath(filename.absolute()))


def _matrices(frames: Sequence[Dict[str, Any]]) -> Float[Tensor, "num_cameras 3 4"]:
    matrices = [np.array(frame["transform_matrix"], dtype=np.float64) for frame in frames]
    for frame, matrix in zip(frames, matrices):
        if matrix.shape == (4, 4) and not matrix[:3, 3].any() and matrix[3, :3].any():
            raise HashPoseError(
                f"The matrix of {frame['file_path']!a} is transposed: its translation stands in the last row, not "
                "in the last column."
            )
    return torch.from_numpy(np.stack([matrix[:3] for matrix in matrices]))


def _said_of_camera(meta: Dict[str, Any], frame: Dict[str, Any]) -> Dict[str, Any]:
    entries = {**meta, **frame}
    return {key: entries[key] for key in (*INTRINSICS, *INTRINSICS_OTHERWISE) if key in entries}


def _of_transforms(path: Path, meta: Dict[str, Any], frames: List[Dict[str, Any]], filenames: List[Path], **kwargs):
    applied = "applied_transform" in meta or "applied_scale" in meta
    return SourceCameras(
        path=path,
        frame=f"the frame of the matrices in {path.name}{' (after its applied_transform)' if applied else ''}",
        names=[frame["file_path"] for frame in frames],
        filenames=[_absolute(filename) for filename in filenames],
        camera_to_worlds=_matrices(frames),
        intrinsics=[_said_of_camera(meta, frame) for frame in frames],
        **kwargs,
    )


def _nerfstudio(dataparser: Any) -> SourceCameras:
    data = dataparser.config.data
    path = data if data.suffix == ".json" else data / "transforms.json"
    meta = load_from_json(path)
    transform = meta.get("applied_transform")
    if transform is None and (data / "colmap/sparse/0").exists():
        transform = LEGACY_APPLIED_TRANSFORM
    factor = dataparser.downscale_factor or 1

    def filename(frame: Dict[str, Any]) -> Path:
        name = Path(frame["file_path"])
        return path.parent / name if factor == 1 else path.parent / f"images_{factor}" / name.name

    return _of_transforms(
        path,
        meta,
        meta["frames"],
        [filename(frame) for frame in meta["frames"]],
        applied_transform=None if transform is None else torch.tensor(transform, dtype=torch.float64)[:3],
        applied_scale=float(meta.get("applied_scale", 1.0)),
    )


def _instant_ngp(dataparser: Any) -> SourceCameras:
    data = dataparser.config.data
    path = data if data.suffix == ".json" else data / "transforms.json"
    meta = load_from_json(path)
    frames, filenames = [], []
    for frame in meta["frames"]:
        found = [name for name in (frame["file_path"], frame["file_path"] + ".png") if (path.parent / name).exists()]
        if found:  # the dataparser skips missing images
            frames.append(frame)
            filenames.append(path.parent / found[0])
    return _of_transforms(path, meta, frames, filenames)


def _blender(dataparser: Any) -> SourceCameras:
    data, metas, frames, filenames = dataparser.config.data, [], [], []
    for split in ("train", "val", "test"):
        path = data / f"transforms_{split}.json"
        if path.exists():
            meta = load_from_json(path)
            for frame in meta["frames"]:
                metas.append(meta)
                frames.append(frame)
                filenames.append(data / (frame["file_path"].replace("./", "") + ".png"))
    return SourceCameras(
        path=data / "transforms_train.json",
        frame="the frame of the matrices in transforms_train.json",
        names=[frame["file_path"] for frame in frames],
        filenames=[_absolute(filename) for filename in filenames],
        camera_to_worlds=_matrices(frames),
        intrinsics=[_said_of_camera(meta, frame) for meta, frame in zip(metas, frames)],
    )


def _scannetpp(dataparser: Any) -> SourceCameras:
    config = dataparser.config
    path = config.data / config.transforms_path
    meta = load_from_json(path)
    frames = meta["frames"] + meta["test_frames"]
    return _of_transforms(
        path, meta, frames, [config.data / config.images_dir / frame["file_path"] for frame in frames]
    )


def _llff(dataparser: Any) -> SourceCameras:
    path = dataparser.config.data / "poses_bounds.npy"
    poses, height_width_focal, _ = read_poses_bounds(path)
    filenames = dataparser.find_images()
    return SourceCameras(
        path=path,
        frame="the frame of the poses in poses_bounds.npy",
        names=[filename.name for filename in filenames],
        filenames=[_absolute(filename) for filename in filenames],
        camera_to_worlds=torch.from_numpy(poses),
        intrinsics=[{"h": h, "w": w, "fl_x": focal, "fl_y": focal} for h, w, focal in height_width_focal.tolist()],
    )


def _of_colmap_model(model: Path, format: str, filename: Callable[[str], Path]) -> SourceCameras:
    if format == "txt":
        cameras = colmap_utils.read_cameras_text(model / "cameras.txt")
        images = colmap_utils.read_images_text(model / "images.txt")
    else:
        cameras = colmap_utils.read_cameras_binary(model / "cameras.bin")
        images = colmap_utils.read_images_binary(model / "images.bin")
    ordered = [images[key] for key in sorted(images)]
    said = {key: parse_colmap_camera_params(as_opencv(camera)) for key, camera in cameras.items()}
    return SourceCameras(
        path=model,
        frame=f"the frame of the COLMAP model {model.parent.name}/{model.name}",
        names=[image.name for image in ordered],
        filenames=[_absolute(filename(image.name)) for image in ordered],
        camera_to_worlds=colmap_poses(ordered),
        intrinsics=[said[image.camera_id] for image in ordered],
        as_read=colmap_poses(ordered, normalise=False),
    )


def _colmap(dataparser: Any) -> SourceCameras:
    config = dataparser.config
    model, images = config.data / config.colmap_path, config.data / config.images_path
    factor = dataparser._downscale_factor or 1
    folder = images if factor == 1 else images.parent / f"{images.name}_{factor}"
    format = "txt" if (model / "cameras.txt").exists() else "bin"
    return _of_colmap_model(model, format, lambda name: folder / name)


def _phototourism(dataparser: Any) -> SourceCameras:
    dense = dataparser.config.data / "dense"
    return _of_colmap_model(dense / "sparse", "bin", lambda name: dense / "images" / name)


READERS: Dict[Any, Callable[[Any], SourceCameras]] = {
    Nerfstudio: _nerfstudio,
    ColmapDataParser: _colmap,
    InstantNGP: _instant_ngp,
    Blender: _blender,
    DNeRF: _blender,
    LLFF: _llff,
    ScanNetpp: _scannetpp,
    Phototourism: _phototourism,
}
"""What reads the files of each dataparser again."""
