"""Rays of training pixels, samples along them and what lies behind: nerfstudio's numbers to the bit, without what it
makes anew, or copies to the device, at every step, and without making the CPU wait for the device."""

from __future__ import annotations

import functools
from typing import Optional, Tuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nerfstudio.cameras.camera_utils import radial_and_tangential_undistort
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.model_components import renderers
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.model_components.ray_samplers import (
    LinearDisparitySampler,
    SpacedSampler,
    UniformLinDispPiecewiseSampler,
    UniformSampler,
)


class TrainingRays(RayGenerator):
    """nerfstudio's generator of rays, with a short way for perspective cameras, OpenCV's distortion included. All other
    cameras go nerfstudio's way, which asks the device several times a step what kind of cameras there are.

    Args:
        cameras: the training cameras, on the device. Their poses may be replaced later on.
    """

    def __init__(self, cameras: Cameras) -> None:
        super().__init__(cameras)
        self.short = are_perspective(cameras)
        self.distortion: Optional[Tensor] = None
        if not self.short:
            self.image_coords = self.image_coords.to(cameras.device)
        else:
            if cameras.distortion_params is not None and bool((cameras.distortion_params != 0).any()):
                self.distortion = cameras.distortion_params.to(cameras.device)
            lens = torch.cat([cameras.cy, cameras.cx, cameras.fy, cameras.fx], dim=-1)
            self.register_buffer("lens", lens.to(cameras.device), persistent=False)
            # The pixel itself, its right and its lower neighbour, as (row, column).
            offsets = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]], device=cameras.device)
            self.register_buffer("offsets", offsets[:, None], persistent=False)
            # OpenGL's y points up.
            self.register_buffer("flip", torch.tensor([-1.0, 1.0], device=cameras.device), persistent=False)

    def forward(self, ray_indices: Int[Tensor, "num_rays 3"]) -> RayBundle:
        """Rays through pixels.

        Args:
            ray_indices: camera, row and column of each pixel, on the device of the cameras.
        """
        if not self.short:
            return super().forward(ray_indices)
        indices = ray_indices[:, 0]
        centers, focals = self.lens[indices].split(2, dim=-1)
        plane = (ray_indices[:, 1:] + 0.5 - centers + self.offsets) / focals
        if self.distortion is not None:
            plane = radial_and_tangential_undistort(plane.flip(-1), self.distortion[indices]).flip(-1)
        plane = (plane * self.flip).float()  # some dataparsers' intrinsics are doubles
        directions = torch.cat([plane.flip(-1), torch.full_like(plane[..., :1], -1.0)], dim=-1)
        pose = self.cameras.camera_to_worlds[indices]
        directions = (directions[..., None, :] * pose[..., :3]).sum(-1)
        norms = torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
        directions = directions / norms
        spacing = ((directions[0] - directions[1:]) ** 2).sum(-1).sqrt()
        return RayBundle(
            origins=pose[..., 3],
            directions=directions[0],
            pixel_area=(spacing[0] * spacing[1])[..., None],
            camera_indices=indices[:, None],
            metadata={"directions_norm": norms[0]},
        )


def are_perspective(cameras: Cameras) -> bool:
    """Whether all cameras are perspective ones, and nothing else than distortion is to be said about their rays."""
    plain = cameras.times is None and not cameras.metadata and len(cameras.shape) == 1
    return plain and bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all())


