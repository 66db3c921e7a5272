"""Planar alignment: the homographies and the metric against oracles, short runs on a photograph, outputs and errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scenes import CHAIR
from scipy.linalg import expm

from hashpose_ns.bench.planar.__main__ import entrypoint
from hashpose_ns.bench.planar.alignment import align, make_problem, read_photograph, warp_factor
from hashpose_ns.bench.planar.gradients import SPACING, _resting_place, sweep_levels
from hashpose_ns.bench.planar.images import make_image
from hashpose_ns.bench.planar.output import FILES
from hashpose_ns.bench.planar.settings import CURRICULA, READINGS, Planar, Representation
from hashpose_ns.bench.planar.warps import anchored, corner_errors, homographies, sample_twists, warp_points
from hashpose_ns.encoding import grid
from hashpose_ns.errors import HashPoseError

PHOTOGRAPH = CHAIR / "train" / "r_0.png"
SHORT = Planar(image=PHOTOGRAPH, size=64, steps=300, batch=500, decoder_width=32, network_width=32)


def barf_matrix(h: np.ndarray) -> np.ndarray:
    """The element of sl(3) as BARF's supplement lays its eight numbers out."""
    return np.array([[h[4], h[2], h[0]], [h[3], -h[4] - h[5], h[1]], [h[6], h[7], h[5]]])


def random_homographies(num: int, scale: float = 0.2) -> torch.Tensor:
    return homographies(scale * torch.randn(num, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_homographies_are_the_exponential_of_sl3():
    twists = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = np.stack([expm(barf_matrix(twist)) for twist in twists.numpy()])
    np.testing.assert_allclose(homographies(twists).numpy(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.linalg.det(homographies(twists)), torch.ones(20, dtype=torch.float64))
    np.testing.assert_allclose(homographies(0.1 * twists.float()).numpy(), _expm(0.1 * twists), atol=1e-5)


def _expm(twists: torch.Tensor) -> np.ndarray:
    return np.stack([expm(barf_matrix(twist)) for twist in twists.numpy()])


def test_points_are_warped_as_by_opencv():
    matrices = random_homographies(4)
    points = torch.rand(4, 30, 2, dtype=torch.float64) - 0.5
    expected = [cv2.perspectiveTransform(p[None].numpy(), m.numpy())[0] for p, m in zip(points, matrices)]
    np.testing.assert_allclose(warp_points(matrices, points).numpy(), np.stack(expected), atol=1e-12)


def test_translation_by_k_pixels_is_an_error_of_k():
    longer, side = 200, 60
    true = torch.eye(3).repeat(5, 1, 1)
    recovered = true.clone()
    pixels = torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 7.5], [0.0, 0.0]])
    recovered[1:, :2, 2] = pixels * 2 / longer
    torch.testing.assert_close(
        corner_errors(recovered, true, side, longer), torch.tensor([5.0, 1.0, 7.5, 0.0], dtype=torch.float64)
    )


def test_scaling_moves_every_corner_along_its_diagonal():
    true = torch.eye(3).repeat(2, 1, 1)
    recovered = true.clone()
    recovered[1] = torch.diag(torch.tensor([1.1, 1.1, 1.0]))
    error = corner_errors(recovered, true, side=60, longer=200)
    assert float(error[0]) == pytest.approx(0.1 * 30 * math.sqrt(2), rel=1e-5)


def test_a_homography_common_to_all_patches_is_no_error():
    true = random_homographies(5)
    common = random_homographies(1, scale=0.3)
    assert corner_errors(common @ true, true, 60, 200).max() < 1e-9
    # but one that patches share in their own coordinates is: it deforms the picture differently at each of them
    assert corner_errors(true @ common, true, 60, 200).min() > 1
    torch.testing.assert_close(anchored(common @ true, true), true)


def test_warps_start_around_an_anchor_and_stay_within_the_image():
    generator = torch.Generator().manual_seed(0)
    twists = sample_twists(0.0, 0.2, side=60, size=(180, 120), generator=generator)
    torch.testing.assert_close(
        twists[:, :2], torch.tensor([[0.0, 0.0], [-0.2, -0.2], [-0.2, 0.2], [0.2, -0.2], [0.2, 0.2]])
    )
    assert twists[:, 2:].count_nonzero() == 0
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * 60 / 180
    limit = torch.tensor([1.0, 120 / 180])
    for _ in range(20):
        twists = sample_twists(0.1, 0.2, 60, (180, 120), generator)
        assert twists[0].count_nonzero() == 0
        assert (warp_points(homographies(twists), corners.expand(5, 4, 2)).abs() <= limit).all()
    with pytest.raises(HashPoseError, match="lower --noise or --translation"):
        sample_twists(0.0, 0.9, 60, (180, 120), generator)


