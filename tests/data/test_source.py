"""The user's files read again, and what training makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import blender_scene, edit_json, llff_scene, nerfstudio_scene
from scipy.spatial.transform import Rotation

from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig
from hashpose_ns.data.source import source_cameras
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.colmap import write_colmap_model
from hashpose_ns.export.frame import rigid
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRFDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.minimal_dataparser import MinimalDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from nerfstudio.data.dataparsers.phototourism_dataparser import PhototourismDataParserConfig
from nerfstudio.data.dataparsers.scannetpp_dataparser import ScanNetppDataParserConfig
from nerfstudio.data.utils.colmap_parsing_utils import Camera, write_cameras_binary


def manager(config):
    return HashPoseDataManagerConfig(dataparser=config).setup(device="cpu", test_mode="inference")


def matrices(path) -> np.ndarray:
    return np.array([frame["transform_matrix"] for frame in json.loads(path.read_text())["frames"]])[:, :3]


def colmap_model(scene, model) -> None:
    """The scene's cameras as a COLMAP text model, a camera for each image."""
    model.mkdir(parents=True)
    poses = torch.from_numpy(matrices(scene / "transforms.json")) * torch.tensor([1.0, -1.0, -1.0, 1.0])
    cameras = Cameras(poses.float(), fx=30.0, fy=30.0, cx=12.0, cy=12.0, width=24, height=24)
    write_colmap_model(model, poses, cameras, [f"frame_{i:02d}.png" for i in range(len(poses))])


def half_size(scene) -> None:
    (scene / "images_2").mkdir()
    for path in (scene / "images").iterdir():
        Image.open(path).resize((12, 12)).save(scene / "images_2" / path.name)


def of_colmap(folder):
    scene = nerfstudio_scene(folder, 8)
    half_size(scene)
    colmap_model(scene, scene / "sparse/0")
    return ColmapDataParserConfig(
        data=scene, colmap_path=Path("sparse/0"), load_3D_points=False, downscale_factor=2, center_method="focus"
    )


def of_phototourism(folder):
    scene = nerfstudio_scene(folder, 8)
    colmap_model(scene, scene / "dense/sparse")
    (scene / "images").rename(scene / "dense/images")
    # the dataparser takes a camera's number for its image's
    cameras = {i: Camera(i, "PINHOLE", 24, 24, [30.0, 30.0, 12.0, 12.0]) for i in range(1, 9)}
    write_cameras_binary(cameras, scene / "dense/sparse/cameras.bin")
    return PhototourismDataParserConfig(data=scene)


def of_scannetpp(folder):
    scene = nerfstudio_scene(folder / "dslr", 8)
    (scene / "images").rename(scene / "resized_images")

    def split(meta):
        frames = [{**frame, "file_path": frame["file_path"].split("/")[1]} for frame in meta["frames"]]
        meta.update(frames=frames[::2], test_frames=frames[1::2], has_mask=False)

    edit_json(scene / "transforms.json", split)
    (scene / "nerfstudio").mkdir()
    (scene / "transforms.json").rename(scene / "nerfstudio/transforms.json")
    return ScanNetppDataParserConfig(data=folder, orientation_method="vertical")


def of_dnerf(folder):
    scene = blender_scene(folder)
    for split in ("train", "test"):
        edit_json(scene / f"transforms_{split}.json", lambda meta: [f.update(time=0.0) for f in meta["frames"]])
    return DNeRFDataParserConfig(data=scene, scale_factor=0.3)


def of_instant_ngp(folder):
    """Names without suffix, and one image that is not there."""
    scene = nerfstudio_scene(folder, 8)
    edit_json(
        scene / "transforms.json",
        lambda meta: [frame.update(file_path=frame["file_path"][:-4]) for frame in meta["frames"]],
    )
    (scene / "images/frame_05.png").unlink()
    return InstantNGPDataParserConfig(data=scene, eval_mode="interval", eval_interval=3)


