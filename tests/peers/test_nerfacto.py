"""nerfacto under this package's evaluation: its poses and its rendering are nerfstudio's own."""

from __future__ import annotations

import copy

import pytest
import roma
import torch
from scenes import training_metadata
from small_peers import small_config
from torch import Tensor, nn

from hashpose_ns.peers.nerfacto import NerfactoPoseOptimizer, NerfactoPoseOptimizerConfig, NerfactoPosesModel
from hashpose_ns.photometry.align import optimize_cameras
from hashpose_ns.photometry.pixels import ImagePixels
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.nerfacto import NerfactoModelConfig

N = 5


def make_poses() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rotations = roma.random_rotmat(N, generator=generator)
    return torch.cat([rotations, 4 * rotations[:, :, 2:] + 0.1], dim=-1)


def make_optimizer(twists: bool = True, **settings) -> NerfactoPoseOptimizer:
    config = NerfactoPoseOptimizerConfig(**settings)
    poses = make_poses()
    names = [f"{index}.png" for index in range(N)]
    optimizer = config.setup(num_cameras=N, device="cpu", initial_camera_to_worlds=poses, image_names=names)
    if twists:
        optimizer.pose_adjustment.data = 0.3 * torch.randn(N, 6, generator=torch.Generator().manual_seed(1))
        optimizer.pose_adjustment.data[0] = 0  # a camera that has not moved
        optimizer.pose_adjustment.data[1] *= 0.01
    return optimizer


def make_rays(poses: Tensor, count: int = 40) -> RayBundle:
    generator = torch.Generator().manual_seed(2)
    cameras = Cameras(camera_to_worlds=poses, fx=20.0, fy=22.0, cx=8.0, cy=6.0, width=16, height=12)
    coords = torch.rand(count, 2, generator=generator) * torch.tensor([12.0, 16.0])
    return cameras.generate_rays(torch.arange(count)[:, None] % N, coords=coords)


# -- poses -------------------------------------------------------------------------------------------------------------


def test_rays_and_their_gradients_are_those_of_nerfstudios_camera_optimizer():
    ours = make_optimizer()
    theirs = CameraOptimizer(CameraOptimizerConfig(mode="SO3xR3"), N, "cpu")
    theirs.pose_adjustment.data = ours.pose_adjustment.data.clone()
    goal = torch.randn(40, 6, generator=torch.Generator().manual_seed(5))
    for optimizer in (ours, theirs):
        rays = make_rays(make_poses())
        optimizer.apply_to_raybundle(rays)
        optimizer.moved = torch.cat([rays.origins, rays.directions], dim=-1)
        losses = {"rgb_loss": (optimizer.moved * goal).sum()}
        optimizer.get_loss_dict(losses)
        sum(losses.values()).backward()
        optimizer.penalty = losses["camera_opt_regularizer"]
    torch.testing.assert_close(ours.moved, theirs.moved, rtol=0, atol=2e-6)
    torch.testing.assert_close(ours.penalty, theirs.penalty)
    torch.testing.assert_close(ours.pose_adjustment.grad, theirs.pose_adjustment.grad, rtol=1e-4, atol=2e-4)
    assert (ours.moved - torch.cat([make_rays(make_poses()).origins, goal[:, 3:]], dim=-1)).abs().max() > 0.1


def test_rays_of_refined_poses_are_the_moved_rays():
    optimizer = make_optimizer()
    moved = make_rays(make_poses())
    optimizer.apply_to_raybundle(moved)
    refined = make_rays(optimizer.refined_camera_to_worlds().detach())
    torch.testing.assert_close(moved.origins, refined.origins, rtol=0, atol=5e-6)
    torch.testing.assert_close(moved.directions, refined.directions, rtol=0, atol=5e-6)


def test_refined_poses_turn_about_the_cameras_centres():
    optimizer = make_optimizer()
    initial, twists = make_poses().double(), optimizer.pose_adjustment.detach().double()
    refined = optimizer.refined_camera_to_worlds().detach().double()
    torch.testing.assert_close(refined[:, :, 3], initial[:, :, 3] + twists[:, :3], rtol=0, atol=2e-6)
    expected = roma.rotvec_to_rotmat(twists[:, 3:]) @ initial[:, :, :3]
    torch.testing.assert_close(refined[:, :, :3], expected, rtol=0, atol=2e-6)


def test_the_camera_frame_correction_leads_to_the_refined_pose():
    optimizer = make_optimizer()
    bottom = torch.tensor([0.0, 0, 0, 1]).expand(N, 1, 4)
    initial, delta = (torch.cat([pose, bottom], dim=1) for pose in (make_poses(), optimizer(torch.arange(N)).detach()))
    torch.testing.assert_close(
        (initial @ delta)[:, :3], optimizer.refined_camera_to_worlds().detach(), atol=5e-6, rtol=0
    )


