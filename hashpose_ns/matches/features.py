"""Keypoints of images and verified matches between them: SIFT and two-view geometry by pycolmap."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from hashpose_ns.atomic import whole_file
from hashpose_ns.data.fingerprint import fingerprint
from hashpose_ns.errors import one_line
from hashpose_ns.host import user_cache
from hashpose_ns.matches.config import FeatureConfig
from hashpose_ns.matches.matches import Matches
from hashpose_ns.stopping import keeps_handlers
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE

FORMAT = 2
"""Changes whenever the same images would give other matches."""
RATIO, MAX_DISTANCE = 0.8, 0.7
"""Lowe's ratio and the largest distance of a match, both of angles between descriptors in radians: COLMAP's."""
SEED = 0
"""Of the search for two-view geometries. Which matches are verified must not differ between runs."""


class NoMatches(Exception):
    """Why there are no matches; the message is a clause that follows "because"."""


def pycolmap() -> Any:
    """The library, with its log switched off, and signals left alone.

    Raises:
        NoMatches: it is not installed, or too old.
    """
    try:
        with keeps_handlers():
            import pycolmap as library
    except ImportError as error:
        raise NoMatches("pycolmap is not installed (pip install 'hashpose[matches]')") from error
    version = getattr(library, "__version__", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < (4, 2):
        raise NoMatches(f"pycolmap {version} is too old (pip install 'pycolmap>=4.2')")
    library.logging.minloglevel = int(library.logging.FATAL)
    return library


@dataclass(frozen=True, eq=False)
class MatchedImages:
    """Keypoints of images and the verified matches between them."""

    pixels: List[Float[np.ndarray, "_num_keypoints 2"]]
    """Keypoints of each image, x to the right and y down; the centre of the upper left pixel is (0.5, 0.5)."""
    points: List[Float[np.ndarray, "_num_keypoints 2"]]
    """The same where their rays meet the plane at depth 1, without distortion (see `Matches`)."""
    focals: Float[np.ndarray, "num_images"]
    """Mean focal length of each image, in pixels."""
    pairs: Int[np.ndarray, "num_pairs 2"]
    """Images that have verified matches, the smaller index first."""
    matches: List[Int[np.ndarray, "_num_matches 2"]]
    """Of each pair: which keypoint of the first is which of the second."""
    rotations: Float[np.ndarray, "num_pairs 3 3"]
    """Of each pair: the second camera from the first one as the essential matrix has it, OpenCV axes; NaN where it
    cannot be told."""
    seconds: float = math.nan
    """CPU time that finding them took, in the process that did."""

    @property
    def num_images(self) -> int:
        return len(self.points)

    def flat(self) -> Matches:
        """All matches as tensors."""
        counts = [len(match) for match in self.matches]
        images = torch.from_numpy(np.repeat(self.pairs, counts, axis=0).reshape(-1, 2))
        seen = [
            np.stack([self.points[first][match[:, 0]], self.points[second][match[:, 1]]], axis=1)
            for (first, second), match in zip(self.pairs, self.matches)
        ]
        points = np.concatenate(seen) if seen else np.zeros((0, 2, 2))
        return Matches(images.long(), torch.from_numpy(points).float(), torch.from_numpy(self.focals).float())


# -- keypoints ---------------------------------------------------------------------------------------------------------


def find_matches(
    filenames: Sequence[Path],
    cameras: Cameras,
    masks: Optional[Sequence[Path]],
    pairs: Int[np.ndarray, "num_pairs 2"],
    config: FeatureConfig,
    only_cached: bool = False,
) -> MatchedImages:
    """Keypoints and verified matches, from the user's cache where the same was asked before.

    Args:
        filenames: of the images.
        cameras: theirs, at the files' resolution; their poses are not read.
        masks: an image for each, dark where pixels are ignored, as in nerfstudio.
        pairs: which images to match.
        config: settings.
        only_cached: whether nothing is to be computed.

    Raises:
        NoMatches: pycolmap is missing, or an image cannot be used; with `only_cached`, nothing is cached.
    """
    config.validate()
    library = pycolmap()
    key = _key(filenames, cameras, masks, pairs, config, library.__version__)
    cached = _read(key, len(filenames))
    if cached is not None:
        return cached
    if only_cached:
        raise NoMatches("they are not in the cache")
    found = _find(library, filenames, cameras, masks, pairs, config)
    _write(key, found)
    return found


def _find(
    library: Any,
    filenames: Sequence[Path],
    cameras: Cameras,
    masks: Optional[Sequence[Path]],
    pairs: Int[np.ndarray, "num_pairs 2"],
    config: FeatureConfig,
) -> MatchedImages:
    from rich.progress import Progress

    begin = time.process_time()
    options = library.FeatureExtractionOptions()
    options.use_gpu, options.num_threads = False, max(torch.get_num_threads(), 1)
    options.sift.max_num_features = config.max_keypoints
    extractor = library.FeatureExtractor.create(options, library.Device.cpu)
    pixels, points, descriptors = [], [], []
    with Progress(console=CONSOLE, transient=True) as progress:
        for index in progress.track(range(len(filenames)), description="Finding keypoints"):
            picture, usable = _picture(filenames[index], masks[index] if masks else None)
            reduced = _reduced(picture, config.max_image_size)
            found, described = extractor.extract_from_uint8_array(reduced)
            places = library.keypoints_to_matrix(found)[:, :2].astype(np.float64).reshape(-1, 2)
            places *= np.array(picture.shape[::-1]) / reduced.shape[::-1]
            on_plane = _undistorted(cameras, index, places)
            column, row = np.clip(places.astype(int), 0, np.array(picture.shape[::-1]) - 1).T
            kept = usable[row, column] & np.isfinite(on_plane).all(axis=1)
            pixels.append(places[kept])
            points.append(on_plane[kept])
            descriptors.append(_normalised(np.asarray(described.data).reshape(len(places), 128)[kept]))
        lenses = [_lens(library, cameras, index) for index in range(len(filenames))]
        centers = np.stack([cameras.cx.reshape(-1).numpy(), cameras.cy.reshape(-1).numpy()], axis=1).astype(float)
        sizes = np.stack([cameras.fx.reshape(-1).numpy(), cameras.fy.reshape(-1).numpy()], axis=1).astype(float)
        ideal = [sizes[index] * points[index] + centers[index] for index in range(len(filenames))]
        verified: List[Tuple[int, int]] = []
        matches, rotations = [], []
        two_view = library.TwoViewGeometryOptions()
        two_view.ransac.random_seed, two_view.min_num_inliers = SEED, config.min_inliers
        two_view.compute_relative_pose = True
        for first, second in progress.track(pairs.tolist(), description="Matching images"):
            candidates = nearest_both_ways(descriptors[first], descriptors[second])
            if len(candidates) < config.min_inliers:
                continue
            geometry = library.estimate_calibrated_two_view_geometry(
                lenses[first], ideal[first], lenses[second], ideal[second], candidates, two_view
            )
            inliers = np.asarray(geometry.inlier_matches).reshape(-1, 2).astype(np.int64)
            if len(inliers) < config.min_inliers:
                continue
            verified.append((first, second))
            matches.append(inliers)
            relative = geometry.cam2_from_cam1
            rotations.append(relative.rotation.matrix() if relative is not None else np.full((3, 3), np.nan))
    return MatchedImages(
        pixels=pixels,
        points=points,
        focals=sizes.mean(axis=1),
        pairs=np.array(verified, dtype=np.int64).reshape(-1, 2),
        matches=matches,
        rotations=np.array(rotations, dtype=np.float64).reshape(-1, 3, 3),
        seconds=time.process_time() - begin,
    )


def _picture(filename: Path, mask: Optional[Path]) -> Tuple[np.ndarray, Bool[np.ndarray, "height width"]]:
    """An image in grey, and where it may be used. What is transparent is white, and is not used."""
    from PIL import Image

    try:
        with Image.open(filename) as opened:
            alpha, picture = np.full(opened.size[::-1], 255, dtype=np.uint8), opened.convert("RGB")
            if opened.mode == "RGBA":
                alpha = np.asarray(opened.getchannel("A"))
                white = Image.new("RGBA", opened.size, (255, 255, 255, 255))
                picture = Image.alpha_composite(white, opened.convert("RGBA"))
            grey = np.ascontiguousarray(np.asarray(picture.convert("L")))
        usable = alpha >= 128
        if mask is not None:
            with Image.open(mask) as image:
                usable = usable & (np.asarray(image.convert("L")) > 0)
    except (OSError, ValueError) as error:
        raise NoMatches(f"the image {filename} cannot be read ({one_line(error)})") from error
    return grey, usable


def _reduced(picture: np.ndarray, longest: int) -> np.ndarray:
    """A grey image [height, width] with a longer side of so many pixels at most. pycolmap reduces files, not arrays."""
    from PIL import Image

    factor = longest / max(picture.shape)
    if factor >= 1:
        return picture
    height, width = (max(round(factor * side), 1) for side in picture.shape)
    return np.ascontiguousarray(np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)))


def _undistorted(
    cameras: Cameras, index: int, pixels: Float[np.ndarray, "num_points 2"]
) -> Float[np.ndarray, "num_points 2"]:
    """Where pixels' rays meet the plane at depth 1, by the rays that training uses; NaN where they do not."""
    if not len(pixels):
        return pixels
    posed = dataclasses.replace(cameras[index : index + 1], camera_to_worlds=torch.eye(4)[None, :3])
    coords = torch.from_numpy(pixels[:, ::-1].copy()).float()
    rays = posed.generate_rays(torch.zeros(len(pixels), 1, dtype=torch.long), coords=coords)
    x, y, z = rays.directions.double().numpy().T
    depth = np.where(z < -0.05, -z, np.nan)  # rays within 3 degrees of the plane itself determine nothing
    return np.stack([x / depth, -y / depth], axis=1)


