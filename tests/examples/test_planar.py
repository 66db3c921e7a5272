"""The planar example: its homographies and metric against oracles, short runs, and the files it leaves."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scenes import CHAIR
from scipy.linalg import expm

from hashpose_ns.errors import HashPoseError

PATH = Path(__file__).parents[2] / "examples" / "planar" / "planar.py"
spec = importlib.util.spec_from_file_location("planar", PATH)
planar = sys.modules["planar"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planar)

PHOTOGRAPH = CHAIR / "train" / "r_0.png"
SHORT = planar.Settings(image=PHOTOGRAPH, size=64, steps=300, batch=500, decoder_width=32, network_width=32)


def problem(settings=SHORT, seed: int = 1):
    return planar.make_problem(planar.read_photograph(PHOTOGRAPH, settings.size), settings, seed)


def test_homographies_are_the_exponential_of_sl3_in_barfs_order():
    twists = 0.3 * torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrices = [np.array([[h[4], h[2], h[0]], [h[3], -h[4] - h[5], h[1]], [h[6], h[7], h[5]]]) for h in twists.numpy()]
    np.testing.assert_allclose(planar.homographies(twists), [expm(matrix) for matrix in matrices], atol=1e-10)
    points = torch.rand(20, 30, 2, dtype=torch.float64) - 0.5
    found = planar.warp_points(planar.homographies(twists), points)
    expected = [cv2.perspectiveTransform(p[None].numpy(), expm(m))[0] for p, m in zip(points, matrices)]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-12)


def test_rigid_motions_are_the_exponential_of_se2():
    twists = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    twists[0] = 0.0  # the series at angle 0
    expected = [expm(np.array([[0, -a, x], [a, 0, y], [0, 0, 0]])) for x, y, a in twists.numpy()]
    np.testing.assert_allclose(planar.rigid_motions(twists), expected, atol=1e-12)
    gradients = torch.autograd.functional.jacobian(planar.rigid_motions, torch.zeros(3))
    assert gradients.isfinite().all() and gradients[0, 1, 2] == -1.0


def points_and_images(motion: str, noise: float = 0.0, dtype: torch.dtype = torch.float64):
    """A symmetric grid, and where warps of 20 sizes take it, the identity first, disturbed by noise."""
    length, exponential = planar.MOTIONS[motion]
    generator = torch.Generator().manual_seed(2)
    twists = torch.linspace(0, 0.5, 20)[:, None] * torch.randn(20, length, generator=generator)
    grid = torch.cartesian_prod(torch.linspace(-0.3, 0.3, 5), torch.linspace(-0.3, 0.3, 5)).to(dtype).expand(20, -1, 2)
    warps = exponential(twists.to(dtype))
    moved = planar.warp_points(warps, grid)
    return grid, moved + noise * torch.randn(moved.shape, generator=generator).to(dtype), warps


REGISTER = {"homography": planar.register_homography, "rigid": planar.register_rigid}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("motion", REGISTER)
def test_a_warp_is_registered_exactly(motion, dtype, tolerance):
    grid, moved, warps = points_and_images(motion, dtype=dtype)
    found = REGISTER[motion](grid, moved)
    torch.testing.assert_close(found / found[..., 2:, 2:], warps / warps[..., 2:, 2:], atol=tolerance, rtol=tolerance)


def test_registrations_of_noisy_points_agree_with_oracles():
    grid, moved, _ = points_and_images("rigid", noise=0.02)
    for p, q, found in zip(grid.numpy(), moved.numpy(), planar.register_rigid(grid, moved).numpy()):
        a, b = (x - x.mean(0) for x in (p, q))  # the angle in closed form
        angle = np.arctan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum())
        assert np.arctan2(found[1, 0], found[0, 0]) == pytest.approx(angle, abs=1e-10)
        np.testing.assert_allclose(found[:2, :2] @ p.mean(0) + found[:2, 2], q.mean(0), atol=1e-10)
    grid, moved, _ = points_and_images("homography", noise=0.02)
    found = planar.warp_points(planar.register_homography(grid, moved), grid)
    for p, q, image in zip(
        grid.numpy(), moved.numpy(), found.numpy()
    ):  # cv2 minimises the distance, ours its linear part
        best = cv2.perspectiveTransform(p[None], cv2.findHomography(p, q)[0])[0]
        ours, least = (np.square(x - q).sum() for x in (image, best))
        assert least <= ours * (1 + 1e-6) and ours < 1.1 * least


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("motion", REGISTER)
def test_gradients_through_registrations_are_finite_on_symmetric_grids(motion, dtype):
    grid, moved, _ = points_and_images(motion, dtype=dtype)
    moved.requires_grad_()
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(3)).to(dtype)
    (REGISTER[motion](grid, moved) * weights).sum().backward()
    assert moved.grad.isfinite().all() and 0 < moved.grad.abs().max() < 1e3
    if dtype == torch.float64:
        grid, moved, _ = points_and_images(motion, noise=0.02)
        assert torch.autograd.gradcheck(lambda x: REGISTER[motion](grid[:2], x), moved[:2].clone().requires_grad_())


def test_the_rigid_registration_adds_nothing_to_the_gradient_of_its_own_loss():
    grid, moved, _ = points_and_images("rigid", noise=0.02)
    gradients = []
    for registered_from in (lambda x: x, torch.Tensor.detach):
        x = moved.clone().requires_grad_()
        warp = planar.register_rigid(grid, registered_from(x))
        (planar.warp_points(warp, grid) - x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


@pytest.mark.parametrize("motion", REGISTER)
def test_local_warps_leave_the_anchor_and_report_what_they_register(motion):
    cut = problem(replace(SHORT, motion=motion))
    warps = planar.LocalWarps(cut, SHORT)
    matrices = warps.matrices()
    torch.testing.assert_close(matrices[0] / matrices[0, 2, 2], torch.eye(3), atol=1e-5, rtol=0)
    assert not torch.allclose(matrices[1], torch.eye(3), atol=1e-3)
    points, penalty = warps(cut.grid.expand(5, -1, -1))
    torch.testing.assert_close(points[0], cut.grid, atol=1e-6, rtol=0)
    penalty.backward()
    assert all(parameter.grad.isfinite().all() for parameter in warps.parameters())


@pytest.mark.parametrize("motion", ["homography", "rigid"])
def test_l2gs_protocol_turns_patches_and_keeps_corners_off_the_axes(motion):
    cut = problem(replace(SHORT, protocol="l2g", motion=motion, noise=0.1))
    corners = planar.warp_points(cut.true, cut.corners.expand(5, 4, 2)).abs()
    assert corners.max() <= 1 and corners.min() >= cut.side / 4 / cut.longer
    turns = torch.atan2(cut.true[1:, 1, 0], cut.true[1:, 0, 0]).abs()
    assert turns.max() > 0.2
    if motion == "rigid":
        torch.testing.assert_close(torch.linalg.det(cut.true), torch.ones(5))


def test_errors_are_distances_in_pixels_in_the_anchors_frame():
    cut = problem(replace(SHORT, noise=0.0))
    moved = cut.true.clone()
    moved[1:, :2, 2] += torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 7.5], [0.0, 0.0]]) * 2 / cut.longer
    np.testing.assert_allclose(cut.errors(moved), [5.0, 1.0, 7.5, 0.0], atol=1e-4)
    common = planar.homographies(0.3 * torch.randn(8, generator=torch.Generator().manual_seed(0)))
    assert cut.errors(common @ cut.true).max() < 1e-3  # where the picture lies as a whole is no error


def test_patches_are_cut_from_within_the_photograph():
    cut = problem()
    torch.testing.assert_close(cut.colors[0].view(32, 32, 3), cut.photograph[16:48, 16:48], atol=1e-5, rtol=0)
    assert cut.photograph[0, 0].tolist() == [1, 1, 1]  # transparent pictures are on white
    assert (planar.warp_points(cut.true, cut.corners.expand(5, 4, 2)).abs() <= 1).all()
    with pytest.raises(HashPoseError, match="lower --noise or --translation"):
        problem(replace(SHORT, translation=0.9))


@pytest.mark.parametrize("name", ["hash/axis/lr", "hash/linear/mask", "gaussian", "l2g/hash/axis/lr"])
def test_a_short_run_brings_patches_of_a_photograph_closer(name):
    run = planar.align(problem(), name, SHORT, seed=1)
    errors = run.curve["error"]
    assert errors[-1] < 0.7 * errors[0]
    assert run.curve["seconds"] == sorted(run.curve["seconds"]) and run.curve["step"][-1] == SHORT.steps
    assert sum(run.patch_errors) / 4 == pytest.approx(errors[-1], rel=1e-5)


def test_the_linear_gradient_is_the_slope_of_the_loss_and_axis_is_calmer():
    swept = planar.sweep("all levels", {}, problem(), replace(SHORT, steps=100))
    slope = (swept.losses[2:] - swept.losses[:-2]) / 0.2
    gap = (swept.gradients["linear"].mean(-1)[1:-1] - slope).square().mean() / slope.square().mean()
    assert gap < 0.02
    assert swept.roughness("axis", 1) < swept.roughness("linear", 1)


def test_the_command_leaves_numbers_and_figures(in_process, tmp_path, monkeypatch):
    settings = replace(SHORT, size=32, steps=40, batch=100, seeds=2, output_dir=tmp_path / "out")
    settings = replace(settings, representations=("hash/axis/lr", "frequency/none"))
    planar.main(settings)
    assert {path.name for path in settings.output_dir.iterdir()} == {
        *("planar.json", "patches.png", "errors.png", "gradients.png")
    }
    results = json.loads((settings.output_dir / "planar.json").read_text())
    assert [run["seed"] for run in results["runs"]] == [0, 0, 1, 1] and str(tmp_path) not in json.dumps(results)
    for row in results["summary"]:
        last = [r["curve"]["error"][-1] for r in results["runs"] if r["representation"] == row["representation"]]
        assert row["after"] == pytest.approx(np.median(last))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"image": "missing.jpg"}, "missing.jpg cannot be read"),
        ({"representations": "hash/cubic/lr"}, "There is no representation 'hash/cubic/lr'"),
        ({"size": 8}, "16 pixels"),
    ],
)
def test_bad_input_is_one_sentence(in_process, tmp_path, changes, sentence):
    def command():
        planar.main(planar.tyro.cli(planar.Settings))

    words = {"image": PHOTOGRAPH, "output-dir": tmp_path / "out", **changes}
    outcome = in_process(command, *(word for name, value in words.items() for word in (f"--{name}", str(value))))
    assert outcome.code == 1 and sentence in outcome.output and "Traceback" not in outcome.output
    assert not (tmp_path / "out").exists()
