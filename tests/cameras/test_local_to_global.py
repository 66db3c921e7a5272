"""LocalToGlobal: rays by twists of their own, poses registered to them, and what acts on the registered poses."""

from __future__ import annotations

import pytest
import roma
import torch

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.cameras.local_to_global import LocalToGlobal, make_pose_optimizer
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig, corrections_to_world
from hashpose_ns.cameras.settling import SettlingConfig
from hashpose_ns.cameras.warp import Warp, WarpConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.peers.nerfacto import NerfactoPoseOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils import poses as pose_utils

N = 5
SIDES = ["world", "camera", "orbit"]


def poses_of(seed: int = 0, count: int = N) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotations = roma.random_rotmat(count, generator=generator)
    return torch.cat([rotations, 2 * torch.randn(count, 3, 1, generator=generator)], dim=-1)


def make(init: str = "default", **settings) -> LocalToGlobal:
    torch.manual_seed(0)
    warp = settings.pop("warp", WarpConfig(init=init, width=16, embedding=8))
    settings = {"start": 0.0, "warmup": 0.0, **settings}
    optimizer = make_pose_optimizer(
        PoseOptimizerConfig(model="local-to-global", warp=warp, **settings),
        num_cameras=N,
        device="cpu",
        initial_camera_to_worlds=poses_of(),
        image_names=[f"{index}.png" for index in range(N)],
        half_extent=(0.4, 0.3),
    )
    assert isinstance(optimizer, LocalToGlobal)
    optimizer.set_progress(0.5)
    return optimizer


