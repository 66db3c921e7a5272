"""The tables' metrics against independent ones: evo for poses, NumPy and torchmetrics for images, and cases worked by
hand. tests/cameras/test_alignment.py has the alignment's own cases."""

import math

import numpy as np
import pytest
import roma
import torch
from run_folders import chair_poses
from scenes import chair_frames, chair_image
from scipy.linalg import expm
from scipy.ndimage import gaussian_filter

from hashpose_ns.cameras.alignment import Similarity, align_centers, pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses
from hashpose_ns.photometry.image_metrics import image_metrics

metrics = pytest.importorskip("evo.core.metrics", reason="evo is the independent oracle of these tests")
trajectory = pytest.importorskip("evo.core.trajectory")

TRUE = chair_poses()
TRUE[:, :, :3] = roma.special_procrustes(TRUE[:, :, :3])  # the file's digits are rotations to 1e-7 only
SIMILARITY = Similarity(
    scale=torch.tensor(1.7, dtype=torch.float64),
    rotation=roma.rotvec_to_rotmat(torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)),
    translation=torch.tensor([4.0, -2.0, 0.5], dtype=torch.float64),
)


def matrices(poses: torch.Tensor) -> np.ndarray:
    """[N, 3, 4] -> [N, 4, 4]."""
    bottom = np.broadcast_to([[0.0, 0.0, 0.0, 1.0]], (len(poses), 1, 4))
    return np.concatenate([poses.double().numpy(), bottom], axis=1)


def evo_path(poses: np.ndarray) -> "trajectory.PosePath3D":
    return trajectory.PosePath3D(poses_se3=list(poses))


def ape(reference: np.ndarray, estimate: np.ndarray, relation: str) -> np.ndarray:
    """evo's absolute pose error of each camera."""
    metric = metrics.APE(getattr(metrics.PoseRelation, relation))
    metric.process_data((evo_path(reference), evo_path(estimate)))
    return np.asarray(metric.error)


def rms_aligned(estimate: torch.Tensor, reference: torch.Tensor) -> np.ndarray:
    """Poses taken to the reference by evo's rotation and, computed here, the ratio of RMS spreads: BARF's convention.

    evo's scale is the least-squares one; its rotation does not depend on the scale.
    """
    from evo.core.geometry import umeyama_alignment

    source, target = estimate[:, :, 3].numpy().T, reference[:, :, 3].numpy().T
    rotation, _, _ = umeyama_alignment(source, target, with_scale=True)
    spreads = [np.sqrt(np.mean(np.sum((x - x.mean(1, keepdims=True)) ** 2, axis=0))) for x in (source, target)]
    aligned = matrices(estimate)
    aligned[:, :3, :3] = rotation @ aligned[:, :3, :3]
    centered = (estimate[:, :, 3] - estimate[:, :, 3].mean(dim=0)).numpy()
    aligned[:, :3, 3] = spreads[1] / spreads[0] * centered @ rotation.T + target.mean(axis=1)
    return aligned


# -- poses against evo -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol, size", [("barf", 0.15), ("barf", 0.01), ("l2g", 0.07)])
@pytest.mark.parametrize("seed", [0, 1])
def test_errors_of_noisy_poses_agree_with_evo(protocol, size, seed):
    noisy = perturb_poses(TRUE, PerturbationConfig(protocol, size, size, seed))
    noisy = SIMILARITY.apply_to_poses(noisy)
    errors = pose_errors(noisy, TRUE, align_centers(noisy, TRUE))
    reference, aligned = matrices(TRUE), rms_aligned(noisy, TRUE)
    np.testing.assert_allclose(errors.rotation_deg, ape(reference, aligned, "rotation_angle_deg"), atol=1e-6)
    np.testing.assert_allclose(errors.center, ape(reference, aligned, "translation_part"), atol=1e-12)
    # BARF's translation error is the distance of "centres" of the inverse poses
    inverses = [np.linalg.inv(poses) for poses in (reference, aligned)]
    np.testing.assert_allclose(errors.translation, ape(*inverses, "translation_part"), atol=1e-12)
    # a scale of its own would show: it is the ratio of spreads, not evo's least-squares one
    path = evo_path(matrices(noisy))
    _, _, least_squares = path.align(evo_path(reference), correct_scale=True)
    assert float(align_centers(noisy, TRUE).scale) > least_squares


def test_a_change_of_frame_is_undone_exactly_as_by_evo():
    moved = SIMILARITY.apply_to_poses(TRUE)
    path = evo_path(matrices(moved))
    rotation, translation, scale = path.align(evo_path(matrices(TRUE)), correct_scale=True)
    found = align_centers(moved, TRUE)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(found.translation, translation, atol=1e-12)
    np.testing.assert_allclose(found.scale, scale, atol=1e-12)
    np.testing.assert_allclose(matrices(found.apply_to_poses(moved)), np.asarray(path.poses_se3), atol=1e-12)


