"""Points on the surfaces of a trained field, kept where its own views agree about them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from hashpose_ns.chunks import render_in_chunks
from hashpose_ns.export.projection import project
from hashpose_ns.photometry.pixels import evenly_spaced
from hashpose_ns.photometry.scene import RayRenderer
from nerfstudio.cameras.cameras import Cameras

RAYS_PER_POINT = 3
"""Rays that are rendered for each point asked for; most of the others fail a check or fall on the same spot."""
MIN_RAYS_PER_VIEW, MIN_VIEWS = 2000, 24
"""Where there are so many cameras that each would get fewer rays than this, some of them are used, evenly spread, but
at least so many."""
MIN_ACCUMULATION = 0.9
"""A ray counts as hitting a surface above this opacity."""
DEPTH_TOLERANCE = 0.03
"""Two views agree about a point when their distances to it differ by less than this fraction, ..."""
PIXEL_TOLERANCE = 0.005
"""... and when what the other view sees there, projected back, misses the point's own pixel by less than this fraction
of the image's longer side."""
MIN_OTHER_VIEWS = 3
"""Views beside its own that must agree about a point."""
MIN_ANGLE_DEG = 1.5
"""Smallest angle at a point between its own view and the furthest that agrees, as in COLMAP's triangulation."""


@dataclass(frozen=True, eq=False)
class SurfacePoints:
    """Points on surfaces, in the frame of the cameras they were seen by."""

    positions: Float[Tensor, "num_points 3"]
    colors: Float[Tensor, "num_points 3"]
    """Rendered colours in [0, 1]."""
    errors: Float[Tensor, "num_points"]
    """Mean distance in pixels between a point and where the agreeing views see it, projected back into its own view."""
    seen_by: Int[Tensor, "num_observations 2"]
    """Point and camera, for every camera that agrees about a point, its own first; sorted by point."""


@dataclass(frozen=True, eq=False)
class _View:
    """What a camera sees on a regular grid of rays over its image."""

    camera: int
    hit: Bool[Tensor, "rows columns"]
    distance: Float[Tensor, "rows columns"]
    positions: Float[Tensor, "rows columns 3"]
    colors: Float[Tensor, "rows columns 3"]


@torch.no_grad()
def _render_view(renderer: RayRenderer, cameras: Cameras, camera: int, num_rays: int, mask: Optional[Path]) -> _View:
    width, height = int(cameras.width[camera]), int(cameras.height[camera])
    cell = max(1.0, math.sqrt(width * height / num_rays))
    rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
    y, x = (torch.arange(rows) + 0.5) * height / rows, (torch.arange(columns) + 0.5) * width / columns
    coordinates = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
    bundle = cameras.generate_rays(camera_indices=camera, coords=coordinates)
    outputs = render_in_chunks(renderer.surfaces, bundle, renderer.rays_per_chunk(), renderer.device)
    hit = outputs["accumulation"][..., 0] > MIN_ACCUMULATION
    if mask is not None:
        from nerfstudio.data.utils.data_utils import get_image_mask_tensor_from_path

        allowed = get_image_mask_tensor_from_path(mask)[..., 0] > 0
        hit &= allowed[y.long()[:, None].clamp(max=len(allowed) - 1), x.long().clamp(max=allowed.shape[1] - 1)]
    distance = outputs["depth"]
    return _View(
        camera=camera,
        hit=hit & torch.isfinite(distance[..., 0]),
        distance=distance[..., 0],
        positions=bundle.origins + distance * bundle.directions,
        colors=outputs["rgb"].clamp(0.0, 1.0),
    )


