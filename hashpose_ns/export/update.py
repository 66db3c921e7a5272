"""New poses for an existing COLMAP model, with its cameras, ids, observations and tracks."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Literal, Optional, Tuple

import numpy as np
from jaxtyping import Float

from hashpose_ns.cameras.alignment import PoseErrors, Similarity, align_poses, pose_errors
from hashpose_ns.data.source import colmap_poses
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.export.colmap import world_to_camera, write_model
from hashpose_ns.export.colmap_files import camera_models, read_cameras, read_images, read_points
from hashpose_ns.export.exported import FROZEN
from hashpose_ns.export.frame import flip_axes, rigid
from hashpose_ns.stopping import keeps_handlers
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
SAME_RIG = 1e-6
"""Images of a frame obey their rig when the rig's poses that follow from each differ by no more: in rotation matrices,
and in translations as a fraction."""
PARTS = ("cameras", "images", "points3D")
TEXT_READERS = (
    colmap_utils.read_cameras_text,
    colmap_utils.read_images_text,
    colmap_utils.read_points3D_text,
)


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """A COLMAP model as nerfstudio reads it."""

    cameras: Dict[int, Any]
    images: Dict[int, Any]
    points: Dict[int, Any]
    format: Literal["bin", "txt"] = "bin"
    """Of the files it was read from."""

    def write(self, directory: Path, format: Literal["bin", "txt"]) -> None:
        """Writes cameras.*, images.* and points3D.*."""
        write_model(directory, self.cameras, self.images, self.points, format)


@dataclass(frozen=True)
class PointReport:
    """What triangulation did to a model's points."""

    kept: int
    """Points in the updated model."""
    dropped: int
    """Points that were not consistent with the new poses."""
    error_before: Optional[float] = None
    """Median of the points' reprojection errors in pixels in the old model; None where no point is observed."""
    error_after: Optional[float] = None
    """The same after triangulation from the new poses, over dropped points too."""


def read_colmap_model(directory: Path) -> ColmapModel:
    """Reads a model in either of COLMAP's formats. A model without a file of points has none.

    Raises:
        HashPoseError: if there is no model, or it is broken, empty or not whole.
    """
    formats: Tuple[Literal["bin"], Literal["txt"]] = ("bin", "txt")
    format = next((ext for ext in formats if all((directory / f"{part}.{ext}").is_file() for part in PARTS[:2])), None)
    if format is None:
        raise HashPoseError(
            f"There is no COLMAP model in {directory}; --update takes the folder of cameras.bin, images.bin and "
            "points3D.bin (or .txt)."
        )
    cameras, images, points = (directory / f"{part}.{format}" for part in PARTS)
    readers = TEXT_READERS if format == "txt" else (read_cameras, read_images, read_points)
    try:
        in_points = readers[2](points) if points.exists() else {}
        model = ColmapModel(readers[0](cameras), readers[1](images), in_points, format)
    except Exception as error:  # readers check nothing; a cut-off file ends in any of several
        raise HashPoseError(f"The COLMAP model in {directory} cannot be read: {one_line(error)}.") from error
    if not model.images:
        raise HashPoseError(f"The COLMAP model in {directory} has no images.")
    if format == "txt":
        _check_text_names(images)
    for problem in _problems(model):
        raise HashPoseError(f"The COLMAP model in {directory} is not whole: {problem}.")
    return model


