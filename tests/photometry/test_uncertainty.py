"""Covariances of poses: Jacobians against finite differences, the estimator against repeated estimation under noise."""

from __future__ import annotations

import functools
import math

import pytest
import roma
import torch
from scenes import CHAIR
from torch import Tensor

from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.photometry.uncertainty import (
    PRIOR_STD,
    PoseUncertainty,
    covariance,
    pose_covariances,
    ray_jacobians,
)
from hashpose_ns.pipeline import HashPosePipeline, HashPosePipelineConfig
from nerfstudio.cameras.lie_groups import exp_map_SE3
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.utils import poses as pose_utils

SIDE = 24
DOUBLE = {"dtype": torch.float64}


@pytest.fixture(scope="module")
def pose() -> Tensor:
    """A camera 3 units above a plane, looking down at an angle."""
    rotation = roma.rotvec_to_rotmat(torch.tensor([0.3, -0.2, 0.5], **DOUBLE))
    return torch.cat([rotation, torch.tensor([[0.2], [-0.4], [3.0]], **DOUBLE)], dim=1)


def camera_rays() -> Tensor:
    """[SIDE * SIDE, 3] unit directions in the camera's frame, OpenGL axes."""
    line = torch.linspace(-0.4, 0.4, SIDE, **DOUBLE)
    x, y = torch.meshgrid(line, line, indexing="xy")
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1).view(-1, 3)
    return directions / directions.norm(dim=-1, keepdim=True)


def textured_plane(origins: Tensor, directions: Tensor) -> Tensor:
    """Colours of the plane z = 0, painted with two channels of waves, the second one tinted by the viewing angle."""
    hit = origins - origins[:, 2:] / directions[:, 2:] * directions
    x, y = hit[:, 0], hit[:, 1]
    waves = torch.stack([torch.sin(2 * x + y) + torch.sin(3 * y), torch.cos(x - 2.5 * y) * directions[:, 2]], dim=-1)
    return 0.5 + 0.2 * waves


def rays_of(camera_to_world: Tensor) -> tuple[Tensor, Tensor]:
    directions = camera_rays() @ camera_to_world[:, :3].T
    return camera_to_world[:, 3].expand_as(directions), directions


def moved(camera_to_world: Tensor, twist: Tensor) -> Tensor:
    return pose_utils.multiply(camera_to_world, exp_map_SE3(twist[None])[0])


