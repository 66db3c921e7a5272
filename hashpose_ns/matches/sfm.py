"""Structure from motion by verified matches: triangulation and bundle adjustment from given poses, or global mapping
from none. pycolmap does the work; what is here keeps it from running away."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from hashpose_ns.matches.features import MatchedImages, pycolmap

ANGLES = (40.0, 16.0, 8.0, 4.0, 2.0)
"""How far off, in degrees, rays of a match may be from a common point, pass by pass."""
MAX_REPROJECTION = 4.0
"""Pixels beyond which an observation is dropped after a pass: COLMAP's."""
MIN_ANGLE = 1.5
"""Degrees between two rays, below which they determine no point: COLMAP's."""
FEWEST_POINTS = 8
"""Points below which there is no structure."""
MIN_OBSERVATIONS = 15
"""Observations of points that place a camera, at least."""
RESECTIONS = 2
"""How often cameras that contradict the others are looked for."""
AGREEING_PIXELS = 2.0
"""A match agrees with poses up to this distance from its epipolar lines."""
FLIP = np.diag([1.0, -1.0, -1.0])
"""From OpenGL's camera axes to OpenCV's, and back."""


@dataclass(frozen=True)
class Pass:
    """One triangulation from the poses as they are, and what follows."""

    angle: float
    """How far off, in degrees, rays of a match may be from a common point."""
    robust: bool = True
    """Whether matches that are far off lose their weight (Cauchy), and not only some of it (soft L1)."""
    rounds: int = 1
    """Adjustments of the same points, each with a narrower loss than before."""


POLISH = Pass(angle=2.0, rounds=3)
"""The last pass. Its loss, a fraction of a pixel wide, brings chair at 400x400 from .185 to .11 degrees."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Poses and points from matches, in any frame."""

    camera_to_worlds: Float[np.ndarray, "num_images 3 4"]
    """Poses, OpenGL axes; those that are not placed are as they were given, or NaN."""
    placed: Bool[np.ndarray, "num_images"]
    """Which cameras the matches determine."""
    points: Float[np.ndarray, "num_points 3"]
    """Triangulated points."""
    tracks: List[Int[np.ndarray, "_length 2"]]
    """Of each point: the images it is seen in, and as which keypoint."""
    reprojection: float
    """Mean distance of observations from where points are seen, in pixels."""

    def observations(self, views: int = 1) -> Int[np.ndarray, "num_images"]:
        """How many points each image sees that so many images see, at least."""
        counts = np.zeros(len(self.placed), dtype=np.int64)
        for track in self.tracks:
            if len(track) >= views:
                counts[track[:, 0]] += 1
        return counts

    def three_view_tracks(self) -> Int[np.ndarray, "num_images"]:
        """How many points each image sees that two others see, at least."""
        return self.observations(views=3)


def structure_from_given(
    images: MatchedImages, camera_to_worlds: Float[np.ndarray, "num_images 3 4"], angles: Sequence[float] = ANGLES
) -> Optional[Structure]:
    """Triangulates points from given poses and adjusts both, in passes that trust the poses more and more.

    Args:
        images: keypoints and matches.
        camera_to_worlds: given poses, OpenGL axes.
        angles: in degrees, how far off the poses may be in each pass.

    Returns:
        The result of the pass that explains most matches; None if none of them made points.
    """
    library = pycolmap()
    graph = _graph(library, images)
    poses, best, best_share = camera_to_worlds, None, -1.0
    passes = [Pass(angle, robust=number > 0) for number, angle in enumerate(angles)] + [POLISH]
    for one in passes:
        found = _pass(library, graph, images, poses, one)
        if found is None:
            continue
        share = float(explained(images, found.camera_to_worlds).mean()) if len(images.pairs) else 0.0
        if share >= best_share - 0.005:
            best, best_share = found, max(share, best_share)
        poses = found.camera_to_worlds
    for _ in range(RESECTIONS):
        moved = resected(library, images, best) if best is not None else None
        if moved is None:
            break
        found = _pass(library, graph, images, moved, POLISH)
        if found is None or float(explained(images, found.camera_to_worlds).mean()) < best_share:
            break
        best = found
    return best