def _check_text_names(path: Path) -> None:
    """Raises HashPoseError for a name with a space in images.txt, which readers cut off there."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip() or line.startswith("#"):
                continue
            if len(line.split()) != 10:
                raise HashPoseError(
                    f"A line of {path} does not hold ten words ({line.strip()[:80]!r}), so a name in it has white "
                    "space; give the model in COLMAP's binary format."
                )
            next(lines, None)


def _problems(model: ColmapModel) -> Iterator[str]:
    """What is wrong within a model: numbers that are none, and references to what is not there."""
    sizes = dict(camera_models().values())
    for key, camera in model.cameras.items():
        if sizes.get(camera.model) != len(camera.params):
            yield f"camera {key} is of an unknown model, {camera.model} with {len(camera.params)} parameters"
        if not np.isfinite(camera.params).all():
            yield f"a parameter of camera {key} is not a finite number"
    for image in model.images.values():
        name = f"image {image.name!r}"
        length = float(np.linalg.norm(image.qvec)) if len(image.qvec) == 4 else float("nan")
        if not (np.isfinite(length) and length > 0 and len(image.tvec) == 3 and np.isfinite(image.tvec).all()):
            yield f"the pose of {name} is not finite"
        if image.camera_id not in model.cameras:
            yield f"{name} was taken by camera {image.camera_id}, which is not there"
        if not np.isfinite(image.xys).all():
            yield f"an observation in {name} is not a finite number"
    seen = 0
    for key, point in model.points.items():
        if not np.isfinite(point.xyz).all():
            yield f"the position of point {key} is not finite"
        for image_id, row in zip(point.image_ids, point.point2D_idxs):
            image = model.images.get(int(image_id))
            if image is None:
                yield f"point {key} is seen in image {image_id}, which is not there"
            elif not 0 <= row < len(image.point3D_ids) or image.point3D_ids[row] != key:
                yield f"point {key} is seen in image {image.name!r} by an observation of something else"
            seen += 1
    if seen != sum(int((np.asarray(image.point3D_ids) != -1).sum()) for image in model.images.values()):
        yield from (
            f"image {image.name!r} shows point {key}, whose track does not list it"
            for image in model.images.values()
            for row, key in enumerate(image.point3D_ids)
            if key != -1 and (key not in model.points or not _in_track(model.points[int(key)], image.id, row))
        )
        yield "points have observations twice"


def _in_track(point: Any, image: int, row: int) -> bool:
    return bool(((point.image_ids == image) & (point.point2D_idxs == row)).any())


def _rotation(image: Any) -> Float[np.ndarray, "3 3"]:
    """World to camera. COLMAP normalises quaternions that it reads, nerfstudio does not."""
    return colmap_utils.qvec2rotmat(image.qvec / np.linalg.norm(image.qvec))


def match_images(model: ColmapModel, names: List[str], directory: Path) -> List[int]:
    """The image id in a model of each name: the same name, or else the only image whose name ends in the same file.

    Raises:
        HashPoseError: if an image is not in the model, or two are one there.
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
    first: Dict[int, str] = {}
    for key, name in zip(found, names):
        if first.setdefault(key, name) != name:
            raise HashPoseError(
                f"{first[key]} and {name} would both be {model.images[key].name} of the model {directory}; give the "
                "model with the images' own names."
            )
    return found


def named_as_in(model: ColmapModel, exported: ExportedCameras, directory: Path) -> ExportedCameras:
    """Exported cameras with their images named as in a model, and the folder that these names are relative to, where
    they are in one."""
    names = [model.images[key].name for key in match_images(model, exported.names, directory)]
    folders = set()
    for path, name in zip(exported.image_filenames, names):
        parts = len(Path(name).parts)
        folders.add(path.parents[parts - 1] if path.parts[-parts:] == Path(name).parts else exported.image_folder)
    return replace(exported, names=names, image_folder=folders.pop() if len(folders) == 1 else exported.image_folder)


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
            "Poses that were found from an identity start do not fit an existing model; export without --update."
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
            f"{float(differences.rotation_deg[worst]):.3g} deg after alignment), so the refined poses do not fit it; "
            "give the model that the run's dataset was made from."
        )
    new = flip_axes(similarity.apply_to_poses(exported.camera_to_worlds))
    images = dict(model.images)
    for key, pose, how in zip(keys, new.numpy(), exported.refined_by):
        if how != FROZEN:
            qvec, tvec = world_to_camera(pose)
            images[key] = images[key]._replace(qvec=qvec, tvec=tvec)
    return replace(model, images=images)


def _same(differences: PoseErrors, center: float) -> bool:
    """Whether no pose differs by more than `SAME_ROTATION_DEG` and a distance between centres."""
    return float(differences.rotation_deg.max()) <= SAME_ROTATION_DEG and float(differences.center.max()) <= center