def numeric_jacobian(render, camera_to_world: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences by each component of the twist."""
    columns = []
    for component in torch.eye(6, **DOUBLE):
        ahead, behind = (render(*rays_of(moved(camera_to_world, sign * step * component))) for sign in (1, -1))
        columns.append((ahead - behind) / (2 * step))
    return torch.stack(columns, dim=-1)


def estimated_twist(camera_to_world: Tensor, image: Tensor) -> Tensor:
    """The twist that takes a pose to where an image's squared residuals are least, by Gauss-Newton from the pose."""
    twist = torch.zeros(6, **DOUBLE)
    for _ in range(3):
        at = moved(camera_to_world, twist)
        colors, jacobian = ray_jacobians(textured_plane, *rays_of(at), at)
        rows = jacobian.reshape(-1, 6)
        step = torch.linalg.lstsq(rows, (image - colors).reshape(-1, 1)).solution[:, 0]
        motion = pose_utils.multiply(pose_utils.inverse(camera_to_world), moved(at, step))
        twist = torch.cat([motion[:, 3], roma.rotmat_to_rotvec(motion[:, :3])])  # to first order, at 1e-3
    return twist


def test_jacobian_of_a_plane_is_that_of_finite_differences(pose):
    colors, jacobian = ray_jacobians(textured_plane, *rays_of(pose), pose)
    torch.testing.assert_close(colors, textured_plane(*rays_of(pose)))
    torch.testing.assert_close(jacobian, numeric_jacobian(textured_plane, pose), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tinted", [False, True])
def test_predicted_covariance_is_the_spread_of_repeated_estimates(pose, tinted):
    """Also for noise that the two channels share and that grows across the image, which J^T J alone would miss."""
    generator = torch.Generator().manual_seed(0)
    colors, jacobian = ray_jacobians(textured_plane, *rays_of(pose), pose)
    deviation = 0.01 * (1 + 3 * (camera_rays()[:, :1] > 0)) if tinted else torch.full((SIDE**2, 1), 0.01, **DOUBLE)

    def noise() -> Tensor:
        drawn = torch.randn(SIDE**2, 1 if tinted else 2, generator=generator, **DOUBLE) * deviation
        return drawn.expand(-1, 2)

    estimates = torch.stack([estimated_twist(pose, colors + noise()) for _ in range(250)])
    spread = torch.cov(estimates.T)
    predicted = torch.stack([covariance(jacobian, -noise(), SIDE**2) for _ in range(20)]).mean(0)
    # 250 estimates: each deviation is known to 4 %, the mean of a chi-squared of 6 to 0.2
    ratio = (spread.diagonal() / predicted.diagonal()).sqrt()
    assert bool(((ratio > 0.84) & (ratio < 1.16)).all()), ratio
    mahalanobis = torch.einsum("ni,ij,nj->n", estimates, torch.linalg.inv(predicted), estimates).mean()
    assert float(mahalanobis) == pytest.approx(6, abs=0.9)


def test_even_noise_gives_the_gauss_newton_covariance(pose):
    _, jacobian = ray_jacobians(textured_plane, *rays_of(pose), pose)
    generator = torch.Generator().manual_seed(1)
    residuals = [0.02 * torch.randn(SIDE**2, 2, generator=generator, **DOUBLE) for _ in range(60)]
    sandwich = torch.stack([covariance(jacobian, residual, SIDE**2) for residual in residuals]).mean(0)
    rows = jacobian.reshape(-1, 6)
    exact = 0.02**2 * torch.linalg.inv(rows.T @ rows)
    torch.testing.assert_close(sandwich, exact, rtol=0.1, atol=0.1 * float(exact.diagonal().min()))


def test_a_sample_of_pixels_stands_for_the_image(pose):
    _, jacobian = ray_jacobians(textured_plane, *rays_of(pose), pose)
    residuals = 0.02 * torch.randn(SIDE**2, 2, generator=torch.Generator().manual_seed(2), **DOUBLE)
    whole = covariance(jacobian, residuals, SIDE**2)
    torch.testing.assert_close(covariance(jacobian, residuals, 4 * SIDE**2), whole / 4, rtol=1e-3, atol=1e-12)
    some = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(3))[: SIDE**2 // 2]
    sampled = covariance(jacobian[some], residuals[some], SIDE**2)
    torch.testing.assert_close(sampled.diagonal(), whole.diagonal(), rtol=0.3, atol=0)


def test_an_image_of_nothing_tells_nothing():
    blank = covariance(torch.zeros(64, 3, 6), 0.1 * torch.ones(64, 3), 64)
    torch.testing.assert_close(blank, PRIOR_STD**2 * torch.eye(6, **DOUBLE))


def test_units_and_axes_of_the_frame():
    matrix = torch.diag(torch.tensor([1.0, 4.0, 9.0, 1e-4, 4e-4, 9e-4], **DOUBLE)) + 1e-3
    one = PoseUncertainty(matrix[None])
    assert one.translation[0].tolist() == pytest.approx([1.0, 2.0, 3.0], rel=1e-3)
    expected = [math.degrees(math.sqrt(value)) for value in (1.1e-3, 1.4e-3, 1.9e-3)]
    assert one.rotation_deg[0].tolist() == pytest.approx(expected)
    larger = one.scaled(10.0)
    torch.testing.assert_close(larger.translation, 10 * one.translation)
    torch.testing.assert_close(larger.rotation_deg, one.rotation_deg)
    torch.testing.assert_close(larger.covariances[0, :3, 3:], 10 * matrix[:3, 3:])
    assert one.as_dict(0)["covariance"] == matrix.tolist()
    assert one.summary()["pose_std_translation_max"] == pytest.approx(math.sqrt(14.003))


# -- on a field --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> HashPosePipeline:
    """The chair, with a field of random tables: it shows nothing, but has derivatives everywhere."""
    torch.manual_seed(0)
    encoding = HashEncodingConfig(
        num_levels=3, log2_hashmap_size=12, base_resolution=4, max_resolution=12, init_scale=1.0, backend="eager"
    )
    return HashPosePipelineConfig(
        datamanager=HashPoseDataManagerConfig(
            dataparser=BlenderDataParserConfig(data=CHAIR), camera_res_scale_factor=0.2
        ),
        model=HashPoseModelConfig(
            field=HashPoseFieldConfig(encoding=encoding, decoder=DecoderConfig(width=16, precision="float32")),
            scene="none",
            sampler="uniform",
            near_plane=2.0,
            far_plane=6.0,
            num_samples=32,
            background_color="white",
        ),
    ).setup(device="cpu", test_mode="inference")


def test_the_field_s_true_derivative_is_taken(pipeline):
    model = pipeline.model.double().eval()
    camera_to_world = model.camera_optimizer.refined_camera_to_worlds()[3].detach().double()
    camera = pipeline.datamanager.train_dataset.cameras[3:4]
    bundle = camera.generate_rays(camera_indices=0, coords=20 * torch.rand(SIDE**2, 2))

    def render(origins: Tensor, directions: Tensor, smoothed: bool = False) -> Tensor:
        bundle.origins, bundle.directions = origins, directions
        return model.colors(bundle, smoothed=smoothed)

    try:
        _, jacobian = ray_jacobians(render, *rays_of(camera_to_world), camera_to_world)
        numeric = numeric_jacobian(render, camera_to_world, step=1e-4)  # the field's outputs are float32
        as_trained = functools.partial(render, smoothed=True)
        _, smoothed = ray_jacobians(as_trained, *rays_of(camera_to_world), camera_to_world)
        # Of the typical ray that meets the box: where a sample enters it within the step, the difference is a jump
        error, error_smoothed = (
            ((one - numeric).flatten(1).norm(dim=1) / numeric.flatten(1).norm(dim=1)).nanmedian()
            for one in (jacobian, smoothed)
        )
        assert float(error) < 0.01 and float(error_smoothed) > 0.03, (error, error_smoothed)
    finally:
        model.float()


def test_every_camera_gets_one_and_the_pipeline_stays_as_it_was(pipeline):
    model = pipeline.model.train()
    first, again = pose_covariances(pipeline.scene, 32), pose_covariances(pipeline.scene, 32)
    assert first.covariances.shape == (40, 6, 6) and first.covariances.dtype == torch.float64
    assert torch.equal(first.covariances, again.covariances)
    assert bool((torch.linalg.eigvalsh(first.covariances) > 0).all())
    assert bool((first.translation < 1.2 * PRIOR_STD).all())
    assert model.training and model.config.field.encoding.gradient == "axis"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.field.parameters())
    with pytest.raises(HashPoseError, match="at least 7 rays"):
        pose_covariances(pipeline.scene, 6)