def resected(
    library: Any, images: MatchedImages, structure: Structure
) -> Optional[Float[np.ndarray, "num_images 3 4"]]:
    """Poses of a structure where cameras that contradict all others are put where these see them.

    Bundle adjustment cannot get a camera out of a wrong place that some false matches agree with. So each camera is
    placed again, by RANSAC, by points that others see twice, and stays there if clearly more of them agree.

    Returns:
        All poses; None if none is to change.
    """
    point_of = [np.full(len(points), -1) for points in images.points]
    for number, track in enumerate(structure.tracks):
        for image, keypoint in track:
            point_of[image][keypoint] = number
    lengths = np.array([len(track) for track in structure.tracks])
    seen: List[List[Int[np.ndarray, "n 2"]]] = [[] for _ in images.points]  # keypoint, point
    for (first, second), match in zip(images.pairs.tolist(), images.matches):
        for image, other, keypoints, others in (
            (first, second, match[:, 0], match[:, 1]),
            (second, first, match[:, 1], match[:, 0]),
        ):
            numbers = point_of[other][others]
            own = point_of[image][keypoints] == numbers
            kept = (numbers >= 0) & (lengths[numbers] - own >= 2)
            seen[image].append(np.stack([keypoints[kept], numbers[kept]], axis=1))
    options = library.AbsolutePoseEstimationOptions()
    options.ransac.max_error, options.ransac.random_seed = MAX_REPROJECTION, 0
    poses, changed = structure.camera_to_worlds.copy(), False
    for image, lists in enumerate(seen):
        pairs = np.unique(np.concatenate(lists), axis=0) if lists else np.zeros((0, 2), dtype=np.int64)
        if len(pairs) < MIN_OBSERVATIONS:
            continue
        places, points = _keypoints(images, image)[pairs[:, 0]], structure.points[pairs[:, 1]]
        camera = _camera(library, float(images.focals[image]), image)
        found = library.estimate_and_refine_absolute_pose(places, points, camera, options)
        if found is None:
            continue
        pose = _camera_to_world(found["cam_from_world"].matrix())
        agree = [_reprojects(images, image, pairs[:, 0], points, each).sum() for each in (poses[image], pose)]
        if agree[1] >= max(MIN_OBSERVATIONS, 1.2 * agree[0] + 3):
            poses[image], changed = pose, True
    return poses if changed else None


