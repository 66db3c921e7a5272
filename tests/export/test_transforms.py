"""transforms.json, read back by nerfstudio-data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hashpose_ns.data.source import LEGACY_APPLIED_TRANSFORM
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.transforms import NO_TRANSFORM, input_file_extras, write_transforms
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

DISTORTION = [0.05, -0.08, 0.003, -0.004, -0.001, 0.002]


def reload(folder: Path):
    """The file's own frame, without any normalisation."""
    config = NerfstudioDataParserConfig(
        data=folder,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        downscale_factor=1,
        eval_mode="all",
    )
    return config.setup().get_dataparser_outputs("train")


def order_of(filenames, outputs) -> list:
    """nerfstudio sorts frames by file name: where each of ours came to lie."""
    resolved = [path.resolve() for path in outputs.image_filenames]
    return [resolved.index(path.resolve()) for path in filenames]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("camera_type", [CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.EQUIRECTANGULAR])
def test_nerfstudio_reads_the_same_cameras(tmp_path, helpers, shared, camera_type):
    poses = helpers.poses(15)
    cameras = helpers.cameras(15, shared, DISTORTION, camera_type)
    filenames = helpers.write_images(tmp_path / "data", [f"images/{(7 * i) % 15:02d}.png" for i in range(15)])
    (tmp_path / "out").mkdir()
    path = write_transforms(tmp_path / "out", poses, cameras, filenames, "a note")

    outputs = reload(tmp_path / "out")
    order = order_of(filenames, outputs)
    np.testing.assert_allclose(outputs.cameras.camera_to_worlds[order], poses, atol=1e-6)
    for key in ("fx", "fy", "cx", "cy", "width", "height", "distortion_params", "camera_type"):
        torch.testing.assert_close(getattr(outputs.cameras, key)[order], getattr(cameras, key), check_dtype=False)
    content = json.loads(path.read_text())
    assert content["note"] == "a note"
    assert ("fl_x" in content) is shared and ("fl_x" in content["frames"][0]) is not shared
    assert all(not Path(frame["file_path"]).is_absolute() for frame in content["frames"])


def test_reloaded_poses_go_to_the_original_frame_through_applied_transform(tmp_path, helpers):
    poses = helpers.poses(6, seed=1)
    filenames = helpers.write_images(tmp_path, [f"images/{i}.png" for i in range(6)])
    write_transforms(tmp_path, poses, helpers.cameras(6), filenames, "", applied_transform=LEGACY_APPLIED_TRANSFORM)
    outputs = reload(tmp_path)
    np.testing.assert_allclose(outputs.cameras.camera_to_worlds, poses, atol=1e-6)
    # in the original frame x' = y, y' = x, z' = -z
    original = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    expected = poses[:, [1, 0, 2]] * torch.tensor([1.0, 1.0, -1.0])[:, None]
    np.testing.assert_allclose(original, expected, atol=1e-6)


def test_written_beside_its_final_place(tmp_path, helpers):
    filenames = helpers.write_images(tmp_path / "data", ["images/0.png", "images/1.png"])
    (tmp_path / "deep" / "partial").mkdir(parents=True)
    write_transforms(
        tmp_path / "deep" / "partial", helpers.poses(2), helpers.cameras(2), filenames, "", relative_to=tmp_path / "out"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "deep/partial/transforms.json").rename(tmp_path / "out/transforms.json")
    outputs = reload(tmp_path / "out")
    assert all(path.exists() for path in outputs.image_filenames)


def test_masks_depths_and_points_are_linked(tmp_path, helpers):
    filenames = helpers.write_images(tmp_path / "data", ["images/0.png", "images/1.png"])
    masks = helpers.write_images(tmp_path / "data", ["masks/0.png", "masks/1.png"])
    depths = helpers.write_images(tmp_path / "data", ["depths/0.png", "depths/1.png"])
    (tmp_path / "out").mkdir()
    path = write_transforms(
        tmp_path / "out",
        helpers.poses(2),
        helpers.cameras(2),
        filenames,
        "",
        ply_file_path=tmp_path / "data/points.ply",
        mask_filenames=masks,
        depth_filenames=depths,
    )
    outputs = reload(tmp_path / "out")
    assert [mask.resolve() for mask in outputs.mask_filenames] == masks
    assert [depth.resolve() for depth in outputs.metadata["depth_filenames"]] == depths
    assert json.loads(path.read_text())["ply_file_path"] == "../data/points.ply"


