"""Alignment and pose errors, against evo, hand-worked cases and exact similarities."""

import math

import numpy as np
import pytest
import roma
import torch

from hashpose_ns.cameras.alignment import (
    Similarity,
    align_centers,
    align_poses,
    centers_coincide,
    pose_errors,
    rotation_angle,
)
from hashpose_ns.cameras.perturbation import PerturbationConfig, identity_poses, perturb_poses


def random_poses(num_cameras: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotations = roma.random_rotmat(num_cameras, dtype=torch.float64, generator=generator)
    centers = torch.randn(num_cameras, 3, 1, dtype=torch.float64, generator=generator) * 2.0 + 0.5
    return torch.cat([rotations, centers], dim=-1).to(dtype)


def random_similarity(seed: int = 100, scale: float = 2.7) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    return Similarity(
        scale=torch.tensor(scale, dtype=torch.float64),
        rotation=roma.random_rotmat(dtype=torch.float64, generator=generator),
        translation=torch.randn(3, dtype=torch.float64, generator=generator),
    )


def assert_similar(actual: Similarity, expected: Similarity, atol: float = 1e-10) -> None:
    for name in ("scale", "rotation", "translation"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=atol, rtol=0)


def rotation_z(angle: float) -> torch.Tensor:
    return roma.rotvec_to_rotmat(torch.tensor([0.0, 0.0, angle], dtype=torch.float64))


def test_similarity_maps_points_and_poses():
    # a quarter turn about z, doubled, then moved: worked by hand
    similarity = Similarity(
        scale=torch.tensor(2.0, dtype=torch.float64),
        rotation=torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64),
        translation=torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64),
    )
    assert similarity.apply_to_points(torch.tensor([1.0, 2.0, 3.0])).tolist() == [6.0, 22.0, 36.0]
    pose = torch.cat([torch.eye(3), torch.tensor([[1.0], [2.0], [3.0]])], dim=-1)
    expected = torch.tensor([[0.0, -1, 0, 6], [1, 0, 0, 22], [0, 0, 1, 36]])
    assert torch.equal(similarity.apply_to_poses(pose), expected)
    assert similarity.apply_to_poses(pose).dtype == torch.float32


def test_similarity_inverse_and_identity():
    similarity, poses = random_similarity(), random_poses(7)
    torch.testing.assert_close(similarity.inverse().apply_to_poses(similarity.apply_to_poses(poses)), poses)
    assert torch.equal(Similarity.identity().apply_to_poses(poses), poses)
    batched = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(similarity.inverse().apply_to_points(similarity.apply_to_points(batched)), batched)


@pytest.mark.parametrize("align", [align_poses, align_centers])
@pytest.mark.parametrize("num_cameras", [1, 2, 3, 4, 40])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e7])
def test_gauge_change_is_recovered_and_costs_nothing(num_cameras, scale, align):
    source = random_poses(num_cameras, seed=num_cameras)
    similarity = random_similarity(scale=scale if num_cameras > 1 else 1.0)
    target = similarity.apply_to_poses(source)
    found = align(source, target)
    assert_similar(found, similarity, atol=1e-9 * max(1.0, scale))
    errors = pose_errors(source, target, found)
    assert errors.rotation_deg.max() < 1e-6
    assert errors.translation.max() < 1e-9 * max(1.0, scale)
    assert errors.center.max() < 1e-9 * max(1.0, scale)


def test_gauge_change_in_float32_stays_at_rounding():
    source = random_poses(30, dtype=torch.float32)
    target = random_similarity().apply_to_poses(source)
    errors = pose_errors(source, target)
    assert errors.rotation_deg.max() < 2e-5
    assert errors.center.max() < 5e-6


@pytest.mark.parametrize("align", [align_poses, align_centers])
@pytest.mark.parametrize("noise", [0.01, 1.0, "unrelated"])
def test_swapping_the_sides_gives_the_inverse(align, noise):
    source, target = random_poses(20, seed=1), random_poses(20, seed=2)
    if noise != "unrelated":
        target = random_similarity().apply_to_poses(noisy(source, noise, noise))
    assert_similar(align(source, target).inverse(), align(target, source), atol=1e-8)


# -- by centres and orientations ---------------------------------------------------------------------------------------