class _KeptBins(SpacedSampler):
    """A sampler whose bins are made once and not at every step."""

    def generate_ray_samples(
        self, ray_bundle: Optional[RayBundle] = None, num_samples: Optional[int] = None
    ) -> RaySamples:
        """Samples along rays, in training one at random in each bin.

        Args:
            ray_bundle: rays with near and far planes.
            num_samples: samples a ray, if other than the sampler's.
        """
        assert ray_bundle is not None and ray_bundle.nears is not None and ray_bundle.fars is not None
        edges, lower, width = _bins(num_samples or self.num_samples, ray_bundle.origins.device)
        if self.training and self.train_stratified:
            edges = lower + width * torch.rand(len(ray_bundle.origins), edges.shape[-1], device=edges.device)
        near, far = self.spacing_fn(ray_bundle.nears), self.spacing_fn(ray_bundle.fars)

        def to_distance(spacing: Tensor) -> Tensor:
            return self.spacing_fn_inv(spacing * far + (1 - spacing) * near)

        distances = to_distance(edges)
        return ray_bundle.get_ray_samples(
            bin_starts=distances[..., :-1, None],
            bin_ends=distances[..., 1:, None],
            spacing_starts=edges[..., :-1, None],
            spacing_ends=edges[..., 1:, None],
            spacing_to_euclidean_fn=to_distance,
        )


class UniformSamples(_KeptBins, UniformSampler):
    """Uniform in depth."""


class InverseDepthSamples(_KeptBins, LinearDisparitySampler):
    """Uniform in 1 / depth."""


class PiecewiseSamples(_KeptBins, UniformLinDispPiecewiseSampler):
    """Uniform in depth to 1, in 1 / depth behind."""


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _bins(num_samples: int, device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    """[1, num_samples + 1] edges of the bins in [0, 1], and where the random edges of training begin and how far they
    reach. Made on the CPU, as nerfstudio's are."""
    edges = torch.linspace(0.0, 1.0, num_samples + 1)[None]
    centers = (edges[..., 1:] + edges[..., :-1]) / 2.0
    lower = torch.cat([edges[..., :1], centers], -1)
    upper = torch.cat([centers, edges[..., -1:]], -1)
    return edges.to(device), lower.to(device), (upper - lower).to(device)


def ray_weights(
    deltas: Float[Tensor, "rays samples 1"], densities: Float[Tensor, "rays samples 1"]
) -> Float[Tensor, "rays samples 1"]:
    """Weights of samples in the colour of their ray: `RaySamples.get_weights`, as a function of tensors alone."""
    absorbed = deltas * densities
    before = torch.cumsum(absorbed[..., :-1, :], dim=-2)
    before = torch.cat([torch.zeros_like(absorbed[..., :1, :]), before], dim=-2)
    return torch.nan_to_num((1 - torch.exp(-absorbed)) * torch.exp(-before))


class SurfaceDistance(nn.Module):
    """Distance at which half of a ray's weight lies behind, continuous within the sample it falls in.

    In an unbounded scene the expected distance is no use as a surface: one part in a thousand of the weight at the far
    plane moves it by a scene's size.
    """

    def forward(
        self, weights: Float[Tensor, "*batch num_samples 1"], ray_samples: RaySamples, **_
    ) -> Float[Tensor, "*batch 1"]:
        """Called as nerfstudio's `DepthRenderer` is."""
        starts, ends = ray_samples.frustums.starts[..., 0], ray_samples.frustums.ends[..., 0]
        cumulative = weights[..., 0].cumsum(dim=-1)
        half = 0.5 * cumulative[..., -1:]
        index = torch.searchsorted(cumulative, half).clamp(max=cumulative.shape[-1] - 1)
        weight = weights[..., 0].gather(-1, index)
        fraction = ((half - cumulative.gather(-1, index)) / weight.clamp(min=1e-10) + 1.0).clamp(0.0, 1.0)
        return torch.lerp(starts.gather(-1, index), ends.gather(-1, index), fraction)


class ColorRenderer(renderers.RGBRenderer):
    """nerfstudio's renderer of colours, whose background is on the device already."""

    @classmethod
    def get_background_color(
        cls, background_color: renderers.BackgroundColor, shape: Tuple[int, ...], device: torch.device
    ) -> Tensor:
        """A background colour, expanded to a shape."""
        if isinstance(background_color, str) and renderers.BACKGROUND_COLOR_OVERRIDE is None:
            return _named_color(background_color, device).expand(shape)
        return super().get_background_color(background_color, shape, device)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _named_color(name: str, device: torch.device) -> Tensor:
    return renderers.colors.COLORS_DICT[name].to(device)
