"""Evaluation: held-out cameras follow the training cameras' frame, and test-time optimisation finds them again."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import roma
import torch
from scenes import CHAIR

from hashpose_ns.cameras.alignment import Similarity, align_centers, pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig
from hashpose_ns.cameras.recovery import RecoveryConfig, focus, near_hypotheses
from hashpose_ns.data.pixel_sampler import EdgePixelSamplerConfig
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from hashpose_ns.photometry.align import optimize_cameras
from hashpose_ns.photometry.image_metrics import image_metrics
from hashpose_ns.photometry.pixels import ImagePixels, evenly_spaced, posed_cameras
from hashpose_ns.photometry.recovery import recover_cameras
from hashpose_ns.photometry.scene import frozen
from hashpose_ns.photometry.scores import HeldOutPixels, PoseJudge
from hashpose_ns.pipeline import HashPosePipeline, HashPosePipelineConfig
from nerfstudio.cameras.lie_groups import exp_map_SE3
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.utils import poses as pose_utils


def make_pipeline(**datamanager) -> HashPosePipeline:
    torch.manual_seed(0)
    encoding = HashEncodingConfig(num_levels=6, log2_hashmap_size=14, base_resolution=4, max_resolution=64)
    config = HashPosePipelineConfig(
        datamanager=HashPoseDataManagerConfig(
            dataparser=BlenderDataParserConfig(data=CHAIR),
            camera_res_scale_factor=0.32,
            train_num_rays_per_batch=256,
            eval_num_rays_per_batch=256,
            pixel_sampler=EdgePixelSamplerConfig(edge_fraction=0.5),
            **datamanager,
        ),
        model=HashPoseModelConfig(
            field=HashPoseFieldConfig(
                encoding=encoding, decoder=DecoderConfig(width=32, density_activation="exp", precision="float32")
            ),
            curriculum=CurriculumConfig(mode="none"),
            scene="none",
            sampler="uniform",
            near_plane=2.0,
            far_plane=6.0,
            clip_to_box=True,
            num_samples=32,
            background_color="white",
        ),
        tto_steps=2,
        tto_rays=64,
    )
    return config.setup(device="cpu", test_mode="test")


@pytest.fixture(scope="module")
def trained_on_true_poses() -> HashPosePipeline:
    """The chair at 32x32, some hundred steps with poses that stand still; tests must leave it as it is."""
    pipeline = make_pipeline()
    model = pipeline.model
    tables = [table for group in model.get_param_groups()["encoding"] for table in group["params"]]
    adam = torch.optim.Adam([{"params": tables, "lr": 1e-2}, {"params": model.field.decoder_parameters(), "lr": 5e-3}])
    model.camera_optimizer.active = False
    for step in range(400):
        _, losses, _ = pipeline.get_train_loss_dict(step)
        adam.zero_grad()
        losses["rgb_loss"].backward()
        adam.step()
    return pipeline.eval()


def held_out_cameras(pipeline: HashPosePipeline, indices, poses):
    """Held-out cameras at some of these poses of all of them."""
    return posed_cameras(pipeline.scene.held_out, poses[indices], pipeline.device, indices)


@pytest.fixture
def untrained() -> HashPosePipeline:
    return make_pipeline(initial_poses="perturbed", perturbation=PerturbationConfig(rotation=0.05, translation=0.05))


def test_cameras_that_look_at_a_point_have_it_as_their_focus():
    point = torch.tensor([0.3, -0.2, 0.5])
    rotations = roma.random_rotmat(7, generator=torch.Generator().manual_seed(0))
    poses = torch.cat([rotations, (point + 3 * rotations[:, :, 2])[..., None]], dim=-1)
    torch.testing.assert_close(focus(poses), point, rtol=0, atol=1e-4)
    parallel = torch.eye(4)[:3].repeat(4, 1, 1)
    parallel[:, 0, 3] = torch.arange(4.0)
    torch.testing.assert_close(focus(parallel), torch.tensor([1.5, 0.0, 0.0]), rtol=0, atol=1e-4)


# -- frames ------------------------------------------------------------------------------------------------------------


def test_held_out_cameras_follow_a_change_of_the_learned_frame_exactly(untrained):
    optimizer = untrained.model.camera_optimizer
    generator = torch.Generator().manual_seed(1)
    change = Similarity(
        torch.tensor(1.7, dtype=torch.float64),
        roma.random_rotmat(generator=generator).double(),
        torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64),
    )
    learned = change.apply_to_poses(optimizer.reference_camera_to_worlds)
    optimizer.initial_camera_to_worlds = optimizer.base_camera_to_worlds = learned
    given = untrained.datamanager.eval_dataset.cameras.camera_to_worlds.clone()
    torch.testing.assert_close(
        untrained.scene.aligned_held_out_poses(), change.apply_to_poses(given), rtol=0, atol=2e-5
    )
    for step in range(2):  # aligned anew each time, not on top of the last time
        untrained.get_eval_loss_dict(step)
        cameras = untrained.datamanager.eval_ray_generator.cameras
        torch.testing.assert_close(cameras.camera_to_worlds, change.apply_to_poses(given), rtol=0, atol=2e-5)
    assert torch.equal(untrained.datamanager.eval_dataset.cameras.camera_to_worlds, given)
    errors = untrained.pose_metrics()
    assert errors["pose_error_after_rotation_deg_max"] < 1e-3 and errors["pose_error_after_center_max"] < 1e-4


def test_pose_metrics_are_those_of_the_alignment(untrained):
    optimizer = untrained.model.camera_optimizer
    optimizer.pose_adjustment.data = 0.02 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    metrics = untrained.pose_metrics()
    reference, refined = optimizer.reference_camera_to_worlds, optimizer.refined_camera_to_worlds().detach()

    def errors(poses, prefix):
        by_centers = pose_errors(poses, reference, align_centers(poses, reference))
        return {**pose_errors(poses, reference).summary(prefix), **by_centers.summary(f"{prefix}by_centers_")}

    before, after = (optimizer.initial_camera_to_worlds, "pose_error_before_"), (refined, "pose_error_after_")
    assert metrics == {**errors(*before), **errors(*after)}
    assert metrics["pose_error_before_rotation_deg_mean"] > 1
    untrained.config.datamanager.initial_poses = "given"
    assert untrained.pose_metrics() == errors(refined, "pose_change_"), "given poses are no ground truth"


# -- test-time optimisation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["world", "camera"])
def test_optimisation_recovers_a_camera_and_leaves_the_field_alone(trained_on_true_poses, side):
    pipeline = trained_on_true_poses
    model, index = pipeline.model, 3
    image = ImagePixels(pipeline.scene.held_out, index)
    poses = pipeline.scene.aligned_held_out_poses()
    camera = held_out_cameras(pipeline, [index], poses)
    truth = camera.camera_to_worlds.clone()
    motion = exp_map_SE3(torch.tensor([[0.02, -0.03, 0.02, 0.02, 0.03, -0.02]]))  # 2.4 degrees
    camera.camera_to_worlds = pose_utils.multiply(truth, motion)
    start = camera.camera_to_worlds.clone()
    state = copy.deepcopy(model.state_dict())

    def loss(pose) -> float:
        camera.camera_to_worlds = pose
        return float((model.get_outputs_for_camera(camera)["rgb"] - image.image).square().mean())

    def shift(pose) -> float:
        """Pixels that the object's points move in the picture; turns and sideways steps of a camera look alike."""
        points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 0.4
        pixels = []
        for c2w in (pose[0], truth[0]):
            x, y, z = ((points - c2w[:, 3]) @ c2w[:, :3]).T
            pixels.append(float(camera.fx) * torch.stack([x, y], dim=-1) / -z[:, None])
        return float((pixels[0] - pixels[1]).norm(dim=-1).mean())

    camera.camera_to_worlds = start
    found = optimize_cameras(model, camera, [image], side, steps=100, rays=256, lr=3e-3)
    assert shift(start) > 1.0 and shift(found) < 0.4 * shift(start), (shift(start), shift(found))
    assert loss(found) < 0.6 * loss(start) and loss(found) < 1.1 * loss(truth)
    rotation = found[0, :, :3].double()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("side", ["world", "orbit"])
