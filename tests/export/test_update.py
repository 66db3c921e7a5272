"""An existing COLMAP model with new poses, read by pycolmap."""

import dataclasses
import struct
import sys

import numpy as np
import pytest
import torch

from hashpose_ns.cameras.alignment import align_poses, pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, identity_poses, perturb_poses
from hashpose_ns.data.source import colmap_poses
from hashpose_ns.export.colmap import world_to_camera, write_colmap_model
from hashpose_ns.export.colmap_files import camera_models
from hashpose_ns.export.frame import dataparser_similarity
from hashpose_ns.export.points import ExportedPoints
from hashpose_ns.export.update import read_colmap_model
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig

NUM, NUM_POINTS = 10, 40
OPENCV = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)


@pytest.fixture
def pycolmap():
    return pytest.importorskip("pycolmap", reason="pycolmap is the independent reader of these tests")


@pytest.fixture
def capture(tmp_path, helpers):
    """A COLMAP dataset whose observations are right and whose poses are not; the true poses and points."""
    true = helpers.orbit(NUM)
    names = [f"cam{i % 2}/{i}.png" for i in range(NUM)]
    helpers.write_images(tmp_path / "data/images", names, (640, 480))
    model = tmp_path / "data/colmap/sparse/0"
    model.mkdir(parents=True)
    rng = np.random.default_rng(0)
    everywhere = np.stack(np.meshgrid(np.arange(NUM_POINTS), np.arange(NUM), indexing="ij"), axis=-1).reshape(-1, 2)
    points = ExportedPoints(
        rng.uniform(-0.3, 0.3, (NUM_POINTS, 3)), rng.integers(0, 255, (NUM_POINTS, 3), np.uint8), np.ones(NUM_POINTS),
        seen_by=everywhere,
    )  # fmt: skip
    distortion = [0.05, -0.02, 0.0, 0.0, 0.001, -0.002]
    write_colmap_model(model, true * OPENCV, helpers.cameras(NUM, distortion=distortion), names, points)
    given = perturb_poses(true, PerturbationConfig(rotation=0.03, translation=0.03, seed=1))
    content = read_colmap_model(model)
    for key, pose in zip(sorted(content.images), (given * OPENCV).numpy()):
        qvec, tvec = world_to_camera(pose)
        content.images[key] = content.images[key]._replace(qvec=qvec, tvec=tvec)
    content.write(model, "bin")
    return model, true, given


@pytest.fixture
def found(tmp_path, helpers, capture):
    """A run that started from the given poses and ended at the true ones, in a frame of its own."""
    parser = ColmapDataParserConfig(data=tmp_path / "data", eval_mode="all", downscale_factor=1).setup()
    outputs = parser.get_dataparser_outputs("train")
    order = [int(path.stem) for path in outputs.image_filenames]
    refined = dataparser_similarity(outputs).apply_to_poses(capture[1][order])
    return helpers.scene(outputs, parser, helpers.similarity().apply_to_poses(refined))


def tracks(point) -> list:
    return sorted((element.image_id, element.point2D_idx) for element in point.track.elements)


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("format", ["bin", "txt"])
def test_poses_and_points_are_new_and_the_rest_is_as_it_was(tmp_path, call, capture, found, pycolmap, capsys, format):
    model, true, given = capture
    before = contents(model)
    assert call(found, "colmap", "--update", model, "--format", format) == 0
    assert contents(model) == before
    output = " ".join(capsys.readouterr().out.split())
    assert f"{NUM_POINTS} triangulated again, 0 dropped" in output
    old = pycolmap.Reconstruction(str(model))
    new = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    old.update_point_3d_errors()
    assert old.compute_mean_reprojection_error() > 5
    new.update_point_3d_errors()
    assert new.compute_mean_reprojection_error() < 0.01
    for key, camera in old.cameras.items():
        assert camera.params.tolist() == new.cameras[key].params.tolist() and camera.model == new.cameras[key].model
    for key, image in old.images.items():
        assert new.images[key].name == image.name and new.images[key].camera_id == image.camera_id
        np.testing.assert_allclose([p.xy for p in new.images[key].points2D], [p.xy for p in image.points2D], atol=1e-9)
    assert set(old.points3D.keys()) == set(new.points3D.keys())
    for key, point in old.points3D.items():
        assert (point.color == new.points3D[key].color).all()
        assert tracks(point) == tracks(new.points3D[key])
    # the true poses, up to the similarity that takes them to where the given ones are
    poses = colmap_poses([image for _, image in sorted(read_colmap_model(tmp_path / "out/sparse/0").images.items())])
    errors = pose_errors(poses, true, align_poses(poses, true))
    assert float(errors.rotation_deg.max()) < 1e-3 and float(errors.center.max()) < 1e-4
    scale = float(align_poses(poses, given).scale)
    assert scale == pytest.approx(1.0, abs=1e-4), "the size of the user's world survives"