def noisy(poses: torch.Tensor, degrees: float, distance: float, seed: int = 50) -> torch.Tensor:
    """Poses with orientations and centres off by normal errors, given along one dimension."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randn(len(poses), 3, dtype=torch.float64, generator=generator) * math.radians(degrees)
    centers = poses[..., 3:] + distance * torch.randn(len(poses), 3, 1, dtype=torch.float64, generator=generator)
    return torch.cat([roma.rotvec_to_rotmat(turns) @ poses[..., :3], centers], dim=-1)


def capture(shape: str) -> torch.Tensor:
    """Cameras about 4 units across whose orientations differ by some degrees, as those of people's captures."""
    name, *arguments = shape.split()
    number = float(arguments[0]) if arguments else 0.0
    count = int(number) if name == "few" else 24
    generator = torch.Generator().manual_seed(60)
    random = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    along = torch.linspace(-2, 2, count, dtype=torch.float64)
    centers = {
        "line": torch.stack([along, 4 * number * random[:, 1], 4 * number * random[:, 2]], dim=-1),
        "plane": random * torch.tensor([1.0, 0.7, number], dtype=torch.float64),
        "ring": torch.stack([2 * (1.6 * along).cos(), 2 * (1.6 * along).sin(), 0 * along], dim=-1),
        "cluster": number * random,
        "few": 2 * random,
    }[name]
    rotations = roma.rotvec_to_rotmat(0.2 * torch.randn(count, 3, dtype=torch.float64, generator=generator))
    return torch.cat([rotations, centers[..., None]], dim=-1)


@pytest.mark.parametrize(
    "shape",
    ["line 0", "line 0.001", "line 0.005", "line 0.01", "line 0.05", "plane 0", "plane 0.02", "ring", "cluster 0.05"]
    + ["few 2", "few 3", "few 4"],
)
def test_the_frame_is_as_good_as_the_poses_whatever_the_capture(shape):
    # 24 views on a line of 4 units, say, each 0.6 degrees and 0.02 units off the truth in a frame of its own
    truth, frame = capture(shape), random_similarity(seed=61)
    learned = frame.apply_to_poses(noisy(truth, 0.6, 0.02))
    found = align_poses(learned, truth)
    turned = float(torch.rad2deg(rotation_angle(found.rotation @ frame.rotation)))
    assert turned < 3 * 0.6 / math.sqrt(len(truth))
    errors = pose_errors(learned, truth, found)
    assert errors.rotation_deg.mean() < 2.0
    assert errors.center.mean() < 0.05


def test_centers_near_a_line_alone_would_roll_everything():
    # what makes the above a test
    truth = capture("line 0.001")
    learned = noisy(truth, 0.6, 0.02)
    assert pose_errors(learned, truth, align_centers(learned, truth)).rotation_deg.mean() > 5
    assert pose_errors(learned, truth).rotation_deg.mean() < 1.2


def test_each_kind_counts_by_what_it_knows():
    truth = capture("ring")
    exact_centers, exact_turns = noisy(truth, 3.0, 0.0), noisy(truth, 0.0, 0.3)
    assert pose_errors(exact_centers, truth).center.max() < 1e-4
    assert pose_errors(exact_turns, truth).rotation_deg.max() < 1e-3


@pytest.mark.parametrize("lost", [1, 4, 7])
@pytest.mark.parametrize("shape", ["ring", "line 0.001", "plane 0.02"])
def test_lost_cameras_do_not_move_the_others(shape, lost):
    truth = capture(shape)
    moved = truth.clone()
    moved[:lost] = random_poses(lost, seed=62)
    moved[:lost, :, 3] *= 3.0
    frame = random_similarity(seed=63)
    errors = pose_errors(frame.apply_to_poses(moved), truth)
    assert errors.rotation_deg[lost:].max() < 1e-6
    assert errors.center[lost:].max() < 1e-9
    assert errors.center[:lost].min() > 0.3


def test_a_displaced_start_pose_does_not_drag_the_others_along():
    # 20 cameras on a circle of radius 4, one of them 7.5 units off, orientations as they were
    angle = torch.arange(20, dtype=torch.float64) * math.pi / 10
    truth = capture("ring")[:20]
    truth[..., 3] = torch.stack([4 * angle.cos(), 4 * angle.sin(), torch.zeros_like(angle)], dim=-1)
    start = truth.clone()
    start[3, :, 3] += torch.tensor([4.5, 0.0, 6.0])
    found = align_poses(truth, start)
    assert_similar(found, Similarity.identity(), atol=1e-9)
    assert float(align_centers(truth, start).scale) > 1.1


