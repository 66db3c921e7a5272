"""Matches with known truth: of random points and cameras, and photographs of a corner of a room with textured walls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional, Sequence, Tuple

import numpy as np
import roma
import torch
from PIL import Image
from scipy import ndimage

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.matches.features import MatchedImages
from nerfstudio.cameras.cameras import Cameras, CameraType

FLIP = np.diag([1.0, -1.0, -1.0])
FOCAL = 500.0


def looking_at(centers: np.ndarray, target: Sequence[float], up: Sequence[float] = (0.0, 0.0, 1.0)) -> np.ndarray:
    """Poses [N, 3, 4] at some places that look at a point, OpenGL axes."""
    back = centers - np.asarray(target)
    back = back / np.linalg.norm(back, axis=1, keepdims=True)
    right = np.cross(np.asarray(up), back)
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(back, right), back, centers], axis=2)


def arc(count: int, degrees: float = 100.0, radius: float = 4.0) -> np.ndarray:
    """Cameras on an arc around the origin, at changing heights, looking in."""
    angles = np.radians(np.linspace(-degrees / 2, degrees / 2, count))
    heights = 0.5 + 0.6 * np.sin(2.5 * np.arange(count))
    return looking_at(radius * np.stack([np.cos(angles), np.sin(angles), heights / 2], axis=1), (0, 0, 0))


def turned(poses: np.ndarray, degrees: float, seed: int = 0) -> np.ndarray:
    """Poses, each turned about the scene's centre and about itself by some degrees."""
    random = np.random.default_rng(seed)
    around, own = (random.standard_normal((len(poses), 3)) for _ in range(2))
    around, own = (
        roma.rotvec_to_rotmat(torch.from_numpy(np.radians(degrees) * v / np.linalg.norm(v, axis=1)[:, None])).numpy()
        for v in (around, own)
    )
    moved = around @ poses
    return np.concatenate([own @ moved[:, :, :3], moved[:, :, 3:]], axis=2)


