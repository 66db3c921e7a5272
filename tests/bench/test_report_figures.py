"""What the report's figures are drawn from: means over seeds, views of cameras, paths, renders."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import chair_poses, make_run

from hashpose_ns.bench.report import draw
from hashpose_ns.bench.reporting.cameras import centers_over_training, psnr, read_pair, shown_runs
from hashpose_ns.bench.reporting.figures import at_common_steps, curves
from hashpose_ns.bench.reporting.frame import make_groups, read_runs
from hashpose_ns.bench.reporting.uncertainty import compare, summary
from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.runs.files import HISTORY_FILE
from hashpose_ns.runs.history import PoseHistory


def log(folder, records):
    (folder / "pose_errors.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def runs_of(root):
    runs, problems = read_runs(root)
    assert problems == []
    return runs


def test_mean_over_seeds_at_the_steps_that_all_logged(tmp_path):
    key = "pose_error_after_rotation_deg_mean"
    for seed, records in enumerate(
        (
            [(0, 1.0, 8.0), (100, 2.0, 4.0), (150, 2.5, 3.0), (200, 3.0, 2.0)],
            [(0, 3.0, 6.0), (100, 6.0, math.nan), (200, 9.0, 1.0)],
        )
    ):
        folder = make_run(tmp_path, seed=seed, records=2, pictures=0)
        log(folder, [{"step": step, "train_seconds": seconds, key: value} for step, seconds, value in records])
    means = at_common_steps(curves(runs_of(tmp_path))).groupby("step")[["seconds", "value"]].mean()
    assert list(means.index) == [0, 200]  # 150 is one seed's, 100 is NaN in the other
    np.testing.assert_allclose(means.seconds, [2.0, 6.0])
    np.testing.assert_allclose(means.value, [7.0, 1.5])


def test_movements_are_followed_where_there_are_no_errors(tmp_path):
    folder = make_run(tmp_path, start="given", records=4, pictures=0)
    recorded = [json.loads(line) for line in (folder / "pose_errors.jsonl").read_text().splitlines()]
    data = curves(runs_of(tmp_path))
    values = data[data.curve == "rotation_deg_mean"].value
    np.testing.assert_array_equal(values, [record["pose_change_rotation_deg_mean"] for record in recorded])


def test_paths_begin_and_end_where_the_aligned_cameras_are(tmp_path):
    folder = make_run(tmp_path, records=6, pictures=0)
    _, progress, centers = centers_over_training(folder)
    assert progress[0] == 0.0 and progress[-1] == 1.0 and (np.diff(progress) > 0).all()
    with np.load(folder / "cameras.npz") as cameras:
        initial, refined, reference = (torch.from_numpy(cameras[n]) for n in ("initial", "refined", "reference"))
    similarity = align_poses(refined, reference)
    for ours, poses in ((centers[0], initial), (centers[-1], refined)):
        expected = similarity.apply_to_points(poses[:, :, 3])
        np.testing.assert_allclose(ours, expected, atol=1e-5)  # the history is float32


def test_poses_that_are_no_numbers_are_left_out_of_paths(tmp_path):
    folder = make_run(tmp_path, records=6, pictures=0)
    history = PoseHistory(folder / HISTORY_FILE, source=folder / HISTORY_FILE, before_step=10**9)
    history.append(5000, np.full((40, 3, 4), np.nan))
    _, progress, centers = centers_over_training(folder)
    assert len(progress) == 7 and np.isfinite(centers).all()


def test_one_seed_is_shown_of_every_preset(tmp_path):
    make_run(tmp_path, preset="one", seed=0, records=2, pictures=0)
    make_run(tmp_path, preset="one", seed=1, records=2, pictures=0)
    make_run(tmp_path, preset="two", seed=0, state="failed", records=2)
    make_run(tmp_path, preset="two", seed=1, records=2, pictures=0)
    (group,) = make_groups(runs_of(tmp_path))
    assert [(title, run.seed) for title, run in shown_runs(group)] == [("one", 1), ("two", 1)]


def test_pairs_and_their_psnr_by_hand(tmp_path):
    photograph, render = np.full((4, 6, 3), 100, np.uint8), np.full((4, 6, 3), 110, np.uint8)
    render[:2] = 100
    Image.fromarray(np.concatenate([photograph, render], axis=1)).save(tmp_path / "pair.png")
    left, right = read_pair(tmp_path / "pair.png")
    np.testing.assert_array_equal(np.round(255 * left), photograph)
    np.testing.assert_array_equal(np.round(255 * right), render)
    assert psnr(left, right) == pytest.approx(10 * math.log10(255**2 / 50))  # half of the pixels are off by 10


def test_nothing_is_drawn_of_runs_without_files(tmp_path):
    folder = make_run(tmp_path / "runs", records=2, pictures=0)
    for name in ("cameras.npz", "pose_errors.jsonl", HISTORY_FILE):
        (folder / name).unlink()
    (group,) = make_groups(runs_of(tmp_path / "runs"))
    assert draw(group, tmp_path) == []
    assert list(tmp_path.glob("*.png")) == []


def test_aligned_renders_are_shown_where_none_was_optimised(tmp_path):
    folder = make_run(tmp_path / "runs", reference=chair_poses(9), records=3, pictures=2)
    for path in (folder / "renders").glob("eval_tto_*.png"):
        path.unlink()
    (group,) = make_groups(runs_of(tmp_path / "runs"))
    figures = draw(group, tmp_path)
    assert [figure.caption for figure in figures if "aligned, not optimised" in figure.caption]


def test_many_presets_and_odd_ones_are_drawn(tmp_path):
    # more than colours and columns; poses that stand still at the true ones; another number of cameras
    small = {"reference": chair_poses(9), "records": 3, "pictures": 1}
    for i in range(6):
        make_run(tmp_path / "runs", preset=f"preset-{i}", left=0.1 * (i + 1), **small)
    given = {"scenario": "blender-barf-0.15"}
    make_run(tmp_path / "runs", preset="still", start="given", left=0.0, asked=given, **small)
    make_run(tmp_path / "runs", preset="fewer", reference=chair_poses(7), records=3, pictures=1)
    (group,) = make_groups(runs_of(tmp_path / "runs"))
    names = sorted(figure.path.name.rpartition("_small_")[2] for figure in draw(group, tmp_path))
    assert names == ["camera_errors.png", "cameras.png", "curves.png", "paths.png", "views.jpg"]


def test_uncertainties_are_compared_with_the_spread_over_seeds(tmp_path):
    """Cameras that are turned and moved by known amounts between two runs; predictions twice as large as the spread."""
    generator = torch.Generator().manual_seed(0)
    angles = 0.01 * (1 + torch.rand(40, generator=generator, dtype=torch.float64))
    for seed, sign in enumerate((-1.0, 1.0)):
        folder = make_run(tmp_path, seed=seed, left=0.0, pictures=0, records=2)
        with np.load(folder / "cameras.npz") as arrays:
            cameras = dict(arrays)
        turns = torch.linalg.matrix_exp(
            sign * angles[:, None, None] * torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])
        )
        cameras["refined"] = cameras["reference"].copy()
        cameras["refined"][:, :, :3] = cameras["reference"][:, :, :3] @ turns.numpy()
        cameras["rotation_deg"] = np.degrees(angles.numpy())
        np.savez(folder / "cameras.npz", **cameras)
        content = json.loads((folder / "results.json").read_text())
        spread = np.degrees(angles.numpy()) * math.sqrt(2)  # of two values at +-a: a sqrt(2)
        content["measures"] = {"uncertainty": {"rotation_deg": (2 * spread).tolist(), "center": [0.1] * 40}}
        (folder / "results.json").write_text(json.dumps(content))
    data = compare(runs_of(tmp_path))
    rotations = data[data.kind == "rotation_deg"]
    np.testing.assert_allclose(rotations.spread, np.degrees(angles) * math.sqrt(2), rtol=1e-6)
    found = summary(data).loc["rotation_deg"]
    assert found["spread / predicted"] == pytest.approx(0.5)
    assert found["error / predicted"] == pytest.approx(0.5 / math.sqrt(2))
    assert found["rank correlation with spread"] == pytest.approx(1.0)
    (group,) = make_groups(runs_of(tmp_path))
    assert [picture for picture in draw(group, tmp_path) if "uncertainty" in picture.path.name]