def test_a_camera_far_away_does_not_set_the_frame_of_the_others():
    truth = capture("plane 0.02")
    truth[0, :, 3] = torch.tensor([150.0, 100.0, 0.0])
    learned = noisy(truth, 0.4, 0.02)
    learned[0, :, 3] += 3.0  # its rays hardly tell where it is
    errors = pose_errors(random_similarity().apply_to_poses(learned), truth)
    assert errors.rotation_deg[1:].mean() < 0.9
    assert errors.center[1:].mean() < 0.1


def test_a_minority_elsewhere_does_not_hide_that_centers_coincide():
    truth = capture("ring")
    truth[2:, :, 3] = torch.tensor([0.3, -1.0, 2.0])
    assert centers_coincide(truth)
    turned = Similarity(torch.tensor(1.0).double(), rotation_z(0.4), torch.tensor([1.0, 2.0, 3.0]).double())
    assert_similar(align_poses(truth, turned.apply_to_poses(truth)), turned)


def test_centers_that_have_nothing_in_common_set_no_scale():
    # a tripod whose given centres are noise, a hundred times smaller than the learned ones'
    given = capture("cluster 0.0001")
    learned = noisy(given, 0.5, 0.01)
    assert float(align_poses(learned, given).scale) == 1.0
    assert pose_errors(learned, given).rotation_deg.mean() < 1.2


def test_a_change_of_frame_changes_nothing_else():
    truth, frame = capture("plane 0.02"), random_similarity(seed=64, scale=1e3)
    learned = noisy(truth, 2.0, 0.1)
    before, after = pose_errors(learned, truth), pose_errors(frame.apply_to_poses(learned), truth)
    for name in ("rotation_deg", "center"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=1e-6, rtol=0)


# -- by centres alone, as published protocols do -----------------------------------------------------------------------


def test_agrees_with_evo():
    geometry = pytest.importorskip("evo.core.geometry", reason="evo is the independent oracle of this test")
    source = random_poses(25, seed=3)
    exact = random_similarity(seed=4).apply_to_poses(source)
    rotation, translation, scale = geometry.umeyama_alignment(source[..., 3].numpy().T, exact[..., 3].numpy().T, True)
    found = align_centers(source, exact)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(found.translation, translation, atol=1e-11)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-12)

    # noisy centres: the same rotation; the RMS scale is never below the least-squares one
    generator = torch.Generator().manual_seed(5)
    noisy = exact.clone()
    noisy[..., 3] += 0.8 * torch.randn(25, 3, dtype=torch.float64, generator=generator)
    rotation, _, scale = geometry.umeyama_alignment(source[..., 3].numpy().T, noisy[..., 3].numpy().T, True)
    found = align_centers(source, noisy)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-12)
    assert found.scale > scale * 1.001