def test_lost_cameras_are_found_and_put_back(trained_on_true_poses, side):
    pipeline = trained_on_true_poses
    optimizer = pipeline.model.camera_optimizer
    reference = optimizer.reference_camera_to_worlds
    lost = {4: torch.tensor([0.3, -0.2, 0.3]), 17: torch.tensor([-0.35, 0.2, 0.1])}
    original_side, optimizer.config.side = optimizer.config.side, side
    state = copy.deepcopy(pipeline.model.field.state_dict())
    try:
        for index, turn in lost.items():
            motion = exp_map_SE3(torch.cat([torch.zeros(3), turn])[None])[0]  # about the chair, by 24 to 27 degrees
            optimizer.set_refined(index, pose_utils.multiply(motion, reference[index]))
        start = optimizer.refined_camera_to_worlds().detach()
        moved = recover_cameras(pipeline.scene, RecoveryConfig(hypotheses=64, steps=20))
        end = optimizer.refined_camera_to_worlds().detach()
    finally:
        optimizer.pose_adjustment.data.zero_()
        optimizer.config.side = original_side

    def angles(poses) -> torch.Tensor:
        return torch.rad2deg(roma.rotmat_geodesic_distance(poses[:, :, :3], reference[:, :, :3]))

    assert set(lost) <= set(moved) and len(moved) <= 4
    assert (angles(start)[list(lost)] > 20).all() and (angles(end)[list(lost)] < 6).all(), angles(end)[list(lost)]
    others = [index for index in range(len(reference)) if index not in moved]
    assert torch.equal(end[others], start[others])
    for key, value in pipeline.model.field.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_late_search_puts_a_camera_back_that_is_a_few_degrees_off(trained_on_true_poses):
    pipeline = trained_on_true_poses
    optimizer, index = pipeline.model.camera_optimizer, 4
    reference = optimizer.reference_camera_to_worlds
    turn = exp_map_SE3(torch.tensor([[0.0, 0.0, 0.0, 0.08, -0.05, 0.09]]))[0]  # about the chair, by 7.5 degrees
    try:
        optimizer.set_refined(index, pose_utils.multiply(turn, reference[index]))
        moved = recover_cameras(pipeline.scene, RecoveryConfig(cameras=0.03), late=True)  # one suspect
        end = optimizer.refined_camera_to_worlds().detach()
    finally:
        optimizer.pose_adjustment.data.zero_()
    angles = torch.rad2deg(roma.rotmat_geodesic_distance(end[:, :, :3], reference[:, :, :3]))
    assert moved == [index] and angles[index] < 1.5, (moved, angles[index])


