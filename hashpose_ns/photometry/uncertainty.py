"""How well each image pins down its camera: a covariance of the pose from the renders' derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.errors import HashPoseError
from hashpose_ns.photometry.pixels import ImagePixels, pixel_rays, posed_cameras
from hashpose_ns.photometry.scene import PosedScene, RayRenderer, frozen
from nerfstudio.data.datasets.base_dataset import InputDataset

PRIOR_STD = 1.0
"""Deviation, in scene units and radians, of a weak prior on every component of a twist: what is said of a camera whose
image tells nothing."""

PIXELS_PER_SAMPLE = 64.0
"""Pixels of an image that share one error of the field. With 1 the deviations were 8 to 10 times smaller than the
spread of runs over seeds, on the demo scene at 100 pixels (benchmarks/results/uncertainty.json)."""

Render = Callable[[Float[Tensor, "rays 3"], Float[Tensor, "rays 3"]], Float[Tensor, "rays channels"]]


@dataclass(frozen=True, eq=False)
class PoseUncertainty:
    """Covariances of camera poses, about each camera's own centre and in its own frame: with the OpenGL axes (right,
    up, backwards) of the refined pose P, the true pose is P exp(xi), xi = [translation, rotation] of this covariance.
    Conditional on the field, that is, as if the scene were known."""

    covariances: Float[Tensor, "num_cameras 6 6"]
    """Float64; scene units and radians."""

    @property
    def rotation_deg(self) -> Float[Tensor, "num_cameras 3"]:
        """Standard deviations of turns about the camera's axes, in degrees."""
        return torch.rad2deg(self.covariances.diagonal(dim1=-2, dim2=-1)[:, 3:].sqrt())

    @property
    def translation(self) -> Float[Tensor, "num_cameras 3"]:
        """Standard deviations of steps along the camera's axes, in scene units."""
        return self.covariances.diagonal(dim1=-2, dim2=-1)[:, :3].sqrt()

    def scaled(self, factor: float) -> PoseUncertainty:
        """In a frame whose units are 1 / factor of these: for the frame of the input, the scale of the exported poses'
        alignment over the dataparser's. A change of the world's axes changes nothing here."""
        units = torch.ones(6, dtype=torch.float64)
        units[:3] = factor
        return PoseUncertainty(self.covariances * units[:, None] * units)

    def as_dict(self, index: int) -> Dict[str, Any]:
        """One camera's numbers, ready for JSON."""
        return {
            "rotation_std_deg": self.rotation_deg[index].tolist(),
            "translation_std": self.translation[index].tolist(),
            "covariance": self.covariances[index].tolist(),
        }

    def summary(self, prefix: str = "pose_std_") -> Dict[str, float]:
        """Median and maximum over cameras of the root of the summed variances, rotation in degrees and translation."""
        result = {}
        for name in ("rotation_deg", "translation"):
            lengths = getattr(self, name).norm(dim=-1)
            result[f"{prefix}{name}_median"] = float(lengths.quantile(0.5))
            result[f"{prefix}{name}_max"] = float(lengths.max())
        return result


def ray_jacobians(
    render: Render,
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    camera_to_world: Float[Tensor, "3 4"],
) -> Tuple[Float[Tensor, "rays channels"], Float[Tensor, "rays channels 6"]]:
    """Colours of a camera's rays, and their derivatives by the camera-side twist [translation, rotation].

    The motion P exp(xi) moves a ray's origin by R v and its direction d by R (w x R^T d), so that a row of the
    Jacobian is [R^T dC/do, (R^T d) x (R^T dC/dd)].

    Args:
        render: colours of rays; each may depend on its own ray only.
        origins: in the world.
        directions: in the world.
        camera_to_world: the camera P = [R | centre] whose rays these are.
    """
    origins, directions = origins.detach().requires_grad_(), directions.detach().requires_grad_()
    with torch.enable_grad():
        colors = render(origins, directions)
        gradients = [
            torch.autograd.grad(colors[:, channel].sum(), (origins, directions), retain_graph=True)
            for channel in range(colors.shape[1])
        ]
    rotation = camera_to_world[:, :3].to(directions)
    by_origin, by_direction = (torch.stack(parts, dim=1) @ rotation for parts in zip(*gradients))
    in_camera = (directions.detach() @ rotation)[:, None]
    turning = torch.linalg.cross(in_camera.expand_as(by_direction), by_direction)
    return colors.detach(), torch.cat([by_origin, turning], dim=-1)