def test_patches_are_cut_from_the_photograph():
    photograph = read_photograph(PHOTOGRAPH, 64)
    problem = make_problem(photograph, SHORT, seed=3)
    torch.testing.assert_close(problem.colors[0].view(32, 32, 3), photograph[16:48, 16:48], atol=1e-5, rtol=0)
    # OpenCV's bilinear warp, which knows positions to 1/32 of a pixel, and colours at pixel centres
    to_pixels = np.array([[32, 0, 31.5], [0, 32, 31.5], [0, 0, 1.0]])
    from_patch = np.array([[1 / 32, 0, -15.5 / 32], [0, 1 / 32, -15.5 / 32], [0, 0, 1.0]])
    for matrix, colors in zip(problem.true, problem.colors):
        warp = to_pixels @ matrix.double().numpy() @ from_patch
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        expected = cv2.warpPerspective(photograph.numpy(), warp, (32, 32), flags=flags)
        assert np.abs(colors.view(32, 32, 3).numpy() - expected).max() < 0.04


def test_transparent_pictures_are_on_white():
    assert read_photograph(PHOTOGRAPH, 64)[0, 0].tolist() == [1, 1, 1]


def test_warps_stand_still_then_rise():
    settings = Planar(warp_start=0.1)
    factors = [warp_factor(progress, settings) for progress in (0.0, 0.1, 0.15, 0.2, 1.0)]
    assert factors == pytest.approx([0, 0, 0.5, 1, 1])
    assert warp_factor(0.0, Planar(warp_start=0)) == 1


