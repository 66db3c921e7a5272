"""Cameras that cannot be are refused when they are read, in either split, by a sentence that names the image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from scenes import blender_scene, edit_json

from hashpose_ns.data.checks import check_intrinsics, check_transform, make_rigid
from hashpose_ns.data.names import check_names
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
NAN, INF = float("nan"), float("inf")


def read(dataparser) -> None:
    """Reads a dataset as training does."""
    HashPoseDataManagerConfig(dataparser=dataparser).setup(device="cpu", test_mode="val")


def poses(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rotations = roma.random_rotmat(count, generator=generator)
    return torch.cat([rotations, torch.randn(count, 3, 1, generator=generator)], dim=-1)


def cameras(kind: CameraType = CameraType.PERSPECTIVE, distortion=(0.0,) * 6, **second) -> Cameras:
    """Three good cameras of 120x90; the second has other values."""
    values = {"fx": 100.0, "fy": 101.0, "cx": 61.0, "cy": 44.0}
    columns = {key: torch.tensor([value, second.get(key, value), value]) for key, value in values.items()}
    params = torch.zeros(3, 6)
    params[1] = torch.tensor(distortion)
    sizes = {"width": torch.tensor([120] * 3), "height": torch.tensor([90] * 3)}
    return Cameras(camera_to_worlds=poses(), **columns, **sizes, distortion_params=params, camera_type=kind)


# -- intrinsics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second, words",
    [
        ({"fx": 0.0}, "The focal lengths of b.jpg, (0, 101), are not positive numbers."),
        ({"fy": -5.0}, "The focal lengths of b.jpg, (100, -5), are not positive"),
        ({"fx": NAN}, "The focal lengths of b.jpg"),
        ({"fx": INF, "fy": INF}, "The focal lengths of b.jpg"),
        ({"cx": NAN}, "The principal point of b.jpg, (nan, 44), is not a pair"),
        ({"cy": INF}, "The principal point of b.jpg"),
        ({"cx": -1e9}, "The intrinsics of b.jpg are impossible"),
        ({"cy": 1e4}, "principal point (61, 10000) for an image of 120x90"),
        ({"fx": 1e-3}, "The intrinsics of b.jpg are impossible"),
        ({"fy": 2e3}, "The intrinsics of b.jpg are impossible"),
        ({"fx": 2e4, "fy": 2e4}, "The focal length of b.jpg is 200 times that of the other images."),
        ({"fx": 1e20, "fy": 1e20}, "The intrinsics of b.jpg are impossible"),
        ({"distortion": (NAN, 0, 0, 0, 0, 0)}, "A distortion parameter of b.jpg"),
        ({"distortion": (0, 0, 0, 0, 0, INF)}, "A distortion parameter of b.jpg"),
        ({"distortion": (1e30, 0, 0, 0, 0, 0)}, "The distortion of b.jpg cannot be undone"),
        ({"distortion": (-100.0, 0, 0, 0, 0, 0)}, "k1 -100"),
        ({"distortion": (0, 0, 0, 0, 1e9, 0)}, "p1 1e+09"),
        ({"distortion": (1e30, 0, 0, 0, 0, 0), "kind": CameraType.FISHEYE}, "The distortion of b.jpg"),
        ({"cx": 1e9, "kind": CameraType.FISHEYE}, "The intrinsics of b.jpg are impossible"),
        ({"fx": NAN, "kind": CameraType.EQUIRECTANGULAR}, "The focal lengths of b.jpg"),
    ],
)
def test_impossible_intrinsics_are_refused(second, words):
    with pytest.raises(HashPoseError, match=re.escape(words)) as refused:
        check_intrinsics(cameras(**second), NAMES)
    assert "a.jpg" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "second",
    [
        {},
        {"fx": 20.0, "fy": 15.0},  # a field of view of 143 degrees
        {"fx": 5e3, "fy": 5e3},  # a long lens beside a short one
        {"cx": -400.0},  # a crop far from the axis
        {"distortion": (-0.15, 0, 0, 0, 0, 0), "fx": 50.0, "fy": 50.0},  # turns back before the corners
        {"distortion": (-0.3, 0.12, -0.02, 0, 1e-3, -2e-3)},
        {"distortion": (0.06, -0.08, 0, 0, -1e-3, 1e-4)},
        {"distortion": (-0.02, 0.004, -0.001, 1e-4, 0, 0), "kind": CameraType.FISHEYE, "fx": 40.0, "fy": 40.0},
        {"fx": 60.0, "fy": 90.0, "kind": CameraType.EQUIRECTANGULAR},
    ],
)
def test_real_intrinsics_pass(second):
    check_intrinsics(cameras(**second), NAMES)


def test_a_value_that_all_images_share_is_said_of_all():
    bad = cameras()
    bad.fx = torch.zeros(3, 1)
    with pytest.raises(HashPoseError, match=r"of a\.jpg.*; 3 of 3 cameras are like that\."):
        check_intrinsics(bad, NAMES)


# -- poses, transforms, names ------------------------------------------------------------------------------------------


def test_rounded_rotations_are_made_orthonormal_and_others_stay():
    outputs = DataparserOutputs([Path(name) for name in NAMES], cameras())
    given = outputs.cameras.camera_to_worlds.clone()
    assert make_rigid(outputs) == [] and torch.equal(outputs.cameras.camera_to_worlds, given)
    outputs.cameras.camera_to_worlds[1] = (given[1] * 100).round() / 100
    (note,) = make_rigid(outputs)
    mended = outputs.cameras.camera_to_worlds
    assert "rounded" in note and torch.equal(mended[[0, 2]], given[[0, 2]])
    torch.testing.assert_close(mended[1, :, :3].T @ mended[1, :, :3], torch.eye(3))
    torch.testing.assert_close(mended[1], given[1], rtol=0, atol=1e-2)
    outputs.cameras.camera_to_worlds[1, :, :3] *= 1.1
    with pytest.raises(HashPoseError, match=r"b\.jpg is not rigid"):
        make_rigid(outputs)


@pytest.mark.parametrize(
    "scale, transform",
    [
        (0.0, torch.eye(4)[:3]),
        (-1.0, torch.eye(4)[:3]),
        (NAN, torch.eye(4)[:3]),
        (INF, torch.eye(4)[:3]),
        (1.0, torch.zeros(3, 4)),
        (1.0, torch.eye(4)[:3] * NAN),
        (1.0, torch.eye(4)[:3] * 2),
        (1.0, torch.eye(4)[[1, 0, 2]]),
        (1.0, torch.cat([torch.eye(3), torch.full((3, 1), INF)], dim=1)),
    ],
)
def test_a_change_of_frame_without_a_way_back_is_refused(scale, transform):
    outputs = DataparserOutputs([], cameras(), dataparser_scale=scale, dataparser_transform=transform)
    with pytest.raises(HashPoseError, match="applied_transform and applied_scale"):
        check_transform(outputs)


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\r.jpg", "sub\u2028/a.jpg", "caf\udce9.jpg"])
def test_names_that_no_list_of_names_holds_are_refused(name):
    with pytest.raises(HashPoseError, match="The image name 'sub|The image name 'a|The image name 'caf") as refused:
        check_names(["fine \u00fc.jpg", name])
    assert str(refused.value).isprintable() and str(refused.value).endswith("rename the image.")


# -- in both splits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.diag([1.0, 1, -1, 1]), np.full((4, 4), NAN)])
def test_a_pose_that_is_none_is_refused_in_either_split(tmp_path, split, matrix):
    scene = blender_scene(tmp_path)

    def spoil(meta):
        meta["frames"][1]["transform_matrix"] = matrix.tolist()

    edit_json(scene / f"transforms_{split}.json", spoil)
    with pytest.raises(HashPoseError, match=rf"The pose of camera \./{split}/r_1"):
        read(BlenderDataParserConfig(data=scene))


@pytest.mark.parametrize("angle", [0, NAN, -1, np.pi])
def test_a_field_of_view_that_is_none_is_refused(tmp_path, angle):
    scene = blender_scene(tmp_path)
    edit_json(scene / "transforms_test.json", lambda meta: meta.update(camera_angle_x=angle))
    with pytest.raises(HashPoseError, match=r"of r_0\.png"):
        read(BlenderDataParserConfig(data=scene))