def test_a_camera_can_be_put_somewhere_and_frozen_ones_stay():
    optimizer = make_optimizer(frozen_cameras=("2.png",))
    target = optimizer.refined_camera_to_worlds().detach()[4]
    optimizer.set_refined(3, target)
    torch.testing.assert_close(optimizer.refined_camera_to_worlds().detach()[3], target, rtol=0, atol=5e-6)
    torch.testing.assert_close(optimizer.refined_camera_to_worlds().detach()[2], make_poses()[2], rtol=0, atol=1e-6)
    rays = make_rays(make_poses())
    optimizer.active = False
    optimizer.apply_to_raybundle(rays)
    assert not rays.origins.requires_grad


def test_off_leaves_poses_as_they_are():
    optimizer = make_optimizer(twists=False, mode="off")
    assert torch.equal(optimizer.refined_camera_to_worlds(), make_poses())
    losses, groups = {}, {}
    optimizer.get_loss_dict(losses)
    optimizer.get_param_groups(groups)
    assert not losses and not groups


# -- model -------------------------------------------------------------------------------------------------------------


def make_model(**settings) -> NerfactoPosesModel:
    torch.manual_seed(0)
    config = small_config("nerfacto-poses").pipeline.model
    for name, value in settings.items():
        setattr(config, name, value)
    return config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-1.5] * 3, [1.5] * 3])),
        num_train_data=N,
        metadata=training_metadata(make_poses()),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"disable_scene_contraction": False, "proposal_initial_sampler": "piecewise", "distortion_loss_mult": 0.002},
        {
            "use_same_proposal_network": True,
            "use_average_appearance_embedding": True,
            "background_color": "last_sample",
        },
        {"predict_normals": True},
    ],
)
def test_renders_and_losses_are_those_of_nerfstudios_model(settings, monkeypatch: pytest.MonkeyPatch):
    # nerfstudio's model would download a network for a metric that is not looked at here.
    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", lambda **_: nn.Identity())
    ours = make_model(**settings)
    values = {key: value for key, value in vars(ours.config).items() if key not in ("_target", "camera_optimizer")}
    config = NerfactoModelConfig(**copy.deepcopy(values), camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"))
    theirs = config.setup(scene_box=ours.scene_box, num_train_data=N)
    ours.camera_optimizer.pose_adjustment.data = 0.05 * torch.randn(N, 6)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing
    assert set(unexpected) == {
        "progress",
        "format",
        "camera_optimizer.initial_camera_to_worlds",
        "camera_optimizer.reference_camera_to_worlds",
        "camera_optimizer.base_camera_to_worlds",
        "camera_optimizer.fallen_back",
        "camera_optimizer.trusted",
    }
    theirs.collider.reset_near_plane = False
    batch = {"image": torch.rand(40, 3)}
    for training in (True, False):
        results = []
        for model in (ours, theirs):
            model.train(training)
            torch.manual_seed(3)
            outputs = model(make_rays(make_poses()))
            losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
            results.append((outputs, losses))
        (our_outputs, our_losses), (their_outputs, their_losses) = results
        assert set(our_losses) == set(their_losses)
        for name, loss in their_losses.items():
            torch.testing.assert_close(our_losses[name], loss, rtol=1e-4, atol=1e-6)
        for name in ("rgb", "accumulation", "expected_depth"):
            torch.testing.assert_close(our_outputs[name], their_outputs[name], rtol=1e-3, atol=1e-4)
    for step in (0, 100, 2500, 5000, 9000):
        assert ours.proposal_sampler.update_sched(step) == pytest.approx(theirs.proposal_sampler.update_sched(step))


def test_poses_get_gradients_in_training_and_stand_still_before_their_start():
    model = make_model()
    model.camera_optimizer.config.start = 0.5
    model.set_training_length(100)
    for step, moves in ((10, False), (60, True)):
        model.update_to_step(step)
        model.zero_grad()
        outputs = model.train()(make_rays(make_poses()))
        batch = {"image": torch.zeros(40, 3)}
        losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
        sum(losses.values()).backward()
        gradient = model.camera_optimizer.pose_adjustment.grad
        assert (gradient is not None) is moves
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_nothing_is_downloaded_and_lpips_is_no_part_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch):
    def download(*_args, **_kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    assert not [name for name in make_model().state_dict() if "lpips" in name]


def test_progress_is_kept_in_a_checkpoint():
    trained, loaded = make_model(), make_model()
    trained.set_training_length(100)
    trained.update_to_step(60)
    loaded.load_state_dict(trained.state_dict())
    loaded.restore_progress()
    assert loaded.progress.tolist() == [60, 100] and loaded.total_steps == 100


def test_a_held_out_camera_is_optimised_through_the_proposal_networks(unchecked):
    model = make_model().eval()
    camera = Cameras(make_poses()[:1], fx=20.0, fy=22.0, cx=8.0, cy=6.0, width=16, height=12)
    before = copy.deepcopy(model.state_dict())
    image = ImagePixels([{"image": torch.rand(12, 16, 3)}], 0)
    found = optimize_cameras(model, camera, [image], "camera", steps=3, rays=32, lr=1e-2)
    assert torch.isfinite(found).all() and not torch.equal(found, make_poses()[:1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
