"""What files say of cameras reaches training, or is refused by a sentence that names the image at fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import blender_scene, edit_json, llff_scene, nerfstudio_scene

from hashpose_ns.cameras.alignment import pose_errors
from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig
from hashpose_ns.datamanager import HashPoseDataManager, HashPoseDataManagerConfig
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.dataparsers.phototourism_dataparser import PhototourismDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils as colmap

NAN = float("nan")
HELD_OUT = "frame_05.png"
"""What the dataparsers' default split holds out of ten images."""


def read(dataparser, test_mode: str = "val") -> HashPoseDataManager:
    """Reads a dataset as training does, or ("inference") as an export does."""
    return HashPoseDataManagerConfig(dataparser=dataparser).setup(device="cpu", test_mode=test_mode)


def frame(meta: dict, name: str) -> dict:
    return next(entry for entry in meta["frames"] if name in entry["file_path"])


# -- transforms.json ---------------------------------------------------------------------------------------------------


def set_entry(name: str, row: int, column: int, value: float):
    return lambda meta: frame(meta, name)["transform_matrix"][row].__setitem__(column, value)


def transpose(meta: dict) -> None:
    for entry in meta["frames"]:
        entry["transform_matrix"] = np.transpose(entry["transform_matrix"]).tolist()


def give_masks(meta: dict, count: int = 10) -> None:
    for entry in meta["frames"][:count]:
        entry["mask_path"] = entry["file_path"]


@pytest.mark.parametrize(
    "edit, words",
    [
        (set_entry(HELD_OUT, 0, 0, NAN), f"The pose of camera images/{HELD_OUT} holds a value"),
        (set_entry(HELD_OUT, 0, 3, NAN), f"The pose of camera images/{HELD_OUT} holds a value"),
        (set_entry(HELD_OUT, 1, 1, 1e30), f"The pose of camera images/{HELD_OUT} is not rigid"),
        (set_entry("frame_03", 2, 3, 1e19), "images/frame_03.png has a coordinate of 1e\\+19"),
        (set_entry("frame_03", 2, 3, -1e6), "images/frame_03.png is 1e\\+06 units away from the others"),
        (transpose, "The matrix of 'images/frame_0.*' is transposed"),
        (lambda meta: frame(meta, "frame_03").update(fl_x=31.0), "gives images/frame_03.png fl_x 31,"),
        (lambda meta: frame(meta, HELD_OUT).update(cy=10.0), f"gives images/{HELD_OUT} cy 10, .*top of the file wins"),
        (lambda meta: meta.update(k1=0.1, k5=0.1), "k5 0.1, but"),
        (lambda meta: meta.update(k4=0.1), "k4 0.1, but"),
        (lambda meta: meta.update(is_fisheye=True), "camera of images/frame_0.* is fisheye, but .*perspective"),
        (
            lambda meta: frame(meta, "frame_03").update(camera_model="OPENCV_FISHEYE"),
            "camera of images/frame_03.png is fisheye",
        ),
        (lambda meta: meta["frames"].append(dict(frame(meta, HELD_OUT))), f"lists the image images/{HELD_OUT} more"),
        (
            lambda meta: frame(meta, "frame_03").update(file_path=f"images/../images/{HELD_OUT}"),
            "more than once .as images",
        ),
        (lambda meta: give_masks(meta, 4), "images/frame_04.png has no mask_path"),
    ],
)
def test_nerfstudio_data(tmp_path, edit, words, capsys):
    scene = nerfstudio_scene(tmp_path)
    edit_json(scene / "transforms.json", edit)
    with pytest.raises(HashPoseError, match=words):
        read(NerfstudioDataParserConfig(data=scene))
    assert "All cameras are in one place" not in capsys.readouterr().out


def test_a_camera_far_away_is_no_mistake(tmp_path):
    scene = nerfstudio_scene(tmp_path)
    edit_json(scene / "transforms.json", set_entry("frame_03", 2, 3, 500.0))
    read(NerfstudioDataParserConfig(data=scene))


def instant_ngp(folder: Path, edit) -> HashPoseDataManager:
    scene = nerfstudio_scene(folder, num_images=20)
    edit_json(scene / "transforms.json", edit)
    return read(InstantNGPDataParserConfig(data=scene))


def test_instant_ngp_data_gets_what_it_leaves_out(tmp_path, capsys):
    def edit(meta):
        meta["fl_y"] = 20.0
        for index, entry in enumerate(meta["frames"]):
            entry.update(fl_x=30.0 + index, k1=0.01 * index, cx=11.0)

    manager = instant_ngp(tmp_path, edit)
    assert capsys.readouterr().out.count("cx, fl_x, fl_y, k1 of the input") == 1
    for dataset in (manager.train_dataset, manager.eval_dataset):
        index = torch.tensor([int(path.stem[-2:]) for path in dataset.image_filenames])
        torch.testing.assert_close(dataset.cameras.fx[:, 0], 30.0 + index)
        torch.testing.assert_close(dataset.cameras.fy[:, 0], torch.full((len(index),), 20.0))
        torch.testing.assert_close(dataset.cameras.cx[:, 0], torch.full((len(index),), 11.0))
        torch.testing.assert_close(dataset.cameras.distortion_params[:, 0], 0.01 * index)