def sample_surfaces(
    renderer: RayRenderer,
    cameras: Cameras,
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    num_points: int,
    mask_filenames: Optional[Sequence[Path]] = None,
) -> SurfacePoints:
    """Samples the surfaces that a trained field shows to its cameras.

    Rays on a regular grid over the images give candidates: where the field is opaque, the median distance. A candidate
    is kept when `MIN_OTHER_VIEWS` other views see a surface there too (by distance, and by projecting back and forth),
    under an angle that could be triangulated, and no more views look through it than agree. Then points are thinned to
    at most one a voxel, which grows with the distance from the cameras; the one that most views agree about stays.

    Args:
        renderer: a trained field.
        cameras: intrinsics at full resolution.
        camera_to_worlds: the cameras' refined poses in the learned frame, OpenGL axes.
        num_points: at most so many points are kept.
        mask_filenames: a mask for each image; nothing is sampled where it is 0.
    """
    from nerfstudio.utils.rich_utils import get_progress

    cameras = copy.deepcopy(cameras).to("cpu")
    cameras.camera_to_worlds = camera_to_worlds.detach().cpu().float()
    num_rays = RAYS_PER_POINT * num_points
    num_views = min(len(cameras), max(MIN_VIEWS, num_rays // MIN_RAYS_PER_VIEW))
    rays_per_view = max(MIN_RAYS_PER_VIEW, num_rays // num_views)
    chosen = evenly_spaced(len(cameras), num_views)
    views: List[_View] = []
    with get_progress("Looking for surfaces in the field", suffix="views") as progress:
        for camera in progress.track(chosen):
            mask = None if mask_filenames is None else mask_filenames[camera]
            views.append(_render_view(renderer, cameras, camera, rays_per_view, mask))

    positions = torch.cat([view.positions[view.hit] for view in views])
    colors = torch.cat([view.colors[view.hit] for view in views])
    own = torch.cat([torch.full((int(view.hit.sum()),), view.camera) for view in views])
    agree, errors, angles, through = _compare(cameras, views, positions, own)
    support = agree.sum(dim=1)
    kept = (support >= min(MIN_OTHER_VIEWS, len(views) - 1)) & (angles >= MIN_ANGLE_DEG) & (through <= support)
    kept = torch.nonzero(kept)[:, 0]
    errors = errors[kept] / support[kept]
    centers = cameras.camera_to_worlds[:, :, 3]
    # more views first, then the smaller error
    order = torch.argsort(support[kept] - errors / (1.0 + errors), descending=True, stable=True)
    kept, errors = kept[order], errors[order]
    thinned = thin(positions[kept], centers.mean(dim=0), num_points)
    kept, errors = kept[thinned], errors[thinned]

    index_of_view = {view.camera: column for column, view in enumerate(views)}
    columns = torch.tensor([index_of_view[int(camera)] for camera in own[kept]], dtype=torch.long)
    others = torch.nonzero(agree[kept])
    points = torch.cat([torch.arange(len(kept)), others[:, 0]])
    seen_from = torch.cat([columns, others[:, 1]])
    by_point = torch.argsort(points, stable=True)
    seen_by = torch.stack([points[by_point], torch.tensor(chosen)[seen_from[by_point]]], dim=1)
    return SurfacePoints(positions[kept], colors[kept], errors, seen_by)


def _compare(
    cameras: Cameras, views: List[_View], positions: Float[Tensor, "n 3"], own: Int[Tensor, "n"]
) -> Tuple[Bool[Tensor, "n views"], Float[Tensor, "n"], Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Which views agree about candidates; summed error of these in pixels; largest angle to one of them in degrees; how
    many views look through a candidate to something behind."""
    poses = cameras.camera_to_worlds
    own_poses = poses[own]
    own_pixels, _ = project(cameras, own, own_poses, positions)
    own_directions = functional.normalize(positions - own_poses[:, :, 3], dim=-1)
    longer_side = torch.maximum(cameras.width, cameras.height).reshape(-1).float()[own]
    agree = torch.zeros(len(positions), len(views), dtype=torch.bool)
    errors, cosines = torch.zeros(len(positions)), torch.ones(len(positions))
    through = torch.zeros(len(positions), dtype=torch.long)
    for column, view in enumerate(views):
        pose = poses[view.camera]
        pixels, visible = project(
            cameras, torch.full_like(own, view.camera), pose.expand(len(positions), 3, 4), positions
        )
        at = torch.nonzero(visible & (own != view.camera))[:, 0]
        if len(at) == 0:
            continue
        size = torch.tensor([float(cameras.width[view.camera]), float(cameras.height[view.camera])])
        # Inverse distances are nearly linear over the image of a plane.
        maps = torch.stack([1.0 / view.distance.clamp(min=1e-9), view.hit.float()])
        samples = functional.grid_sample(
            maps[None], (2.0 * pixels[at] / size - 1.0)[None, None], align_corners=False, padding_mode="border"
        )[0, :, 0]
        ray = positions[at] - pose[:, 3]
        ratio = 1.0 / (samples[0] * ray.norm(dim=-1)).clamp(min=1e-9)
        back, _ = project(cameras, own[at], own_poses[at], pose[:, 3] + ratio[:, None] * ray)
        error = (back - own_pixels[at]).norm(dim=-1)
        surface = samples[1] > 0.99  # all four rays around it hit one
        yes = surface & ((ratio - 1.0).abs() < DEPTH_TOLERANCE) & (error < PIXEL_TOLERANCE * longer_side[at])
        through[at] += surface & (ratio > 1.0 + DEPTH_TOLERANCE)
        at, error, ray = at[yes], error[yes], ray[yes]
        agree[at, column] = True
        errors[at] += error
        cosine = (functional.normalize(ray, dim=-1) * own_directions[at]).sum(dim=-1)
        cosines[at] = torch.minimum(cosines[at], cosine)
    return agree, errors, torch.rad2deg(cosines.clamp(-1.0, 1.0).acos()), through


def thin(positions: Float[Tensor, "n 3"], center: Float[Tensor, "3"], num_points: int) -> Int[Tensor, "kept"]:
    """Indices of at most `num_points` points, no two in one voxel: the first of each.

    Voxels are cubes in space contracted about `center` (mip-NeRF 360's contraction, at the median distance), so that
    they grow with distance as pixels do; their size is found by bisection.

    Args:
        positions: the points, those to be preferred first.
        center: where distances are measured from.
        num_points: how many to keep at most; all are kept when there are no more.
    """
    if len(positions) <= num_points:
        return torch.arange(len(positions))
    offsets = (positions - center).double()
    offsets = offsets / offsets.norm(dim=-1).median().clamp(min=1e-12)
    lengths = offsets.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    offsets = torch.where(lengths > 1.0, (2.0 - 1.0 / lengths) * offsets / lengths, offsets)

    def first_of_voxels(size: float) -> Tensor:
        cells = ((offsets + 2.0) / size).long()
        side = int(4.0 / size) + 2
        keys = (cells[:, 0] * side + cells[:, 1]) * side + cells[:, 2]
        order = torch.argsort(keys, stable=True)
        keys = keys[order]
        is_first = torch.ones(len(keys), dtype=torch.bool)
        is_first[1:] = keys[1:] != keys[:-1]
        return order[is_first].sort().values

    small, large = 1e-5, 4.0
    for _ in range(20):
        size = math.sqrt(small * large)
        if len(first_of_voxels(size)) > num_points:
            small = size
        else:
            large = size
    return first_of_voxels(large)