def of_llff(folder):
    return LLFFDataParserConfig(data=llff_scene(folder))


@pytest.mark.parametrize("make", [of_colmap, of_phototourism, of_scannetpp, of_dnerf, of_instant_ngp, of_llff])
def test_one_similarity_takes_the_file_s_poses_to_nerfstudio_s(tmp_path, make):
    parser = make(tmp_path / "scene").setup()
    train, test = parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("test")
    source = source_cameras(parser)
    found = source.similarity(train.image_filenames, train.cameras.camera_to_worlds)
    held_out = source.camera_to_worlds[source.rows(test.image_filenames)]
    np.testing.assert_allclose(found.apply_to_poses(held_out), test.cameras.camera_to_worlds, atol=1e-5)


def shift(path, offset) -> None:
    """Moves all cameras of a transforms.json."""

    def edit(meta):
        for frame in meta["frames"]:
            for axis in range(3):
                frame["transform_matrix"][axis][3] += offset[axis]

    edit_json(path, edit)


@pytest.mark.parametrize("downscale", [1, 2])
def test_images_of_all_splits_find_their_camera(tmp_path, downscale):
    scene = nerfstudio_scene(tmp_path / "scene", 8)
    edit_json(scene / "transforms.json", lambda meta: meta["frames"].reverse())
    edit_json(scene / "transforms.json", lambda meta: meta["frames"][0].update(fl_x=30.0))
    half_size(scene)
    parser = NerfstudioDataParserConfig(data=scene, downscale_factor=downscale).setup()
    for split in ("train", "val"):
        outputs = parser.get_dataparser_outputs(split)
        source = source_cameras(parser)
        rows = source.rows(outputs.image_filenames)
        assert [source.names[row].split("/")[1] for row in rows] == [path.name for path in outputs.image_filenames]
    np.testing.assert_array_equal(source.camera_to_worlds, matrices(scene / "transforms.json"))
    assert source.camera_to_worlds.dtype == torch.float64
    assert [said["fl_x"] for said in source.intrinsics[:2]] == [30.0, source.intrinsics[2]["fl_x"]]


def test_one_image_with_two_poses_is_refused(tmp_path):
    scene = nerfstudio_scene(tmp_path / "scene", 8)
    edit_json(scene / "transforms.json", lambda meta: meta["frames"][1].update(file_path="images/frame_00.png"))
    with pytest.raises(HashPoseError, match="frame_00.png more than once; list it once"):
        manager(NerfstudioDataParserConfig(data=scene))


def test_a_pose_that_is_no_number_is_one_pose(tmp_path):
    scene = nerfstudio_scene(tmp_path / "scene", 10)
    parser = NerfstudioDataParserConfig(data=scene).setup()
    filenames = parser.get_dataparser_outputs("val").image_filenames
    number = int(filenames[0].stem[-2:])
    edit_json(
        scene / "transforms.json",
        lambda meta: meta["frames"][number]["transform_matrix"][0].__setitem__(0, float("nan")),
    )
    assert source_cameras(parser).rows(filenames)[0] == number


def test_training_and_held_out_cameras_start_where_the_file_has_them(tmp_path):
    """In a frame whose numbers single precision cannot hold: 40 m off at 6e8 m."""
    scene = nerfstudio_scene(tmp_path / "scene", 10)
    near = manager(NerfstudioDataParserConfig(data=scene))
    shift(scene / "transforms.json", (4e8, -3e8, 2e8))
    far = manager(NerfstudioDataParserConfig(data=scene, auto_scale_poses=False))
    exact = torch.from_numpy(matrices(scene / "transforms.json"))
    for split in ("train_dataset", "eval_dataset"):
        dataset = getattr(far, split)
        rows = [int(path.stem[-2:]) for path in dataset.image_filenames]
        # one similarity takes the file's poses of both splits there
        expected = far.from_source.apply_to_poses(exact[rows])
        np.testing.assert_allclose(dataset.cameras.camera_to_worlds, expected, atol=1e-6)
        rotations = getattr(near, split).cameras.camera_to_worlds[:, :, :3]
        np.testing.assert_allclose(dataset.cameras.camera_to_worlds[:, :, :3], rotations, atol=1e-5)