def _reprojects(
    images: MatchedImages,
    image: int,
    keypoints: Int[np.ndarray, "n"],
    points: Float[np.ndarray, "n 3"],
    camera_to_world: Float[np.ndarray, "3 4"],
) -> Bool[np.ndarray, "n"]:
    """Whether points are seen where the keypoints are."""
    if not np.isfinite(camera_to_world).all():
        return np.zeros(len(points), dtype=bool)
    x, y, z = FLIP @ camera_to_world[:, :3].T @ (points - camera_to_world[:, 3]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.stack([x / z, y / z], axis=1) - images.points[image][keypoints]
    return (z > 0) & (images.focals[image] * np.hypot(*off.T) < MAX_REPROJECTION)


def _graph(library: Any, images: MatchedImages) -> Any:
    graph = library.CorrespondenceGraph()
    for index, points in enumerate(images.points):
        graph.add_image(index + 1, len(points))
    for (first, second), match in zip(images.pairs.tolist(), images.matches):
        geometry = library.TwoViewGeometry()
        geometry.config = library.TwoViewGeometryConfiguration.CALIBRATED
        geometry.inlier_matches = match.astype(np.uint32)
        graph.add_two_view_geometry(first + 1, second + 1, geometry)
    graph.finalize()
    return graph


def _camera(library: Any, focal: float, index: int) -> Any:
    """A camera for `_keypoints`, which have neither distortion nor a principal point of their own any more."""
    size = _size(focal)
    camera = library.Camera(
        model="SIMPLE_PINHOLE", width=size, height=size, params=[focal, size / 2, size / 2], camera_id=index + 1
    )
    camera.has_prior_focal_length = True
    return camera


def _keypoints(images: MatchedImages, index: int) -> Float[np.ndarray, "num_keypoints 2"]:
    """Keypoints of an image in the pixels of `_camera`."""
    focal = float(images.focals[index])
    return focal * images.points[index] + _size(focal) / 2


def _size(focal: float) -> int:
    """Width and height of `_camera`: COLMAP passes over cameras whose focal length is far from their size."""
    return max(int(round(2 * focal)), 1)


def _reconstruction(library: Any, images: MatchedImages, poses: Float[np.ndarray, "num_images 3 4"]) -> Any:
    reconstruction = library.Reconstruction()
    for index in range(images.num_images):
        reconstruction.add_camera_with_trivial_rig(_camera(library, float(images.focals[index]), index))
        _add_image(library, reconstruction, images, poses, index, camera=index)
    return reconstruction


def _add_image(
    library: Any,
    reconstruction: Any,
    images: MatchedImages,
    poses: Float[np.ndarray, "num_images 3 4"],
    index: int,
    camera: int,
) -> None:
    rotation = FLIP @ poses[index, :, :3].T
    pose = library.Rigid3d(library.Rotation3d(rotation), -rotation @ poses[index, :, 3])
    image = library.Image(
        name=str(index), keypoints=_keypoints(images, index), camera_id=camera + 1, image_id=index + 1
    )
    reconstruction.add_image_with_trivial_frame(image, pose)


def _pass(
    library: Any, graph: Any, images: MatchedImages, poses: Float[np.ndarray, "num_images 3 4"], one: Pass
) -> Optional[Structure]:
    """Triangulates from poses and adjusts both. None if too few points are left."""
    reconstruction = _reconstruction(library, images, poses)
    manager = library.ObservationManager(reconstruction, graph)
    options = library.IncrementalTriangulatorOptions()
    options.create_max_angle_error = options.continue_max_angle_error = one.angle
    options.re_max_angle_error = max(one.angle, options.re_max_angle_error)
    reach = max(float(np.tan(np.radians(one.angle)) * images.focals.mean()), MAX_REPROJECTION)
    options.merge_max_reproj_error = options.complete_max_reproj_error = MAX_REPROJECTION if one.rounds > 1 else reach
    options.min_angle, options.ignore_two_view_tracks, options.random_seed = MIN_ANGLE, False, 0
    triangulator = library.IncrementalTriangulator(graph, reconstruction, manager)
    for index in range(images.num_images):
        triangulator.triangulate_image(options, index + 1)
    for number in range(one.rounds):
        triangulator.complete_all_tracks(options)
        triangulator.merge_all_tracks(options)
        manager.filter_observations_with_negative_depth()
        if reconstruction.num_points3D() < FEWEST_POINTS:
            return None
        scale = 1.0 if number == 0 else _scale(reconstruction)
        _adjust(library, reconstruction, one.robust, scale)
        manager.filter_observations_with_negative_depth()
        manager.filter_all_points3D(MAX_REPROJECTION if number == 0 else MAX_REPROJECTION / 2, MIN_ANGLE)
    if reconstruction.num_points3D() < FEWEST_POINTS:
        return None
    return _structure(reconstruction, poses)


def _scale(reconstruction: Any) -> float:
    """Scale of the robust loss, in pixels: half of the median error, as inliers' errors are much below a pixel, and
    every match further off than they are pulls."""
    reconstruction.update_point_3d_errors()
    errors = [point.error for point in reconstruction.points3D.values()]
    return float(np.clip(0.5 * np.median(errors), 0.1, 1.0))


def _fixed_lenses(adjustment: Any) -> None:
    """Has bundle adjustment leave the intrinsics alone."""
    adjustment.refine_focal_length = adjustment.refine_extra_params = adjustment.refine_principal_point = False


def _adjust(library: Any, reconstruction: Any, robust: bool, scale: float, focal_lengths: bool = False) -> None:
    """Bundle adjustment of all poses and points, without pycolmap's report on the console."""
    options = library.BundleAdjustmentOptions()
    _fixed_lenses(options)
    options.refine_focal_length = focal_lengths
    options.print_summary = False
    loss = library.LossFunctionType
    options.ceres.loss_function_type = loss.CAUCHY if robust else loss.SOFT_L1
    options.ceres.loss_function_scale = scale
    options.ceres.solver_options.max_num_iterations = 50
    options.ceres.solver_options.function_tolerance = 1e-5
    options.ceres.solver_options.num_threads = max(torch.get_num_threads(), 1)
    config = library.BundleAdjustmentConfig()
    for image_id in reconstruction.reg_image_ids():
        config.add_image(image_id)
    config.fix_gauge(library.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    library.create_default_ceres_bundle_adjuster(options, config, reconstruction).solve()


@contextmanager
def _quiet() -> Iterator[None]:
    """Sends what C++ writes to the standard error nowhere; COLMAP's settings do not silence its log."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _camera_to_world(camera_from_world: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, "3 4"]:
    """A pose with OpenGL axes from COLMAP's."""
    rotation = camera_from_world[:, :3].T
    return np.concatenate([rotation @ FLIP, -(rotation @ camera_from_world[:, 3:])], axis=1)


def _structure(reconstruction: Any, poses: Float[np.ndarray, "num_images 3 4"]) -> Structure:
    """What a reconstruction holds; `poses` are those of cameras that it does not place."""
    points, tracks = [], []
    for point in reconstruction.points3D.values():
        points.append(point.xyz)
        tracks.append(np.array([(e.image_id - 1, e.point2D_idx) for e in point.track.elements], dtype=np.int64))
    reconstruction.update_point_3d_errors()
    structure = Structure(
        camera_to_worlds=poses.copy(),
        placed=np.zeros(len(poses), dtype=bool),
        points=np.array(points).reshape(-1, 3),
        tracks=tracks,
        reprojection=float(reconstruction.compute_mean_reprojection_error()),
    )
    counts = structure.observations()
    for image_id in reconstruction.reg_image_ids():
        matrix = reconstruction.image(image_id).cam_from_world().matrix()
        index = image_id - 1
        if counts[index] >= MIN_OBSERVATIONS and np.isfinite(matrix).all():
            structure.camera_to_worlds[index] = _camera_to_world(matrix)
            structure.placed[index] = True
    return structure


def focal_scales(
    images: MatchedImages, structure: Structure, groups: Int[np.ndarray, "num_images"]
) -> Optional[Float[np.ndarray, "num_images"]]:
    """What the images' focal lengths are to be multiplied by, from an adjustment of poses, points and one focal length
    for each group of images. Groups without a placed camera keep theirs.

    Args:
        images: keypoints and focal lengths as they are.
        structure: poses and points that the adjustment starts from.
        groups: number of the lens of each image. A group's focal lengths are equal.

    Returns:
        One number for each image; None where the structure is too small.
    """
    library = pycolmap()
    if len(structure.points) < FEWEST_POINTS or not structure.placed.any():
        return None
    reconstruction = library.Reconstruction()
    for group in np.unique(groups).tolist():
        reconstruction.add_camera_with_trivial_rig(_camera(library, float(images.focals[groups == group][0]), group))
    placed = np.flatnonzero(structure.placed)
    for index in placed.tolist():
        _add_image(library, reconstruction, images, structure.camera_to_worlds, index, camera=int(groups[index]))
    for point, track in zip(structure.points, structure.tracks):
        elements = [library.TrackElement(int(i) + 1, int(k)) for i, k in track if structure.placed[i]]
        if len(elements) >= 2:
            reconstruction.add_point3D(point, library.Track(elements))
    _adjust(library, reconstruction, True, _scale(reconstruction), focal_lengths=True)
    scales = np.ones(images.num_images)
    for group in np.unique(groups[placed]):
        scales[groups == group] = reconstruction.camera(int(group) + 1).focal_length / images.focals[groups == group][0]
    return scales if np.isfinite(scales).all() and (scales > 0).all() else None


def structure_from_none(images: MatchedImages) -> Optional[Structure]:
    """Finds poses without any start: rotation averaging, global positioning, adjustment (GLOMAP).

    Args:
        images: keypoints and matches.

    Returns:
        The largest model that was found; None if there is none.
    """
    library = pycolmap()
    options = library.GlobalPipelineOptions()
    options.num_threads, options.random_seed = 1, 0
    mapper = options.mapper
    mapper.num_threads, mapper.random_seed = 1, 0
    mapper.rotation_averaging.random_seed = mapper.global_positioning.random_seed = 0
    _fixed_lenses(mapper.bundle_adjustment)
    for part in (mapper.global_positioning, mapper.bundle_adjustment.ceres):
        part.use_gpu = False
    return _largest(images, library, lambda database, folder: library.global_mapping(database, folder, folder, options))


def structure_incremental(images: MatchedImages) -> Optional[Structure]:
    """Finds poses without any start, one image after the other (COLMAP's mapper, Schoenberger and Frahm 2016), with
    its own settings but for the intrinsics, which stay. Training does not use it: it is what others are compared with.

    Args:
        images: keypoints and matches.

    Returns:
        The largest model that was found; None if there is none.
    """
    library = pycolmap()
    options = library.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.mapper.num_threads, options.mapper.random_seed = 1, 0, 1, 0
    options.triangulation.random_seed = 0
    options.extract_colors = options.ba_use_gpu = False
    options.ba_refine_focal_length = options.ba_refine_extra_params = options.ba_refine_principal_point = False
    return _largest(
        images, library, lambda database, folder: library.incremental_mapping(database, folder, folder, options)
    )


def _largest(images: MatchedImages, library: Any, mapped: Callable[[Path, str], Dict[int, Any]]) -> Optional[Structure]:
    """The largest of the models that one of COLMAP's mappers makes of a database, given it and a folder to work in."""
    with tempfile.TemporaryDirectory(prefix="hashpose-sfm-") as folder:
        database = Path(folder) / "matches.db"
        _write_database(library, images, database)
        try:
            with _quiet():
                models = mapped(database, folder)
        except (RuntimeError, ValueError):  # where there is too little to begin with
            return None
    if not models:
        return None
    largest = max(models.values(), key=lambda model: model.num_reg_images())
    if largest.num_points3D() < FEWEST_POINTS:
        return None
    return _structure(largest, np.full((images.num_images, 3, 4), np.nan))


def _write_database(library: Any, images: MatchedImages, path: Path) -> None:
    """Writes matches as COLMAP keeps them. Image `n` is number n + 1 there."""
    database = library.Database.open(path)
    cameras = []
    for index in range(images.num_images):
        camera = _camera(library, float(images.focals[index]), index)
        cameras.append(camera)
        database.write_camera(camera, use_camera_id=True)
        rig = library.Rig(rig_id=index + 1)
        rig.add_ref_sensor(camera.sensor_id)
        database.write_rig(rig, use_rig_id=True)
        image = library.Image(name=f"{index:06d}", camera_id=index + 1, image_id=index + 1)
        database.write_image(image, use_image_id=True)
        frame = library.Frame(frame_id=index + 1, rig_id=index + 1)
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
        database.write_keypoints(index + 1, _keypoints(images, index).astype(np.float32))
    settings = library.TwoViewGeometryOptions()
    settings.ransac.random_seed = 0
    for (first, second), match in zip(images.pairs.tolist(), images.matches):
        match = match.astype(np.uint32)
        database.write_matches(first + 1, second + 1, match)
        places = [_keypoints(images, index) for index in (first, second)]
        geometry = library.estimate_calibrated_two_view_geometry(
            cameras[first], places[0], cameras[second], places[1], match, settings
        )
        database.write_two_view_geometry(first + 1, second + 1, geometry)
    database.close()


# -- how well poses explain matches ------------------------------------------------------------------------------------


def epipolar_errors(
    images: MatchedImages, camera_to_worlds: Float[np.ndarray, "num_images 3 4"]
) -> List[Float[np.ndarray, "_num_matches"]]:
    """Symmetric distance of every match from its epipolar lines, in pixels; infinite where the match would lie behind
    a camera or a pose is not finite.

    Args:
        images: keypoints and matches.
        camera_to_worlds: poses, OpenGL axes.
    """
    errors = []
    for (first, second), match in zip(images.pairs.tolist(), images.matches):
        x = homogeneous(images.points[first][match[:, 0]])
        y = homogeneous(images.points[second][match[:, 1]])
        errors.append(
            _pair_errors(x, y, camera_to_worlds[first], camera_to_worlds[second], images.focals[[first, second]])
        )
    return errors


def homogeneous(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """Points of the plane at depth 1 as rays, OpenCV's axes."""
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def _pair_errors(
    x: Float[np.ndarray, "n 3"],
    y: Float[np.ndarray, "n 3"],
    first: Float[np.ndarray, "3 4"],
    second: Float[np.ndarray, "3 4"],
    focals: Float[np.ndarray, "2"],
) -> Float[np.ndarray, "n"]:
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return np.full(len(x), np.inf)
    # second camera from first, both with OpenCV's axes
    rotation = FLIP @ second[:, :3].T @ first[:, :3] @ FLIP
    translation = FLIP @ second[:, :3].T @ (first[:, 3] - second[:, 3])
    length = np.linalg.norm(translation)
    if length < 1e-12:
        return np.full(len(x), np.inf)
    translation = translation / length
    turned = x @ rotation.T
    in_second = np.cross(translation, turned)  # E x
    in_first = np.cross(y, translation) @ rotation  # E^T y, as y^T [t] R = (y x t)^T R
    algebraic = np.abs((y * in_second).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        there = algebraic / np.hypot(in_second[:, 0], in_second[:, 1]) * focals[1]
        back = algebraic / np.hypot(in_first[:, 0], in_first[:, 1]) * focals[0]
        # depths of the point nearest to both rays: z y = w turned + translation
        xx, yy, xy = (turned * turned).sum(1), (y * y).sum(1), (turned * y).sum(1)
        xt, yt = turned @ translation, y @ translation
        determinant = xx * yy - xy * xy
        in_front = (xy * yt - yy * xt > -1e-9 * determinant) & (xx * yt - xy * xt > -1e-9 * determinant)
    errors = np.nan_to_num(0.5 * (there + back), nan=np.inf, posinf=np.inf)
    # nearly parallel rays meet far away, on whichever side noise puts them
    parallel = determinant < (0.002**2) * xx * yy
    return np.where(in_front | parallel, errors, np.inf)


def explained(
    images: MatchedImages, camera_to_worlds: Float[np.ndarray, "num_images 3 4"]
) -> Bool[np.ndarray, "num_matches"]:
    """Whether poses put each match within `AGREEING_PIXELS` of its epipolar lines, all pairs one after the other."""
    errors = epipolar_errors(images, camera_to_worlds)
    return np.concatenate(errors) < AGREEING_PIXELS if errors else np.zeros(0, dtype=bool)
