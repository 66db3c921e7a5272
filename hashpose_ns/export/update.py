"""New poses for an existing COLMAP model, with its cameras, ids, observations and tracks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Literal, Optional, Tuple

import numpy as np

from hashpose_ns.cameras.alignment import PoseErrors, Similarity, align_poses, pose_errors
from hashpose_ns.data.source import colmap_poses
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.export.colmap import world_to_camera, write_model
from hashpose_ns.export.exported import FROZEN
from hashpose_ns.export.frame import flip_axes, rigid
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils

if TYPE_CHECKING:
    from hashpose_ns.export.exported import ExportedCameras

SAME_ROTATION_DEG, SAME_CENTER = 0.1, 1e-3
"""A model's poses are those the run was given when no camera is off by more than this angle, and this fraction of the
cameras' spread, after alignment."""
SAME_FRAME = 1e-6
"""Without alignment: the model's frame is that of the run's input when no centre is off by more than this fraction."""
MAX_REPROJECTION_ERROR = 4.0
"""Points whose mean reprojection error in pixels is larger are dropped; COLMAP's own threshold."""
MIN_TRIANGULATION_ANGLE_DEG = 1.5
"""Points seen under a smaller angle are dropped; COLMAP's own threshold."""


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """A COLMAP model as nerfstudio reads it."""

    cameras: Dict[int, Any]
    images: Dict[int, Any]
    points: Dict[int, Any]

    def write(self, directory: Path, format: Literal["bin", "txt"]) -> None:
        """Writes cameras.*, images.* and points3D.*."""
        write_model(directory, self.cameras, self.images, self.points, format)


@dataclass(frozen=True)
class PointReport:
    """What happened to a model's points."""

    kept: int
    """Points in the updated model."""
    dropped: int
    """Points that were not consistent with the new poses."""
    error_before: Optional[float] = None
    """Median of the points' reprojection errors in pixels in the old model; None where points were not touched."""
    error_after: Optional[float] = None
    """The same after triangulation from the new poses, over dropped points too."""


def read_colmap_model(directory: Path) -> ColmapModel:
    """Reads a model in either of COLMAP's formats.

    Raises:
        HashPoseError: if there is none, or it is broken or empty.
    """
    for format in (".bin", ".txt"):
        if all((directory / f"{part}{format}").is_file() for part in ("cameras", "images", "points3D")):
            try:
                model = ColmapModel(*colmap_utils.read_model(str(directory), ext=format))
            except Exception as error:  # nerfstudio's readers check nothing; a cut-off file ends in any of several
                raise HashPoseError(f"The COLMAP model in {directory} cannot be read: {one_line(error)}.") from error
            if not model.images:
                raise HashPoseError(f"The COLMAP model in {directory} has no images.")
            return model
    raise HashPoseError(
        f"There is no COLMAP model in {directory}; --update takes the folder of cameras.bin, images.bin and "
        "points3D.bin (or .txt)."
    )


def match_images(model: ColmapModel, names: List[str], directory: Path) -> List[int]:
    """The image id in a model of each name: the same name, or else the only image whose name ends in the same file.

    Raises:
        HashPoseError: if an image is not in the model.
    """
    by_name = {image.name: key for key, image in model.images.items()}
    by_file: Dict[str, List[int]] = {}
    for key, image in model.images.items():
        by_file.setdefault(Path(image.name).name, []).append(key)
    missing, found = [], []
    for name in names:
        same_file = by_file.get(Path(name).name, [])
        if name in by_name:
            found.append(by_name[name])
        elif len(same_file) == 1:
            found.append(same_file[0])
        else:
            missing.append(name)
    if missing:
        raise HashPoseError(
            f"{len(missing)} of {len(names)} images of the run are not in the model {directory}, the first is "
            f"{missing[0]}; give the model with the images' own names."
        )
    return found


def update_poses(model: ColmapModel, exported: ExportedCameras, directory: Path) -> ColmapModel:
    """The model with new poses of the exported images; those of other images, and all else, stay.

    The model may lie in another frame than the run's dataset, as when that was made from it: a similarity from the
    poses the run was given to the model's takes the refined ones there. Frozen cameras keep their pose bit by bit.

    Raises:
        HashPoseError: if images are missing, the run started from the identity, or the model's poses are not those that
            the run was given.
    """
    if exported.frame.arbitrary:
        raise HashPoseError(
            "Poses that were found from an identity start have no place in an existing model; export without --update."
        )
    keys = match_images(model, exported.names, directory)
    old = rigid(colmap_poses([model.images[key] for key in keys]))
    given = exported.given_camera_to_worlds
    spread = float((old[:, :, 3] - old[:, :, 3].mean(dim=0)).norm(dim=-1).max())
    rounding = 64 * float(np.finfo(np.float64).eps) * float(old[:, :, 3].abs().max())
    similarity = Similarity.identity()
    differences = pose_errors(given, old, similarity)
    if not _same(differences, SAME_FRAME * spread + rounding):
        similarity = align_poses(given, old)
        differences = pose_errors(given, old, similarity)
    worst = int(differences.rotation_deg.argmax())
    if not _same(differences, SAME_CENTER * spread + rounding):
        raise HashPoseError(
            f"The poses in {directory} are not those that the run was given ({exported.names[worst]} differs by "
            f"{float(differences.rotation_deg[worst]):.3g} deg after alignment), so the refined poses have no place in "
            "it; give the model that the run's dataset was made from."
        )
    new = flip_axes(similarity.apply_to_poses(exported.camera_to_worlds))
    images = dict(model.images)
    for key, pose, how in zip(keys, new.numpy(), exported.refined_by):
        if how != FROZEN:
            qvec, tvec = world_to_camera(pose)
            images[key] = images[key]._replace(qvec=qvec, tvec=tvec)
    return ColmapModel(model.cameras, images, model.points)


