"""Poses of today's sources, as each of them writes them: read with the images and lenses they belong to, and exported
as they were, where nothing is refined."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import pycolmap
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.pipeline import HashPosePipelineConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.dataparsers.scannetpp_dataparser import ScanNetppDataParserConfig

SCRIPT = Path(__file__).parents[2] / "examples/slam/tum_to_transforms.py"
spec = importlib.util.spec_from_file_location("tum_to_transforms", SCRIPT)
tum = sys.modules["tum_to_transforms"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tum)

WIDTH, HEIGHT = 32, 24
OPENCV = np.array([1.0, -1.0, -1.0])
"""From OpenGL axes of a camera to OpenCV's, and back."""


@dataclass
class Capture:
    """What was photographed: image i is of one colour, and was taken from pose i."""

    poses: np.ndarray
    """[N, 4, 4] camera-to-world, OpenGL axes."""

    @property
    def count(self) -> int:
        return len(self.poses)

    def write(self, folder: Path, name: str, index: int) -> str:
        """Writes an image; its name."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), self.color(index)).save(path)
        return name

    def color(self, index: int) -> tuple:
        return 20 * index, 250 - 20 * index, 10 * index

    def world_to_camera(self, index: int) -> np.ndarray:
        """[3, 4], OpenCV axes."""
        pose = self.poses[index]
        rotation = (pose[:3, :3] * OPENCV).T
        return np.c_[rotation, -rotation @ pose[:3, 3]]


def lens(index: int) -> Dict[str, float]:
    """Every camera has its own, as phones and networks give them."""
    size = {"w": WIDTH, "h": HEIGHT}
    return {"fl_x": 30.0 + 0.25 * index, "fl_y": 30.5 + 0.25 * index, "cx": 16.25, "cy": 11.75, **size}


# -- COLMAP's format ---------------------------------------------------------------------------------------------------


def reconstruction(capture: Capture, names: List[str], model: str = "PINHOLE", extra: Sequence[float] = ()) -> Any:
    """A model with a camera for each image, which COLMAP 4 gives rigs and frames of their own."""
    model_of_all = pycolmap.Reconstruction()
    for index, name in enumerate(names):
        params = [lens(index)[key] for key in ("fl_x", "fl_y", "cx", "cy")] + list(extra)
        camera = pycolmap.Camera(camera_id=index + 1, model=model, width=WIDTH, height=HEIGHT, params=params)
        model_of_all.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=name, camera_id=index + 1, image_id=index + 1)
        matrix = capture.world_to_camera(index)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(matrix[:, :3]), matrix[:, 3])
        model_of_all.add_image_with_trivial_frame(image, pose)
    model_of_all.add_point3D(np.zeros(3), pycolmap.Track(), np.array([200, 100, 50], np.uint8))
    return model_of_all


def colmap_with_rigs(folder: Path, capture: Capture) -> Any:
    """COLMAP 4, two cameras on a rig, whose images have equal names in two folders."""
    model, rig = reconstruction(capture, []), pycolmap.Rig(rig_id=1)
    sensors = [pycolmap.sensor_t(pycolmap.SensorType.CAMERA, number) for number in (1, 2)]
    for number in (1, 2):
        params = [lens(number)[key] for key in ("fl_x", "fl_y", "cx", "cy")]
        model.add_camera(pycolmap.Camera(camera_id=number, model="PINHOLE", width=WIDTH, height=HEIGHT, params=params))
    rig.add_ref_sensor(sensors[0])
    offset = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0.05, 0, 1.0])), np.array([0.2, 0, 0]))
    rig.add_sensor(sensors[1], offset)
    model.add_rig(rig)
    moments = [capture.world_to_camera(2 * moment) for moment in range(capture.count // 2)]
    for moment, matrix in enumerate(moments):
        frame = pycolmap.Frame(frame_id=moment + 1, rig_id=1)
        for side in (0, 1):
            frame.add_data_id(pycolmap.data_t(sensors[side], 2 * moment + side + 1))
        frame.rig_from_world = pycolmap.Rigid3d(pycolmap.Rotation3d(matrix[:, :3]), matrix[:, 3])
        model.add_frame(frame)
        for side, name in enumerate(("left", "right")):
            image = pycolmap.Image(
                name=capture.write(folder / "images", f"{name}/{moment:04d}.png", 2 * moment + side),
                camera_id=side + 1,
                image_id=2 * moment + side + 1,
            )
            image.frame_id = moment + 1
            model.add_image(image)
    for number, image in model.images.items():
        capture.poses[number - 1, :3] = image.cam_from_world().inverse().matrix() * [*OPENCV, 1.0]
    (folder / "sparse/0").mkdir(parents=True)
    model.write_binary(str(folder / "sparse/0"))
    return ColmapDataParserConfig(data=folder, colmap_path=Path("sparse/0"))


def vggt(folder: Path, capture: Capture) -> Any:
    """VGGT's demo_colmap.py: sparse/ and not sparse/0, a camera for each image, ids in no order of names, a cloud
    beside the model; written by a pycolmap from before rigs, from float32 poses."""
    capture = Capture(capture.poses.astype(np.float32).astype(np.float64))
    names = [capture.write(folder / "images", f"{(7 * i) % capture.count:02d}.png", i) for i in range(capture.count)]
    (folder / "sparse").mkdir()
    reconstruction(capture, names).write_binary(str(folder / "sparse"))
    for file in ("rigs.bin", "frames.bin"):
        (folder / "sparse" / file).unlink()
    (folder / "sparse/points.ply").write_bytes(b"ply\n")
    return ColmapDataParserConfig(data=folder, colmap_path=Path("sparse"))


def mast3r_sfm(folder: Path, capture: Capture) -> Any:
    """MASt3R-SfM's mapping: reconstruction/0 of COLMAP's or GLOMAP's mapper beside the images' folder."""
    names = [capture.write(folder / "photos", f"a/{i:02d}.png", i) for i in range(capture.count)]
    (folder / "reconstruction/0").mkdir(parents=True)
    reconstruction(capture, names).write_binary(str(folder / "reconstruction/0"))
    return ColmapDataParserConfig(data=folder, colmap_path=Path("reconstruction/0"), images_path=Path("photos"))


def networks_as_text(folder: Path, capture: Capture) -> Any:
    """What converters of DUSt3R, MASt3R and VGGT write themselves: text, no observations, points as a PLY alone."""
    names = [capture.write(folder / "images", f"{i:02d}.png", i) for i in range(capture.count)]
    (folder / "sparse/0").mkdir(parents=True)
    cameras, images = [], []
    for index, name in enumerate(names):
        values = lens(index)
        cameras.append(f"{index + 1} PINHOLE {WIDTH} {HEIGHT} " + " ".join(f"{v}" for v in list(values.values())[:4]))
        matrix = capture.world_to_camera(index)
        x, y, z, w = Rotation.from_matrix(matrix[:, :3]).as_quat()
        tx, ty, tz = matrix[:, 3]
        images.append(f"{index + 1} {w} {x} {y} {z} {tx} {ty} {tz} {index + 1} {name}\n")
    (folder / "sparse/0/cameras.txt").write_text("\n".join(cameras))
    (folder / "sparse/0/images.txt").write_text("\n".join(images) + "\n")
    (folder / "sparse/0/points3D.ply").write_bytes(b"ply\n")
    return ColmapDataParserConfig(data=folder, colmap_path=Path("sparse/0"))


def realityscan(folder: Path, capture: Capture, distortion=(0.0,) * 8) -> Any:
    """RealityScan's COLMAP export: text, FULL_OPENCV, all distortion zero where it undistorted the images."""
    names = [capture.write(folder / "images", f"DSC_{i:02d}.png", i) for i in range(capture.count)]
    (folder / "sparse/0").mkdir(parents=True)
    reconstruction(capture, names, "FULL_OPENCV", distortion).write_text(str(folder / "sparse/0"))
    return ColmapDataParserConfig(data=folder, colmap_path=Path("sparse/0"))


