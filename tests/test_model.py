"""HashPoseModel: where samples lie, what is behind the field, which parameters are trained, and rendering."""

from __future__ import annotations

import pytest
import roma
import torch
from scenes import training_metadata
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.cameras.trusted import TrustedStartConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.matches.config import MatchTermConfig
from hashpose_ns.matches.epipolar import MatchTerm
from hashpose_ns.matches.matches import Matches
from hashpose_ns.model import HashPoseModel, HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from hashpose_ns.optim.schedules import GroupedAdam
from hashpose_ns.rays import TrainingRays
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.field_heads import FieldHeadNames

N = 4
LEVELS = 3


def make_poses(seed: int = 0) -> Tensor:
    """Cameras around the origin at distance 3 that look at it."""
    generator = torch.Generator().manual_seed(seed)
    rotations = roma.random_rotmat(N, generator=generator)
    return torch.cat([rotations, 3 * rotations[:, :, 2:]], dim=-1)


def make_cameras(poses: Tensor) -> Cameras:
    return Cameras(camera_to_worlds=poses, fx=20.0, fy=22.0, cx=8.0, cy=6.0, width=16, height=12)


def make_model(
    init_scale: float = 2.0, field=None, curriculum=None, camera_optimizer=None, **settings
) -> HashPoseModel:
    torch.manual_seed(0)
    encoding = HashEncodingConfig(
        num_levels=LEVELS,
        base_resolution=2,
        max_resolution=8,
        log2_hashmap_size=9,
        init_scale=init_scale,
        backend="eager",
    )
    settings = {
        "scene": "none",
        "sampler": "uniform",
        "near_plane": 1.0,
        "far_plane": 5.0,
        "num_samples": 8,
        **settings,
    }
    config = HashPoseModelConfig(
        field=HashPoseFieldConfig(
            encoding=encoding, decoder=DecoderConfig(width=16, precision="float32"), **(field or {})
        ),
        curriculum=CurriculumConfig(**(curriculum or {"mode": "none"})),
        camera_optimizer=PoseOptimizerConfig(**(camera_optimizer or {})),
        **settings,
    )
    return config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=N,
        metadata=training_metadata(make_poses(), half_extent=(0.4, 0.3)),
    )


def match_term() -> MatchTerm:
    """Matches of no use but for their number."""
    generator = torch.Generator().manual_seed(3)
    images = torch.combinations(torch.arange(N)).repeat(10, 1)
    matches = Matches(images, torch.randn(len(images), 2, 2, generator=generator), torch.full((N,), 21.0))
    return MatchTerm(matches, MatchTermConfig(weight=0.5, fade=0.4, per_step=20))


def make_rays(count: int = 60, poses=None) -> RayBundle:
    generator = torch.Generator().manual_seed(1)
    coords = torch.rand(count, 2, generator=generator) * torch.tensor([12.0, 16.0])
    indices = torch.arange(count)[:, None] % N
    return make_cameras(make_poses() if poses is None else poses).generate_rays(indices, coords=coords)


# -- samples -----------------------------------------------------------------------------------------------------------


def test_planes_are_distances_or_depths():
    for measure in ("distance", "z"):
        rays = make_rays()
        make_model(depth_measure=measure).eval()(rays)
        axes = make_poses()[rays.camera_indices[:, 0], :, 2]
        for plane, expected in ((rays.nears, 1.0), (rays.fars, 5.0)):
            depth = -(plane * rays.directions * axes).sum(-1)
            reached = plane[:, 0] if measure == "distance" else depth
            torch.testing.assert_close(reached, torch.full_like(reached, expected))
            assert (depth < plane[:, 0]).any(), "a distance is not a depth off the axis"


def test_planes_follow_the_cameras():
    """A quarter and three quarters of the largest distance between two cameras as they are now."""
    model = make_model(planes="cameras", depth_measure="z").eval()
    refined = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    model.camera_optimizer.pose_adjustment.data = 0.1 * refined
    centers = model.camera_optimizer.refined_camera_to_worlds()[..., 3]
    span = max(float((a - b).norm()) for a in centers for b in centers)
    rays = make_rays()
    model(rays)
    assert not rays.nears.requires_grad
    axes = make_poses()[rays.camera_indices[:, 0], :, 2]
    for plane, fraction in ((rays.nears, 0.25), (rays.fars, 0.75)):
        depth = -(plane * rays.directions * axes).sum(-1)
        torch.testing.assert_close(depth, torch.full_like(depth, fraction * span))


