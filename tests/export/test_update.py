"""An existing COLMAP model with new poses, read by pycolmap."""

import sys

import numpy as np
import pytest
import torch

from hashpose_ns.cameras.alignment import align_poses, pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, identity_poses, perturb_poses
from hashpose_ns.data.source import colmap_poses
from hashpose_ns.export.colmap import world_to_camera, write_colmap_model
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
    refused("have no place in an existing model", model, identity)
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