def write_input(folder: Path, **extra) -> NerfstudioDataParserConfig:
    folder.mkdir(exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps({"frames": [], **extra}))
    return NerfstudioDataParserConfig(data=folder)


def test_extras_follow_the_input_file(tmp_path):
    assert input_file_extras(BlenderDataParserConfig(data=tmp_path)) == {"applied_transform": NO_TRANSFORM}
    config = write_input(tmp_path / "plain")
    assert input_file_extras(config) == {"applied_transform": NO_TRANSFORM}
    transform = [[0, 1, 0, 4], [1, 0, 0, 5], [0, 0, -1, 6]]
    config = write_input(tmp_path / "processed", applied_transform=transform, ply_file_path="sparse_pc.ply")
    expected = {"applied_transform": transform, "ply_file_path": tmp_path / "processed" / "sparse_pc.ply"}
    assert input_file_extras(config) == expected
    assert input_file_extras(NerfstudioDataParserConfig(data=tmp_path / "processed" / "transforms.json")) == expected
    # old datasets: no key, but a COLMAP model beside the file
    (tmp_path / "plain" / "colmap/sparse/0").mkdir(parents=True)
    assert input_file_extras(write_input(tmp_path / "plain")) == {"applied_transform": LEGACY_APPLIED_TRANSFORM}
    scaled = input_file_extras(write_input(tmp_path / "scaled", applied_scale=2))
    assert scaled == {"applied_transform": NO_TRANSFORM, "applied_scale": 2.0}


def test_mixed_cameras_are_refused(tmp_path, helpers):
    mixed = Cameras(
        torch.eye(4)[:3].repeat(2, 1, 1), 5.0, 5.0, 4.0, 3.0, camera_type=[CameraType.PERSPECTIVE, CameraType.FISHEYE]
    )
    with pytest.raises(HashPoseError, match="perspective and fisheye cameras together"):
        write_transforms(tmp_path, helpers.poses(2), mixed, [tmp_path / "a.png", tmp_path / "b.png"], "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "left, expected",
    [
        ([0, 1, 2, 3], {"train": [0], "val": [1], "test": [2]}),
        ([0, 2], {"train": [0], "val": [2], "test": [2]}),
        ([0, 3], None),
        ([1, 2], None),
    ],
)
def test_what_changes_the_reading_is_kept(tmp_path, helpers, left, expected):
    """The orientation of the dataset, the rim of a fisheye, and the splits as far as their images are there."""
    names = [f"images/{i}.png" for i in range(4)]
    helpers.write_images(tmp_path / "data", names)
    lists = {f"{split}_filenames": [names[i]] for i, split in enumerate(("train", "val", "test"))}
    meta = dict(orientation_override="none", fisheye_crop_radius=3.0, camera_model="OPENCV_FISHEYE", **lists)
    extras = input_file_extras(write_input(tmp_path / "data", **meta))
    (tmp_path / "out").mkdir()
    cameras = helpers.cameras(len(left), camera_type=CameraType.FISHEYE)
    files = [tmp_path / "data" / names[i] for i in left]
    write_transforms(tmp_path / "out", helpers.poses(len(left)), cameras, files, "", **extras)
    parser = NerfstudioDataParserConfig(data=tmp_path / "out", downscale_factor=1, eval_mode="all").setup()
    outputs = parser.get_dataparser_outputs("train")
    assert outputs.cameras.metadata["fisheye_crop_radius"] == 3.0
    torch.testing.assert_close(outputs.dataparser_transform[:, :3], torch.eye(3))  # none, not the default "up"
    for split in ("train", "val", "test"):
        found = parser.get_dataparser_outputs(split).image_filenames
        assert [int(path.stem) for path in found] == (left if expected is None else expected[split])
