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


@pytest.mark.parametrize("name", ["hash/axis/lr", "hash/linear/mask", "gaussian"])
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