# -- transforms.json ---------------------------------------------------------------------------------------------------


def write_transforms(folder: Path, frames: List[Dict[str, Any]], **meta) -> Any:
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))
    return NerfstudioDataParserConfig(data=folder)


def metashape(folder: Path, capture: Capture) -> Any:
    """ns-process-data metashape: the lens in each frame, with k4 and Metashape's axes turned."""
    turn = np.eye(4)[[2, 0, 1, 3]]
    frames = []
    for index in range(capture.count):
        distortion = {"k1": 0.02, "k2": -0.004, "k3": 0.001, "k4": 0.0, "p1": 0.001, "p2": -0.002}
        frames.append(
            {
                "file_path": capture.write(folder, f"images/frame_{index + 1:05d}.png", index),
                **lens(index),
                **distortion,
                "transform_matrix": (turn @ capture.poses[index]).tolist(),
            }
        )
    return write_transforms(folder, frames, camera_model="OPENCV", applied_transform=turn[:3].tolist())


def realitycapture(folder: Path, capture: Capture) -> Any:
    """ns-process-data realitycapture, from a CSV of internal and external camera parameters."""
    from nerfstudio.process_data.realitycapture_utils import realitycapture_to_json

    names = [capture.write(folder, f"images/frame_{i + 1:05d}.png", i) for i in range(capture.count)]
    rows = ["#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"]
    for index in range(capture.count):
        x, y, z = capture.poses[index][:3, 3]
        heading, pitch, roll = Rotation.from_matrix(capture.poses[index][:3, :3]).as_euler("ZXY", degrees=True)
        rows.append(f"photo{index}.png,{x},{y},{z},{-heading},{pitch},{roll},{34 + index / 8},.008,-.009,.02,0,0,0,0,0")
    (folder / "cameras.csv").write_text("\n".join(rows))
    images = {f"photo{index}": Path(name) for index, name in enumerate(names)}
    realitycapture_to_json(images, folder / "cameras.csv", None, folder)
    return NerfstudioDataParserConfig(data=folder)


