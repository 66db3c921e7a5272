"""From a dataset through a run to an export and back: random frames, scales, settings of dataparsers, lenses."""

import json
import random

import numpy as np
import pytest
import torch

from hashpose_ns.export.colmap import write_colmap_model
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

NUM = 6
OPENCV = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
LENSES = {
    "PINHOLE": None,
    "OPENCV": [0.08, -0.03, 0.0, 0.0, 0.002, -0.001],
    "OPENCV_FISHEYE": [0.05, -0.01, 0.004, 0.0, 0.0, 0.0],  # nerfstudio's colmap dataparser refuses a k4
}


def colmap_dataset(folder, helpers, poses, names, cameras, settings):
    (folder / "sparse/0").mkdir(parents=True)
    write_colmap_model(folder / "sparse/0", poses * OPENCV, cameras, names)
    return ColmapDataParserConfig(
        data=folder, colmap_path="sparse/0", eval_mode="all", downscale_factor=1, load_3D_points=False, **settings
    )


def transforms_dataset(folder, helpers, poses, names, cameras, settings):
    lens = dict(fl_x=500.0, fl_y=510.0, cx=322.5, cy=236.25, w=640, h=480)
    if cameras.distortion_params is not None:
        lens.update(zip(("k1", "k2", "k3", "k4", "p1", "p2"), cameras.distortion_params[0].tolist()))
        if cameras.camera_type[0] == 2:
            lens["camera_model"] = "OPENCV_FISHEYE"
    helpers.write_transforms(folder, poses, [f"images/{name}" for name in names], **lens)
    return NerfstudioDataParserConfig(data=folder, eval_mode="all", downscale_factor=1, **settings)


@pytest.mark.parametrize("seed", range(12))
def test_poses_lenses_and_images_come_back(tmp_path, helpers, call, seed):
    choose = random.Random(seed)
    size = 10 ** choose.uniform(-2, 3)  # of the user's world
    poses = helpers.poses(NUM, seed)
    poses[:, :, 3] = size * (poses[:, :, 3] + torch.tensor([choose.uniform(-5, 5) for _ in range(3)]))
    lens = choose.choice(list(LENSES))
    kind = {"OPENCV_FISHEYE": helpers.camera_types.FISHEYE}.get(lens, helpers.camera_types.PERSPECTIVE)
    cameras = helpers.cameras(NUM, distortion=LENSES[lens], camera_type=kind)
    settings = dict(  # without pca, which negates the second and third pose where it should flip two axes of all
        orientation_method=choose.choice(["none", "up", "vertical"]),
        center_method=choose.choice(["none", "poses"]),
        auto_scale_poses=choose.choice([True, False]),
        scale_factor=choose.choice([1.0, 0.3]),
    )
    names = [f"{letter}.png" for letter in "fbeacd"]
    helpers.write_images(tmp_path / "data/images", names, (640, 480))
    make = choose.choice([colmap_dataset, transforms_dataset])
    parser = make(tmp_path / "data", helpers, poses, names, cameras, settings).setup()
    outputs = parser.get_dataparser_outputs("train")
    drifted = helpers.similarity(seed, choose.uniform(0.5, 2)).apply_to_poses(outputs.cameras.camera_to_worlds.double())
    scene = helpers.scene(outputs, parser, drifted)
    # poses are float32 inside of nerfstudio: a frame far from the origin costs digits
    tolerance = 1e-5 * max(1.0, float(poses[:, :, 3].abs().max()))
    expected = {name: pose for name, pose in zip(names, poses)}

    format = choose.choice(["bin", "txt"])
    exported = call(scene, "colmap", "--format", format, "--points", "empty", "--images", "link", output="colmap")
    assert exported == 0
    assert call(scene, "nerfstudio", "--points", "empty", output="nerfstudio") == 0
    again = dict(eval_mode="all", downscale_factor=1, orientation_method="none", center_method="none")
    for config in (
        ColmapDataParserConfig(data=tmp_path / "colmap", colmap_path="sparse/0", load_3D_points=False, **again),
        NerfstudioDataParserConfig(data=tmp_path / "nerfstudio", **again),
    ):
        config.auto_scale_poses = False
        read = config.setup().get_dataparser_outputs("train")
        assert sorted(path.name for path in read.image_filenames) == sorted(names)
        assert all(path.samefile(tmp_path / "data/images" / path.name) for path in read.image_filenames)
        found = read.transform_poses_to_original_space(read.cameras.camera_to_worlds, "opengl")
        for path, pose in zip(read.image_filenames, found):
            np.testing.assert_allclose(pose[:, :3], expected[path.name][:, :3], atol=1e-5)
            np.testing.assert_allclose(pose[:, 3], expected[path.name][:, 3], atol=tolerance)
        for name in ("fx", "fy", "cx", "cy", "width", "height", "camera_type"):
            assert (getattr(read.cameras, name) == getattr(cameras, name)).all(), name
        if LENSES[lens] is not None:
            np.testing.assert_allclose(read.cameras.distortion_params, cameras.distortion_params, atol=1e-7)
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is a further independent reader of this test")
    model = pycolmap.Reconstruction(str(tmp_path / "colmap/sparse/0"))
    assert {camera.model.name for camera in model.cameras.values()} == {lens}
    for image in model.images.values():
        rotation = image.cam_from_world().rotation.matrix().T * [1, -1, -1]
        np.testing.assert_allclose(rotation, expected[image.name][:, :3], atol=1e-5)
        np.testing.assert_allclose(image.projection_center(), expected[image.name][:, 3], atol=tolerance)
    written = json.loads((tmp_path / "nerfstudio/transforms.json").read_text())
    assert len(written["frames"]) == NUM