def seen_from(poses: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N, points, 2]: where cameras see points on their planes at depth 1, x right and y down."""
    local = np.einsum("nji,npj->npi", poses[:, :, :3], points[None] - poses[:, None, :, 3]) @ FLIP
    return local[..., :2] / local[..., 2:]


def matched(
    poses: np.ndarray,
    per_image: int = 120,
    noise: float = 0.3,
    false: float = 0.0,
    reach: float = 60.0,
    seed: int = 0,
    groups: Optional[Sequence[int]] = None,
) -> MatchedImages:
    """Matches of random points on a sphere's shell, each of which a camera sees where it faces it.

    Args:
        poses: of the cameras.
        per_image: about how many points a camera sees.
        noise: standard deviation of keypoints, in pixels.
        false: fraction of a pair's matches that are wrong.
        reach: degrees between a point's normal and the direction of a camera that sees it, at most.
        seed: of all that is random.
        groups: cameras of different ones share no match.
    """
    random = np.random.default_rng(seed)
    normals = random.standard_normal((8 * per_image, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = normals * random.uniform(0.8, 1.2, (len(normals), 1))
    exact = seen_from(poses, points)
    toward = poses[:, None, :, 3] - points[None]
    facing = (toward * normals).sum(-1) > np.cos(np.radians(reach)) * np.linalg.norm(toward, axis=-1)
    own = [np.flatnonzero(row) for row in facing]
    own = [np.sort(random.choice(each, min(len(each), per_image), replace=False)) for each in own]
    places = [e[o] + noise / FOCAL * random.standard_normal((len(o), 2)) for e, o in zip(exact, own)]
    pairs, matches, rotations = [], [], []
    for first in range(len(poses)):
        for second in range(first + 1, len(poses)):
            common, a, b = np.intersect1d(own[first], own[second], return_indices=True)
            if len(common) < 5 or (groups is not None and groups[first] != groups[second]):
                continue
            match = np.stack([a, b], axis=1)
            wrong = random.random(len(match)) < false
            match[wrong, 1] = random.integers(0, len(own[second]), int(wrong.sum()))
            pairs.append((first, second))
            matches.append(match)
            rotations.append(FLIP @ poses[second, :, :3].T @ poses[first, :, :3] @ FLIP)
    return MatchedImages(
        pixels=[FOCAL * each + 320 for each in places],
        points=places,
        focals=np.full(len(poses), FOCAL),
        pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        matches=matches,
        rotations=np.array(rotations, dtype=np.float64).reshape(-1, 3, 3),
    )


def pulled(start: torch.Tensor, true: torch.Tensor, term: Any, steps: int) -> torch.Tensor:
    """Poses after some steps of Adam by a term alone."""
    optimizer = PoseOptimizer(PoseOptimizerConfig(), len(start), "cpu", start, true)
    optimizer.terms["match_loss"] = term
    optimizer.set_progress(0.0)
    adam = torch.optim.Adam(optimizer.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.01 ** (1 / steps))
    for _ in range(steps):
        adam.zero_grad()
        losses: dict = {}
        optimizer.get_loss_dict(losses)
        losses["match_loss"].backward()
        adam.step()
        decay.step()
    return optimizer.refined_camera_to_worlds().detach()


# -- photographs -------------------------------------------------------------------------------------------------------


def corner_cameras(
    count: int = 6, size: Tuple[int, int] = (240, 180), distortion: Optional[Sequence[float]] = None
) -> Cameras:
    """Cameras that look into the corner where three walls meet, at the origin; float32 poses."""
    angles = np.radians(np.linspace(28, 62, count))
    heights = 1.1 + 0.35 * np.cos(2.0 * np.arange(count))
    poses = looking_at(2.6 * np.stack([np.cos(angles), np.sin(angles), heights / 2.0], axis=1), (0.3, 0.3, 0.35))
    return Cameras(
        camera_to_worlds=torch.from_numpy(poses).float(),
        fx=1.1 * size[0],
        fy=1.1 * size[0],
        cx=size[0] / 2,
        cy=size[1] / 2,
        width=size[0],
        height=size[1],
        distortion_params=None if distortion is None else torch.tensor(distortion).expand(count, 6),
        camera_type=CameraType.PERSPECTIVE,
    )


def corner_photographs(cameras: Cameras, seed: int = 0) -> np.ndarray:
    """What the cameras see of the walls: uint8 [N, height, width]. Rays are those that training draws."""
    random = np.random.default_rng(seed)
    textures = []
    for _ in range(3):
        waves = sum(
            weight * ndimage.gaussian_filter(random.standard_normal((400, 400)), sigma) * sigma
            for sigma, weight in ((1.6, 1.0), (4.0, 1.4), (12.0, 1.2))
        )
        textures.append((waves - waves.min()) / (waves.max() - waves.min()))
    photographs = []
    for index in range(len(cameras)):
        rays = cameras.generate_rays(index, keep_shape=True)
        start, way = rays.origins.double().numpy(), rays.directions.double().numpy()
        nearest, value = np.full(start.shape[:2], np.inf), np.zeros(start.shape[:2])
        for axis in range(3):
            with np.errstate(divide="ignore", invalid="ignore"):
                depth = -start[..., axis] / way[..., axis]
            hit = start + depth[..., None] * way
            others = [other for other in range(3) if other != axis]
            good = (depth > 0) & (depth < nearest) & (hit[..., others] > -1e-9).all(axis=-1)
            coordinates = [160.0 * hit[..., other] for other in others]
            color = ndimage.map_coordinates(textures[axis], coordinates, order=1, mode="mirror")
            value, nearest = np.where(good, color, value), np.where(good, depth, nearest)
        photographs.append((255 * value).round().astype(np.uint8))
    return np.stack(photographs)


def write_corner(folder: Path, cameras: Cameras, given: Optional[np.ndarray] = None, **frame) -> Path:
    """The photographs with a transforms.json of the true or of other poses."""
    (folder / "images").mkdir(parents=True)
    poses = cameras.camera_to_worlds.double().numpy() if given is None else given
    frames = []
    for index, photograph in enumerate(corner_photographs(cameras)):
        Image.fromarray(photograph).convert("RGB").save(folder / "images" / f"{index:02d}.png")
        matrix = [*poses[index].tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append({"file_path": f"images/{index:02d}.png", "transform_matrix": matrix, **frame})
    lens = {name: float(getattr(cameras, of)[0]) for name, of in (("fl_x", "fx"), ("fl_y", "fy"), ("cx", "cx"))}
    lens |= {"cy": float(cameras.cy[0]), "w": int(cameras.width[0]), "h": int(cameras.height[0])}
    if cameras.distortion_params is not None:
        lens |= {"k1": float(cameras.distortion_params[0, 0]), "k2": float(cameras.distortion_params[0, 1])}
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", **lens, "frames": frames}))
    return folder
