"""Structure from motion as rows of a suite: the same images and starts, images left out counted, no field anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tiny_suites import InThisProcess

from hashpose_ns.bench import cli, files, jobs, runner, sfm, suites
from hashpose_ns.bench.reporting import frame, tables
from hashpose_ns.cameras.alignment import pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses
from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.sfm import FLIP, Structure, structure_incremental

pytest.importorskip("pycolmap")
SIZE, FOCAL, IMAGES = 160, 190.0, 6


def poses_on_an_arc(count: int) -> np.ndarray:
    """Cameras [count, 3, 4] that look at the origin from a distance of 4, OpenGL axes."""
    found = []
    for angle in np.linspace(-0.5, 0.5, count):
        center = 4 * np.array([np.sin(angle), 0.3 * np.sin(5 * angle), np.cos(angle)])
        back = center / np.linalg.norm(center)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        found.append(np.stack([right, np.cross(back, right), back, center], axis=1))
    return np.array(found)


@pytest.fixture(scope="module")
def cloud() -> MatchedImages:
    """Exact matches of random points, all pairs."""
    draws = np.random.default_rng(0)
    points, poses = draws.uniform(-1, 1, (120, 3)), poses_on_an_arc(IMAGES)
    seen = []
    for pose in poses:
        local = (points - pose[:, 3]) @ pose[:, :3] @ FLIP
        seen.append(local[:, :2] / local[:, 2:])
    pairs = np.stack(np.triu_indices(IMAGES, k=1), axis=1)
    match = np.stack([np.arange(len(points))] * 2, axis=1)
    return MatchedImages(
        pixels=[FOCAL * each + SIZE / 2 for each in seen],
        points=seen,
        focals=np.full(IMAGES, FOCAL),
        pairs=pairs,
        matches=[match] * len(pairs),
        rotations=np.full((len(pairs), 3, 3), np.nan),
    )


def error_deg(structure: Structure) -> float:
    truth = torch.from_numpy(poses_on_an_arc(IMAGES))
    return float(pose_errors(torch.from_numpy(structure.camera_to_worlds), truth).rotation_deg.max())


@pytest.mark.parametrize("method", suites.SFM_METHODS)
def test_every_method_finds_exact_cameras(cloud: MatchedImages, method: str):
    given = perturb_poses(torch.from_numpy(poses_on_an_arc(IMAGES)), PerturbationConfig(rotation=0.05)).numpy()
    found = sfm.structure_of(method, cloud, given)
    assert found is not None and found.placed.all() and error_deg(found) < 1e-3


def test_incremental_leaves_out_what_nothing_matches(cloud: MatchedImages):
    kept = (cloud.pairs != IMAGES - 1).all(axis=1)
    some = [match for match, keep in zip(cloud.matches, kept) if keep]
    found = structure_incremental(
        MatchedImages(cloud.pixels, cloud.points, cloud.focals, cloud.pairs[kept], some, cloud.rotations[kept])
    )
    assert found is not None and list(found.placed) == [True] * (IMAGES - 1) + [False]
    assert np.isnan(found.camera_to_worlds[-1]).all()
    nothing = MatchedImages(
        cloud.pixels, cloud.points, cloud.focals, np.zeros((0, 2), dtype=np.int64), [], np.zeros((0, 3, 3))
    )
    assert structure_incremental(nothing) is None


# -- runs --------------------------------------------------------------------------------------------------------------


def wall(folder: Path, blank: int = 0) -> Path:
    """Photographs of a painted wall with a painted cube's side before it, in nerfstudio's format; the last `blank` show
    nothing.

    Args:
        folder: where they go.
        blank: how many images have no texture.
    """
    draws = np.random.default_rng(0)

    def paint(size: int) -> np.ndarray:
        noise = Image.fromarray(draws.integers(0, 256, (size, size), dtype=np.uint8))
        return np.asarray(noise.filter(ImageFilter.GaussianBlur(2.0)), dtype=float) * 3 - 256

    planes = [(0.7, 0.7, paint(256)), (-0.4, 2.2, paint(512))]  # depth along z, half the width, what is on it
    (folder / "images").mkdir(parents=True)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    rays = np.stack([(columns - SIZE / 2) / FOCAL, -(rows - SIZE / 2) / FOCAL, -np.ones_like(rows)], axis=-1)
    frames = []
    for index, pose in enumerate(poses_on_an_arc(IMAGES)):
        picture, directions = np.full((SIZE, SIZE), 90.0), rays @ pose[:, :3].T
        for depth, half, texture in reversed(planes):
            at = pose[:, 3] + directions * ((depth - pose[2, 3]) / directions[..., 2])[..., None]
            place = ((at[..., :2] + half) / (2 * half) * len(texture)).astype(int)
            inside = ((place >= 0) & (place < len(texture))).all(axis=-1)
            picture[inside] = texture[place[inside][:, 1], place[inside][:, 0]]
        if index >= IMAGES - blank:
            picture[:] = 90.0
        name = f"images/{index}.png"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).convert("RGB").save(folder / name)
        matrix = np.concatenate([pose, [[0, 0, 0, 1]]]).tolist()
        frames.append({"file_path": name, "transform_matrix": matrix})
    meta = {
        "camera_model": "OPENCV",
        "w": SIZE,
        "h": SIZE,
        "fl_x": FOCAL,
        "fl_y": FOCAL,
        "cx": SIZE / 2,
        "cy": SIZE / 2,
    }
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))
    return folder


@pytest.fixture
def bench(in_process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """hashpose-bench in this process, with a cache of matches of its own."""
    monkeypatch.setattr(jobs, "Jobs", lambda *_: InThisProcess())
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: in_process(cli.entrypoint, *arguments)


def suite(folder: Path, presets: List, **changes) -> List[str]:
    import yaml

    content = {
        "scenario": "capture",
        "scenes": {"wall": "{data}/wall"},
        "presets": presets,
        "flags": "--pipeline.datamanager.initial-poses perturbed --pipeline.datamanager.perturbation.rotation 0.03 "
        "--pipeline.datamanager.perturbation.translation 0.03 --pipeline.model.field.encoding.log2-hashmap-size 8",
        **changes,
    }
    (folder / "sfm.yaml").write_text(yaml.safe_dump(content))
    return ["run", "--suite", str(folder / "sfm.yaml"), "--data", str(folder), "--output-dir", str(folder / "out")]


def read(path: Path) -> Dict:
    return json.loads(path.read_text())


def test_runs_of_structure_from_motion_have_the_record_of_a_trained_one(bench, tmp_path: Path):
    wall(tmp_path / "wall", blank=1)
    presets = ["sfm-given", "sfm-incremental"]
    measures = {"epipolar": {}, "uncertainty": {}}
    outcome = bench(*suite(tmp_path, presets, measures=measures), "--report", "False")
    assert outcome.code == 0, outcome.output[-3000:]
    found = {}
    for preset in presets:
        folder = tmp_path / "out" / "sfm" / "wall" / preset / "seed_0"
        asked, found[preset] = read(folder / files.RECORD), read(folder / files.RESULTS)
        assert asked["base_method"] == preset and asked["steps"] == 0 and not asked["train"]
        assert list(asked["measures"]) == ["epipolar"]  # there is no field to be uncertain about
        content, cameras = found[preset], np.load(folder / files.CAMERAS)
        assert (content["sfm_images"], content["sfm_placed"], content["sfm_not_placed"]) == (6, 5, 1), preset
        # The image that nothing matches keeps its given pose, and counts.
        assert content["sfm_placed_rotation_deg_max"] < 0.5
        assert content["results"]["pose_error_after_rotation_deg_max"] > 1.0
        assert content["results"]["pose_error_after_rotation_deg_mean"] == pytest.approx(cameras["rotation_deg"].mean())
        np.testing.assert_allclose(cameras["refined"][5], cameras["initial"][5], atol=1e-6)
        assert np.abs(cameras["refined"][:5] - cameras["initial"][:5]).max() > 1e-3
        placed = pose_errors(torch.from_numpy(cameras["refined"][:5]), torch.from_numpy(cameras["reference"][:5]))
        assert content["sfm_placed_rotation_deg_mean"] == pytest.approx(float(placed.rotation_deg.mean()))
        assert content["cpu_seconds"] == pytest.approx(content["sfm_match_seconds"] + content["sfm_seconds"], abs=0.02)
        assert "parameters" not in content and "psnr_tto" not in content["results"]
        assert content["measures"]["epipolar"]["median_px"] < content["measures"]["epipolar"]["median_px_initial"]
    # The same matches from the same start, found once.
    for key in ("sfm_matches", "sfm_match_seconds"):
        assert len({content[key] for content in found.values()}) == 1
    starts = {content["results"]["pose_error_before_rotation_deg_mean"] for content in found.values()}
    assert len(starts) == 1

    runs, _ = frame.read_runs(tmp_path / "out")
    (group,) = frame.make_groups(runs)
    row = tables.headline(group, 0.5).loc["SfM from given"]
    assert row["not placed"] == "1" and row["PSNR, TTO [dB]"] == "no field"
    details = tables.details(group).loc["SfM from given"]
    assert details["aligned by both, placed only"] != "not measured" and details["SfM, CPU"] != "not measured"


def test_images_are_those_that_a_field_would_see(bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wall(tmp_path / "wall")
    sizes = []

    def recorded(names, cameras, masks, pairs, config):
        for name, width in zip(names, cameras.width):
            with Image.open(name) as image:
                sizes.append((image.width, int(width)))
        raise AssertionError("seen")

    monkeypatch.setattr("hashpose_ns.matches.features.find_matches", recorded)
    half = {"name": "half", "like": "sfm-global", "flags": "--pipeline.datamanager.camera-res-scale-factor 0.5"}
    outcome = bench(*suite(tmp_path, [half]), "--report", "False")
    assert outcome.code == 1 and sizes == [(SIZE // 2, SIZE // 2)] * IMAGES


def test_pictures_without_texture_place_nothing_and_say_so(bench, tmp_path: Path):
    wall(tmp_path / "wall", blank=IMAGES)
    outcome = bench(*suite(tmp_path, ["sfm-given"]), "--report", "False")
    assert outcome.code == 0, outcome.output[-3000:]
    content = read(tmp_path / "out" / "sfm" / "wall" / "sfm-given" / "seed_0" / files.RESULTS)
    assert content["sfm_not_placed"] == IMAGES and "sfm_placed_rotation_deg_mean" not in content
    before, after = (content["results"][f"pose_error_{when}_rotation_deg_mean"] for when in ("before", "after"))
    assert before == after > 0.5