def test_instant_ngp_data_gets_the_second_field_of_view(tmp_path):
    def edit(meta):
        meta["camera_angle_y"] = 1.0
        del meta["fl_y"]

    manager = instant_ngp(tmp_path, edit)
    assert float(manager.train_dataset.cameras.fy[0]) == pytest.approx(12 / np.tan(0.5))


def test_instant_ngp_data_does_not_know_camera_models(tmp_path):
    with pytest.raises(HashPoseError, match="is fisheye, .* nerfstudio-data"):
        instant_ngp(tmp_path, lambda meta: meta.update(camera_model="OPENCV_FISHEYE"))


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda meta: meta.update(fl_x=11.0), "gives ./test/r_0 fl_x 11, but nerfstudio takes"),
        (lambda meta: meta["frames"][1].update(camera_angle_x=0.3), "r_1 fl_x .* but nerfstudio takes"),
        (lambda meta: meta["frames"][1].update(mask_path="m.png"), "blender-data reads no masks"),
    ],
)
def test_blender_data(tmp_path, edit, words):
    scene = blender_scene(tmp_path)
    edit_json(scene / "transforms_test.json", edit)
    with pytest.raises(HashPoseError, match=words):
        read(BlenderDataParserConfig(data=scene))


def test_blender_data_gets_what_it_leaves_out(tmp_path):
    scene = blender_scene(tmp_path, size=24)
    for split in ("train", "test"):  # as for images of 48x48
        edit_json(scene / f"transforms_{split}.json", lambda meta: meta.update(w=48, h=48, fl_y=80.0, cx=26.0, k2=0.1))
    cameras = read(BlenderDataParserConfig(data=scene)).train_dataset.cameras
    assert (float(cameras.fy[2]), float(cameras.cx[2]), float(cameras.cy[2])) == (40.0, 13.0, 12.0)
    assert float(cameras.distortion_params[2, 1]) == pytest.approx(0.1)
    assert int(cameras.camera_type[2]) == CameraType.PERSPECTIVE.value


def test_llff_data_scales_to_the_size_of_the_images(tmp_path):
    scene = llff_scene(tmp_path)
    rows = np.load(scene / "poses_bounds.npy")
    rows[:, [4, 9, 14]] *= 4.0  # height, width and focal length of larger images
    np.save(scene / "poses_bounds.npy", rows)
    cameras = read(LLFFDataParserConfig(data=scene)).train_dataset.cameras
    assert float(cameras.fx[0]) == pytest.approx(1.2 * 24)


# -- downscaled images -------------------------------------------------------------------------------------------------


def nested_scene(folder: Path, name: str) -> Path:
    """Images in two folders, downscaled ones in one."""
    scene = nerfstudio_scene(folder)
    (scene / "images_2").mkdir()

    def move(meta):
        for index, entry in enumerate(meta["frames"]):
            target = Path("images", "ba"[index % 2], name.format(index))
            (scene / target).parent.mkdir(exist_ok=True)
            (scene / entry["file_path"]).rename(scene / target)
            Image.open(scene / target).resize((12, 12)).save(scene / "images_2" / target.name)
            entry["file_path"] = str(target)

    edit_json(scene / "transforms.json", move)
    return scene


def test_downscaled_images_come_in_the_order_and_split_of_the_full_ones(tmp_path):
    scene = nested_scene(tmp_path, "{:04d}.png")
    trained = read(NerfstudioDataParserConfig(data=scene, downscale_factor=2))
    exported = read(NerfstudioDataParserConfig(data=scene, downscale_factor=1), "inference")
    for small, full in ((trained.train_dataset, exported.train_dataset), (trained.eval_dataset, exported.eval_dataset)):
        assert [path.name for path in small.image_filenames] == [path.name for path in full.image_filenames]
        assert {path.parent.name for path in small.image_filenames} == {"images_2"}
        torch.testing.assert_close(small.cameras.camera_to_worlds, full.cameras.camera_to_worlds)
        torch.testing.assert_close(small.cameras.fx, full.cameras.fx / 2)
        assert int(small.cameras.width[0]) == 12


def test_a_downscaled_image_that_would_stand_for_two_is_refused(tmp_path):
    scene = nested_scene(tmp_path, "x.png")
    edit_json(scene / "transforms.json", lambda meta: meta.update(frames=meta["frames"][-2:]))
    with pytest.raises(
        HashPoseError, match=r"images_2/x\.png would stand for two images, images/b/x\.png and images/a"
    ):
        read(NerfstudioDataParserConfig(data=scene, downscale_factor=2))