def test_the_poses_of_a_late_search_are_close_to_where_the_camera_is(trained_on_true_poses):
    optimizer = trained_on_true_poses.model.camera_optimizer
    pose = optimizer.refined_camera_to_worlds().detach()[4]
    near = near_hypotheses(optimizer, 4, RecoveryConfig(near=40, near_angle=0.2))
    angles = roma.rotmat_geodesic_distance(near[:, :, :3], pose[None, :, :3].expand(40, 3, 3))
    assert near.shape == (40, 3, 4) and angles.max() <= 0.2 + 1e-4
    assert angles[:20].max() <= 0.1 + 1e-4 < angles[20:].max()
    assert torch.equal(near, near_hypotheses(optimizer, 4, RecoveryConfig(near=40, near_angle=0.2)))


@pytest.mark.parametrize("late", [False, True])
def test_nobody_is_moved_where_all_cameras_are_right(trained_on_true_poses, late):
    optimizer = trained_on_true_poses.model.camera_optimizer
    try:
        # Suspects all the same: two cameras with more loss than the median.
        config = RecoveryConfig(cameras=0.05, suspicion=1.0, late_suspicion=1.0, hypotheses=32, steps=10)
        moved = recover_cameras(trained_on_true_poses.scene, config, late)
        twists = optimizer.pose_adjustment.detach().clone()
    finally:
        optimizer.pose_adjustment.data.zero_()
    assert moved == [] and not twists.any()


@pytest.mark.parametrize("settings", [{"at": (0.3, 1.0)}, {"hypotheses": 2}, {"near": 2}, {"steps": 2}, {"rays": 5}])
def test_a_search_that_cannot_be_made_is_refused(settings):
    RecoveryConfig(at=(0.3, 0.5)).validate()
    with pytest.raises(HashPoseError, match="recovery"):
        RecoveryConfig(**settings).validate()


def test_lost_cameras_are_judged_outside_of_masks(trained_on_true_poses, monkeypatch):
    """A thing in front of the lens that a mask takes out makes no camera a lost one, and neither does a mask that
    takes out everything."""
    pipeline = trained_on_true_poses
    dataset = pipeline.datamanager.train_dataset
    shown = dataset.get_data

    def with_thing(index, **kwargs):
        data = dict(shown(index, **kwargs))
        third = data["image"].shape[1] // 3
        if index == 3:
            data["image"] = data["image"].clone()
            data["image"][:, :third] = torch.tensor([1.0, 0.0, 1.0, 1.0])[: data["image"].shape[-1]]
        data["mask"] = torch.ones(*data["image"].shape[:2], 1, dtype=torch.bool)
        data["mask"][:, :third] = index != 3
        data["mask"][:] &= index != 8
        return data

    def unexplained(index: int) -> float:
        pose = pipeline.model.camera_optimizer.refined_camera_to_worlds()[index : index + 1].detach()
        return float(PoseJudge(pipeline.scene, index, 192).losses(pose))

    clean = unexplained(3)
    monkeypatch.setattr(dataset, "get_data", with_thing)
    assert unexplained(3) < 2 * clean
    try:
        assert recover_cameras(pipeline.scene, RecoveryConfig(cameras=0.05, suspicion=3.0)) == []
    finally:
        pipeline.model.camera_optimizer.pose_adjustment.data.zero_()
    monkeypatch.setattr(
        dataset,
        "get_data",
        lambda index, **kwargs: {**with_thing(index, **kwargs), "mask": shown(index)["image"][..., :1] > -1},
    )
    assert unexplained(3) > 5 * clean, "without the mask the thing is seen"


