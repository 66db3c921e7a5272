"""From a run to cameras in the input's frame, through nerfstudio's own dataparsers on generated datasets."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Optional

import numpy as np
import pytest
import torch

from hashpose_ns.cameras.perturbation import PerturbationConfig, identity_poses, perturb_poses
from hashpose_ns.data.checks import ONE_WAY_DATAPARSERS
from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig
from hashpose_ns.data.names import image_folder_and_names, images_folder
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.colmap import write_colmap_model
from hashpose_ns.export.exported import FROZEN, KEPT, TRAINED, ExportedPoints
from hashpose_ns.export.frame import to_input_frame
from hashpose_ns.export.points import with_points
from hashpose_ns.export.poses import exported_cameras
from hashpose_ns.runs.files import checkpoints
from hashpose_ns.runs.load import load_trained_pipeline
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.dataparsers.phototourism_dataparser import PhototourismDataParserConfig
from nerfstudio.data.dataparsers.scannetpp_dataparser import ScanNetppDataParserConfig

NUM = 10
POINTS = np.random.default_rng(3).normal(size=(5, 3))


def colmap_dataset(folder, helpers):
    poses = helpers.poses(NUM)
    names = [f"cam{i % 2}/{i}.png" for i in range(NUM)]
    helpers.write_images(folder / "images", names, (640, 480))
    (folder / "colmap/sparse/0").mkdir(parents=True)
    points = ExportedPoints(POINTS, np.full((5, 3), 7, np.uint8), np.full(5, 0.5))
    opencv = poses * torch.tensor([1.0, -1.0, -1.0, 1.0])
    write_colmap_model(folder / "colmap/sparse/0", opencv, helpers.cameras(NUM), names, points)
    return poses, ColmapDataParserConfig(data=folder, eval_mode="all", downscale_factor=1)


def nerfstudio_dataset(folder, helpers, **entries):
    poses = helpers.poses(NUM)
    saved = torch.eye(4, dtype=torch.float64).repeat(NUM, 1, 1)
    saved[:, :3] = poses
    meta = dict(fl_x=500.0, fl_y=510.0, cx=322.5, cy=236.25, w=640, h=480, k1=0.01, **entries)
    meta["frames"] = [
        dict(file_path=f"images/{i:02d}.png", transform_matrix=matrix.tolist()) for i, matrix in enumerate(saved)
    ]
    helpers.write_images(folder, [frame["file_path"] for frame in meta["frames"]], (640, 480))
    (folder / "transforms.json").write_text(json.dumps(meta))
    return poses, NerfstudioDataParserConfig(data=folder, eval_mode="all", downscale_factor=1)


def processed_dataset(folder, helpers):
    """The frame is that of the file's matrices, whatever led to it."""
    transform = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0.5]]
    return nerfstudio_dataset(folder, helpers, applied_transform=transform, applied_scale=2.5)


def ngp_dataset(folder, helpers):
    poses, _ = nerfstudio_dataset(folder, helpers)
    return poses, InstantNGPDataParserConfig(data=folder, eval_mode="all")


def blender_dataset(folder, helpers):
    poses = helpers.poses(NUM)
    matrices = torch.eye(4, dtype=torch.float64).repeat(NUM, 1, 1)
    matrices[:, :3] = poses
    frames = [dict(file_path=f"./train/r_{i}", transform_matrix=matrix.tolist()) for i, matrix in enumerate(matrices)]
    helpers.write_images(folder, [frame["file_path"] + ".png" for frame in frames])
    (folder / "transforms_train.json").write_text(json.dumps(dict(camera_angle_x=0.7, frames=frames)))
    return poses, BlenderDataParserConfig(data=folder, scale_factor=0.5)


def llff_dataset(folder, helpers):
    poses = helpers.poses(NUM)
    # all looking roughly one way, so that there is an average pose
    poses[:, :, :3] = perturb_poses(poses[:1].repeat(NUM, 1, 1), PerturbationConfig(seed=1))[:, :, :3]
    matrices = torch.stack([-poses[:, :, 1], poses[:, :, 0], poses[:, :, 2], poses[:, :, 3]], dim=-1)
    size = torch.tensor([480.0, 640.0, 500.0]).expand(NUM, 3)[:, :, None]
    rows = torch.cat([matrices, size], dim=-1).reshape(NUM, 15).numpy()
    np.save(folder / "poses_bounds.npy", np.concatenate([rows, np.tile([2.0, 9.0], (NUM, 1))], axis=1))
    helpers.write_images(folder / "images", [f"{i:02d}.png" for i in range(NUM)], (640, 480))
    return poses, LLFFDataParserConfig(data=folder, eval_mode="all")