def test_rms_scale_and_means_by_hand():
    # centres +-1 on each axis against the same at +-3 around (1, 2, 3)
    centers = torch.cat([torch.eye(3), -torch.eye(3)]).double()[:, :, None]
    source = torch.cat([torch.eye(3, dtype=torch.float64).expand(6, 3, 3), centers], dim=-1)
    target = source.clone()
    target[..., 3] = 3.0 * source[..., 3] + torch.tensor([1.0, 2.0, 3.0])
    similarity = align_centers(source, target)
    assert float(similarity.scale) == pytest.approx(3.0)
    torch.testing.assert_close(similarity.rotation, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(similarity.translation, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


def test_mirrored_centers_get_the_best_proper_rotation():
    # A mirror along x, where the centres spread least, must cost only that direction: no rotation does better.
    generator = torch.Generator().manual_seed(6)
    source = random_poses(30, seed=6)
    spread = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    centers = torch.randn(15, 3, dtype=torch.float64, generator=generator) * spread
    # mirror pairs make x a principal axis of the centres
    source[..., 3] = torch.cat([centers, centers * torch.tensor([-1.0, 1.0, 1.0])])
    target = source.clone()
    target[..., 0, 3] *= -1
    similarity = align_centers(source, target)
    assert float(torch.linalg.det(similarity.rotation)) == pytest.approx(1.0)
    torch.testing.assert_close(similarity.rotation, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_planar_centers_determine_the_rotation():
    source = random_poses(12, seed=7)
    source[..., 2, 3] = 0.0
    similarity = random_similarity(seed=8)
    target = similarity.apply_to_poses(source)
    # wrong orientations must not matter: a plane of centres determines the rotation alone
    target[..., :3] = random_poses(12, seed=9)[..., :3]
    assert_similar(align_centers(source, target), similarity, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coincident_centers_align_by_orientation(dtype):
    source = random_poses(10, seed=10).to(dtype)
    source[..., 3] = torch.tensor([0.3, -1.7, 2.2], dtype=dtype)
    assert centers_coincide(source)
    turn = rotation_z(0.4)
    target = source.double().clone()
    target[..., :3] = turn @ source[..., :3].double()
    target[..., 3] = random_poses(10, seed=11)[..., 3]
    similarity = align_poses(source, target)
    assert float(similarity.scale) == 1.0
    torch.testing.assert_close(similarity.rotation, turn, atol=1e-6, rtol=0)
    mapped = similarity.apply_to_points(source[..., 3].double()).mean(dim=0)
    torch.testing.assert_close(mapped, target[..., 3].mean(dim=0))


def test_identity_start_has_finite_errors_and_inverse():
    reference = random_poses(6, seed=12, dtype=torch.float32)
    similarity = align_poses(identity_poses(6), reference)
    assert torch.isfinite(similarity.inverse().apply_to_poses(reference)).all()
    # and with the sides swapped, where an RMS scale would be zero
    assert float(align_poses(reference, identity_poses(6)).scale) == 1.0
    errors = pose_errors(identity_poses(6), reference)
    expected = (reference[..., 3] - reference[..., 3].mean(dim=0)).norm(dim=-1).double()
    torch.testing.assert_close(errors.center, expected, atol=1e-6, rtol=0)


def test_coincidence_is_judged_at_the_precision_of_the_poses():
    poses = random_poses(5, seed=13)
    poses[..., 3] = 1.0 + 1e-9 * torch.arange(5, dtype=torch.float64)[:, None]
    assert not centers_coincide(poses)
    assert centers_coincide(poses.float())


@pytest.mark.parametrize("num_cameras", [2, 9])
def test_collinear_centers_turn_by_orientation_and_scale_by_centers(num_cameras):
    source = random_poses(num_cameras, seed=14)
    source[..., 3] = torch.linspace(-1, 2, num_cameras, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, -1.0])
    similarity = random_similarity(seed=15, scale=0.3)
    assert_similar(align_poses(source, similarity.apply_to_poses(source)), similarity)


def test_known_rotation_about_each_camera_is_reported_exactly():
    reference = random_poses(8, seed=16)
    for degrees in (1e-6, 1e-3, 5.0, 179.0):
        estimated = reference.clone()
        estimated[..., :3] = reference[..., :3] @ rotation_z(math.radians(degrees))
        errors = pose_errors(estimated, reference, align_centers(estimated, reference))
        torch.testing.assert_close(
            errors.rotation_deg, torch.full((8,), degrees, dtype=torch.float64), atol=1e-8, rtol=1e-9
        )
        assert errors.center.max() < 1e-12
        # turning about its own centre moves the w2c translation of a camera away from the origin
        if degrees == 5.0:
            assert errors.translation.min() > 0.01


def test_translation_metric_is_not_the_center_distance():
    reference = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [4.0]])], dim=-1)[None].double()
    identity = Similarity.identity()
    # about its own centre: the centre stays, the w2c translation swings by the chord 2 * 4 * sin(angle / 2)
    turn = roma.rotvec_to_rotmat(torch.tensor([0.2, 0.0, 0.0], dtype=torch.float64))
    errors = pose_errors(torch.cat([turn, reference[0, :, 3:]], dim=-1)[None], reference, similarity=identity)
    assert float(errors.center) == pytest.approx(0.0, abs=1e-15)
    assert float(errors.translation) == pytest.approx(8.0 * math.sin(0.1), abs=1e-12)
    assert float(errors.rotation_deg) == pytest.approx(math.degrees(0.2), abs=1e-10)
    # about the world's origin: the other way round
    errors = pose_errors((turn @ reference[0])[None], reference, similarity=identity)
    assert float(errors.center) == pytest.approx(8.0 * math.sin(0.1), abs=1e-12)
    assert float(errors.translation) == pytest.approx(0.0, abs=1e-15)