def _same(differences: PoseErrors, center: float) -> bool:
    """Whether no pose differs by more than `SAME_ROTATION_DEG` and a distance between centres."""
    return float(differences.rotation_deg.max()) <= SAME_ROTATION_DEG and float(differences.center.max()) <= center


def update_points(old: ColmapModel, new: ColmapModel) -> Tuple[ColmapModel, PointReport]:
    """Triangulates every point again, from its own track and the new poses, with pycolmap.

    Points keep their ids, colours and tracks. Those that cannot be triangulated, are seen under less than
    `MIN_TRIANGULATION_ANGLE_DEG`, or miss their observations by more than `MAX_REPROJECTION_ERROR` on average are
    dropped; their observations stay, without a point. Without pycolmap all points stay where they are.

    Args:
        old: the model with its own poses.
        new: the same model with the new poses.
    """
    try:
        import pycolmap
    except ImportError:
        return new, PointReport(kept=len(new.points), dropped=0)
    from nerfstudio.utils.rich_utils import get_progress

    cameras = {
        key: pycolmap.Camera(model=camera.model, width=camera.width, height=camera.height, params=camera.params)
        for key, camera in new.cameras.items()
    }
    poses = {
        key: pycolmap.Rigid3d(pycolmap.Rotation3d(np.roll(image.qvec, -1)), np.asarray(image.tvec, dtype=np.float64))
        for key, image in new.images.items()
    }
    options = pycolmap.EstimateTriangulationOptions()
    options.min_tri_angle = np.deg2rad(MIN_TRIANGULATION_ANGLE_DEG)
    options.residual_type = pycolmap.TriangulationResidualType.REPROJECTION_ERROR
    options.ransac.max_error = MAX_REPROJECTION_ERROR
    options.ransac.random_seed = 0
    moved = {}
    with get_progress("Triangulating", suffix="points") as progress:
        for key in progress.track(list(new.points)):
            point = new.points[key]
            ids = [int(image_id) for image_id in point.image_ids]
            if len(ids) < 2:
                continue
            observed = np.stack([new.images[i].xys[j] for i, j in zip(ids, point.point2D_idxs)])
            on_cameras = [cameras[new.images[i].camera_id] for i in ids]
            estimate = pycolmap.estimate_triangulation(observed, [poses[i] for i in ids], on_cameras, options)
            if estimate is not None:
                moved[key] = point._replace(xyz=estimate["xyz"])
    before = _point_errors(old, cameras)
    after = _point_errors(ColmapModel(new.cameras, new.images, moved), cameras)
    kept = {
        key: point._replace(error=after[key]) for key, point in moved.items() if after[key] <= MAX_REPROJECTION_ERROR
    }
    alive = np.array(sorted(kept), dtype=np.int64)
    images = {
        key: image._replace(point3D_ids=np.where(np.isin(image.point3D_ids, alive), image.point3D_ids, -1))
        for key, image in new.images.items()
    }
    report = PointReport(len(kept), len(new.points) - len(kept), _median(before), _median(after))
    return ColmapModel(new.cameras, images, kept), report


def _median(errors: Dict[int, float]) -> Optional[float]:
    return float(np.median(list(errors.values()))) if errors else None


def _point_errors(model: ColmapModel, cameras: Dict[int, Any]) -> Dict[int, float]:
    """Mean reprojection error in pixels of each point over its track, infinite where it lies behind a camera."""
    sums, counts = dict.fromkeys(model.points, 0.0), dict.fromkeys(model.points, 0)
    for image in model.images.values():
        rows = [row for row, key in enumerate(image.point3D_ids) if key in model.points]
        if not rows:
            continue
        keys = [int(image.point3D_ids[row]) for row in rows]
        world = np.stack([model.points[key].xyz for key in keys])
        local = world @ colmap_utils.qvec2rotmat(image.qvec).T + image.tvec
        errors = np.linalg.norm(cameras[image.camera_id].img_from_cam(local) - image.xys[rows], axis=1)
        for key, error in zip(keys, np.where(np.isfinite(errors), errors, np.inf)):
            sums[key] += float(error)
            counts[key] += 1
    return {key: sums[key] / counts[key] for key in sums if counts[key]}