def _lens(library: Any, cameras: Cameras, index: int) -> Any:
    """The camera without its distortion."""
    numbers = [float(values[index]) for values in (cameras.fx, cameras.fy, cameras.cx, cameras.cy)]
    width, height = int(cameras.width[index]), int(cameras.height[index])
    camera = library.Camera(model="PINHOLE", width=width, height=height, params=numbers, camera_id=index + 1)
    camera.has_prior_focal_length = True
    return camera


# -- matching ----------------------------------------------------------------------------------------------------------


def _normalised(descriptors: np.ndarray) -> Float[Tensor, "num_keypoints 128"]:
    return torch.nn.functional.normalize(torch.from_numpy(descriptors.astype(np.float32)), dim=1)


def nearest_both_ways(
    first: Float[Tensor, "num_first 128"], second: Float[Tensor, "num_second 128"]
) -> Integer[np.ndarray, "num_matches 2"]:
    """Keypoints that are each other's nearest, by the ratio test; COLMAP's rules, as one matrix product, which takes a
    tenth of the time of its CPU matcher.

    Args:
        first: descriptors of one image, of length 1.
        second: of another.
    """
    if min(len(first), len(second)) < 2:
        return np.zeros((0, 2), dtype=np.uint32)
    likeness = first @ second.T
    there, passed = _best(likeness)
    back, passed_back = _best(likeness.T)
    index = torch.arange(len(first))
    mutual = passed & (back[there] == index) & passed_back[there]
    return torch.stack([index[mutual], there[mutual]], dim=1).numpy().astype(np.uint32)


