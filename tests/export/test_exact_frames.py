"""Random captures through dataparsers, datamanager and exports: every format gives the poses of the file's own frame.

HASHPOSE_CAPTURES=200 takes as many captures instead of a handful.
"""

import dataclasses
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import roma
import torch
from type_checker import unchecked

from hashpose_ns.cameras.alignment import Similarity, align_poses
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.export.colmap import write_colmap_model
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

CAPTURES = range(int(os.environ.get("HASHPOSE_CAPTURES", 9)))
NUM = 9
OPENCV = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)


def random_capture(choose, helpers, seed):
    """The name of an arrangement, poses as float64 in the file's frame, and their extent in it."""
    centers = torch.randn(NUM, 3, dtype=torch.float64)
    arrangement = choose.choice(["cloud", "ring", "plane", "line", "cluster with an outlier"])
    if arrangement == "ring":
        angles = torch.arange(NUM, dtype=torch.float64) * (2 * np.pi / NUM)
        centers = torch.stack([angles.cos(), angles.sin(), 0.1 * centers[:, 2]], dim=1)
    elif arrangement == "plane":
        centers[:, 2] = 0.0
    elif arrangement == "line":
        centers[:, 1:] = 0.0
    elif arrangement == "cluster with an outlier":
        centers[choose.randrange(NUM)] *= 30.0
    # somewhat upright, as the dataparsers expect of photographs
    turns = roma.rotvec_to_rotmat(0.4 * torch.randn(NUM, 3, dtype=torch.float64))
    frame = helpers.similarity(seed, 10.0 ** choose.uniform(-3, 7))
    poses = frame.apply_to_poses(torch.cat([turns, centers[:, :, None]], dim=-1))
    poses[:, :, 3] -= poses[:, :, 3].mean(dim=0)
    return arrangement, poses, float(poses[:, :, 3].norm(dim=-1).max())


def dataset(kind, folder, helpers, poses):
    """Files and a dataparser's config; names of images are i.png in the order of the poses."""
    names = [f"{i}.png" for i in range(NUM)]
    helpers.write_images(folder / "images", names)
    lens = dict(fl_x=8.0, fl_y=8.0, cx=4.0, cy=3.0, w=8, h=6)
    paths = [f"images/{name}" for name in names]
    if kind == "colmap":
        (folder / "sparse/0").mkdir(parents=True)
        cameras = dataclasses.replace(
            helpers.cameras(NUM), width=torch.full((NUM, 1), 8), height=torch.full((NUM, 1), 6)
        )
        write_colmap_model(folder / "sparse/0", poses * OPENCV, cameras, names)
        return ColmapDataParserConfig(data=folder, colmap_path=Path("sparse/0"), load_3D_points=False)
    if kind == "blender":
        for split, part in (("train", slice(0, 7)), ("test", slice(7, NUM))):
            helpers.write_transforms(folder, poses[part], [path[:-4] for path in paths[part]], camera_angle_x=0.7)
            (folder / "transforms.json").rename(folder / f"transforms_{split}.json")
        return BlenderDataParserConfig(data=folder, scale_factor=0.5)
    if kind == "processed":  # as by ns-process-data, and then by somebody who scaled it
        lens.update(applied_transform=[[1.0, 0, 0, 2], [0, 0, 1, 3], [0, -1, 0, 4]], applied_scale=0.25)
    helpers.write_transforms(folder, poses, paths, **lens)
    if kind == "instant-ngp":
        return InstantNGPDataParserConfig(data=folder, eval_mode="interval")
    return NerfstudioDataParserConfig(data=folder, eval_mode="interval")


def moved(poses, corrections, unit):
    """Poses after corrections in their own axes, with shifts in a unit of length."""
    centers = poses[:, :, 3:] + unit * poses[:, :, :3] @ corrections[:, :, 3:]
    return torch.cat([poses[:, :, :3] @ corrections[:, :, :3], centers], dim=-1)


def trained(config, helpers, learn):
    """A run whose poses are what a function makes of those it was given, in the frame that training sees."""
    manager = HashPoseDataManagerConfig(dataparser=config).setup(device="cpu", test_mode="inference")
    outputs = manager.train_dataparser_outputs
    given = outputs.cameras.camera_to_worlds
    scene = helpers.scene(outputs, manager.dataparser, learn(given, outputs))
    with unchecked():
        renderer = SimpleNamespace(device=torch.device("cpu"))
        return dataclasses.replace(scene, held_out=manager.eval_dataset, renderer=renderer)