def sample_edges(model: HashPoseModel) -> Tensor:
    rays = make_rays(5)
    model(rays)
    bins = model.sampler(rays).frustums
    return torch.cat([bins.starts[..., 0], bins.ends[:, -1:, 0]], dim=-1)


@pytest.mark.parametrize(
    "sampler, near, far, spacing",
    [
        ("uniform", 1.0, 5.0, lambda t: t),
        ("inverse-depth", 1.0, 50.0, lambda t: 1 / t),
        ("piecewise", 0.5, 50.0, lambda t: torch.where(t < 1, t / 2, 1 - 1 / (2 * t))),
    ],
)
def test_samplers_are_even_in_their_spacing_and_stratified_in_training(sampler, near, far, spacing):
    model = make_model(sampler=sampler, near_plane=near, far_plane=far, num_samples=16)
    in_evaluation = sample_edges(model.eval())
    steps = spacing(in_evaluation.double()).diff(dim=-1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(in_evaluation[:, 0], torch.full((5,), near))
    torch.testing.assert_close(in_evaluation[:, -1], torch.full((5,), far), rtol=1e-4, atol=0)
    assert torch.equal(in_evaluation, sample_edges(model)), "evaluation is not random"
    in_training = [sample_edges(model.train()) for _ in range(2)]
    assert not torch.equal(*in_training)
    for edges in in_training:  # within half a bin of the even ones
        offsets = (spacing(edges.double()) - spacing(in_evaluation.double())).abs()
        assert (offsets <= 0.5 * steps.abs().max() * 1.001).all()


def test_clipping_to_the_box_renders_the_same_picture():
    model = make_model(num_samples=1024, background_color="white").eval()
    plain = model(make_rays())
    model.config.clip_to_box = True
    clipped_rays = make_rays()
    clipped = model(clipped_rays)
    # Densities are the same, edges of the box are hit more exactly
    torch.testing.assert_close(clipped["rgb"], plain["rgb"], rtol=0, atol=5e-3)
    assert (clipped_rays.fars - clipped_rays.nears).max() < 2 * 3**0.5 + 1e-4, "no longer than the box' diagonal"
    entry = clipped_rays.origins + clipped_rays.directions * clipped_rays.nears
    crosses = (clipped_rays.fars > clipped_rays.nears)[:, 0]
    assert 0 < crosses.sum()
    torch.testing.assert_close(entry[crosses].abs().amax(-1), torch.ones(int(crosses.sum())), rtol=0, atol=1e-4)


@pytest.mark.parametrize("clip", [False, True])
def test_rays_that_miss_the_box_show_the_background(clip):
    rays = make_rays(3)
    rays.origins, rays.directions = torch.tensor([[3.0, 0, 0]] * 3), torch.tensor([[0.0, 1, 0], [1, 0, 0], [-1, 5, 0]])
    rays.directions = rays.directions / rays.directions.norm(dim=-1, keepdim=True)
    outputs = make_model(background_color="white", clip_to_box=clip).eval()(rays)
    assert torch.equal(outputs["rgb"], torch.ones(3, 3)) and torch.equal(outputs["accumulation"], torch.zeros(3, 1))


@pytest.mark.parametrize("importance", [0, 8])
def test_clipping_and_importance_samples_keep_gradients_of_poses(importance):
    model = make_model(num_importance_samples=importance, clip_to_box=True).train()
    model.set_training_length(10)
    model.update_to_step(5)
    loss = model.get_loss_dict(model(make_rays()), {"image": torch.zeros(60, 3)})["rgb_loss"]
    loss.backward()
    gradient = model.camera_optimizer.pose_adjustment.grad
    assert torch.isfinite(gradient).all() and (gradient.abs().amax(dim=1) > 0).all()


# -- importance sampling -----------------------------------------------------------------------------------------------


def ball_model(monkeypatch, **settings) -> HashPoseModel:
    """A model whose field is a ball of radius 0.4 with a hard surface, coloured by position."""
    model = make_model(background_color="white", near_plane=1.0, far_plane=5.0, **settings)

    def density(samples, *_):
        positions = samples.frustums.get_positions()
        return 40.0 * (positions.norm(dim=-1, keepdim=True) < 0.4).float(), positions

    def colors(samples, density_embedding, *_):
        return {FieldHeadNames.RGB: (density_embedding + 0.5).clamp(0, 1)}

    monkeypatch.setattr(model.field, "get_density", density)
    monkeypatch.setattr(model.field, "get_outputs", colors)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_importance_samples_render_closer_to_the_truth_than_even_ones(monkeypatch, training):
    truth = ball_model(monkeypatch, num_samples=4000).eval()(make_rays())["rgb"]
    hit = truth.amin(dim=-1) < 0.99
    assert 5 < hit.sum() < len(truth) - 5
    even = ball_model(monkeypatch, num_samples=24).train(training)
    important = ball_model(monkeypatch, num_samples=24, num_importance_samples=24).train(training)
    errors = [(model(make_rays())["rgb"] - truth).abs().mean() for model in (even, important)]
    assert errors[1] < 0.3 * errors[0], errors
    # what is not hit is still looked at everywhere
    samples = important._sample_rays(rays_with_planes(important))
    assert samples.shape == (60, 24)
    depths = samples.frustums.starts[~hit][..., 0]
    assert (depths.amin(dim=-1) < 1.4).all() and (depths.amax(dim=-1) > 4.6).all()


def rays_with_planes(model: HashPoseModel) -> RayBundle:
    rays = make_rays()
    model._set_planes(rays)
    return rays


def test_importance_samples_begin_when_they_are_told_to():
    plain, later = make_model().eval(), make_model(num_importance_samples=8, importance_start=0.5).eval()
    pictures = {}
    for step in (4, 5):
        for model in (plain, later):
            model.set_training_length(10)
            model.update_to_step(step)
        pictures[step] = [model(make_rays())["rgb"] for model in (plain, later)]
    assert torch.equal(*pictures[4]) and not torch.equal(*pictures[5])


# -- background and loss -----------------------------------------------------------------------------------------------


def test_photographs_with_alpha_are_put_on_the_background_colour():
    model = make_model(background_color="white")
    rgba = torch.rand(10, 4)
    outputs = {"rgb": torch.rand(10, 3), "accumulation": torch.rand(10, 1)}
    target = rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:])
    expected = (outputs["rgb"] - target).square().mean()
    torch.testing.assert_close(model.get_loss_dict(outputs, {"image": rgba})["rgb_loss"], expected)
    torch.testing.assert_close(model.get_metrics_dict(outputs, {"image": rgba})["psnr"], -10 * torch.log10(expected))
    torch.testing.assert_close(
        model.get_loss_dict(outputs, {"image": target})["rgb_loss"],
        expected,
        msg="images without alpha are as they are",
    )