DATASETS = [colmap_dataset, nerfstudio_dataset, processed_dataset, ngp_dataset, blender_dataset, llff_dataset]


def load(config):
    parser = config.setup()
    return parser, parser.get_dataparser_outputs("train")


@pytest.mark.parametrize("make_dataset", DATASETS)
def test_gauge_drift_is_undone_down_to_the_input_frame(tmp_path, helpers, make_dataset):
    poses, config = make_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    drifted = helpers.similarity().apply_to_poses(outputs.cameras.camera_to_worlds.double())
    exported = exported_cameras(helpers.scene(outputs, parser, drifted))
    np.testing.assert_allclose(exported.camera_to_worlds, poses, atol=1e-5)
    assert exported.camera_to_worlds.dtype == torch.float64
    products = exported.camera_to_worlds[:, :, :3] @ exported.camera_to_worlds[:, :, :3].mT
    np.testing.assert_allclose(products, np.eye(3)[None].repeat(NUM, 0), atol=1e-14)
    assert exported.frame.name.startswith("the frame of the ")
    assert exported.frame.description == f"{exported.frame.name}, aligned to the poses training started from"
    assert float(exported.movement.center.max()) < 1e-5
    assert all((exported.image_folder / name).exists() for name in exported.names)

    kept = exported_cameras(helpers.scene(outputs, parser, drifted), align="none")
    assert float(kept.movement.center.max()) > 0.1
    assert kept.frame.how == "as learned"
    if make_dataset is not processed_dataset:  # nerfstudio's way leads to the frame before applied_transform
        np.testing.assert_allclose(kept.camera_to_worlds, to_input_frame(drifted, outputs), atol=1e-5)


def test_refinement_survives_alignment(tmp_path, helpers):
    poses, config = nerfstudio_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    initial = outputs.cameras.camera_to_worlds.double()
    refined = initial.clone()
    # every camera turns about its own centre: no drift of centres to be undone
    turn = perturb_poses(identity_poses(NUM).double(), PerturbationConfig(translation=0.0))[:, :, :3]
    refined[:, :, :3] = initial[:, :, :3] @ turn
    exported = exported_cameras(helpers.scene(outputs, parser, refined, initial))
    np.testing.assert_allclose(exported.camera_to_worlds[:, :, :3], poses[:, :, :3] @ turn, atol=1e-6)
    np.testing.assert_allclose(exported.camera_to_worlds[:, :, 3], poses[:, :, 3], atol=1e-5)
    traces = turn.diagonal(dim1=1, dim2=2).sum(dim=1)
    angles = torch.rad2deg(torch.acos((traces - 1) / 2))
    np.testing.assert_allclose(exported.movement.rotation_deg, angles, atol=1e-4)


def test_alignment_is_to_the_initial_and_not_to_the_true_poses(tmp_path, helpers):
    _, config = nerfstudio_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    truth = outputs.cameras.camera_to_worlds.double()
    initial = helpers.similarity(seed=8, scale=1.3).apply_to_poses(truth)
    exported = exported_cameras(helpers.scene(outputs, parser, truth, initial))
    np.testing.assert_allclose(exported.camera_to_worlds, to_input_frame(initial, outputs), atol=1e-5)