def test_alignment_can_be_skipped_or_given():
    reference = random_poses(9, seed=17)
    moved = random_similarity(seed=18).apply_to_poses(reference)
    assert pose_errors(moved, reference).center.max() < 1e-10
    assert pose_errors(moved, reference, similarity=Similarity.identity()).center.min() > 0.1
    # an alignment found on some cameras applies to others
    similarity = align_poses(moved[:5], reference[:5])
    assert pose_errors(moved[5:], reference[5:], similarity=similarity).center.max() < 1e-10


def test_evaluation_cameras_land_in_the_learned_frame():
    train, test = random_poses(12, seed=19), random_poses(4, seed=20)
    learned_from_true = random_similarity(seed=21, scale=0.6)
    refined = learned_from_true.apply_to_poses(train)
    learned_test = align_poses(refined, train).inverse().apply_to_poses(test)
    torch.testing.assert_close(learned_test, learned_from_true.apply_to_poses(test))


def test_barf_exact_has_its_floor_and_otherwise_agrees():
    reference = random_poses(6, seed=22)
    identity = Similarity.identity()
    floor = pose_errors(reference, reference, similarity=identity, barf_exact=True)
    assert float(floor.rotation_deg.min()) >= 0.0279
    assert float(floor.rotation_deg.min()) < 0.06
    assert float(pose_errors(reference, reference, similarity=identity).rotation_deg.max()) < 1e-10
    estimated = perturb_poses(reference, PerturbationConfig())
    exact = pose_errors(estimated, reference, barf_exact=True)
    double = pose_errors(estimated, reference)
    torch.testing.assert_close(exact.rotation_deg, double.rotation_deg, atol=1e-3, rtol=0)
    assert torch.equal(exact.translation, double.translation)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 0.3, math.pi / 2, math.pi - 1e-7, math.pi])
def test_rotation_angle_at_both_ends(angle):
    axis = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3.0
    assert float(rotation_angle(roma.rotvec_to_rotmat(axis * angle))) == pytest.approx(angle, abs=1e-14)


def test_summary_has_flat_floats():
    reference = random_poses(4, seed=23)
    estimated = reference.clone()
    for i, degrees in enumerate((1.0, 2.0, 4.0, 9.0)):
        estimated[i, :, :3] = reference[i, :, :3] @ rotation_z(math.radians(degrees))
    summary = pose_errors(estimated, reference, similarity=Similarity.identity()).summary("train_")
    assert set(summary) == {
        f"train_{name}_{statistic}"
        for name in ("rotation_deg", "translation", "center")
        for statistic in ("mean", "median", "max")
    }
    assert all(type(value) is float for value in summary.values())
    assert summary["train_rotation_deg_mean"] == pytest.approx(4.0)
    assert summary["train_rotation_deg_median"] == pytest.approx(3.0)
    assert summary["train_rotation_deg_max"] == pytest.approx(9.0)


def test_bad_input_is_refused_with_a_sentence(unchecked):
    poses = random_poses(3)
    with pytest.raises(ValueError, match="There are no source and target poses"):
        align_poses(poses[:0], poses[:0])
    with pytest.raises(ValueError, match="There are 3 source poses but 2 target poses"):
        align_poses(poses, poses[:2])
    with pytest.raises(ValueError, match=r"must have the shape \[N, 3, 4\], not \[3, 3, 3\]"):
        pose_errors(poses, poses[..., :3])
    broken = poses.clone()
    broken[1, 0, 3] = float("nan")
    with pytest.raises(ValueError, match="The reference poses hold a value that is not finite"):
        pose_errors(poses, broken)


def test_gradients_are_not_recorded():
    poses = random_poses(5).requires_grad_()
    assert not pose_errors(poses, random_poses(5, seed=2)).center.requires_grad
    assert not align_poses(poses, random_poses(5, seed=2)).rotation.requires_grad