def test_metrics_of_training_steps_are_computed_where_they_are_logged():
    model = make_model()
    outputs, batch = {"rgb": torch.rand(10, 3)}, {"image": torch.rand(10, 3)}
    expected = model.get_metrics_dict(outputs, batch)
    assert expected["psnr"] > 0
    model.is_logged = False
    assert model.get_metrics_dict(outputs, batch) == {}
    assert model.eval().get_metrics_dict(outputs, batch) == expected


def test_smooth_l1_is_half_the_squared_error_of_colours():
    outputs = {"rgb": torch.rand(50, 3), "accumulation": torch.ones(50, 1)}
    target = {"image": torch.rand(50, 3)}
    squared, smooth = (
        make_model(loss=loss).get_loss_dict(outputs, target)["rgb_loss"] for loss in ("mse", "smooth-l1")
    )
    torch.testing.assert_close(2 * smooth, squared)


def test_the_field_is_composited_on_the_background():
    rays = make_rays()
    white, black = (make_model(background_color=color).eval()(rays) for color in ("white", "black"))
    torch.testing.assert_close(white["accumulation"], black["accumulation"])
    assert 0 < white["accumulation"].mean() < 1
    torch.testing.assert_close(white["rgb"] - black["rgb"], (1 - white["accumulation"]).expand(-1, 3))