def test_what_does_not_fit_the_new_poses_is_dropped_with_its_observations(tmp_path, call, capture, found, pycolmap):
    model = capture[0]
    content = read_colmap_model(model)
    wrong = content.images[3].point3D_ids.tolist().index(7)  # point 7 is seen elsewhere by every other image
    for key, image in content.images.items():
        if key % 2:
            image.xys[wrong] += (150.0 if key % 4 == 1 else -150.0, 90.0)
    content.write(model, "bin")
    assert call(found, "colmap", "--update", model) == 0
    new = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    assert 7 not in new.points3D and len(new.points3D) == NUM_POINTS - 1
    assert all(not image.points2D[wrong].has_point3D() for image in new.images.values())
    assert all(sum(p.has_point3D() for p in image.points2D) == NUM_POINTS - 1 for image in new.images.values())


def test_without_pycolmap_points_stay_where_they_are(tmp_path, call, capture, found, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert call(found, "colmap", "--update", capture[0]) == 0
    assert "pip install hashpose[colmap] to triangulate them again" in " ".join(capsys.readouterr().out.split())
    old, new = read_colmap_model(capture[0]), read_colmap_model(tmp_path / "out/sparse/0")
    for key, point in old.points.items():
        np.testing.assert_array_equal(point.xyz, new.points[key].xyz)
    assert (old.images[1].tvec != new.images[1].tvec).any()


def test_other_images_keep_their_pose_and_a_sub_folder_is_no_obstacle(tmp_path, call, capture, found, capsys):
    model = capture[0]
    content = read_colmap_model(model)
    content.images[99] = content.images[1]._replace(id=99, name="another.png", xys=np.zeros((0, 2)), point3D_ids=[])
    for key in range(1, NUM + 1):
        content.images[key] = content.images[key]._replace(name=f"photos/{content.images[key].name.split('/')[1]}")
    other = tmp_path / "other"
    other.mkdir()
    content.write(other, "txt")
    assert call(found, "colmap", "--update", other) == 0
    assert "1 images of the model keep the pose they had" in " ".join(capsys.readouterr().out.split())
    new = read_colmap_model(tmp_path / "out/sparse/0")
    np.testing.assert_array_equal(new.images[99].tvec, content.images[99].tvec)
    assert new.images[2].name == "photos/1.png"


def test_a_model_that_is_not_the_run_s_is_refused(tmp_path, call, capture, found, helpers, capsys):
    model = capture[0]

    def refused(sentence, folder=model, scene=found, *options):
        assert call(scene, "colmap", "--update", folder, *options) == 1
        assert sentence in " ".join(capsys.readouterr().out.split())
        assert not (tmp_path / "out").exists()

    refused("There is no COLMAP model in", tmp_path)
    refused("cannot be undistorted", model, found, "--images", "undistorted")
    identity = helpers.scene(
        found.train_outputs, found.dataparser, helpers.poses(NUM),
        identity_poses(NUM).double(),
    )  # fmt: skip
    refused("do not fit an existing model", model, identity)
    content, model = read_colmap_model(model), tmp_path / "other"
    model.mkdir()
    qvec, tvec = content.images[4].qvec, content.images[4].tvec
    content.images[4] = content.images[4]._replace(tvec=tvec + 0.5)
    content.write(model, "bin")
    refused("are not those that the run was given", model)
    content.images[4] = content.images[4]._replace(qvec=qvec, tvec=tvec, name="renamed.png")
    content.write(model, "bin")
    refused("1 of 10 images of the run are not in the model", model)
    (model / "images.bin").write_bytes((model / "images.bin").read_bytes()[:100])
    refused("cannot be read", model)


def test_a_model_without_points_is_updated_without_them(tmp_path, call, capture, found, capsys):
    content = read_colmap_model(capture[0])
    empty = {key: image._replace(xys=np.zeros((0, 2)), point3D_ids=[]) for key, image in content.images.items()}
    dataclasses.replace(content, images=empty, points={}).write(capture[0], "bin")
    (capture[0] / "points3D.bin").unlink()
    assert call(found, "colmap", "--update", capture[0]) == 0
    output = capsys.readouterr().out
    assert "points   none, as in the model" in output and "pip install" not in output
    assert (tmp_path / "out/sparse/0/points3D.bin").read_bytes() == bytes(8)


def nan(values) -> np.ndarray:
    return np.full_like(values, np.nan)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda m: m.images.pop(3), "point 1 is seen in image 3, which is not there"),
        (lambda m: m.points.pop(7), "image 'cam0/0.png' shows point 7, whose track does not list it"),
        (lambda m: m.cameras.clear(), "image 'cam0/0.png' was taken by camera 1, which is not there"),
        (lambda m: change_image(m, 3, tvec=nan(m.images[3].tvec)), "the pose of image 'cam0/2.png' is not"),
        (lambda m: change_image(m, 3, qvec=0 * m.images[3].qvec), "the pose of image 'cam0/2.png' is not"),
        (lambda m: change_image(m, 3, xys=nan(m.images[3].xys)), "an observation in image 'cam0/2.png' is not"),
        (lambda m: m.points[7].image_ids.__setitem__(0, 99), "point 7 is seen in image 99, which is not there"),
        (lambda m: m.points[7].point2D_idxs.__setitem__(0, 4), "by an observation of something else"),
        (lambda m: m.points[7].point2D_idxs.__setitem__(0, 10**6), "by an observation of something else"),
        (lambda m: m.points[7].xyz.__setitem__(0, np.inf), "the position of point 7 is not finite"),
        (lambda m: m.cameras[1].params.__setitem__(0, np.nan), "a parameter of camera 1 is not a finite number"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(tmp_path, call, capture, found, capsys, change, sentence):
    """Before the run is even asked; whether the image was trained or not makes no difference."""
    content = read_colmap_model(capture[0])
    change(content)
    content.write(capture[0], "txt")
    for path in capture[0].glob("*.bin"):
        path.unlink()
    assert call(None, "colmap", "--update", capture[0]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "is not whole" in output and sentence in output and not (tmp_path / "out").exists()


def change_image(model, key: int, **change) -> None:
    model.images[key] = model.images[key]._replace(**change)


@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
def test_files_that_lie_about_their_length_are_refused(call, capture, capsys, part):
    path = capture[0] / f"{part}.bin"
    whole = path.read_bytes()
    end = whole.index(b"\0", 72) + 1 if part == "images" else None
    lies = [whole[:-1], whole[:20], b"", struct.pack("<Q", 2**60) + whole[8:]]
    lies += [] if end is None else [whole[:end] + struct.pack("<Q", 2**31) + whole[end + 8 :]]
    for content in lies:
        path.write_bytes(content)
        assert call(None, "colmap", "--update", capture[0]) == 1
        assert "cannot be read: " in capsys.readouterr().out


def test_a_camera_model_unknown_to_nerfstudio_is_kept(tmp_path, call, capture, found, pycolmap, monkeypatch, capsys):
    content = read_colmap_model(capture[0])
    camera = content.cameras[1]
    content.cameras[1] = camera._replace(model="SIMPLE_DIVISION", params=np.array([500.0, 320.0, 240.0, -0.05]))
    other = tmp_path / "other"
    other.mkdir()
    content.write(other, "bin")
    assert call(found, "colmap", "--update", other) == 0
    new = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0")).cameras[1]
    assert new.model.name == "SIMPLE_DIVISION" and new.params.tolist() == [500.0, 320.0, 240.0, -0.05]
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    camera_models.cache_clear()
    capsys.readouterr()
    assert call(found, "colmap", "--update", other, output="another") == 1
    assert "number 12, is not known here" in capsys.readouterr().out
    camera_models.cache_clear()


def with_rig(pycolmap, model) -> None:
    """Makes images 2k - 1 and 2k a frame of a rig of two sensors, with poses that obey it and no points."""
    old, new = pycolmap.Reconstruction(str(model)), pycolmap.Reconstruction()
    rig = pycolmap.Rig(rig_id=5)
    sensors = [pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera) for camera in (1, 2)]
    rig.add_ref_sensor(sensors[0])
    between = old.images[2].cam_from_world() * old.images[1].cam_from_world().inverse()
    rig.add_sensor(sensors[1], between)
    for camera in (1, 2):
        new.add_camera(pycolmap.Camera(dict(old.cameras[1].todict(), camera_id=camera)))
    new.add_rig(rig)
    for key in range(1, NUM, 2):
        frame = pycolmap.Frame(frame_id=100 + key, rig_id=5)
        for i in (0, 1):
            frame.add_data_id(pycolmap.data_t(sensors[i], key + i))
        frame.rig_from_world = old.images[key].cam_from_world()
        new.add_frame(frame)
        for i in (0, 1):
            image = pycolmap.Image(name=old.images[key + i].name, camera_id=1 + i, image_id=key + i)
            image.frame_id = 100 + key
            new.add_image(image)
    new.write_binary(str(model))


@pytest.fixture
def rig_run(tmp_path, helpers, capture, pycolmap):
    """A run on a model with a rig: its refined poses are some motion away from the given ones, or frozen."""
    with_rig(pycolmap, capture[0])
    config = ColmapDataParserConfig(
        data=tmp_path / "data", eval_mode="all", downscale_factor=1, load_3D_points=False
    )  # fmt: skip

    def make(frozen: bool):
        parser = config.setup()
        outputs = parser.get_dataparser_outputs("train")
        refined = outputs.cameras.camera_to_worlds.double()
        if not frozen:
            refined = perturb_poses(refined, PerturbationConfig(rotation=0.01, translation=0.0, seed=2))
        return helpers.scene(outputs, parser, refined, trainable=torch.full((NUM,), not frozen))

    return make


@pytest.mark.parametrize("format", ["bin", "txt"])
def test_rigs_that_the_poses_obey_are_kept(tmp_path, call, capture, rig_run, pycolmap, capsys, format):
    assert call(rig_run(frozen=True), "colmap", "--update", capture[0], "--format", format) == 0
    assert "rigs     kept, with" in capsys.readouterr().out
    old, new = pycolmap.Reconstruction(str(capture[0])), pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    assert set(new.rigs) == {5} and set(new.frames) == set(old.frames) and new.rigs[5].num_sensors() == 2
    for key, image in read_colmap_model(tmp_path / "out/sparse/0").images.items():
        np.testing.assert_allclose(new.images[key].cam_from_world().translation, image.tvec, atol=1e-9)


def test_single_cameras_keep_their_frames_with_the_new_poses(tmp_path, call, capture, found, pycolmap, capsys):
    pycolmap.Reconstruction(str(capture[0])).write_binary(str(capture[0]))  # with a rig for the camera
    assert (capture[0] / "rigs.bin").is_file()
    assert call(found, "colmap", "--update", capture[0]) == 0
    assert "rigs     kept, with" in capsys.readouterr().out
    old, new = (pycolmap.Reconstruction(str(path)) for path in (capture[0], tmp_path / "out/sparse/0"))
    assert set(new.frames) == set(old.frames)
    for key, image in read_colmap_model(tmp_path / "out/sparse/0").images.items():
        np.testing.assert_allclose(new.images[key].cam_from_world().translation, image.tvec, atol=1e-9)
        assert np.abs(old.images[key].cam_from_world().translation - image.tvec).max() > 1e-3


@pytest.mark.parametrize("installed", [True, False])
def test_rigs_that_the_poses_no_longer_obey_are_left_out(
    tmp_path, call, capture, rig_run, pycolmap, monkeypatch, capsys, installed
):
    with monkeypatch.context() as without:
        if not installed:
            without.setitem(sys.modules, "pycolmap", None)
        assert call(rig_run(frozen=False), "colmap", "--update", capture[0]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "rigs not kept, so each camera is one and each image a frame" in output
    assert ("no longer obey them" if installed else "pip install hashpose[colmap] to keep them") in output
    new = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    assert len(new.rigs) == 2 and len(new.frames) == NUM


def test_images_lie_where_the_updated_model_looks(tmp_path, call, capture, found, capsys):
    """Under the model's names, those of images that the run has not trained included."""
    content = read_colmap_model(capture[0])
    content.images[99] = content.images[1]._replace(
        id=99, name="another.png", xys=np.zeros((0, 2)), point3D_ids=np.zeros(0, int)
    )
    for key in range(1, NUM + 1):
        change_image(content, key, name=f"images/{content.images[key].name}")
    model = tmp_path / "other"
    model.mkdir()
    content.write(model, "bin")
    assert call(found, "colmap", "--update", model, "--images", "link") == 1
    assert "another.png or its mask is not known to it; export with --split all" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    (tmp_path / "data/another.png").write_bytes(b"an image")
    assert call(found, "colmap", "--update", model, "--images", "link") == 0
    for image in read_colmap_model(tmp_path / "out/sparse/0").images.values():
        placed = tmp_path / "out/images" / image.name
        assert placed.is_symlink() and placed.resolve() == tmp_path / "data" / image.name
    assert call(found, "colmap", "--update", model, "--overwrite", "True") == 0
    assert f"--images-path {tmp_path}/data\n" in capsys.readouterr().out


def test_a_text_model_with_spaces_in_names_is_refused(call, capture, capsys):
    content = read_colmap_model(capture[0])
    content.write(capture[0], "txt")
    for path in capture[0].glob("*.bin"):
        path.unlink()
    text = (capture[0] / "images.txt").read_text()
    (capture[0] / "images.txt").write_text(text.replace("cam0/4.png", "cam0/my photo.png"))
    assert call(None, "colmap", "--update", capture[0]) == 1
    assert "does not hold ten words" in " ".join(capsys.readouterr().out.split())
