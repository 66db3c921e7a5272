"""hashpose-match, from a folder on disk to an export, read back by pycolmap and from its files."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import corner_cameras, turned, write_corner

from hashpose_ns.cameras.alignment import pose_errors
from hashpose_ns.export.frame import rigid
from hashpose_ns.matches.report import read_matches
from nerfstudio.data.utils import colmap_parsing_utils as colmap

pycolmap = pytest.importorskip("pycolmap", reason="matches need it")

COUNT = 6
WORLD = np.array([3.0, -2.0, 10.0])
"""Where the corner lies in the frame of the files, 4 times as large."""


def in_file(poses: np.ndarray) -> np.ndarray:
    return np.concatenate([poses[:, :, :3], 4.0 * poses[:, :, 3:] + WORLD[:, None]], axis=2)


def true_poses() -> np.ndarray:
    return in_file(corner_cameras(COUNT).camera_to_worlds.double().numpy())


def error_deg(found: np.ndarray, true: np.ndarray) -> float:
    return float(pose_errors(torch.from_numpy(found), torch.from_numpy(true)).rotation_deg.max())


def json_poses(folder) -> np.ndarray:
    content = json.loads((folder / "poses.json").read_text())
    return np.array([image["camera_to_world"] for image in content["images"]])


@pytest.fixture(scope="module")
def corner(tmp_path_factory):
    """A capture whose poses are 8 degrees off, and the true ones."""
    cameras = corner_cameras(COUNT)
    given = in_file(turned(cameras.camera_to_worlds.double().numpy(), 5.0))
    return write_corner(tmp_path_factory.mktemp("corner") / "capture", cameras, given), given


def test_poses_and_points_in_the_frame_of_the_input(tmp_path, corner, hashpose_match):
    folder, given = corner
    outcome = hashpose_match("--data", folder, "--output-dir", tmp_path / "out", "--images", "link")
    assert outcome.code == 0, outcome.output
    model = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    poses = {image.name: image.cam_from_world().inverse().matrix() for image in model.images.values()}
    found = np.stack([poses[name] for name in sorted(poses)]) * [1, -1, -1, 1]
    assert len(found) == COUNT
    assert error_deg(found, true_poses()) < 0.1 < 3 < error_deg(given, true_poses())
    # in the frame of the given poses, as near as these say, and of their size
    offset = np.linalg.norm(found[:, :, 3] - given[:, :, 3], axis=1)
    assert offset.max() < 3.0 and np.linalg.norm(found[:, :, 3] - WORLD, axis=1).min() > 5.0
    # tracks are what was seen: measured, in three images and more, and on the walls
    assert len(model.points3D) > 500
    lengths = np.array([point.track.length() for point in model.points3D.values()])
    assert lengths.min() >= 2 and (lengths >= 3).mean() > 0.3
    assert 0.01 < model.compute_mean_reprojection_error() < 0.5
    report = read_matches(tmp_path / "out")
    assert report.verdict == "matches" and report.left == [] and len(report.cameras) == COUNT
    assert "by matches" in outcome.output and "placed" in outcome.output
    manifest = json.loads((tmp_path / "out/export.json").read_text())
    assert manifest["matches"]["verdict"] == "matches" and "matches.json" in manifest["files"]
    assert (tmp_path / "out/images/00.png").is_symlink()


def test_right_poses_are_confirmed_and_come_back_to_the_last_bit(tmp_path, corner, hashpose_match):
    folder = tmp_path / "capture"
    write_corner(folder, corner_cameras(COUNT), true_poses())
    outcome = hashpose_match("--data", folder, "--output-dir", tmp_path / "out", "--format", "nerfstudio")
    assert outcome.code == 0, outcome.output
    frames = json.loads((tmp_path / "out/transforms.json").read_text())["frames"]
    found = np.array([frame["transform_matrix"] for frame in frames])[:, :3]
    np.testing.assert_array_equal(found, rigid(torch.from_numpy(true_poses())))
    assert read_matches(tmp_path / "out").verdict == "given" and "confirmed" in outcome.output
    assert (tmp_path / "out/points.ply").is_file()


@pytest.mark.parametrize("flags", [("--initial-poses", "identity"), ("--from-none", "True")], ids=str)
def test_poses_from_none(tmp_path, corner, hashpose_match, flags):
    outcome = hashpose_match("--data", corner[0], "--output-dir", tmp_path / "out", "--format", "json", *flags)
    assert outcome.code == 0, outcome.output
    assert error_deg(json_poses(tmp_path / "out"), true_poses()) < 0.1
    arbitrary = "identity" in flags
    assert ("arbitrary" in outcome.output) == arbitrary
    assert (json.loads((tmp_path / "out/poses.json").read_text())["images"][0]["movement"] is None) == arbitrary


def test_a_camera_without_matches_keeps_its_pose_and_is_named(tmp_path, corner, hashpose_match):
    folder, given = corner
    (tmp_path / "capture/images").mkdir(parents=True)
    for image in sorted((folder / "images").iterdir()):
        (tmp_path / "capture/images" / image.name).write_bytes(image.read_bytes())
    (tmp_path / "capture/transforms.json").write_bytes((folder / "transforms.json").read_bytes())
    Image.new("RGB", Image.open(folder / "images/02.png").size, "grey").save(tmp_path / "capture/images/02.png")
    arguments = ("--data", tmp_path / "capture", "--format", "json")
    outcome = hashpose_match(*arguments, "--output-dir", tmp_path / "out")
    assert outcome.code == 0, outcome.output
    found = json_poses(tmp_path / "out")
    assert found[2].tolist() == rigid(torch.from_numpy(given))[2].tolist()
    others = [0, 1, 3, 4, 5]
    assert error_deg(found[others], true_poses()[others]) < 0.1
    assert "1 cameras that matches do not determine keep the given pose: 02.png" in outcome.output
    assert [name.rsplit("/")[-1] for name in read_matches(tmp_path / "out").left] == ["02.png"]
    # without given poses it has none
    outcome = hashpose_match(*arguments, "--output-dir", tmp_path / "none", "--initial-poses", "identity")
    assert outcome.code == 0, outcome.output
    names = [image["name"] for image in json.loads((tmp_path / "none/poses.json").read_text())["images"]]
    assert names == ["00.png", "01.png", "03.png", "04.png", "05.png"]
    assert "are left out, as they had no pose: 02.png" in outcome.output


def test_nothing_is_written_where_nothing_is_determined(tmp_path, hashpose_match):
    folder = write_corner(tmp_path / "capture", corner_cameras(COUNT))
    for image in (folder / "images").iterdir():
        Image.new("RGB", Image.open(image).size, "white").save(image)
    outcome = hashpose_match("--data", folder, "--output-dir", tmp_path / "out")
    assert outcome.code == 1 and "no poses that can be trusted" in outcome.output, outcome.output
    assert not (tmp_path / "out").exists()


def test_bad_input_is_a_sentence(tmp_path, corner, hashpose_match, monkeypatch):
    arguments = ("--data", corner[0], "--output-dir", tmp_path / "out")
    one = write_corner(tmp_path / "one", corner_cameras(1))
    for given, said in {
        ("--data", one, "--output-dir", tmp_path / "out"): "There is 1 training image",
        ("--data", tmp_path / "nowhere", "--output-dir", tmp_path / "out"): "cannot be read",
        (*arguments, "--matches.start", "off"): "there is nothing to do",
        (*arguments, "--format", "tum", "--images", "link"): "--images goes with --format colmap",
        (*arguments, "--matches.features.min-inliers", 0): "must be at least 1",
    }.items():
        outcome = hashpose_match(*given)
        assert outcome.code == 1 and said in " ".join(outcome.output.split()), outcome.output
    monkeypatch.setattr(pycolmap, "__version__", "3.11.1")
    outcome = hashpose_match(*arguments)
    assert outcome.code == 1 and "pycolmap 3.11.1 is too old" in outcome.output
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    outcome = hashpose_match(*arguments)
    assert outcome.code == 1 and "pycolmap is not installed" in outcome.output
    assert not (tmp_path / "out").exists()


def slam_folder(folder, cameras, given: np.ndarray):
    """A COLMAP model as VGGT, MASt3R and SLAM systems write it: every image with a PINHOLE camera of its own."""
    write_corner(folder, cameras)
    (folder / "transforms.json").unlink()
    models, images = {}, {}
    for index, pose in enumerate(given):
        rotation = (pose[:, :3] * [1, -1, -1]).T
        width, height = int(cameras.width[index]), int(cameras.height[index])
        lens = [float(values[index]) for values in (cameras.fx, cameras.fy, cameras.cx, cameras.cy)]
        models[index + 1] = colmap.Camera(index + 1, "PINHOLE", width, height, np.array(lens) * (1 + 1e-4 * index))
        images[index + 1] = colmap.Image(
            index + 1, colmap.rotmat2qvec(rotation), -rotation @ pose[:, 3], index + 1, f"{index:02d}.png",
            np.zeros((0, 2)), np.zeros(0, dtype=np.int64),
        )  # fmt: skip
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    colmap.write_cameras_binary(models, model / "cameras.bin")
    colmap.write_images_binary(images, model / "images.bin")
    colmap.write_points3D_binary({}, model / "points3D.bin")
    return folder


def test_a_folder_as_vggt_or_a_slam_system_writes_it(tmp_path, hashpose_match, ns_train):
    from commands import FEW_RAYS, NO_EVAL, SMALL_FIELD

    cameras = corner_cameras(COUNT)
    given = in_file(turned(cameras.camera_to_worlds.double().numpy(), 1.5))
    folder = slam_folder(tmp_path / "capture", cameras, given)
    dataparser = ("colmap", "--colmap-path", "sparse/0")
    outcome = hashpose_match("--data", folder, "--output-dir", tmp_path / "out", *dataparser)
    assert outcome.code == 0, outcome.output
    model = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    poses = {image.name: image.cam_from_world().inverse().matrix() for image in model.images.values()}
    found = np.stack([poses[name] for name in sorted(poses)]) * [1, -1, -1, 1]
    assert len(model.cameras) == COUNT and error_deg(found, true_poses()) < 0.1 < error_deg(given, true_poses())
    # the same start, and its report, in a run; the lens of every image as it came
    arguments = ("hashpose-small", "--data", folder, "--output-dir", tmp_path / "runs", "--experiment-name", "slam")
    arguments += ("--timestamp", "run", "--max-num-iterations", 2, "--guard.mode", "off", *NO_EVAL, *FEW_RAYS)
    outcome = ns_train(*arguments, *SMALL_FIELD, "--matches.start", "auto", *dataparser, "--eval-mode", "all")
    assert outcome.code == 0, outcome.output
    report = read_matches(tmp_path / "runs/slam/hashpose-small/run")
    assert report.verdict == "matches" and len(report.cameras) == COUNT
    assert "training starts at poses from matches" in " ".join(outcome.output.split())


def test_an_existing_folder_is_refused_before_any_work(tmp_path, corner, hashpose_match, own_cache):
    (tmp_path / "out").mkdir()
    outcome = hashpose_match("--data", corner[0], "--output-dir", tmp_path / "out")
    assert outcome.code == 1 and "exists" in outcome.output and not own_cache.exists()


def test_a_wrong_focal_length_is_found_and_exported(tmp_path, hashpose_match):
    cameras = corner_cameras(COUNT)
    true = float(cameras.fx[0])
    folder = write_corner(tmp_path / "capture", cameras, true_poses())
    content = json.loads((folder / "transforms.json").read_text())
    content.update({name: 1.04 * content[name] for name in ("fl_x", "fl_y")})
    (folder / "transforms.json").write_text(json.dumps(content))
    focals = {}
    for choice in ("given", "refined"):
        outcome = hashpose_match("--data", folder, "--output-dir", tmp_path / choice, "--focal-length", choice)
        assert outcome.code == 0, outcome.output
        model = pycolmap.Reconstruction(str(tmp_path / choice / "sparse/0"))
        focals[choice] = [camera.focal_length_x for camera in model.cameras.values()]
        assert ("Focal length of 6 images" in outcome.output) == (choice == "refined")
    assert focals["given"] == pytest.approx([1.04 * true] * len(focals["given"]), rel=1e-6)
    assert focals["refined"] == pytest.approx([true] * len(focals["refined"]), rel=0.005)