def test_depth_lies_between_the_planes_and_is_not_computed_in_training():
    model = make_model().eval()
    depth = model(make_rays())["depth"]
    assert ((depth >= 1) & (depth <= 5)).all()
    assert "depth" not in model.train()(make_rays())


# -- poses -------------------------------------------------------------------------------------------------------------


def test_rays_are_moved_to_the_refined_poses_in_training_alone():
    model = make_model(camera_optimizer={"start": 0.5})
    model.set_training_length(100)
    model.camera_optimizer.pose_adjustment.data = 0.1 * torch.randn(N, 6)
    refined = make_rays(poses=model.camera_optimizer.refined_camera_to_worlds().detach())
    for step, moves in ((10, False), (60, True)):  # before `start` the rays are moved, but the poses are not trained
        model.update_to_step(step)
        rays = make_rays()
        outputs = model.train()(rays)
        torch.testing.assert_close(rays.origins, refined.origins, rtol=0, atol=1e-5)
        torch.testing.assert_close(rays.directions, refined.directions, rtol=0, atol=1e-5)
        model.zero_grad()
        outputs["rgb"].sum().backward()
        assert (model.camera_optimizer.pose_adjustment.grad is not None) is moves
    rays = make_rays()
    model.eval()(rays)
    assert torch.equal(rays.origins, make_rays().origins)


def test_cameras_are_rendered_where_they_are_in_training_mode_too():
    model = make_model(background_color="white").eval()
    model.camera_optimizer.pose_adjustment.data = 0.2 * torch.randn(N, 6)

    def render(metadata=None):
        camera = make_cameras(make_poses())[1:2]
        camera.metadata = metadata
        return model.get_outputs_for_camera(camera)["rgb"]

    expected = render()
    assert expected.shape == (12, 16, 3)
    assert torch.equal(render({"cam_idx": 1}), expected), "what nerfstudio's viewer gives to every camera"
    model.train()
    assert torch.equal(render(), expected) and model.training and model.field.training


# -- training ----------------------------------------------------------------------------------------------------------


def test_every_parameter_is_in_one_optimizer_group():
    for mode, names in (("SE3", {"encoding", "decoder", "camera_opt"}), ("off", {"encoding", "decoder"})):
        model = make_model(camera_optimizer={"mode": mode})
        groups = model.get_param_groups()
        assert set(groups) == names
        assert [group["level"] for group in groups["encoding"]] == list(range(LEVELS))
        members = [table for group in groups["encoding"] for table in group["params"]] + groups["decoder"]
        members += groups.get("camera_opt", [])
        # nerfstudio's base class has an empty parameter that says on which device the model is
        parameters = [parameter for parameter in model.parameters() if parameter.numel() > 0]
        assert sorted(map(id, members)) == sorted(map(id, parameters))


def test_rate_factors_are_python_floats_for_every_group():
    model = make_model(curriculum={"mode": "lr", "window": (0.2, 0.8)}, camera_optimizer={"start": 0.1, "warmup": 0.2})
    model.set_training_length(100)
    factors = model.rate_factors()
    assert factors["encoding"](35) == model.curriculum.weights(35)
    assert factors["camera_opt"](20) == pytest.approx([0.5])
    assert all(type(value) is float for step in range(100) for values in factors.values() for value in values(step))