def rays(cameras: list, poses: torch.Tensor, seed: int = 0) -> RayBundle:
    """Rays of random pixels, as nerfstudio makes them from these poses."""
    of = Cameras(camera_to_worlds=poses, fx=30.0, fy=32.0, cx=16.0, cy=12.0, width=32, height=24)
    coords = torch.rand(len(cameras), 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([24, 32])
    return of.generate_rays(camera_indices=torch.tensor(cameras)[:, None], coords=coords)


def same_twist(optimizer: LocalToGlobal, twist: torch.Tensor) -> None:
    """Has the network give one twist to all rays of all cameras."""
    with torch.no_grad():
        optimizer.warp.layers[-1].weight.zero_()
        optimizer.warp.layers[-1].bias.copy_(twist)


def close(found: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=atol)


# -- rays and poses ----------------------------------------------------------------------------------------------------


def test_the_network_is_the_published_one():
    warp = Warp(WarpConfig(), 100)
    network = [p for name, p in warp.named_parameters() if not name.startswith("embedding")]
    assert sum(p.numel() for p in network) == 397_318
    assert warp.embedding.weight.shape == (100, 128)


@pytest.mark.parametrize("side", SIDES)
def test_rays_that_move_alike_are_those_of_a_camera_that_one_twist_moves(side):
    twist = torch.tensor([0.3, -0.2, 0.1, 0.2, 0.1, -0.3])
    optimizer = make(side=side)
    same_twist(optimizer, twist)
    se3 = PoseOptimizerConfig(side=side, start=0.0, warmup=0.0).setup(
        num_cameras=N, device="cpu", initial_camera_to_worlds=poses_of()
    )
    se3.pose_adjustment.data = twist.repeat(N, 1)
    close(optimizer.refined_camera_to_worlds(), se3.refined_camera_to_worlds().detach())
    close(optimizer.current_twists(), se3.pose_adjustment.data, atol=2e-5)
    ours, theirs = (rays([0, 3, 3, 1], poses_of()) for _ in range(2))
    optimizer.apply_to_raybundle(ours)
    se3.apply_to_raybundle(theirs)
    close(ours.origins, theirs.origins.detach())
    close(ours.directions, theirs.directions.detach())
    assert ours.metadata["directions_norm"].equal(theirs.metadata["directions_norm"]), "depths stay depths"


def test_the_zero_start_is_where_poses_are_and_the_default_one_is_not():
    close(make("zero").refined_camera_to_worlds(), poses_of())
    assert not make("zero").is_corrected and not make("zero").has_moved
    assert make("default").is_corrected
    assert (make("default").refined_camera_to_worlds() - poses_of()).abs().max() > 1e-2


@pytest.mark.parametrize("side", SIDES)
def test_the_registered_pose_is_the_nearest_to_the_rays(side):
    """Against roma's registration of one camera's rays."""
    optimizer = make(side=side)
    bundle = rays([2] * 9, poses_of())
    local = poses_of()[2, :, :3].T @ bundle.directions.T * bundle.metadata["directions_norm"].T
    optimizer.apply_to_raybundle(bundle)
    ends = bundle.origins + bundle.directions * bundle.metadata["directions_norm"]
    source, target = torch.cat([local.T, 0 * local.T]), torch.cat([ends, bundle.origins]).detach()
    rotation, translation = roma.rigid_points_registration(source, target)
    close(optimizer.estimated_camera_to_worlds[2], torch.cat([rotation, translation[:, None]], dim=-1))
    rest = source @ rotation.T + translation - target
    close(optimizer.global_loss, rest.square().mean(), atol=1e-9)
    assert optimizer.global_loss > 1e-8, "rays do not all move alike"


def test_a_camera_with_too_few_rays_keeps_its_last_pose_and_has_no_loss():
    optimizer = make()
    optimizer.apply_to_raybundle(rays([0] * 6 + [1], poses_of()))
    close(optimizer.estimated_camera_to_worlds[1:], poses_of()[1:], atol=0)
    assert not torch.equal(optimizer.estimated_camera_to_worlds[0], poses_of()[0])
    bundle = rays([1], poses_of())
    optimizer.apply_to_raybundle(bundle)
    losses: dict = {}
    optimizer.get_loss_dict(losses)
    (losses["global_loss"] + bundle.origins.sum()).backward()
    assert float(losses["global_loss"].detach()) == 0
    assert all(torch.isfinite(p.grad).all() for p in optimizer.warp.parameters())


def test_poses_do_not_depend_on_the_pixels_that_were_drawn():
    optimizer = make()
    before = optimizer.refined_camera_to_worlds().detach()
    for seed in range(2):
        optimizer.apply_to_raybundle(rays([0, 0, 0, 1, 1, 1], poses_of(), seed))
        assert torch.equal(optimizer.refined_camera_to_worlds(), before)


@pytest.mark.parametrize("side", ["world", "orbit"])
def test_the_warp_field_is_what_the_registered_camera_sees_of_its_rays(side):
    optimizer = make(side=side)
    before, after = optimizer.warped_places(2)
    twists = optimizer.warp(before, torch.full((len(before),), 2)).detach()
    own = optimizer.initial_camera_to_worlds[2:3].expand(len(before), 3, 4)
    own = pose_utils.multiply(corrections_to_world(exp_map_SE3(twists), own, side), own)
    points = torch.cat([before, -torch.ones(len(before), 1)], dim=-1)
    world = torch.cat([(own[..., :3] @ points[..., None])[..., 0] + own[..., 3], torch.ones(len(before), 1)], dim=-1)
    pose = torch.cat([optimizer.refined_camera_to_worlds()[2].detach(), torch.tensor([[0.0, 0.0, 0.0, 1.0]])])
    seen = world @ torch.linalg.inv(pose).T
    close(after, seen[:, :2] / -seen[:, 2:3])
    assert (after - before).norm(dim=-1).max() > 1e-4 and before.abs().max(0).values.tolist() == pytest.approx(
        [0.35, 0.2625]
    )
    same_twist(optimizer, torch.tensor([0.3, -0.1, 0.2, 0.4, 0.1, -0.2]))
    before, after = optimizer.warped_places(2)
    close(after, before)


def test_the_global_loss_makes_motions_rigid():
    optimizer = make()
    adam = torch.optim.Adam(optimizer.warp.parameters(), lr=1e-3)
    found = []
    for step in range(60):
        optimizer.apply_to_raybundle(rays([index for index in range(N) for _ in range(8)], poses_of(), step))
        losses: dict = {}
        optimizer.get_loss_dict(losses)
        adam.zero_grad()
        losses["global_loss"].backward()
        adam.step()
        found.append(float(losses["global_loss"].detach()))
    assert sum(found[-5:]) < 0.1 * sum(found[:5])


def test_terms_pull_the_registered_poses():
    """The gradient of a term by the twist that all rays share, against one twist per camera."""
    optimizer = make()
    same_twist(optimizer, torch.zeros(6))

    class Pull:
        until = 1.0

        def __call__(self, camera_to_worlds, progress):
            return (camera_to_worlds * torch.arange(12.0).view(3, 4)).sum()

    se3 = PoseOptimizerConfig(start=0.0, warmup=0.0).setup(
        num_cameras=N, device="cpu", initial_camera_to_worlds=poses_of()
    )
    gradients = []
    for each, parameter in ((optimizer, optimizer.warp.layers[-1].bias), (se3, se3.pose_adjustment)):
        each.terms["pull"] = Pull()
        each.set_progress(0.1)
        losses: dict = {}
        each.get_loss_dict(losses)
        gradients.append(torch.autograd.grad(losses["pull"], parameter)[0])
    torch.testing.assert_close(gradients[0], gradients[1].sum(0), rtol=1e-4, atol=1e-3)


# -- standing still ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["paused", "early", "settled"])
def test_poses_that_stand_still_have_no_gradient(how):
    optimizer = make(start=0.2, settling=SettlingConfig(decay=0.5))
    optimizer.paused = how == "paused"
    if how == "settled":
        optimizer.settling.settled = 20
    optimizer.set_progress(0.1 if how == "early" else 0.5)
    bundle = rays([0, 0, 0], poses_of())
    optimizer.apply_to_raybundle(bundle)
    losses: dict = {}
    optimizer.get_loss_dict(losses)
    assert not bundle.origins.requires_grad and not losses
    assert not optimizer.refined_camera_to_worlds().requires_grad


def test_a_frozen_camera_stays_exactly_and_so_do_its_rays():
    optimizer = make(frozen_cameras=("2.png",))
    assert torch.equal(optimizer.refined_camera_to_worlds()[2], poses_of()[2])
    bundle = rays([2, 2, 2, 0, 0, 0], poses_of())
    before = bundle.origins.clone(), bundle.directions.clone()
    optimizer.apply_to_raybundle(bundle)
    close(bundle.origins[:3], before[0][:3], atol=0)
    close(bundle.directions[:3], before[1][:3], atol=1e-6)
    (bundle.origins[:3].sum() + bundle.directions[:3].sum() + bundle.origins[3:].sum()).backward()
    assert not optimizer.warp.embedding.weight.grad[2].any() and optimizer.warp.embedding.weight.grad[0].any()


def test_a_held_camera_stays_while_others_move_and_goes_on_from_there():
    optimizer = make()
    optimizer.held.add(1)
    optimizer.set_progress(0.5)
    before = optimizer.refined_camera_to_worlds().detach()
    with torch.no_grad():  # what training does to everybody
        optimizer.warp.layers[-1].bias += 0.2
    after = optimizer.refined_camera_to_worlds().detach()
    assert torch.equal(after[1], before[1]) and (after[0] - before[0]).abs().max() > 0.05
    # A checkpoint made now does not say who holds what; loaded elsewhere the camera begins where it is.
    elsewhere = make()
    elsewhere.load_state_dict(optimizer.state_dict())
    for each in (optimizer, elsewhere):
        each.held.discard(1)
        each.set_progress(0.5)
        close(each.refined_camera_to_worlds(), after, atol=1e-5)
        assert not each.standing.any()


# -- put somewhere -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_a_camera_is_put_where_it_is_wanted_and_no_other_moves(side):
    optimizer = make(side=side)
    before, wanted = optimizer.refined_camera_to_worlds().detach(), poses_of(seed=7)[3]
    optimizer.set_refined(3, wanted)
    after = optimizer.refined_camera_to_worlds().detach()
    close(after[3], wanted, atol=1e-5)
    assert torch.equal(after[[0, 1, 2, 4]], before[[0, 1, 2, 4]])
    optimizer.put_back([3])
    close(optimizer.refined_camera_to_worlds()[3], poses_of()[3], atol=1e-5)


def test_at_its_time_cameras_go_on_by_twists_from_where_they_are():
    optimizer = make(side="orbit", warp=WarpConfig(width=16, embedding=8, until=0.6))
    before = optimizer.refined_camera_to_worlds().detach()
    optimizer.set_progress(0.59)
    assert optimizer.warping
    optimizer.set_progress(0.6)
    assert not optimizer.warping
    close(optimizer.refined_camera_to_worlds(), before, atol=1e-5)
    bundle = rays([0, 4], poses_of())
    optimizer.apply_to_raybundle(bundle)
    bundle.directions.sum().backward()
    assert optimizer.pose_adjustment.grad[[0, 4]].any() and optimizer.warp.embedding.weight.grad is None
    losses: dict = {}
    optimizer.get_loss_dict(losses)
    assert not losses


def test_falling_back_is_exact_and_leaves_those_that_are_held():
    optimizer = make()
    optimizer.held.add(0)
    optimizer.set_progress(0.5)
    before = optimizer.refined_camera_to_worlds().detach()
    optimizer.fall_back(0.1)
    after = optimizer.refined_camera_to_worlds().detach()
    close(after[0], before[0], atol=1e-5)
    close(after[1:], poses_of()[1:], atol=4e-6)
    assert not optimizer.pose_adjustment[1:].any() and optimizer.rate_factor(0.5) == pytest.approx(0.1)


def test_a_trusted_start_is_refined_by_twists():
    optimizer = make()
    optimizer.rebase(poses_of(seed=3), trusted=True)
    assert not optimizer.warping
    close(optimizer.refined_camera_to_worlds(), poses_of(seed=3))
    optimizer = make("zero")
    optimizer.rebase(poses_of(seed=3), trusted=False)
    assert optimizer.warping and optimizer.has_moved
    close(optimizer.refined_camera_to_worlds(), poses_of(seed=3), atol=5e-6)


def test_what_it_cannot_do_it_says():
    with pytest.raises(HashPoseError, match="one twist per camera"):
        make(rotation_start=0.2)
    with pytest.raises(HashPoseError, match="fraction of training"):
        make(warp=WarpConfig(until=0.0))
    with pytest.raises(HashPoseError, match="takes the place of SO3xR3"):
        make_pose_optimizer(NerfactoPoseOptimizerConfig(model="local-to-global"), num_cameras=N, device="cpu")
    off = make_pose_optimizer(PoseOptimizerConfig(mode="off", model="local-to-global"), num_cameras=N, device="cpu")
    assert type(off) is PoseOptimizer