def written_poses(folder) -> dict:
    """Poses of an export by image number, OpenGL axes, whatever its format."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is the independent reader of this test")
    if (folder / "sparse/0").exists():
        images = pycolmap.Reconstruction(str(folder / "sparse/0")).images.values()
        matrices = {image.name: image.cam_from_world().inverse().matrix() * OPENCV.numpy() for image in images}
    elif (folder / "poses.json").exists():
        matrices = {r["name"]: r["camera_to_world"] for r in json.loads((folder / "poses.json").read_text())["images"]}
    elif (folder / "transforms.json").exists():
        frames = json.loads((folder / "transforms.json").read_text())["frames"]
        matrices = {frame["file_path"]: frame["transform_matrix"][:3] for frame in frames}
    else:
        rows = np.loadtxt(folder / "refined.txt")
        if rows.shape[1] == 8:
            rotations = roma.unitquat_to_rotmat(torch.from_numpy(rows[:, 4:])).numpy()
            rows = np.concatenate([rotations, rows[:, 1:4, None]], axis=2)
        names = (folder / "images.txt").read_text().split()
        matrices = dict(zip(names, rows.reshape(-1, 3, 4) * OPENCV.numpy()))
    return {int(Path(name).stem): np.array(matrix) for name, matrix in matrices.items()}


@pytest.mark.parametrize("seed", CAPTURES)
def test_every_format_holds_the_file_s_own_frame(tmp_path, helpers, call, seed):
    choose = random.Random(seed)
    torch.manual_seed(seed)
    arrangement, poses, size = random_capture(choose, helpers, seed)
    kind = ["colmap", "nerfstudio", "processed", "instant-ngp", "blender"][seed % 5]
    # the last two do not centre: far from the origin they cannot be trained
    far = 10.0 ** choose.uniform(0, 7) if kind in ("colmap", "nerfstudio", "processed") else 2.0 * size
    poses[:, :, 3] += far * roma.random_rotmat(dtype=torch.float64)[0]
    # as learned; or moved as one, which alignment undoes; or both where centres say enough for that
    learned_to_move, aligned = choose.choice([(True, False), (False, True), (True, True)])
    if arrangement not in ("cloud", "ring"):
        aligned = not learned_to_move
    corrections = (
        torch.cat(
            [
                roma.rotvec_to_rotmat(0.05 * torch.randn(NUM, 3, dtype=torch.float64)),
                0.05 * torch.randn(NUM, 3, 1, dtype=torch.float64),
            ],
            dim=-1,
        )
        if learned_to_move
        else torch.eye(4, dtype=torch.float64)[:3].repeat(NUM, 1, 1)
    )
    drift = helpers.similarity(seed, 1.3) if aligned else Similarity.identity()
    numbers, true = [], poses.clone()

    def learn(given, outputs):
        numbers.extend(int(path.stem) for path in outputs.image_filenames)
        given, trained_on = given.double(), poses[numbers]
        extent = (given[:, :, 3] - given[:, :, 3].mean(dim=0)).norm()
        true_extent = (trained_on[:, :, 3] - trained_on[:, :, 3].mean(dim=0)).norm()
        true[numbers] = moved(trained_on, corrections[numbers], size)
        if aligned:
            true[numbers] = align_poses(true[numbers], trained_on).apply_to_poses(true[numbers])
        learned = moved(given, corrections[numbers], size * float(extent / true_extent))
        # as far as the cameras themselves are from the origin
        shift = drift.translation * given[:, :, 3].abs().max()
        return Similarity(drift.scale, drift.rotation, shift).apply_to_poses(learned)

    scene = trained(dataset(kind, tmp_path / "data", helpers, poses), helpers, learn)
    align = "input" if aligned else "none"
    exports = [("colmap", "--points", "empty", "--format", choose.choice(["bin", "txt"])), ("json", "--loss", "False")]
    exports += [("nerfstudio", "--points", "empty"), ("tum",), ("kitti",)]
    if kind == "colmap":
        exports.append(("colmap", "--update", tmp_path / "data/sparse/0"))
    split = choose.choice(["train", "all"]) if not learned_to_move else "train"
    ulps = 32 * np.finfo(np.float64).eps * far
    for number, export in enumerate(exports):
        assert call(scene, *export, "--align", align, "--split", split, output=f"out{number}") == 0
        found = written_poses(tmp_path / f"out{number}")
        expected = numbers if split == "train" and "--update" not in export else range(NUM)
        assert sorted(found) == sorted(expected), export
        for image, pose in found.items():
            what = f"{export}, {arrangement}, {kind}, size {size:.3g}, {far:.3g} from the origin"
            np.testing.assert_allclose(pose[:, :3], true[image, :, :3], atol=1e-5, err_msg=what)
            np.testing.assert_allclose(pose[:, 3], true[image, :, 3], rtol=0, atol=1e-6 * size + ulps, err_msg=what)


def test_cameras_in_one_place_stay_there(tmp_path, helpers, call):
    """A panorama from a tripod, far from the origin: only turns are learned."""
    poses = helpers.poses(NUM)
    poses[:, :, 3] = torch.tensor([448000.0, 5411000.0, 310.0])
    turns = roma.rotvec_to_rotmat(torch.tensor([[0.0, 0.02, 0.01]], dtype=torch.float64))
    corrections = torch.cat([turns, torch.zeros(1, 3, 1, dtype=torch.float64)], dim=-1)
    config = dataset("colmap", tmp_path / "data", helpers, poses)
    config.auto_scale_poses = False
    scene = trained(config, helpers, lambda given, _: moved(given.double(), corrections, 1.0))
    for number, update in enumerate([(), ("--update", tmp_path / "data/sparse/0")]):
        exported = call(scene, "colmap", "--points", "empty", "--align", "none", *update, output=f"out{number}")
        assert exported == 0
        found = written_poses(tmp_path / f"out{number}")
        for path in scene.train_outputs.image_filenames:
            expected = moved(poses[int(path.stem)][None], corrections, 1.0)[0]
            np.testing.assert_allclose(found[int(path.stem)], expected, rtol=1e-14, atol=1e-6)