@pytest.mark.parametrize("kind", ["rotation", "translation", "scale", "all"])
def test_a_change_of_frame_costs_nothing_in_any_metric(kind):
    one = Similarity.identity()
    parts = {
        name: getattr(SIMILARITY if kind in (name, "all") else one, name)
        for name in ("scale", "rotation", "translation")
    }
    summary = pose_errors(Similarity(**parts).apply_to_poses(TRUE), TRUE).summary()
    assert max(summary.values()) < 1e-9


# -- poses by hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.01, 1.0, 30.0])
def test_turn_about_each_camera_is_that_turn_and_leaves_centres(degrees):
    generator = torch.Generator().manual_seed(1)
    axes = torch.nn.functional.normalize(torch.randn(len(TRUE), 3, generator=generator, dtype=torch.float64), dim=-1)
    turned = TRUE.clone()
    turned[:, :, :3] = TRUE[:, :, :3] @ roma.rotvec_to_rotmat(math.radians(degrees) * axes)
    errors = pose_errors(turned, TRUE)
    np.testing.assert_allclose(errors.rotation_deg, degrees, atol=1e-9)
    assert errors.center.max() < 1e-12
    # w2c translations turn with the camera: chords of circles about the turns' axes, seen by the camera
    centers = torch.einsum("nij,ni->nj", TRUE[:, :, :3], TRUE[:, :, 3])
    radii = torch.linalg.cross(axes, centers).norm(dim=-1)
    np.testing.assert_allclose(errors.translation, 2 * math.sin(math.radians(degrees) / 2) * radii, atol=1e-9)


def test_turn_about_the_world_of_one_camera_moves_its_centre_and_not_its_translation():
    identity = Similarity.identity()
    turn = roma.rotvec_to_rotmat(torch.tensor([0.0, 0.0, 0.2], dtype=torch.float64))
    errors = pose_errors((turn @ TRUE[:1]), TRUE[:1], similarity=identity)
    distance = float(TRUE[0, :2, 3].norm())  # from the axis of the turn
    assert float(errors.rotation_deg) == pytest.approx(math.degrees(0.2))
    assert float(errors.center) == pytest.approx(2 * math.sin(0.1) * distance)
    assert float(errors.translation) == pytest.approx(0.0, abs=1e-12)


def test_barf_noise_before_alignment_is_the_twist_itself():
    # c2w' = exp(xi)^-1 c2w, so w2c' = w2c exp(xi), by the matrix exponential: its translation moves by R V v
    config = PerturbationConfig("barf", 0.15, 0.15, 3)
    draws = torch.randn(len(TRUE), 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy() * 0.15
    expected = {"rotation_deg": [], "translation": [], "center": []}
    for pose, (rotation, translation) in zip(matrices(TRUE), draws.reshape(-1, 2, 3)):
        x, y, z = rotation
        twist = np.zeros((4, 4))
        twist[:3, :3], twist[:3, 3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]], translation
        motion = expm(twist)
        w2c = np.linalg.inv(pose)
        moved = w2c @ motion
        expected["rotation_deg"].append(math.degrees(np.linalg.norm(rotation)))
        expected["translation"].append(np.linalg.norm(moved[:3, 3] - w2c[:3, 3]))
        expected["center"].append(np.linalg.norm(np.linalg.inv(moved)[:3, 3] - pose[:3, 3]))
        assert expected["translation"][-1] == pytest.approx(np.linalg.norm(motion[:3, 3]))
    errors = pose_errors(perturb_poses(TRUE, config), TRUE, similarity=Similarity.identity())
    for name, values in expected.items():
        # nerfstudio's exponential is off by 1e-7 below 0.01 rad
        np.testing.assert_allclose(getattr(errors, name), values, atol=1e-5, err_msg=name)


def test_barf_exact_angle_is_float32_arccos_with_its_floor():
    floor = math.degrees(float(np.arccos(np.float32(1 - 1e-7))))
    assert floor == pytest.approx(0.028, abs=0.0005)
    same = pose_errors(TRUE, TRUE, similarity=Similarity.identity(), barf_exact=True)
    assert float(same.rotation_deg.min()) == pytest.approx(floor, abs=1e-6)
    noisy = perturb_poses(TRUE, PerturbationConfig("barf", 0.01, 0.01, 0))
    similarity = align_centers(noisy, TRUE)
    errors = pose_errors(noisy, TRUE, similarity, barf_exact=True)
    relative = matrices(similarity.apply_to_poses(noisy))[:, :3, :3].transpose(0, 2, 1) @ matrices(TRUE)[:, :3, :3]
    trace = np.trace(relative, axis1=1, axis2=2)
    by_hand = np.degrees(np.arccos(np.clip((trace.astype(np.float32) - 1) / 2, -1 + 1e-7, 1 - 1e-7)))
    np.testing.assert_allclose(errors.rotation_deg, by_hand, atol=0.02)
    np.testing.assert_allclose(errors.rotation_deg, pose_errors(noisy, TRUE, similarity).rotation_deg, atol=0.02)