def polycam(folder: Path, capture: Capture) -> Any:
    """ns-process-data polycam, from the key frames that Polycam on ARKit exports."""
    from nerfstudio.process_data.polycam_utils import polycam_to_json

    images = []
    for index in range(capture.count):
        images.append(folder / "raw" / f"{10**12 + index}.png")
        capture.write(folder, f"images/frame_{index + 1:05d}.png", index)
        values, (right, up, back) = lens(index), capture.poses[index][:3]
        entries = {"fx": values["fl_x"], "fy": values["fl_y"], "cx": values["cx"], "cy": values["cy"]}
        entries.update(width=WIDTH, height=HEIGHT, blur_score=100.0)
        entries.update({f"t_{i}{j}": float(row[j]) for i, row in enumerate((right, up, back)) for j in range(4)})
        (folder / "raw").mkdir(exist_ok=True)
        images[-1].with_suffix(".json").write_text(json.dumps(entries))
    polycam_to_json(images, [], None, folder / "raw", folder)
    return NerfstudioDataParserConfig(data=folder)


def record3d(folder: Path, capture: Capture) -> Any:
    """ns-process-data record3d, from Record3D's metadata."""
    from nerfstudio.process_data.record3d_utils import record3d_to_json

    names = [capture.write(folder, f"images/frame_{i + 1:05d}.png", i) for i in range(capture.count)]
    poses = [[*Rotation.from_matrix(pose[:3, :3]).as_quat().tolist(), *pose[:3, 3].tolist()] for pose in capture.poses]
    metadata = {"K": [30.0, 0, 0, 0, 30.0, 0, 16.25, 11.75, 1], "w": WIDTH, "h": HEIGHT, "poses": poses}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    record3d_to_json([Path(name) for name in names], folder / "metadata.json", folder, np.arange(capture.count))
    return NerfstudioDataParserConfig(data=folder)


def instant_ngp(folder: Path, capture: Capture) -> Any:
    """instant-ngp's colmap2nerf.py."""
    frames = [
        {
            "file_path": "./" + capture.write(folder, f"images/{index:04d}.png", index),
            "sharpness": 100.0,
            "transform_matrix": capture.poses[index].tolist(),
        }
        for index in range(capture.count)
    ]
    angles = {"camera_angle_x": 2 * np.arctan(WIDTH / 60), "camera_angle_y": 2 * np.arctan(HEIGHT / 60)}
    distortion = {"k1": 0.02, "k2": 0.0, "k3": 0, "k4": 0, "p1": 0.0, "p2": 0.0, "is_fisheye": False}
    lens = {"fl_x": 30.0, "fl_y": 30.0, "cx": 16.25, "cy": 11.75, "w": float(WIDTH), "h": float(HEIGHT)}
    write_transforms(folder, frames, **angles, **lens, **distortion, aabb_scale=16)
    return InstantNGPDataParserConfig(data=folder)