def test_barfs_mask_hides_octaves_until_they_open():
    settings = Planar(steps=800, window=(0.0, 0.5))
    image = make_image(Representation.parse("frequency/mask"), settings)
    points = torch.rand(10, 2) - 0.5
    before = [image(points, step).detach() for step in (0, 125, 400)]
    with torch.no_grad():
        # every octave but the first two, in each of the four blocks (x and y, sine and cosine)
        columns = [2 + 8 * block + octave for block in range(4) for octave in range(3, 8)]
        image.network[0].weight[:, columns] += 1.0
    after = [image(points, step).detach() for step in (0, 125, 400)]
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], before[1])
    assert (after[2] - before[2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["hash/axis/lr", "hash/linear/repeat"])
def test_patches_that_are_in_place_stay_there(name):
    settings = replace(SHORT, noise=0.0, translation=0.0, warp_rate=1e-3)
    problem = make_problem(read_photograph(PHOTOGRAPH, 64), settings, seed=0)
    run = align(problem, Representation.parse(name), settings, seed=0)
    assert run.corner_errors[0] == pytest.approx(0, abs=1e-4)
    assert max(run.corner_errors) < 1.5  # the gradients of a picture that only begins to form are noise
    assert run.corner_errors[-1] < 0.5


@pytest.mark.parametrize("name", ["hash/axis/lr", "hash/linear/mask", "gaussian"])
def test_a_short_run_brings_patches_of_a_photograph_closer(name):
    problem = make_problem(read_photograph(PHOTOGRAPH, 64), SHORT, seed=1)
    run = align(problem, Representation.parse(name), SHORT, seed=1)
    assert run.corner_errors[-1] < 0.7 * run.corner_errors[0]
    assert run.seconds == sorted(run.seconds) and run.steps[-1] == SHORT.steps
    again = corner_errors(run.warps, problem.true, problem.side, problem.longer)
    assert float(again.mean()) == pytest.approx(run.corner_errors[-1])
    assert run.warps[0].tolist() == torch.eye(3).tolist()


def test_a_seed_repeats_a_run():
    settings = replace(SHORT, steps=30)
    photograph = read_photograph(PHOTOGRAPH, 64)
    runs = [align(make_problem(photograph, settings, 5), Representation("gaussian"), settings, 5) for _ in range(2)]
    assert runs[0].corner_errors == runs[1].corner_errors and runs[0].psnr == runs[1].psnr


def test_the_linear_gradient_is_the_slope_of_the_loss():
    settings = replace(SHORT, steps=100)
    problem = make_problem(read_photograph(PHOTOGRAPH, 40), settings, seed=0)
    for sweep in sweep_levels(problem, settings):
        gradient = sweep.gradients["linear"].mean(-1)
        slope = (sweep.losses[:, 2:] - sweep.losses[:, :-2]) / (2 * SPACING)
        gap = (gradient[:, 1:-1] - slope).square().mean() / slope.square().mean()
        assert gap < 0.01
        statistics = sweep.statistics()["readings"]
        assert set(statistics) == set(READINGS)
        # smoothing leaves the force where it was, within a fraction of a pixel, and calms it
        assert statistics["axis"]["bias"] < 1
    assert statistics["axis"]["roughness"][0] < statistics["linear"]["roughness"][0]


def test_resting_place_is_the_crossing_nearest_to_home():
    displacements = torch.arange(-10, 10.05, 0.1)
    gradient = torch.sin((displacements - 1) * math.pi / 5)  # rests at 1, -9; tops at -4, 6
    place, width = _resting_place(displacements, gradient)
    assert place == pytest.approx(1, abs=0.01)
    assert width == pytest.approx(10, abs=0.3)


def test_settings_know_the_encodings_and_curricula():
    assert READINGS == grid.READINGS
    for word in [f"hash/{r}/{c}" for r in READINGS for c in CURRICULA] + ["frequency/none", "coordinates"]:
        representation = Representation.parse(word)
        assert str(representation) == word
        assert make_image(representation, Planar())(torch.zeros(3, 2), 0).shape == (3, 3)


def test_importing_the_settings_is_light():
    code = "import sys, hashpose_ns.bench.planar; print(sorted({'torch', 'nerfstudio'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def arguments(folder: Path, **changes) -> list:
    """A command of a few seconds."""
    settings = {
        "image": PHOTOGRAPH,
        "output-dir": folder / "out",
        "size": 32,
        "steps": 40,
        "batch": 100,
        "representations": ["hash/axis/lr", "frequency/none"],
        "seeds": ["2-3"],
        **changes,
    }
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return words


def test_the_command_leaves_a_table_numbers_and_figures(in_process, tmp_path):
    outcome = in_process(entrypoint, *arguments(tmp_path))
    assert outcome.code == 0, outcome.output
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert list(tmp_path.iterdir()) == [folder]
    for path in folder.glob("*.png"):
        with Image.open(path) as figure:
            figure.load()
            assert min(figure.size) > 200
    results = json.loads((folder / "planar.json").read_text())
    assert [run["seed"] for run in results["runs"]] == [2, 2, 3, 3]
    assert results["settings"]["size"] == 32 and "commit" in results
    for row in results["summary"]:
        mine = [run for run in results["runs"] if run["representation"] == row["representation"]]
        errors = [run["corner_error"] for run in mine]
        assert row["corner_error_median"] == pytest.approx(np.median(errors), rel=1e-4)
        assert row["patches_aligned"] == sum(error < 1 for run in mine for error in run["patch_errors"])
        assert row["representation"] in outcome.output
    problem = make_problem(read_photograph(PHOTOGRAPH, 32), Planar(), seed=3)
    errors = corner_errors(torch.tensor(results["runs"][2]["warps"]), problem.true, problem.side, problem.longer)
    assert errors.tolist() == pytest.approx(results["runs"][2]["patch_errors"], abs=0.01)

    outcome = in_process(entrypoint, *arguments(tmp_path))
    assert outcome.code == 1 and "--overwrite" in outcome.output
    assert json.loads((folder / "planar.json").read_text()) == results


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"image": "missing.jpg"}, "missing.jpg cannot be read (it does not exist)"),
        ({"image": __file__}, "cannot be read"),
        ({"image": str(CHAIR)}, "cannot be read"),
        ({"output-dir": __file__}, "is not a folder"),
        ({"output-dir": str(Path(__file__) / "deeper")}, "cannot be written"),
        ({"representations": ["hash/cubic/lr"]}, "There is no representation 'hash/cubic/lr'"),
        ({"representations": ["hash/axis/lr", "siren"]}, "There is no representation 'siren'"),
        ({"seeds": ["some"]}, "--seeds takes"),
        ({"noise": -0.1}, "--noise must be"),
        ({"noise": "nan"}, "--noise must be"),
        ({"translation": 0.7}, "lower --noise or --translation"),
        ({"window": ["0.5", "0.5"]}, "--window needs"),
        ({"steps": 0}, "--steps must be"),
        ({"warp-rate": "inf"}, "--warp-rate must be"),
        ({"size": 20, "image": "wide"}, "16 pixels"),
        ({"base-resolution": 0}, "Resolutions must satisfy"),
    ],
)
def test_bad_input_is_one_sentence(in_process, tmp_path, changes, sentence):
    if changes.get("image") == "wide":
        changes = {**changes, "image": tmp_path / "wide.png"}
        Image.new("RGB", (100, 20)).save(changes["image"])
    before = sorted(tmp_path.rglob("*"))
    outcome = in_process(entrypoint, *arguments(tmp_path, **changes))
    assert outcome.code == 1
    assert sentence in outcome.output and "Traceback" not in outcome.output
    assert sorted(tmp_path.rglob("*")) == before