# -- COLMAP ------------------------------------------------------------------------------------------------------------


def colmap_scene(folder: Path, edit=lambda cameras, images: None, model: str = "sparse/0", cameras: int = 1) -> Path:
    """A text or binary model of the chair's cameras."""
    scene = nerfstudio_scene(folder / "scene")
    meta = json.loads((scene / "transforms.json").read_text())
    params = np.array([meta["fl_x"], meta["fl_y"], 12.0, 12.0])
    sensors = {i: colmap.Camera(i, "PINHOLE", 24, 24, params + [i, i, 0, 0]) for i in range(1, cameras + 1)}
    images = {}
    for i, entry in enumerate(meta["frames"], 1):
        pose = np.array(entry["transform_matrix"])[:3] * [1, -1, -1, 1]
        u, _, v = np.linalg.svd(pose[:, :3].T)
        qvec, tvec = colmap.rotmat2qvec(u @ v), -(u @ v) @ pose[:, 3]
        none = np.zeros((0, 2)), np.zeros(0, dtype=int)
        images[i] = colmap.Image(i, qvec, tvec, min(i, cameras), Path(entry["file_path"]).name, *none)
    edit(sensors, images)
    target = scene / model
    target.mkdir(parents=True)
    colmap.write_cameras_binary(sensors, target / "cameras.bin")
    colmap.write_images_binary(images, target / "images.bin")
    return scene


def read_colmap(scene: Path) -> HashPoseDataManager:
    return read(ColmapDataParserConfig(data=scene, colmap_path=Path("sparse/0"), load_3D_points=False))


def replace(key: int, **values):
    def edit(cameras, images):
        images[key] = images[key]._replace(**values)

    return edit


@pytest.mark.parametrize(
    "edit, words",
    [
        (replace(1, qvec=np.zeros(4)), r"camera frame_00\.png holds a value"),
        (replace(9, qvec=np.array([NAN, 0, 0, 1])), r"camera frame_08\.png holds a value"),
        (replace(9, tvec=np.array([NAN, 0, 0])), r"camera frame_08\.png holds a value"),
        (replace(4, tvec=np.array([1e9, 0, 0])), r"camera frame_03\.png is 1e\+09 units away"),
        (replace(4, name="frame_06.png"), r"lists the image frame_06\.png more than once"),
    ],
)
def test_colmap(tmp_path, edit, words):
    with pytest.raises(HashPoseError, match=words):
        read_colmap(colmap_scene(tmp_path, edit))


@pytest.mark.parametrize("change", [lambda qvec: np.round(qvec, 3), lambda qvec: -2 * qvec])
def test_quaternions_are_normalised(tmp_path, capsys, change):
    def edit(cameras, images):
        for key, image in images.items():
            images[key] = image._replace(qvec=change(image.qvec))

    right = read_colmap(colmap_scene(tmp_path / "right")).train_dataset.cameras.camera_to_worlds
    assert "not of unit length" not in capsys.readouterr().out
    normalised = read_colmap(colmap_scene(tmp_path / "changed", edit)).train_dataset.cameras.camera_to_worlds
    errors = pose_errors(normalised, right)
    assert float(errors.rotation_deg.max()) < 0.1 and float(errors.center.max()) < 5e-3
    assert ("not of unit length" in capsys.readouterr().out) == (change(np.ones(1))[0] != 1)


def test_phototourism_data_gets_the_sizes_of_images(tmp_path):
    def shift(cameras, images):
        for key, camera in cameras.items():
            cameras[key] = camera._replace(params=camera.params + np.array([0, 0, 1.5, -1.0]))

    scene = colmap_scene(tmp_path, shift, "dense/sparse", cameras=10)
    (scene / "images").rename(scene / "dense/images")
    cameras = read(PhototourismDataParserConfig(data=scene)).train_dataset.cameras
    assert (int(cameras.width[0]), int(cameras.height[0])) == (24, 24)
    assert (float(cameras.cx[0]), float(cameras.cy[0])) == (13.5, 11.0)


def swap(cameras, images):
    images[2], images[3] = images[2]._replace(camera_id=3), images[3]._replace(camera_id=2)


@pytest.mark.parametrize(
    "edit, cameras, words",
    [
        (swap, 10, r"gives frame_0[12]\.png fl_x"),
        (lambda cameras, images: None, 5, "has 10 images and 5 cameras"),
    ],
)
def test_phototourism_data_pairs_by_ids(tmp_path, edit, cameras, words):
    scene = colmap_scene(tmp_path, edit, "dense/sparse", cameras)
    (scene / "images").rename(scene / "dense/images")
    with pytest.raises(HashPoseError, match=f"{words}.*colmap --colmap-path dense/sparse"):
        read(PhototourismDataParserConfig(data=scene))