def covariance(
    jacobians: Float[Tensor, "rays channels 6"], residuals: Float[Tensor, "rays channels"], independent: float
) -> Float[Tensor, "6 6"]:
    r"""Covariance of the pose that minimises the summed squares of an image, from a sample of its pixels.

    With :math:`A = \sum J^T J` over all channels of all rays, :math:`\sigma^2 A^{-1}` (Gauss-Newton) would hold for
    residuals of one variance that don't know of each other. Residuals of a field's channels go together and are
    largest at edges, where the Jacobian is; so this is the sandwich :math:`A^{-1} B A^{-1}`,
    :math:`B = \sum_r (J_r^T e_r) (J_r^T e_r)^T` over rays r, which asks for independent rays only, and equals the
    former where that holds (White, Econometrica 1980; clustered by ray).

    Args:
        jacobians: derivatives of colours by a twist.
        residuals: render minus photograph of the same rays.
        independent: number of independent pixels of the whole image that the optimum rests on.
    Returns:
        Float64; the prior's (`PRIOR_STD`) in directions that the image does not see.
    """
    rays, dimensions = len(jacobians), jacobians.shape[-1]
    jacobians, residuals = jacobians.double(), residuals.double()
    information = torch.einsum("rci,rcj->ij", jacobians, jacobians) / rays
    scores = torch.einsum("rci,rc->ri", jacobians, residuals)
    noise = scores.T @ scores / max(rays - dimensions, 1)
    variance = residuals.square().mean().clamp(min=1e-12)
    # Both in units of 1 / variance, where the prior is one more observation of zero.
    prior = torch.eye(dimensions, dtype=torch.float64, device=jacobians.device) / PRIOR_STD**2
    inverse = torch.linalg.inv(information * (independent / variance) + prior)
    result = inverse @ (noise * (independent / variance**2) + prior) @ inverse
    return 0.5 * (result + result.T)


def pose_covariances(
    scene: PosedScene,
    rays_per_camera: int = 512,
    pixels_per_sample: float = PIXELS_PER_SAMPLE,
    seed: int = 0,
) -> PoseUncertainty:
    """Covariance of every training camera's refined pose, with the field as it is.

    Args:
        scene: a trained field and its images. Each is rendered with its own appearance.
        rays_per_camera: random pixels of each image outside of its mask.
        pixels_per_sample: how many pixels of an image count as one independent sample. 1 would be right if residuals
            of neighbouring pixels were independent.
        seed: of the pixels.
    Returns:
        Covariances; the prior's (`PRIOR_STD`) for an image whose mask leaves no pixel.

    Raises:
        HashPoseError: fewer than 7 rays are asked for.
    """
    if rays_per_camera < 7:
        raise HashPoseError("The covariance of a pose has 6 dimensions and needs at least 7 rays per camera.")
    poses = scene.poses.refined_camera_to_worlds().detach()
    generator = torch.Generator().manual_seed(seed)
    return PoseUncertainty(
        torch.stack(
            [
                pose_covariance(
                    scene.renderer,
                    scene.train,
                    ImagePixels(scene.train, index),
                    pose,
                    generator,
                    rays_per_camera,
                    pixels_per_sample,
                    own_appearance=True,
                )
                for index, pose in enumerate(poses)
            ]
        )
    )


def pose_covariance(
    renderer: RayRenderer,
    dataset: InputDataset,
    image: ImagePixels,
    pose: Float[Tensor, "3 4"],
    generator: torch.Generator,
    rays: int = 512,
    pixels_per_sample: float = PIXELS_PER_SAMPLE,
    own_appearance: bool = False,
) -> Float[Tensor, "6 6"]:
    """Covariance of one camera's pose, as in `PoseUncertainty`.

    Args:
        renderer: the field as it is.
        dataset: that holds the image.
        image: its pixels.
        pose: camera-to-world in the frame of the field.
        generator: of the pixels; on the CPU.
        rays: random pixels outside of the mask.
        pixels_per_sample: as in `pose_covariances`.
        own_appearance: as in `RayRenderer.colors`.
    Returns:
        The covariance; the prior's (`PRIOR_STD`) for an image whose mask leaves no pixel.
    """
    if image.count == 0:
        return PRIOR_STD**2 * torch.eye(6, dtype=torch.float64)
    pixels = image.draw(rays, generator).to(renderer.device)
    with frozen(renderer):
        camera = posed_cameras(dataset, pose[None], renderer.device, [image.index])
        bundle = pixel_rays(camera, pixels, torch.zeros_like(pixels.images))

        def render(origins: Tensor, directions: Tensor) -> Tensor:
            bundle.origins, bundle.directions = origins, directions
            return renderer.colors(bundle, own_appearance=own_appearance)

        colors, jacobians = ray_jacobians(render, bundle.origins, bundle.directions, pose)
        residuals = colors - renderer.composite(pixels.colors)
        return covariance(jacobians, residuals, image.count / pixels_per_sample).cpu()


def summed(covariance: Float[Tensor, "6 6"]) -> Tuple[float, float]:
    """Root of the summed variances of turns, in degrees, and of shifts."""
    both = PoseUncertainty(covariance[None])
    return float(both.rotation_deg[0].norm()), float(both.translation[0].norm())
