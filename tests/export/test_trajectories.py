"""Trajectories, read back by evo."""

import json

import numpy as np
import pytest
import torch

from hashpose_ns.cameras.alignment import Similarity, align_poses, pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, identity_poses, perturb_poses
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.frame import to_input_frame
from hashpose_ns.export.trajectories import timestamps, write_trajectory
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

file_interface = pytest.importorskip("evo.tools.file_interface", reason="evo is the independent reader of these tests")

NAMES = [f"images/frame_{number}.png" for number in (1305031102.175304, 1305031102.211214, 9, 12.5, 100, 3)]


def evo_poses(path) -> np.ndarray:
    read = file_interface.read_tum_trajectory_file if "tum" in str(path) else file_interface.read_kitti_poses_file
    return np.array(read(str(path)).poses_se3)


@pytest.fixture
def make(tmp_path, helpers):
    """A scene whose training started at ``initial`` and ended at ``refined``, poses of its dataset given, all as
    float64 in nerfstudio's frame, and the dataset's poses in its own frame."""

    def scene(initial=None, refined=None):
        poses = helpers.poses(6)
        helpers.write_images(tmp_path / "data", NAMES)
        meta = dict(fl_x=8.0, fl_y=8.0, cx=4.0, cy=3.0, w=8, h=6)
        helpers.write_transforms(tmp_path / "data", poses, NAMES, **meta)
        parser = NerfstudioDataParserConfig(data=tmp_path / "data", eval_mode="all", downscale_factor=1).setup()
        outputs = parser.get_dataparser_outputs("train")
        given = outputs.cameras.camera_to_worlds.double()
        order = [NAMES.index(f"images/{path.name}") for path in outputs.image_filenames]
        initial = given if initial is None else initial(given)
        refined = initial if refined is None else refined(initial)
        return helpers.scene(outputs, parser, refined, initial), poses[order], order

    return scene


def opencv(poses) -> np.ndarray:
    """4x4 matrices with OpenCV axes of OpenGL poses."""
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    matrices[:, :3] = poses * torch.tensor([1.0, -1.0, -1.0, 1.0])
    return matrices


@pytest.mark.parametrize("format", ["tum", "kitti"])
def test_evo_reads_the_given_poses_in_the_order_of_the_names(tmp_path, make, call, capsys, format):
    scene, poses, order = make()
    assert call(scene, format, output=format) == 0
    names = (tmp_path / format / "images.txt").read_text().splitlines()
    assert names == sorted(name.removeprefix("images/") for name in NAMES)
    expected = opencv(poses)  # nerfstudio-data sorts by name too
    np.testing.assert_allclose(evo_poses(tmp_path / format / "refined.txt"), expected, atol=1e-5)
    np.testing.assert_allclose(evo_poses(tmp_path / format / "start.txt"), expected, atol=1e-5)
    assert not (tmp_path / format / "given.txt").exists(), "training started from them"
    assert f"evo_ape {format} {tmp_path}/{format}/start.txt" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["tum", "kitti"])
def test_evo_measures_the_errors_of_start_and_refined(tmp_path, make, call, capsys, format):
    """Training started from noise and found the given poses: evo's errors between the files, in the dataset's units."""
    from evo.core import metrics
    from evo.core.trajectory import PosePath3D

    noise = PerturbationConfig(protocol="l2g", rotation=0.1, translation=0.2)
    scene, poses, _ = make(initial=lambda given: perturb_poses(given, noise))
    outputs = scene.train_outputs
    given = outputs.cameras.camera_to_worlds
    scene.poses.refined = given
    assert call(scene, format, "--align", "none", output=format) == 0
    assert f"evo_ape {format} {tmp_path}/{format}/given.txt" in capsys.readouterr().out
    start = to_input_frame(perturb_poses(given.double(), noise), outputs)
    expected = pose_errors(start, poses, Similarity.identity())
    for name, rotation, center in (
        ("start", expected.rotation_deg, expected.center),
        ("refined", torch.zeros(6), torch.zeros(6)),
    ):
        pair = [PosePath3D(poses_se3=list(evo_poses(tmp_path / format / f"{file}.txt"))) for file in ("given", name)]
        for relation, ours in (("rotation_angle_deg", rotation), ("translation_part", center)):
            ape = metrics.APE(metrics.PoseRelation[relation])
            ape.process_data(tuple(pair))
            np.testing.assert_allclose(ape.error, ours, atol=1e-4)
    assert float(expected.center.min()) > 0.05


def test_times_come_from_the_names_where_asked(tmp_path, make, call, capsys):
    scene, poses, order = make()
    assert call(scene, "tum", "--timestamps", "names", output="tum") == 0
    trajectory = file_interface.read_tum_trajectory_file(str(tmp_path / "tum/refined.txt"))
    assert trajectory.timestamps.tolist() == [3.0, 9.0, 12.5, 100.0, 1305031102.175304, 1305031102.211214]
    by_time = np.argsort([float(NAMES[i].removesuffix(".png").rsplit("_")[1]) for i in order])
    np.testing.assert_allclose(np.array(trajectory.poses_se3), opencv(poses)[by_time], atol=1e-5)
    names = (tmp_path / "tum/images.txt").read_text().splitlines()
    assert names[0] == "frame_3.png" and names[-1] == "frame_1305031102.211214.png"


def test_names_without_times_are_told():
    assert timestamps(["b.png", "a.png"], "index") == [1.0, 0.0]
    with pytest.raises(HashPoseError, match="no number in the image name a.png; use --timestamps index"):
        timestamps(["a.png"], "names")
    with pytest.raises(HashPoseError, match="Two image names end in the same number"):
        timestamps(["left_1.png", "right_1.png"], "names")


def test_every_digit_is_kept(tmp_path, helpers):
    poses = helpers.poses(20)
    poses[:, :, 3] += 4.0e6
    for format in ("tum", "kitti"):
        write_trajectory(tmp_path / f"{format}.txt", poses, [float(i) for i in range(20)], format)
        read = evo_poses(tmp_path / f"{format}.txt")
        np.testing.assert_allclose(read[:, :3, :3], poses[:, :, :3], atol=1e-12)
        np.testing.assert_array_equal(read[:, :3, 3], poses[:, :, 3])


def test_an_identity_start_has_no_start_to_compare_with(tmp_path, make, call, helpers):
    scene, _, _ = make(initial=lambda given: identity_poses(6).double(), refined=lambda _: helpers.poses(6, seed=9))
    assert call(scene, "tum", output="tum") == 0
    written = {path.name for path in (tmp_path / "tum").iterdir()}
    assert written == {"refined.txt", "given.txt", "images.txt", "export.json"}
    assert "arbitrary" in json.loads((tmp_path / "tum/export.json").read_text())["frame"]
    # a similarity apart from what was learned, as far as evo or anyone can see
    refined = torch.from_numpy(evo_poses(tmp_path / "tum/refined.txt"))[:, :3]
    learned = helpers.poses(6, seed=9) * torch.tensor([1.0, -1.0, -1.0, 1.0])
    assert float(pose_errors(refined, learned, align_poses(refined, learned)).center.max()) < 1e-5