def test_held_out_cameras_may_be_close_together(tmp_path):
    scene = nerfstudio_scene(tmp_path / "scene", 10)

    def approach(meta):
        first, other = meta["frames"][0], meta["frames"][5]
        other["transform_matrix"] = [[*row[:3], row[3] + 1e-6] for row in first["transform_matrix"][:3]] + [
            [0, 0, 0, 1]
        ]

    edit_json(scene / "transforms.json", approach)
    config = NerfstudioDataParserConfig(data=scene, eval_mode="interval", eval_interval=5)
    assert [path.stem for path in manager(config).eval_dataset.image_filenames] == ["frame_00", "frame_05"]


@pytest.mark.parametrize("factor, digits", [(2.0, 16), (1.0, 3)])
def test_quaternions_need_not_be_normalised(tmp_path, factor, digits):
    """As in models written by hand."""
    scene = nerfstudio_scene(tmp_path / "scene", 6)
    model = scene / "sparse/0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text("1 PINHOLE 24 24 30 30 12 12\n")
    (model / "points3D.txt").write_text("")
    lines, expected = [], []
    for i, pose in enumerate(matrices(scene / "transforms.json")):
        world_to_camera = np.linalg.inv(np.vstack([pose * [1, -1, -1, 1], [0, 0, 0, 1]]))
        quaternion = np.round(factor * Rotation.from_matrix(world_to_camera[:3, :3]).as_quat(), digits)
        numbers = [*np.roll(quaternion, 1), *world_to_camera[:3, 3]]
        rotation = Rotation.from_quat(quaternion).as_matrix().T
        expected.append(np.c_[rotation * [1, -1, -1], -rotation @ world_to_camera[:3, 3]])
        lines.append(f"{i + 1} {' '.join(map(str, numbers))} 1 frame_{i:02d}.png\n\n")
    (model / "images.txt").write_text("".join(lines))
    trained = manager(ColmapDataParserConfig(data=scene, colmap_path="sparse/0", load_3D_points=False))
    np.testing.assert_allclose(trained.source.camera_to_worlds, expected, atol=1e-9)
    poses = trained.train_dataset.cameras.camera_to_worlds
    np.testing.assert_allclose(rigid(poses), poses, atol=1e-6)


def test_cameras_that_float32_cannot_tell_apart_are_refused(tmp_path):
    scene = blender_scene(tmp_path / "scene")
    for split in ("train", "test"):
        shift(scene / f"transforms_{split}.json", (0, 3e5, 0))
    with pytest.raises(HashPoseError, match="times as far from the origin as from one another"):
        manager(BlenderDataParserConfig(data=scene))


def test_a_dataparser_that_does_more_than_move_the_frame_is_refused(tmp_path, monkeypatch):
    read = Nerfstudio._generate_dataparser_outputs

    def moves_one(self, split="train"):
        outputs = read(self, split)
        outputs.cameras.camera_to_worlds[2, 0, 3] += 0.1
        return outputs

    monkeypatch.setattr(Nerfstudio, "_generate_dataparser_outputs", moves_one)
    with pytest.raises(HashPoseError, match="does more to the poses of .*transforms.json than change"):
        manager(NerfstudioDataParserConfig(data=nerfstudio_scene(tmp_path / "scene", 10)))


def test_what_is_not_known_is_left_to_the_dataparser(tmp_path):
    class Own(Nerfstudio):
        def _generate_dataparser_outputs(self, split="train"):
            return super()._generate_dataparser_outputs(split)

    config = NerfstudioDataParserConfig(data=nerfstudio_scene(tmp_path / "scene", 8))
    assert source_cameras(Own(config)) is None
    assert source_cameras(MinimalDataParserConfig(data=tmp_path).setup()) is None