def scannetpp(folder: Path, capture: Capture) -> Any:
    """ScanNet++'s DSLR images: fisheyes, held-out frames in a list of their own."""
    frames = [
        {
            "file_path": Path(capture.write(folder / "dslr/resized_images", f"DSC{index:05d}.png", index)).name,
            "transform_matrix": capture.poses[index].tolist(),
            "is_bad": False,
        }
        for index in range(capture.count)
    ]
    (folder / "dslr/nerfstudio").mkdir()
    meta = {**lens(0), "k1": 0.01, "k2": -0.002, "k3": 0.0, "k4": 0.0, "camera_model": "OPENCV_FISHEYE"}
    write_transforms(folder / "dslr/nerfstudio", frames[:-2], **meta, test_frames=frames[-2:], has_mask=False)
    return ScanNetppDataParserConfig(data=folder)


def slam(folder: Path, capture: Capture) -> Any:
    """MASt3R-SLAM: a trajectory in TUM's format, key frames named by their times; a frame without a picture."""
    times = [1305031102.175304 + index / 30 for index in range(capture.count)]
    rows = []
    for index, (time, pose) in enumerate(zip(times, capture.poses)):
        capture.write(folder / "keyframes", f"{time}.png", index)
        rows.append([time, *pose[:3, 3], *Rotation.from_matrix(pose[:3, :3] * OPENCV).as_quat()])
    rows.append([times[-1] + 5.0, *rows[-1][1:]])
    np.savetxt(folder / "trajectory.txt", rows, fmt="%.17g")
    options = {"camera": (30.0, 30.5, 16.25, 11.75), "distortion": (0.02, 0.0, 0.001, 0.0, 0.0)}
    tum.main(tum.Settings(folder / "trajectory.txt", folder / "keyframes", **options))
    return NerfstudioDataParserConfig(data=folder)


# -- the tests ---------------------------------------------------------------------------------------------------------

COLMAP = [colmap_with_rigs, vggt, mast3r_sfm, networks_as_text, realityscan]
TRANSFORMS = [metashape, realitycapture, polycam, record3d, instant_ngp, scannetpp, slam]


@pytest.fixture
def source(tmp_path, helpers) -> Callable:
    """Has a source write its folder, and reads it as training does; the pipeline."""

    def read(write: Callable[[Path, Capture], Any]):
        count = 12
        poses = np.tile(np.eye(4), (count, 1, 1))
        poses[:, :3] = Rotation.from_euler("xy", [0.1, 0.2]).as_matrix() @ helpers.orbit(count).numpy()
        capture = Capture(poses)
        folder = tmp_path / "data"
        folder.mkdir()
        config = HashPosePipelineConfig(
            datamanager=HashPoseDataManagerConfig(
                dataparser=write(folder, capture), train_num_rays_per_batch=32, eval_num_rays_per_batch=32
            ),
            model=HashPoseModelConfig(camera_optimizer=PoseOptimizerConfig(mode="off"), num_samples=8),
        )
        pipeline = config.setup(device="cpu", test_mode="val")
        check_that_it_trains(pipeline, capture)
        return pipeline

    return read


def check_that_it_trains(pipeline, capture: Capture) -> None:
    """Every photograph is there and is seen from its own pose, and a step of training can be taken."""
    colors = np.array([capture.color(index) for index in range(capture.count)])
    numbers, poses = [], []
    for dataset in (pipeline.datamanager.train_dataset, pipeline.datamanager.eval_dataset):
        seen = [dataset.get_numpy_image(index)[0, 0, :3] for index in range(len(dataset))]
        numbers += [int(np.abs(colors - color).sum(axis=1).argmin()) for color in seen]
        poses.append(dataset.cameras.camera_to_worlds.numpy())
    assert sorted(numbers) == list(range(capture.count))
    assert same_up_to_similarity(capture.poses[numbers, :3], np.concatenate(poses))
    assert np.isfinite(float(pipeline.get_train_loss_dict(0)[1]["rgb_loss"].detach()))