def test_summary_is_over_cameras():
    turned = TRUE[:4].clone()
    for i, degrees in enumerate((1.0, 2.0, 4.0, 9.0)):
        turn = torch.tensor([math.radians(degrees), 0.0, 0.0], dtype=torch.float64)
        turned[i, :, :3] = TRUE[i, :, :3] @ roma.rotvec_to_rotmat(turn)
    summary = pose_errors(turned, TRUE[:4], align_centers(turned, TRUE[:4])).summary()
    found = [summary[f"rotation_deg_{statistic}"] for statistic in ("mean", "median", "max")]
    np.testing.assert_allclose(found, [4.0, 3.0, 9.0])


# -- images ------------------------------------------------------------------------------------------------------------


def photographs(size: int = 64):
    """A photograph and one that is a little wrong, [H, W, 3] float32 in [0, 1]."""
    _, frames = chair_frames("test", 2)
    target = np.asarray(chair_image(frames[1], size, white=True), dtype=np.float32) / 255
    noise = np.random.default_rng(0).normal(0, 0.05, target.shape)
    return np.clip(target + noise, 0, 1).astype(np.float32), target


def ssim_by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004: Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, values in [0, 1]; mean over
    channels and all pixels, images mirrored at their borders."""

    def window(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma=1.5, radius=5, mode="mirror", axes=(0, 1))

    first, second = first.astype(np.float64), second.astype(np.float64)
    mean_1, mean_2 = window(first), window(second)
    variance_1, variance_2 = window(first**2) - mean_1**2, window(second**2) - mean_2**2
    covariance = window(first * second) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2))))


def test_psnr_by_hand():
    target = torch.full((16, 16, 3), 0.5)
    image = target.clone()
    image[:8] += 0.1  # half of the pixels by a tenth: mean squared error 0.005
    assert image_metrics(image, target)["psnr"] == pytest.approx(10 * math.log10(1 / 0.005), abs=1e-4)
    assert image_metrics(target + 0.1, target)["psnr"] == pytest.approx(20.0, abs=1e-4)


def test_image_metrics_against_their_definitions():
    image, target = photographs()
    found = image_metrics(torch.from_numpy(image), torch.from_numpy(target))
    error = np.mean((image.astype(np.float64) - target.astype(np.float64)) ** 2)
    assert found["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-4)
    assert found["ssim"] == pytest.approx(ssim_by_definition(image, target), abs=1e-4)
    assert 0.3 < found["ssim"] < 0.99


def test_image_metrics_against_torchmetrics_modules():
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    image, target = (torch.from_numpy(value) for value in photographs())
    found = image_metrics(image, target)
    batch = [value.permute(2, 0, 1)[None] for value in (image, target)]
    assert found["psnr"] == pytest.approx(float(PeakSignalNoiseRatio(data_range=1.0)(*batch)), abs=1e-5)
    assert found["ssim"] == pytest.approx(float(StructuralSimilarityIndexMeasure(data_range=1.0)(*batch)), abs=1e-6)


def test_same_images_and_shifted_channels():
    image, target = (torch.from_numpy(value) for value in photographs())
    assert image_metrics(target, target)["ssim"] == pytest.approx(1.0, abs=1e-4)
    swapped = image_metrics(image[..., [2, 0, 1]], target[..., [2, 0, 1]])
    for name in ("psnr", "ssim"):
        assert swapped[name] == pytest.approx(image_metrics(image, target)[name], abs=1e-5)


def test_pixel_error_is_of_what_photographs_can_tell():
    from types import SimpleNamespace

    from hashpose_ns.bench.measures import pixel_error

    cameras = SimpleNamespace(fx=torch.full((len(TRUE), 1), 139.0))
    assert pixel_error(cameras, TRUE, SIMILARITY.apply_to_poses(TRUE), 0.5) < 1e-9
    small, twice = (perturb_poses(TRUE, PerturbationConfig("barf", size, size, 0)) for size in (1e-3, 2e-3))
    found = pixel_error(cameras, TRUE, SIMILARITY.apply_to_poses(small), 0.5)
    assert pixel_error(cameras, TRUE, twice, 0.5) == pytest.approx(2 * found, rel=0.02)
    # half of the cameras see everything two pixels to the right of where it is, which no change of the world explains
    moved = TRUE.clone()
    turn = roma.rotvec_to_rotmat(torch.tensor([0.0, math.atan(2.0 / 139.0), 0.0], dtype=torch.float64))
    moved[::2, :, :3] = TRUE[::2, :, :3] @ turn
    assert 0.9 < pixel_error(cameras, TRUE, moved, 1e-3) < 1.3  # half of two pixels, about
