"""PoseOptimizer: against scipy's matrix exponential, against rays generated anew, and what must not move."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import scipy.linalg
import torch

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig, frozen_indices
from hashpose_ns.cameras.trusted import TrustedStartConfig
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.camera_optimizers import CameraOptimizer
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils import poses as pose_utils

N = 5
SIDES = ["world", "camera", "orbit"]
NAMES = ["a/left.png", "b/left.png", "b/right.png", "b/top.png", "b/5.png"]


def random_poses(count: int = N, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotations = roma.random_rotmat(count, dtype=torch.float64, generator=generator)
    centers = torch.randn(count, 3, 1, dtype=torch.float64, generator=generator) * 2
    return torch.cat([rotations, centers], dim=-1).float()


def random_twists(scale: float, count: int = N, seed: int = 1) -> torch.Tensor:
    return scale * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def make(twists=None, count: int = N, **settings) -> PoseOptimizer:
    optimizer = PoseOptimizerConfig(**settings).setup(
        num_cameras=count, device="cpu", initial_camera_to_worlds=random_poses(count), image_names=NAMES[:count]
    )
    if twists is not None:
        optimizer.pose_adjustment.data = twists
    return optimizer


def make_cameras(poses: torch.Tensor) -> Cameras:
    return Cameras(camera_to_worlds=poses, fx=30.0, fy=32.0, cx=16.0, cy=12.0, width=32, height=24)


def expected_poses(initial: torch.Tensor, twists: torch.Tensor, side: str) -> np.ndarray:
    """refined = exp(xi) initial, initial exp(xi) or, along the axes R of the initial pose, R exp(xi) R^T initial;
    xi = [translation, rotation], in float64 by scipy."""
    refined = []
    for pose, twist in zip(initial.double().numpy(), twists.double().numpy()):
        v, (x, y, z) = twist[:3], twist[3:]
        generator = np.zeros((4, 4))
        generator[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
        generator[:3, 3] = v
        pose, motion = np.vstack([pose, [0, 0, 0, 1]]), scipy.linalg.expm(generator)
        axes = np.eye(4)
        axes[:3, :3] = pose[:3, :3]
        products = {"world": motion @ pose, "camera": pose @ motion, "orbit": axes @ motion @ axes.T @ pose}
        refined.append(products[side][:3])
    return np.stack(refined)


# -- poses -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("scale", [1e-4, 3e-3, 0.1, 1.0])
def test_refined_poses_are_those_of_the_matrix_exponential(side, scale):
    twists = random_twists(scale)
    optimizer = make(twists, side=side)
    refined = optimizer.refined_camera_to_worlds().detach().double().numpy()
    np.testing.assert_allclose(refined, expected_poses(optimizer.initial_camera_to_worlds, twists, side), atol=2e-6)


@pytest.mark.parametrize("side", SIDES)
def test_without_a_correction_poses_are_the_initial_ones_to_the_bit(side):
    optimizer = make(side=side)
    if side == "world":
        assert torch.equal(optimizer.refined_camera_to_worlds(), optimizer.initial_camera_to_worlds)
    torch.testing.assert_close(
        optimizer.refined_camera_to_worlds(), optimizer.initial_camera_to_worlds, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("side", SIDES)
def test_forward_is_the_delta_that_the_viewer_multiplies_from_the_right(side):
    optimizer = make(random_twists(0.3), side=side)
    assert isinstance(optimizer, CameraOptimizer)  # the viewer asserts it
    indices = torch.tensor([3, 0, 3])
    delta = optimizer(indices)
    composed = pose_utils.multiply(optimizer.initial_camera_to_worlds[indices], delta)
    torch.testing.assert_close(composed, optimizer.refined_camera_to_worlds()[indices], rtol=0, atol=2e-6)


def test_the_sides_differ_by_the_pose_between():
    twists = random_twists(0.2)
    world, camera = make(twists, side="world"), make(twists, side="camera")
    # A rotation about the camera's own centre keeps the centre; one about the world's origin keeps the origin's image
    rotation_only = torch.cat([torch.zeros(N, 3), twists[:, 3:]], dim=-1)
    for optimizer in (world, camera):
        optimizer.pose_adjustment.data = rotation_only
    centers = camera.initial_camera_to_worlds[:, :, 3]
    torch.testing.assert_close(camera.refined_camera_to_worlds()[:, :, 3], centers, rtol=0, atol=2e-6)
    assert ((world.refined_camera_to_worlds()[:, :, 3] - centers).norm(dim=-1) > 1e-2).all()
    torch.testing.assert_close(world.refined_camera_to_worlds()[:, :, 3].norm(dim=-1), centers.norm(dim=-1))


def test_an_orbit_is_distance_shift_roll_and_tilt_along_the_cameras_axes():
    twists = torch.zeros(N, 6)
    twists[:, 2] = 0.4  # along the optical axis, away from what is seen
    optimizer = make(twists, side="orbit")
    initial = optimizer.initial_camera_to_worlds
    refined = optimizer.refined_camera_to_worlds()
    torch.testing.assert_close(refined[:, :, :3], initial[:, :, :3], rtol=0, atol=2e-6)
    torch.testing.assert_close(refined[:, :, 3], initial[:, :, 3] + 0.4 * initial[:, :, 2], rtol=0, atol=2e-6)
    twists = torch.zeros(N, 6)
    twists[:, 5] = 0.4  # a roll leaves the optical axis where it points
    optimizer.pose_adjustment.data = twists
    torch.testing.assert_close(optimizer.refined_camera_to_worlds()[:, :, 2], initial[:, :, 2], rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", SIDES)
def test_a_camera_can_be_put_anywhere(side):
    optimizer = make(random_twists(0.1), side=side)
    target = random_poses(1, seed=7)[0]
    others = optimizer.refined_camera_to_worlds()[[0, 1, 3, 4]]
    optimizer.set_refined(2, target)
    torch.testing.assert_close(optimizer.refined_camera_to_worlds()[2], target, rtol=0, atol=5e-6)
    assert torch.equal(optimizer.refined_camera_to_worlds()[[0, 1, 3, 4]], others)


# -- rays --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("count", [1, 40])
def test_moved_rays_are_those_of_the_refined_cameras(side, count):
    optimizer = make(random_twists(0.3), side=side)
    generator = torch.Generator().manual_seed(2)
    indices = torch.randint(N, (count, 1), generator=generator)
    coords = torch.rand(count, 2, generator=generator) * 24
    moved = make_cameras(optimizer.initial_camera_to_worlds).generate_rays(indices, coords=coords)
    optimizer.apply_to_raybundle(moved)
    anew = make_cameras(optimizer.refined_camera_to_worlds().detach()).generate_rays(indices, coords=coords)
    assert moved.origins.shape == (count, 3) and moved.directions.shape == (count, 3)
    torch.testing.assert_close(moved.origins, anew.origins, rtol=0, atol=3e-6)
    torch.testing.assert_close(moved.directions, anew.directions, rtol=0, atol=3e-6)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.3])
def test_gradients_of_rays_with_respect_to_twists(side, scale):
    optimizer = make(random_twists(scale, count=3).double(), count=3, side=side).double()
    cameras = make_cameras(random_poses(3).float())
    indices = torch.tensor([[0], [1], [2], [1]])
    bundle = cameras.generate_rays(indices, coords=torch.rand(4, 2, generator=torch.Generator().manual_seed(3)) * 20)
    origins, directions = bundle.origins.double(), bundle.directions.double()

    def moved(twists):
        bundle.origins, bundle.directions = origins, directions
        with torch.no_grad():
            optimizer.pose_adjustment.copy_(twists)
        optimizer.apply_to_raybundle(bundle)
        return torch.cat([bundle.origins, bundle.directions]).flatten()

    start = optimizer.pose_adjustment.detach().clone()
    jacobian = torch.stack(
        [
            torch.autograd.grad(value, optimizer.pose_adjustment, retain_graph=True)[0].flatten()
            for value in moved(start)
        ]
    )
    step = 1e-4 if scale == 0.3 else 1e-6  # a short one must not leave the branch of small angles
    numeric = []
    for entry in range(start.numel()):
        change = torch.zeros_like(start).flatten()
        change[entry] = step
        ahead, behind = (moved(start + sign * change.view_as(start)).detach() for sign in (1, -1))
        numeric.append((ahead - behind) / (2 * step))
    torch.testing.assert_close(jacobian, torch.stack(numeric, dim=-1), rtol=0, atol=2e-6)
    assert torch.isfinite(jacobian).all() and jacobian.abs().max() > 0.1


def test_poses_that_stand_still_get_no_gradient_at_all():
    optimizer = make(random_twists(0.1))
    optimizer.active = False
    bundle = make_cameras(optimizer.initial_camera_to_worlds).generate_rays(
        torch.tensor([[1]]), coords=torch.ones(1, 2)
    )
    before = bundle.origins.clone()
    optimizer.apply_to_raybundle(bundle)
    assert not bundle.origins.requires_grad, "zeros would enter Adam's moments"
    assert not torch.equal(bundle.origins, before), "the rays are those of the poses reached so far"


@pytest.mark.parametrize("side", ["world", "camera", "orbit"])
def test_cameras_are_shifted_before_they_are_turned(side):
    """Steps of plain descent on all 12 numbers of the poses: at first no camera turns, later all do."""
    optimizer = make(torch.zeros(N, 6), side=side, start=0.0, warmup=0.0, rotation_start=0.3)
    initial = optimizer.initial_camera_to_worlds
    descent = torch.optim.SGD(optimizer.parameters(), lr=1e-2)
    target = random_poses(N).roll(1, dims=0)
    for progress, turns in ((0.0, False), (0.29, False), (0.3, True), (1.0, True)):
        optimizer.set_progress(progress)
        descent.zero_grad()
        (optimizer.refined_camera_to_worlds() - target).square().sum().backward()
        descent.step()
        refined = optimizer.refined_camera_to_worlds().detach()
        angles = roma.rotmat_geodesic_distance(refined[:, :, :3].double(), initial[:, :, :3].double())
        assert (angles.min() > 1e-4) if turns else (angles.max() < 1e-6)
        assert (refined[:, :, 3] - initial[:, :, 3]).norm(dim=-1).min() > 1e-4
    with pytest.raises(HashPoseError, match="rotation-start is a fraction"):
        make(rotation_start=1.0)


# -- frozen cameras ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frozen, indices",
    [
        (["right.png"], [2]),
        (["b/left.png"], [1]),
        (["b/top.png", "a/left.png", "b/top.png"], [0, 3]),
        (["3"], [3]),
        (["0", "right.png"], [0, 2]),
        (["5.png"], [4]),
        ([], []),
    ],
)
def test_frozen_cameras_by_name_folder_and_index(frozen, indices):
    assert frozen_indices(frozen, NAMES) == indices


@pytest.mark.parametrize(
    "frozen, contents",
    [
        ("rigth.png", ["'rigth.png' is not one of the 5 training images", "the nearest name is 'right.png'"]),
        ("ight.png", ["'ight.png' is not one of the 5"]),
        ("5", ["'5' is not one of the 5"]),
        ("-1", ["'-1' is not one"]),
        ("left.png", ["matches 2 training images", "'a/left.png'"]),
        ("²", ["is not one"]),
    ],
)
def test_unknown_frozen_camera_is_one_sentence(frozen, contents):
    with pytest.raises(HashPoseError) as error:
        make(frozen_cameras=(frozen,))
    assert all(content in str(error.value) for content in contents)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", SIDES)
def test_frozen_cameras_keep_their_pose_to_the_bit_while_others_move(side):
    optimizer = make(side=side, frozen_cameras=("b/left.png", "3"), trans_l2_penalty=0.1, rot_l2_penalty=0.1)
    adam = torch.optim.Adam(optimizer.parameters(), lr=1e-2, fused=True)
    cameras = make_cameras(optimizer.initial_camera_to_worlds)
    indices = torch.arange(N)[:, None]
    for step in range(20):
        bundle = cameras.generate_rays(indices, coords=torch.full((N, 2), float(step)))
        optimizer.apply_to_raybundle(bundle)
        losses = {"rgb_loss": (bundle.origins + bundle.directions).square().sum()}
        optimizer.get_loss_dict(losses)
        adam.zero_grad()
        sum(losses.values()).backward()
        adam.step()
    refined, initial = optimizer.refined_camera_to_worlds(), optimizer.initial_camera_to_worlds
    for index in range(N):
        if index in (1, 3):
            assert torch.equal(refined[index], initial[index])
        else:
            assert (refined[index] - initial[index]).abs().max() > 1e-2


# -- off, viewer, penalties, schedule ----------------------------------------------------------------------------------


def test_off_changes_nothing_and_has_nothing_to_train():
    optimizer = make(mode="off", trans_l2_penalty=1.0)
    groups, losses = {}, {}
    optimizer.get_param_groups(groups)
    optimizer.get_loss_dict(losses)
    assert groups == {} and losses == {} and list(optimizer.parameters()) == []
    assert torch.equal(optimizer.refined_camera_to_worlds(), optimizer.initial_camera_to_worlds)
    bundle = make_cameras(optimizer.initial_camera_to_worlds).generate_rays(
        torch.tensor([[2]]), coords=torch.ones(1, 2)
    )
    origins, directions = bundle.origins.clone(), bundle.directions.clone()
    optimizer.apply_to_raybundle(bundle)
    assert torch.equal(bundle.origins, origins) and torch.equal(bundle.directions, directions)


def test_cameras_are_rendered_where_they_are():
    optimizer = make(random_twists(0.3))
    camera = make_cameras(random_poses(1, seed=7))
    camera.metadata = {"cam_idx": 0}  # what nerfstudio's viewer gives to every camera it renders
    assert torch.equal(optimizer.apply_to_camera(camera), camera.camera_to_worlds)
    camera.metadata = None
    assert torch.equal(optimizer.apply_to_camera(camera), camera.camera_to_worlds)


def test_penalties_are_the_mean_squared_parts_of_the_twists():
    twists = random_twists(0.3)
    losses = {}
    make(twists).get_loss_dict(losses)
    assert losses == {}, "nothing pulls poses back unless it is asked for"
    make(twists, trans_l2_penalty=2.0, rot_l2_penalty=3.0).get_loss_dict(losses)
    expected = 2 * twists[:, :3].square().sum(-1).mean() + 3 * twists[:, 3:].square().sum(-1).mean()
    assert losses["camera_opt_regularizer"].item() == pytest.approx(float(expected), rel=1e-6)


def test_delay_and_warm_up_of_the_rate():
    optimizer = make(start=0.2, warmup=0.4)
    factors = [optimizer.rate_factor(progress) for progress in (0.0, 0.199, 0.2, 0.3, 0.4, 0.6, 1.0)]
    assert factors == pytest.approx([0, 0, 0, 0.25, 0.5, 1, 1])
    assert all(type(factor) is float for factor in factors)
    at_once = make(start=0.0, warmup=0.0)
    assert [at_once.rate_factor(progress) for progress in (0.0, 1.0)] == [1.0, 1.0]
    with pytest.raises(HashPoseError, match="at most 1"):
        make(start=0.8, warmup=0.4)


def test_initial_and_reference_poses_are_part_of_the_checkpoint():
    optimizer = make()
    poses = {f"{which}_camera_to_worlds" for which in ("initial", "base", "reference")}
    saved = {*poses, "pose_adjustment", "fallen_back", "trusted"}
    assert saved == set(optimizer.state_dict())
    other = PoseOptimizer(PoseOptimizerConfig(), N, "cpu", random_poses(seed=9), random_poses(seed=10), NAMES)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.initial_camera_to_worlds, optimizer.initial_camera_to_worlds)


# -- trusted starts ----------------------------------------------------------------------------------------------------


class Pull:
    """A term of poses that is there for some time."""

    def __init__(self, until: float) -> None:
        self.until = until

    def __call__(self, camera_to_worlds: torch.Tensor, progress: float) -> torch.Tensor:
        return (1 + progress) * camera_to_worlds.square().sum()


def make_trusted(trusted: bool = True, **settings) -> PoseOptimizer:
    schedule = TrustedStartConfig(start=0.4, warmup=0.2, rate=0.25)
    optimizer = make(start=0.1, warmup=0.0, trusted=schedule, **settings)
    optimizer.rebase(random_poses(), trusted)
    return optimizer


def test_a_trusted_start_has_a_schedule_of_its_own():
    progresses = (0.05, 0.2, 0.4, 0.5, 0.6, 1.0)
    far, near = make_trusted(False), make_trusted()
    assert [far.rate_factor(progress) for progress in progresses] == pytest.approx([0, 1, 1, 1, 1, 1])
    assert [near.rate_factor(progress) for progress in progresses] == pytest.approx([0, 0, 0, 0.125, 0.25, 0.25])
    assert (far.free_from, near.free_from) == pytest.approx((0.1, 0.6))
    restored = make_trusted(False)
    restored.load_state_dict(near.state_dict())
    assert restored.is_trusted, "a resumed run goes on by the schedule it began with"
    for wrong in ({"start": 0.9, "warmup": 0.2}, {"rate": -1.0}):
        with pytest.raises(HashPoseError, match="camera-optimizer.trusted"):
            make(trusted=TrustedStartConfig(**wrong))


def moved_by(optimizer: PoseOptimizer, progress: float) -> tuple:
    """Whether photographs and whether matches move poses."""
    optimizer.set_progress(progress)
    return tuple(optimizer.refined_camera_to_worlds(by_terms).requires_grad for by_terms in (False, True))


def test_terms_move_poses_before_photographs_do():
    optimizer = make(start=0.4, warmup=0.2)
    optimizer.terms["pull"] = Pull(until=0.8)
    moved = {progress: moved_by(optimizer, progress) for progress in (0.0, 0.4, 0.5, 0.9)}
    assert moved == {0.0: (False, True), 0.4: (False, False), 0.5: (True, True), 0.9: (True, False)}, (
        "at 0.4 the rate of the warm-up is 0"
    )
    assert [optimizer.rate_factor(progress) for progress in (0.0, 0.5, 0.9)] == pytest.approx([1.0, 0.5, 1.0])
    losses: dict = {}
    optimizer.set_progress(0.5)
    optimizer.get_loss_dict(losses)
    (gradient,) = torch.autograd.grad(losses["pull"], optimizer.pose_adjustment)
    assert float(losses["pull"].detach()) == pytest.approx(1.5 * float(random_poses().square().sum()))
    assert bool(gradient.any())
    optimizer.set_progress(0.0)
    optimizer.fall_back(0.0)
    assert moved_by(optimizer, 0.0) == (False, False)


def test_terms_are_left_out_where_they_have_nothing_to_say():
    for optimizer in (make_trusted(), make_trusted(False, mode="off")):
        optimizer.terms["pull"] = Pull(until=0.8)
        optimizer.set_progress(0.5)
        losses: dict = {}
        optimizer.get_loss_dict(losses)
        assert losses == {}, "a trusted start is their optimum already"
    paused = make_trusted(False)
    paused.terms["pull"], paused.paused = Pull(until=0.8), True
    paused.set_progress(0.5)
    paused.get_loss_dict(losses)
    assert losses == {}


def test_a_trusted_start_leaves_in_doubt_whom_it_could_not_place():
    far, given = make_trusted(False), make_trusted()
    placed = random_poses()
    placed[[0, 3]] = random_poses(seed=5)[[0, 3]]
    some = make_trusted()
    some.rebase(placed, trusted=True)
    assert far.doubtful_cameras() == set(range(N)) and given.doubtful_cameras() == set()
    assert some.doubtful_cameras() == {1, 2, 4}
    near = [optimizer.doubtful_cameras(near=True) for optimizer in (far, given, some)]
    assert near == [set(range(N)), set(), set(range(N))]