def same_up_to_similarity(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether poses [N, 3, 4] differ by one rotation, scale and shift."""
    turn = second[0, :, :3] @ first[0, :, :3].T
    a, b = (poses[:, :, 3] - poses[:, :, 3].mean(axis=0) for poses in (first, second))
    scale = np.linalg.norm(b) / np.linalg.norm(a)
    return bool(np.allclose(turn @ first[:, :, :3], second[:, :, :3], atol=1e-5)) and bool(
        np.allclose(scale * a @ turn.T, b, atol=1e-5)
    )


@pytest.mark.parametrize("write", COLMAP, ids=lambda write: write.__name__)
def test_models_of_colmaps_format(write, source, call, tmp_path):
    pipeline = source(write)
    parser = pipeline.datamanager.dataparser.config
    if not list((parser.data / parser.colmap_path).glob("points3D.[bt]*")):
        (parser.data / parser.colmap_path / "points3D.txt").touch()  # pycolmap asks for it
    given = pycolmap.Reconstruction(str(parser.data / parser.colmap_path))
    assert call(pipeline.scene, "colmap", "--points", "empty") == 0
    exported = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    of_name = {image.name: image for image in given.images.values()}
    assert len(exported.images) == len(pipeline.datamanager.train_dataset)
    for image in exported.images.values():
        other = of_name[image.name]
        difference = image.cam_from_world().matrix() - other.cam_from_world().matrix()
        assert np.abs(difference).max() < 1e-5
        theirs = given.cameras[other.camera_id]
        ours = exported.cameras[image.camera_id]
        np.testing.assert_allclose(ours.calibration_matrix(), theirs.calibration_matrix(), atol=1e-4)
        assert (ours.width, ours.height) == (theirs.width, theirs.height)


@pytest.mark.parametrize("write", TRANSFORMS, ids=lambda write: write.__name__)
def test_files_of_nerfstudios_format(write, source, call, tmp_path):
    pipeline = source(write)
    (file,) = (tmp_path / "data").rglob("transforms.json")
    given = json.loads(file.read_text())
    assert call(pipeline.scene, "nerfstudio", "--points", "empty") == 0
    exported = json.loads((tmp_path / "out/transforms.json").read_text())
    of_name = {Path(frame["file_path"]).name: frame for frame in given["frames"]}
    assert len(exported["frames"]) == len(pipeline.datamanager.train_dataset)
    for frame in exported["frames"]:
        other = of_name[Path(frame["file_path"]).name]
        np.testing.assert_allclose(frame["transform_matrix"], other["transform_matrix"], atol=1e-5)
        ours, theirs = {**exported, **frame}, {**given, **other}
        for key in ("w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2"):
            assert ours.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), abs=1e-5), key


def test_a_lens_that_nerfstudio_does_not_have_is_said(source, capsys):
    with pytest.raises(SystemExit):
        source(lambda folder, capture: realityscan(folder, capture, (0.02, 0, 0, 0, 0.01, 0, 0, 0)))
    assert "FULL_OPENCV with k3, k4, k5 or k6, which nerfstudio cannot read; undistort" in capsys.readouterr().out


def test_images_of_a_trajectory_are_found_by_a_list_too_or_it_is_said(tmp_path, helpers):
    helpers.write_images(tmp_path / "images", ["a.png", "b.png"])
    (tmp_path / "trajectory.txt").write_text("# t x y z qx qy qz qw\n7 0 0 0 0 0 0 1\n1.001 0 0 1 0 0 0 1\n")
    (tmp_path / "list.txt").write_text("# time name\n1000000000 b.png\n9000000000 a.png\n")
    named = ("trajectory.txt", "images", "list.txt")
    trajectory, images, listed = (tmp_path / name for name in named)
    settings = tum.Settings(trajectory, images, (8.0, 8.0, 4.0, 3.0), image_list=listed, unit=1e-9)
    with pytest.raises(ValueError, match="1 of 2 poses have an image within 0.02"):
        tum.main(settings)
    assert not (tmp_path / "transforms.json").exists()
    listed.write_text(listed.read_text().replace("9", "7"))
    tum.main(settings)
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    assert [(frame["file_path"], frame["transform_matrix"][2][3]) for frame in frames] == [
        ("images/b.png", 1.0),
        ("images/a.png", 0.0),
    ]
    trajectory.write_text("1 0 0 0 0 0 1\n")
    with pytest.raises(ValueError, match="eight numbers"):
        tum.main(settings)