def test_identity_start_is_kept_as_learned(tmp_path, helpers):
    _, config = colmap_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    refined = helpers.poses(NUM, seed=4)
    exported = exported_cameras(helpers.scene(outputs, parser, refined, identity_poses(NUM)))
    np.testing.assert_allclose(exported.camera_to_worlds, to_input_frame(refined, outputs), atol=1e-5)
    # moved as one, so that the given poses' rounding to single precision is not in what is between cameras
    exact = exported.frame.to_nerfstudio.inverse().apply_to_points(exported.learned_camera_to_worlds[:, :, 3])
    np.testing.assert_allclose(exported.camera_to_worlds[:, :, 3], exact, atol=1e-13)
    assert exported.movement is None
    assert "arbitrary" in exported.frame.description and exported.frame.arbitrary
    scene = helpers.scene(outputs, parser, refined, identity_poses(NUM))
    with pytest.raises(HashPoseError, match="identity start; export with --points field or --points empty"):
        with_points(scene, exported, "input", 10)
    with pytest.raises(HashPoseError, match="cannot be put back"):
        exported_cameras(scene, put_back=[0])


def test_frozen_cameras_stay_where_they_were(tmp_path, helpers):
    poses, config = nerfstudio_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    refined = perturb_poses(outputs.cameras.camera_to_worlds.double(), PerturbationConfig())
    refined[:2] = outputs.cameras.camera_to_worlds[:2]
    trainable = torch.arange(NUM) >= 2
    exported = exported_cameras(helpers.scene(outputs, parser, refined, trainable=trainable))
    np.testing.assert_allclose(exported.camera_to_worlds[:2], poses[:2], atol=1e-5)
    assert exported.refined_by == [FROZEN] * 2 + [TRAINED] * 8
    assert exported.frame.description == (
        "the frame of the matrices in transforms.json, as learned, held by the frozen cameras (2)"
    )


@pytest.mark.parametrize("align", ["input", "none"])
def test_cameras_put_back_are_where_training_started(tmp_path, helpers, align):
    """In the frame of the others: with the drift kept, the start is taken along with it."""
    poses, config = nerfstudio_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    initial = outputs.cameras.camera_to_worlds.double()
    drift = helpers.similarity()
    refined = drift.apply_to_poses(initial)
    turn = perturb_poses(identity_poses(1).double(), PerturbationConfig(translation=0.0))[0, :, :3]
    refined[4, :, :3] = refined[4, :, :3] @ turn
    exported = exported_cameras(helpers.scene(outputs, parser, refined, initial), align, put_back=[4])
    expected = poses if align == "input" else to_input_frame(drift.apply_to_poses(initial), outputs)
    np.testing.assert_allclose(exported.camera_to_worlds, expected, atol=1e-5)
    assert exported.refined_by[4] == KEPT and exported.refined_by.count(TRAINED) == 9
    centers = exported.frame.points(exported.learned_camera_to_worlds[:, :, 3])
    np.testing.assert_allclose(centers, expected[:, :, 3], atol=1e-5)


def test_points_come_back_to_the_input_frame(tmp_path, helpers):
    _, config = colmap_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    scene = helpers.scene(outputs, parser, outputs.cameras.camera_to_worlds)
    points = with_points(scene, exported_cameras(scene), "input", 10).points
    np.testing.assert_array_equal(points.xyz, POINTS)
    assert (points.rgb == 7).all() and points.rgb.dtype == np.uint8
    np.testing.assert_array_equal(points.error, np.full(5, 0.5))
    outputs.metadata.pop("points3D_xyz")
    with pytest.raises(HashPoseError, match="gives no 3-D points"):
        with_points(scene, exported_cameras(scene), "input", 10)
    assert with_points(scene, exported_cameras(scene), "empty", 10).points is None


def test_evaluation_images_are_counted(tmp_path, helpers):
    _, config = nerfstudio_dataset(tmp_path, helpers)
    config.eval_mode = "fraction"
    parser, outputs = load(config)
    held_out = parser.get_dataparser_outputs("val").image_filenames
    refined = outputs.cameras.camera_to_worlds
    exported = exported_cameras(helpers.scene(outputs, parser, refined, held_out=held_out))
    assert (exported.num_left_out, len(exported.names)) == (1, 9)
    # with eval_mode all, every evaluation image is a training image too
    exported = exported_cameras(helpers.scene(outputs, parser, refined, held_out=outputs.image_filenames))
    assert exported.num_left_out == 0