@pytest.mark.parametrize("side", ["world", "camera"])
def test_training_poses_return_to_a_field_that_knows_the_true_ones(trained_on_true_poses, side):
    pipeline = trained_on_true_poses
    optimizer = pipeline.model.camera_optimizer
    twists = 0.03 * torch.randn(40, 6, generator=torch.Generator().manual_seed(4))
    original_side, optimizer.config.side = optimizer.config.side, side
    adam = torch.optim.Adam(optimizer.parameters(), lr=3e-3)
    pipeline.train()
    try:
        optimizer.pose_adjustment.data.copy_(twists)
        optimizer.active = True
        start, losses = pipeline.pose_metrics(), []
        for step in range(150):
            loss = pipeline.get_train_loss_dict(step)[1]["rgb_loss"]
            optimizer.pose_adjustment.grad = torch.autograd.grad(loss, optimizer.pose_adjustment)[0]
            adam.step()
            losses.append(float(loss))
        end = pipeline.pose_metrics()
    finally:
        optimizer.pose_adjustment.data.zero_()
        optimizer.pose_adjustment.grad, optimizer.active, optimizer.config.side = None, False, original_side
        pipeline.eval()
    for measure in ("rotation_deg_mean", "rotation_deg_median", "translation_mean"):
        assert end[f"pose_change_{measure}"] < 0.6 * start[f"pose_change_{measure}"], measure
    assert start["pose_change_rotation_deg_mean"] > 2
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_optimisation_is_repeatable(trained_on_true_poses):
    pipeline = trained_on_true_poses
    image = ImagePixels(pipeline.scene.held_out, 0)
    camera = held_out_cameras(pipeline, [0], pipeline.scene.aligned_held_out_poses())
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(optimize_cameras(pipeline.model, camera, [image], "world", steps=3, rays=32, lr=1e-3))
    assert torch.equal(*found)
    assert not torch.equal(found[0], camera.camera_to_worlds)