def test_a_checkpoint_brings_its_place_in_training_to_evaluation():
    trained = make_model(curriculum={"mode": "mask", "window": (0.2, 0.8)})
    trained.set_training_length(100)
    trained.update_to_step(60)
    loaded = make_model(curriculum={"mode": "mask", "window": (0.2, 0.8)})
    before = loaded.eval()(make_rays())["rgb"]
    loaded.load_state_dict(trained.state_dict())
    loaded.restore_progress()
    after = loaded.eval()(make_rays())["rgb"]
    assert torch.equal(after, trained.eval()(make_rays())["rgb"])
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    "settings, content",
    [
        ({"near_plane": 0.0}, "near plane"),
        ({"near_plane": 5.0}, "near plane"),
        ({"num_samples": 1}, "at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, content):
    with pytest.raises(HashPoseError, match=content):
        make_model(**settings)


def test_the_grid_of_a_forward_facing_capture_holds_what_its_cameras_see():
    model = make_model(
        scene="forward-facing", near_plane=1.0, depth_measure="z", sampler="inverse-depth", far_plane=1e4
    )
    low, high = model.field.aabb
    # Corners of the image at the near plane and very far away, as (x / -z, y / -z, 1 / -z)
    for x in (-0.4, 0.4):
        for y in (-0.3, 0.3):
            for disparity in (1.0, 1e-4):
                point = torch.tensor([x, y, disparity])
                assert ((low < point) & (point < high)).all()


# -- what a step asks of the device ------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Notes all operations, and which of them Python waits for until the device is done: reads of a number, and
    results whose size depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.waits = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        self.names.append(name)
        chosen = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if chosen or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2"):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def test_operations_notices_waits():
    with Operations() as operations:
        float(torch.ones(()))
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]
        torch.ones(3)[torch.ones(2, dtype=torch.long)]
    assert operations.waits == ["_local_scalar_dense", "index"]


@pytest.mark.parametrize("scene, sampler", [("none", "uniform"), ("contraction", "piecewise")])
@pytest.mark.parametrize("side", ["world", "orbit"])
def test_a_training_step_waits_for_nothing(scene, sampler, side):
    model = make_model(
        scene=scene,
        sampler=sampler,
        background_color="white",
        camera_optimizer={"side": side},
    )
    model.camera_optimizer.terms["match_loss"] = match_term()
    model.update_to_step(0)
    model.camera_optimizer.active = True  # photographs move poses as well
    rays = TrainingRays(make_cameras(make_poses()))
    adam = GroupedAdam(model.parameters(), lr=1e-3, fused=True)
    pixels = torch.randint(12, (60, 3), generator=torch.Generator().manual_seed(2)) % torch.tensor([N, 12, 12])
    before = model.camera_optimizer.pose_adjustment.detach().clone()
    with Operations() as operations:
        outputs = model(rays(pixels))
        losses = model.get_loss_dict(outputs, {"image": torch.rand(60, 4), "indices": pixels})
        (losses["rgb_loss"] + losses["match_loss"]).backward()
        adam.step()
    assert not torch.equal(model.camera_optimizer.pose_adjustment, before)
    assert operations.waits == [] and "_fused_adam_" in operations.names


# -- matches and trusted starts ----------------------------------------------------------------------------------------


def losses_at(model: HashPoseModel, step: int) -> dict:
    model.set_training_length(100)
    model.update_to_step(step)
    torch.manual_seed(step)
    rays = make_rays()
    return model.get_loss_dict(model(rays), {"image": torch.rand(60, 4), "indices": rays.camera_indices})


def test_the_term_of_matches_is_in_the_loss_until_it_has_faded():
    model = make_model(camera_optimizer={"start": 0.1, "warmup": 0.0})
    model.camera_optimizer.terms["match_loss"] = match_term()
    losses = {step: losses_at(model, step) for step in (0, 20, 40)}
    assert ["match_loss" in losses[step] for step in losses] == [True, True, False]
    (by_matches,) = torch.autograd.grad(losses[0]["match_loss"], model.camera_optimizer.pose_adjustment)
    assert bool(by_matches.any()), "at step 0 photographs do not move poses"
    model.eval()
    assert "match_loss" not in losses_at(model, 0)


def test_rays_and_samples_are_the_same_with_and_without_matches():
    models = [make_model(), make_model()]
    models[1].camera_optimizer.terms["match_loss"] = match_term()
    assert torch.equal(*(losses_at(model, 0)["rgb_loss"] for model in models))


def test_the_curriculum_follows_the_start():
    settings = {
        "curriculum": {"window": (0.2, 0.6)},
        "camera_optimizer": {"trusted": TrustedStartConfig(window=(0.0, 0.1))},
    }
    near, resumed = make_model(**settings), make_model(**settings)
    near.update_to_step(0)
    assert near.curriculum.config.window == (0.2, 0.6)
    near.camera_optimizer.rebase(make_poses(), trusted=True)
    near.update_to_step(0)
    assert near.curriculum.config.window == (0.0, 0.1)
    resumed.load_state_dict(near.state_dict())
    resumed.restore_progress()
    assert resumed.curriculum.config.window == (0.0, 0.1)