def test_intrinsics_are_those_of_the_full_images(tmp_path, helpers, unchecked):
    """Images downscaled for training, by the dataparser and by the datamanager, do not reach the export."""
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig

    _, config = nerfstudio_dataset(tmp_path, helpers)
    helpers.write_images(tmp_path, [f"images_2/{i:02d}.png" for i in range(NUM)], (320, 240))
    config.downscale_factor = 2
    datamanager = VanillaDataManagerConfig(dataparser=config, camera_res_scale_factor=0.5).setup(test_mode="inference")
    assert int(datamanager.train_dataset.cameras.width[0]) == 320
    refined = datamanager.train_dataparser_outputs.cameras.camera_to_worlds
    scene = helpers.scene(datamanager.train_dataparser_outputs, datamanager.dataparser, refined)
    exported = exported_cameras(dataclasses.replace(scene, train=datamanager.train_dataset))
    assert int(exported.cameras.width[0]) == 640 and float(exported.cameras.fx[0]) == 500.0
    assert exported.image_filenames[0] == tmp_path / "images" / "00.png"


def test_dataparsers_that_cannot_be_undone_are_refused(tmp_path, helpers):
    _, config = nerfstudio_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    refined = outputs.cameras.camera_to_worlds
    for name, key in (("NeRFOSR", "nerfosr-data"), ("SDFStudio", "sdfstudio-data")):
        one_way = type(name, (DataParser,), {})(config)
        with pytest.raises(HashPoseError, match=f"cannot be exported, because {key} does not record"):
            exported_cameras(helpers.scene(outputs, one_way, refined))
    for changes in (
        dict(dataparser_scale=0.0),
        dict(dataparser_scale=float("inf")),
        dict(dataparser_transform=2.0 * torch.eye(4)[:3]),
        dict(dataparser_transform=torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0]))[:3]),
    ):
        broken, unknown = DataparserOutputs(**{**vars(outputs), **changes}), type("Own", (DataParser,), {})(config)
        with pytest.raises(HashPoseError, match="cannot be inverted"):
            exported_cameras(helpers.scene(broken, unknown, refined))
        exported = exported_cameras(helpers.scene(broken, parser, refined))
        np.testing.assert_allclose(exported.camera_to_worlds, exported.given_camera_to_worlds, atol=1e-12)


def test_names_of_one_way_dataparsers_are_those_of_nerfstudio():
    from nerfstudio.configs.dataparser_configs import dataparsers

    assert {dataparsers[key]._target.__name__: key for key in ONE_WAY_DATAPARSERS.values()} == ONE_WAY_DATAPARSERS


def test_other_broken_runs_are_refused(tmp_path, helpers):
    _, config = nerfstudio_dataset(tmp_path, helpers)
    parser, outputs = load(config)
    refined = outputs.cameras.camera_to_worlds.clone()
    with pytest.raises(HashPoseError, match="refined 9 poses but its dataset now has 10 training images"):
        exported_cameras(helpers.scene(outputs, parser, refined[:9], refined[:9]))
    refined[4, 1, 3] = float("nan")
    with pytest.raises(HashPoseError, match=r"The pose of camera 04\.png holds a value"):
        exported_cameras(helpers.scene(outputs, parser, refined, outputs.cameras.camera_to_worlds))


@pytest.mark.parametrize(
    "files, images_path, folder, names",
    [
        (["images/1.jpg", "images/2.jpg"], None, "images", ["1.jpg", "2.jpg"]),
        (["images/a/1.jpg", "images/b/1.jpg"], None, "images", ["a/1.jpg", "b/1.jpg"]),
        # one camera of a rig: the name in the original model keeps its folder
        (["images/a/1.jpg", "images/a/2.jpg"], None, "images", ["a/1.jpg", "a/2.jpg"]),
        (["left/1.jpg", "right/1.jpg"], None, "", ["left/1.jpg", "right/1.jpg"]),
        (["1.jpg", "2.jpg"], None, "", ["1.jpg", "2.jpg"]),
        (["1.jpg", "more/2.jpg"], None, "", ["1.jpg", "more/2.jpg"]),
        (["pictures/all/a/1.jpg"], "pictures/all", "pictures/all", ["a/1.jpg"]),
        (["../elsewhere/a/1.jpg", "../elsewhere/b/1.jpg"], None, "../elsewhere", ["a/1.jpg", "b/1.jpg"]),
    ],
)
def test_images_are_named_as_in_colmap(tmp_path, files, images_path, folder, names):
    data = tmp_path / "data"
    images_path = images_path and Path(images_path)
    found = image_folder_and_names([data / file for file in files], data, images_path)
    assert found == ((data / folder).resolve(), names)
    assert image_folder_and_names([data / file for file in files], data / "transforms.json", images_path)[1] == names