def _best(
    likeness: Float[Tensor, "rows columns"],
) -> Tuple[Int[Tensor, "rows"], Bool[Tensor, "rows"]]:
    values, places = likeness.topk(2, dim=1)
    angles = torch.acos(values.clamp(-1.0, 1.0))
    return places[:, 0], (angles[:, 0] <= MAX_DISTANCE) & (angles[:, 0] < RATIO * angles[:, 1])


# -- which pairs -------------------------------------------------------------------------------------------------------


def pairs_to_match(
    camera_to_worlds: Optional[Float[np.ndarray, "num_images 3 4"]], num_images: int, config: FeatureConfig
) -> Int[np.ndarray, "num_pairs 2"]:
    """Which images to match: all pairs of few; of many, a number that grows with the number of images.

    Args:
        camera_to_worlds: what is known of the poses, None if that is nothing.
        num_images: in the order of their names.
        config: settings.
    """
    if num_images <= config.exhaustive:
        return np.stack(np.triu_indices(num_images, k=1), axis=1).astype(np.int64)
    near = _near_cameras(camera_to_worlds, config.pairs_per_image) if camera_to_worlds is not None else iter(())
    half = max(config.pairs_per_image // (4 if camera_to_worlds is not None else 2), 1)
    pairs = {pair for pair in near}
    for step in _steps(half, num_images):
        pairs.update((index, index + step) for index in range(num_images - step))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _steps(count: int, num_images: int) -> List[int]:
    """Distances in the sequence: half of them 1, 2, 3 ..., half growing to a loop's length."""
    close = list(range(1, count // 2 + 2))
    far = np.geomspace(close[-1] + 1, max(num_images - 1, close[-1] + 2), max(count - len(close), 1)).astype(int)
    return sorted({step for step in [*close, *far.tolist()] if step < num_images})


def _near_cameras(camera_to_worlds: Float[np.ndarray, "num_images 3 4"], count: int) -> Iterator[Tuple[int, int]]:
    """Each camera's neighbours: near in place, and looking the same way."""
    from scipy.spatial import cKDTree

    centers, forward = camera_to_worlds[:, :, 3], -camera_to_worlds[:, :, 2]
    spread = np.sqrt(np.square(centers - centers.mean(axis=0)).sum(axis=1).mean()) or 1.0
    places = np.concatenate([centers / spread, forward], axis=1)
    _, others = cKDTree(places).query(places, k=min(count // 2 + 1, len(places)))
    for index, row in enumerate(others):
        yield from ((min(index, int(other)), max(index, int(other))) for other in row if other != index)


# -- the cache ---------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where matches are kept: `$XDG_CACHE_HOME/hashpose/matches`."""
    return user_cache() / "matches"


def _key(
    filenames: Sequence[Path],
    cameras: Cameras,
    masks: Optional[Sequence[Path]],
    pairs: Int[np.ndarray, "num_pairs 2"],
    config: FeatureConfig,
    version: str,
) -> str:
    """What matches depend on, as a hash."""
    digest = hashlib.blake2b(digest_size=16)
    settings = {**dataclasses.asdict(config), "format": FORMAT, "pycolmap": version}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    try:
        for files in (filenames, masks or ()):
            for value in fingerprint(files, cameras[: len(files)]).values() if files else ():
                digest.update(value.numpy().tobytes())
    except OSError as error:
        raise NoMatches(f"an image cannot be read ({one_line(error)})") from error
    digest.update(pairs.tobytes())
    return digest.hexdigest()


def _read(key: str, num_images: int) -> Optional[MatchedImages]:
    """What the cache has under a key; None if that is nothing, or nothing whole."""
    try:
        with np.load(cache_folder() / f"{key}.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        pixels = np.split(arrays["pixels"], np.cumsum(arrays["keypoints"])[:-1])
        points = np.split(arrays["points"], np.cumsum(arrays["keypoints"])[:-1])
        matches = np.split(arrays["matches"], np.cumsum(arrays["counts"])[:-1]) if len(arrays["counts"]) else []
        found = MatchedImages(
            pixels=pixels,
            points=points,
            focals=arrays["focals"],
            pairs=arrays["pairs"],
            matches=matches,
            rotations=arrays["rotations"],
            seconds=float(arrays["seconds"]) if "seconds" in arrays else math.nan,
        )
        _check(found, num_images)
        return found
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, IndexError, TypeError, AssertionError):
        return None


def _check(found: MatchedImages, num_images: int) -> None:
    """Raises an error if numbers in a cache cannot be right: it may be damaged, and indices are not looked at later."""
    if not len(found.points) == len(found.pixels) == len(found.focals) == num_images:
        raise ValueError
    if len(found.pairs) != len(found.matches) or len(found.pairs) != len(found.rotations):
        raise ValueError
    for (first, second), match in zip(found.pairs, found.matches):
        limits = [len(found.points[first]), len(found.points[second])]
        if not (0 <= first < second and match.shape[1] == 2 and (match >= 0).all() and (match < limits).all()):
            raise ValueError
    if not all(np.isfinite(points).all() for points in (*found.points, *found.pixels, found.focals)):
        raise ValueError


def _write(key: str, found: MatchedImages) -> None:
    """Keeps matches. A cache that cannot be written costs time the next time, and nothing now."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / f"{key}.npz") as path:
            np.savez_compressed(
                path,
                pixels=np.concatenate(found.pixels),
                points=np.concatenate(found.points),
                keypoints=np.array([len(points) for points in found.points]),
                focals=found.focals,
                pairs=found.pairs,
                matches=np.concatenate(found.matches) if found.matches else np.zeros((0, 2), dtype=np.int64),
                counts=np.array([len(match) for match in found.matches], dtype=np.int64),
                rotations=found.rotations,
                seconds=np.array(found.seconds),
            )
    except OSError as error:
        CONSOLE.print(f"Matches could not be cached: {one_line(error)}.", soft_wrap=True, markup=False)