def test_cameras_optimised_at_once_end_where_they_would_one_by_one(trained_on_true_poses):
    pipeline = trained_on_true_poses
    aligned, indices = pipeline.scene.aligned_held_out_poses(), [0, 1, 2]
    images = [ImagePixels(pipeline.scene.held_out, index) for index in indices]
    settings = dict(
        side="world", steps=3, rays=64, lr=3e-3
    )  # more, and Adam makes much of rounding where a gradient is next to zero
    together = optimize_cameras(pipeline.model, held_out_cameras(pipeline, indices, aligned), images, **settings)
    alone = [
        optimize_cameras(pipeline.model, held_out_cameras(pipeline, [index], aligned), [image], **settings)
        for index, image in zip(indices, images)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-4)
    assert ((together - aligned[indices]).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_frozen_gives_parameters_back_as_they_were(unchecked):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[0].bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"):
        with frozen(module):
            assert not any(parameter.requires_grad for parameter in module.parameters())
            raise RuntimeError("inside")
    assert [parameter.requires_grad for parameter in module.parameters()] == [True, False, True, True]


# -- all images --------------------------------------------------------------------------------------------------------


def test_evaluation_of_some_images(trained_on_true_poses, tmp_path: Path):
    pipeline = trained_on_true_poses
    pipeline.config.eval_num_images = 3
    before = copy.deepcopy(pipeline.model.state_dict())
    metrics = pipeline.get_average_eval_image_metrics(output_path=tmp_path / "renders", get_std=True)
    assert metrics["num_eval_images"] == 3.0
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert 15 < metrics["psnr_aligned"] < 40 and metrics["psnr_aligned_std"] > 0
    for variant in ("aligned", "tto"):
        names = sorted(path.name for path in (tmp_path / "renders").glob(f"eval_{variant}_img_*.png"))
        assert names == [f"eval_{variant}_img_{index:04d}.png" for index in (0, 4, 9)]
    assert all(torch.equal(value, before[key]) for key, value in pipeline.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in pipeline.model.field.parameters())

    singles = []
    for index in (0, 4, 9):
        camera = held_out_cameras(pipeline, [index], pipeline.scene.aligned_held_out_poses())
        outputs = pipeline.model.eval().get_outputs_for_camera(camera)
        batch = pipeline.datamanager.eval_dataset[index]
        singles.append(pipeline.model.get_image_metrics_and_images(outputs, batch)[0]["psnr"])
    mean = sum(singles) / 3
    deviation = (sum((value - mean) ** 2 for value in singles) / 2) ** 0.5
    assert metrics["psnr_aligned"] == pytest.approx(mean, rel=1e-5)
    assert metrics["psnr_aligned_std"] == pytest.approx(deviation, rel=1e-4)


def test_one_image_has_no_deviation_and_no_nan(untrained):
    untrained.config.eval_num_images = 1
    metrics = untrained.get_average_eval_image_metrics(get_std=True)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["psnr_aligned_std"] == metrics["psnr_tto_std"] == 0.0
    assert untrained.training, "training goes on afterwards"


def test_test_time_optimisation_can_be_left_out(untrained):
    untrained.config.eval_num_images, untrained.config.tto_steps = 2, 0
    metrics = untrained.get_average_eval_image_metrics()
    assert "psnr_aligned" in metrics
    assert not [name for name in metrics if "tto" in name or "std" in name]


def test_single_images_are_taken_in_turn(untrained):
    untrained.eval_image_count = 9
    pictures = [untrained.get_eval_image_metrics_and_images(step)[1]["img"] for step in range(2)]
    for picture, index in zip(pictures, (9, 0)):
        photograph = untrained.model.renderer_rgb.blend_background(untrained.datamanager.eval_dataset[index]["image"])
        assert torch.equal(picture[:, :32], photograph)


def test_evenly_spaced_indices():
    assert evenly_spaced(10, -1) == evenly_spaced(10, 10) == evenly_spaced(10, 99) == list(range(10))
    assert evenly_spaced(10, 1) == [0]
    assert evenly_spaced(200, 5) == [0, 50, 100, 149, 199]
    assert evenly_spaced(0, -1) == evenly_spaced(10, 0) == []


def test_no_image_to_evaluate_exits_with_a_sentence(untrained, capsys):
    untrained.config.eval_num_images = 0
    with pytest.raises(SystemExit) as stop:
        untrained.get_average_eval_image_metrics()
    assert stop.value.code == 1
    assert "Error: There is no image to evaluate" in capsys.readouterr().out


# -- measures of images ------------------------------------------------------------------------------------------------


def test_image_metrics_of_known_images():
    image = torch.rand(16, 20, 3, generator=torch.Generator().manual_seed(0)) * 0.8
    off = image_metrics(image + 0.1, image)
    assert off["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert off["ssim"] < 1.0 == pytest.approx(image_metrics(image, image)["ssim"])
    assert "ssim" not in image_metrics(image[:8, :8] + 0.1, image[:8, :8]), "smaller than its window"
    if not list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth")):
        assert "lpips" not in off, "nothing is downloaded"


# -- held-out pixels during training -----------------------------------------------------------------------------------


def test_held_out_pixels_score_what_a_render_of_their_images_scores(trained_on_true_poses):
    pipeline = trained_on_true_poses
    dataset, model = pipeline.datamanager.eval_dataset, pipeline.model
    poses = pipeline.scene.aligned_held_out_poses()
    held_out = HeldOutPixels(dataset, 320)
    errors = []
    for index in range(len(dataset)):
        coordinates = held_out.pixels.coordinates[held_out.pixels.images == index]
        camera = dataset.cameras[index : index + 1]
        camera.camera_to_worlds = poses[index : index + 1]
        rows, columns = coordinates.long().T
        render = model.get_outputs_for_camera(camera)["rgb"].clamp(0, 1)[rows, columns]
        truth = model.renderer_rgb.blend_background(dataset[index]["image"])[rows, columns]
        errors.append(((render - truth) ** 2).mean())
    assert len(errors) == len(dataset) == 10
    expected = -10 * math.log10(float(torch.stack(errors).mean()))
    assert held_out.psnr(model, poses) == pytest.approx(expected, abs=1e-3)
    turned = poses.clone()
    turned[:, :, 3] += 0.1
    assert held_out.psnr(model, turned) < expected - 1.0
    assert pipeline.held_out_psnr() == pipeline.held_out_psnr()  # the same pixels at every call