def test_names_start_in_the_folder_that_a_dataparser_knows():
    assert images_folder(ColmapDataParserConfig(images_path=Path("photos"))) == Path("photos")
    assert images_folder(ScanNetppDataParserConfig()) == Path("dslr/resized_images")
    assert images_folder(PhototourismDataParserConfig()) == Path("dense/images")
    assert images_folder(NerfstudioDataParserConfig()) is None


def test_repeated_images_are_refused(tmp_path):
    with pytest.raises(HashPoseError, match=r"image 1\.jpg is there more than once"):
        image_folder_and_names([tmp_path / "images/1.jpg", tmp_path / "images/x/../1.jpg"], tmp_path)


class FakeRun:
    """A run folder, and stand-ins for what reads its config and checkpoint and builds its pipeline."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.data = folder / "data"
        self.data.mkdir()
        self.run = folder / "moved" / "renamed" / "hashpose" / "2030-01-01"
        (self.run / "nerfstudio_models").mkdir(parents=True)
        (self.run / "nerfstudio_models" / "step-000000009.ckpt").touch()
        (self.run / "config.yml").touch()
        self.dataparser = SimpleNamespace(data=self.data, downscale_factor=4, load_3D_points=False)
        self.pipeline = SimpleNamespace(
            datamanager=SimpleNamespace(data=None, dataparser=self.dataparser), setup=self.setup
        )
        self.has_scene = True
        config = SimpleNamespace(relative_model_dir=Path("nerfstudio_models"), pipeline=self.pipeline)
        monkeypatch.setattr("hashpose_ns.runs.load.read_config", lambda path: config)
        monkeypatch.setattr("hashpose_ns.runs.load.read_last_checkpoint", self.read)

    def read(self, folder: Path) -> Optional[dict]:
        names = [path.name for path in checkpoints(folder).values()]
        return {"pipeline": {"loaded": names}, "step": 9} if names else None

    def setup(self, device: torch.device, test_mode: str) -> SimpleNamespace:
        assert test_mode == "inference"
        loaded: dict = {}
        found = {"config": self.pipeline, "model": self, "eval": lambda: None, "loaded": loaded}
        return SimpleNamespace(
            **found,
            load_pipeline=lambda state, step: loaded.update(state),
            **({"scene": None} if self.has_scene else {}),
        )


def test_checkpoint_is_found_beside_a_moved_config(tmp_path, monkeypatch):
    fake = FakeRun(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path / "moved")
    found = load_trained_pipeline(Path("renamed/hashpose/2030-01-01/config.yml"))
    assert found.loaded == {"loaded": ["step-000000009.ckpt"]} and found.config.run_folder == fake.run
    assert (fake.dataparser.downscale_factor, fake.dataparser.load_3D_points) == (1, False)
    load_trained_pipeline(fake.run / "config.yml", load_points=True)
    assert fake.dataparser.load_3D_points is True


def test_incomplete_runs_are_refused(tmp_path, monkeypatch):
    fake = FakeRun(tmp_path, monkeypatch)
    fake.has_scene = False
    with pytest.raises(HashPoseError, match="FakeRun has no refined poses; train with one of the hashpose methods"):
        load_trained_pipeline(fake.run / "config.yml")
    with pytest.raises(HashPoseError, match="There is no file .*/nothing.yml"):
        load_trained_pipeline(fake.run / "nothing.yml")
    fake.data.rmdir()
    with pytest.raises(HashPoseError, match="dataset of the run, .*/data, is not there"):
        load_trained_pipeline(fake.run / "config.yml")
    fake.data.mkdir()
    (fake.run / "nerfstudio_models" / "step-000000009.ckpt").unlink()
    with pytest.raises(HashPoseError, match="no checkpoint of the run in .*nerfstudio_models"):
        load_trained_pipeline(fake.run / "config.yml")