def update_points(old: ColmapModel, new: ColmapModel) -> Tuple[ColmapModel, Optional[PointReport]]:
    """Triangulates every point again, from its own track and the new poses, with pycolmap.

    Points keep their ids, colours and tracks. Those that cannot be triangulated, are seen under less than
    `MIN_TRIANGULATION_ANGLE_DEG`, or miss their observations by more than `MAX_REPROJECTION_ERROR` on average are
    dropped; their observations stay, without a point. Without pycolmap all points stay where they are, and there is no
    report.

    Args:
        old: the model with its own poses.
        new: the same model with the new poses.
    """
    try:
        with keeps_handlers():
            import pycolmap
    except ImportError:
        return new, None
    from nerfstudio.utils.rich_utils import get_progress

    cameras = {
        key: pycolmap.Camera(model=camera.model, width=camera.width, height=camera.height, params=camera.params)
        for key, camera in new.cameras.items()
    }
    poses = {key: _rigid(image) for key, image in new.images.items()}
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
    after = _point_errors(replace(new, points=moved), cameras)
    kept = {
        key: point._replace(error=after[key]) for key, point in moved.items() if after[key] <= MAX_REPROJECTION_ERROR
    }
    alive = np.array(sorted(kept), dtype=np.int64)
    images = {
        key: image._replace(point3D_ids=np.where(np.isin(image.point3D_ids, alive), image.point3D_ids, -1))
        for key, image in new.images.items()
    }
    report = PointReport(len(kept), len(new.points) - len(kept), _median(before), _median(after))
    return replace(new, images=images, points=kept), report


def _rigid(image: Any) -> Any:
    """pycolmap's camera from world."""
    import pycolmap

    return pycolmap.Rigid3d(pycolmap.Rotation3d(_rotation(image)), np.asarray(image.tvec, dtype=np.float64))


def has_rigs(directory: Path) -> bool:
    """Whether a model says which cameras form rigs, and which images were taken at once, as COLMAP does since 3.12."""
    return any((directory / f"{part}.{ext}").is_file() for part in ("rigs", "frames") for ext in ("bin", "txt"))


def write_rigs(old: Path, model: ColmapModel, directory: Path, format: Literal["bin", "txt"]) -> Optional[str]:
    """Writes rigs.* and frames.* of an existing model, with the poses of an updated one. They are not written where its
    poses do not obey the rigs: for COLMAP each camera is a rig then, and each image a frame.

    Args:
        old: folder of the existing model.
        model: the updated model.
        directory: its folder.
        format: COLMAP's binary or text format.

    Returns:
        Why they were not written, in words; None if they were.

    Raises:
        OSError: the files cannot be written.
    """
    try:
        with keeps_handlers():
            import pycolmap
    except ImportError:
        return "pip install hashpose[colmap] to keep them"
    reconstruction = pycolmap.Reconstruction()
    try:
        (reconstruction.read_binary if model.format == "bin" else reconstruction.read_text)(str(old))
    except Exception as error:
        return f"pycolmap cannot read them ({one_line(error)})"
    for frame in reconstruction.frames.values():
        rig, rig_poses = reconstruction.rigs[frame.rig_id], []
        for data in frame.data_ids:
            if data.sensor_id.type == pycolmap.SensorType.CAMERA and data.id in model.images:
                pose = _rigid(model.images[data.id])
                if not rig.is_ref_sensor(data.sensor_id):
                    sensor_from_rig = rig.sensor_from_rig(data.sensor_id)
                    if sensor_from_rig is None:
                        return "they do not say where their cameras are"
                    pose = sensor_from_rig.inverse() * pose
                rig_poses.append(pose)
        matrices = np.array([pose.matrix() for pose in rig_poses]).reshape(-1, 3, 4)
        tolerance = SAME_RIG * np.array([1, 1, 1, max(1.0, np.abs(matrices[..., 3]).max(initial=0.0))])
        if (np.abs(matrices - matrices[:1]) > tolerance).any():
            return "refined image by image, their poses no longer obey them"
        if rig_poses:
            frame.rig_from_world = rig_poses[0]
    with tempfile.TemporaryDirectory() as folder:
        (reconstruction.write_binary if format == "bin" else reconstruction.write_text)(folder)
        if pycolmap.Reconstruction(folder).num_frames() != reconstruction.num_frames():
            raise OSError(f"{folder} is full")  # pycolmap cuts files off there without a word
        for part in ("rigs", "frames"):
            (directory / f"{part}.{format}").write_bytes(Path(folder, f"{part}.{format}").read_bytes())
    return None


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
        local = world @ _rotation(image).T + image.tvec
        errors = np.linalg.norm(cameras[image.camera_id].img_from_cam(local) - image.xys[rows], axis=1)
        for key, error in zip(keys, np.where(np.isfinite(errors), errors, np.inf)):
            sums[key] += float(error)
            counts[key] += 1
    return {key: sums[key] / counts[key] for key in sums if counts[key]}
