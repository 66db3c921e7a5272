"""COLMAP models, read back by pycolmap and by nerfstudio's colmap dataparser."""

import numpy as np
import pytest
import torch

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.colmap import write_colmap_model
from hashpose_ns.export.points import ExportedPoints
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils

PERSPECTIVE = [0.05, -0.08, 0.0, 0.0, -0.001, 0.002]
FISHEYE = [0.05, -0.02, 0.004, -0.001, 0.0, 0.0]


@pytest.fixture
def pycolmap():
    return pytest.importorskip("pycolmap", reason="pycolmap is the independent reader of this test")


def to_opencv(camera_to_worlds: torch.Tensor) -> torch.Tensor:
    return camera_to_worlds * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=camera_to_worlds.dtype)


def images_by_name(reconstruction) -> dict:
    return {image.name: image for image in reconstruction.images.values()}


@pytest.mark.parametrize("format", ["bin", "txt"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "distortion, camera_type, model",
    [
        (None, CameraType.PERSPECTIVE, "PINHOLE"),
        ([0.0] * 6, CameraType.PERSPECTIVE, "PINHOLE"),
        (PERSPECTIVE, CameraType.PERSPECTIVE, "OPENCV"),
        (FISHEYE, CameraType.FISHEYE, "OPENCV_FISHEYE"),
    ],
)
def test_pycolmap_projects_where_nerfstudio_looks(
    tmp_path, helpers, pycolmap, format, shared, distortion, camera_type, model
):
    num_cameras = 12
    poses = helpers.poses(num_cameras)
    cameras = helpers.cameras(num_cameras, shared, distortion, camera_type)
    names = [f"cam/{i:03d}.jpg" for i in range(num_cameras)]
    written = write_colmap_model(tmp_path, to_opencv(poses), cameras, names, format=format)
    assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir())

    reconstruction = pycolmap.Reconstruction(str(tmp_path))
    images = images_by_name(reconstruction)
    assert set(images) == set(names)
    assert len(reconstruction.cameras) == (1 if shared else num_cameras)
    assert {camera.model.name for camera in reconstruction.cameras.values()} == {model}

    # a point on the ray that nerfstudio casts through a pixel must project onto that pixel
    cameras.camera_to_worlds = poses.float()
    pixels = torch.tensor([[240.5, 320.5], [30.5, 40.5], [400.5, 610.5]])
    for i, name in enumerate(names):
        rays = cameras.generate_rays(camera_indices=torch.full((3, 1), i), coords=pixels)
        for point, (row, column) in zip((rays.origins + 3.0 * rays.directions).double().numpy(), pixels.tolist()):
            np.testing.assert_allclose(images[name].project_point(point), [column, row], atol=5e-3)
        np.testing.assert_allclose(images[name].projection_center(), poses[i, :, 3], atol=1e-12)


def test_pose_precision_and_orthonormalisation(tmp_path, helpers, pycolmap):
    poses = helpers.poses(50, seed=1)
    # float32 and slightly scaled axes, as after many optimisation steps
    rounded = poses.float().clone()
    rounded[:, :, :3] *= 1.0005
    names = [f"{i}.png" for i in range(50)]
    write_colmap_model(tmp_path, to_opencv(rounded), helpers.cameras(50), names)
    for name, image in images_by_name(pycolmap.Reconstruction(str(tmp_path))).items():
        camera_from_world = image.cam_from_world().matrix()
        expected = to_opencv(poses)[int(name[:-4])]
        np.testing.assert_allclose(camera_from_world[:, :3], expected[:, :3].T, atol=2e-7)
        np.testing.assert_allclose(camera_from_world[:, :3] @ camera_from_world[:, :3].T, np.eye(3), atol=1e-14)
        np.testing.assert_allclose(image.projection_center(), expected[:, 3], atol=2e-6)


def test_intrinsics_are_grouped_and_sizes_kept(tmp_path, helpers, pycolmap):
    # two physical cameras, alternating; only one of them distorts, yet there is one model for both
    cameras = helpers.cameras(6, distortion=[0.0] * 6)
    cameras.fx[1::2] = 700.0
    cameras.width[1::2] = 800
    cameras.distortion_params = cameras.distortion_params.clone()
    cameras.distortion_params[1::2, 0] = 0.1
    write_colmap_model(tmp_path, helpers.poses(6), cameras, [f"{i}.png" for i in range(6)])
    reconstruction = pycolmap.Reconstruction(str(tmp_path))
    assert len(reconstruction.cameras) == 2
    for name, image in images_by_name(reconstruction).items():
        camera = reconstruction.cameras[image.camera_id]
        odd = int(name[0]) % 2 == 1
        assert camera.model.name == "OPENCV"
        assert (camera.width, camera.height) == ((800, 480) if odd else (640, 480))
        np.testing.assert_allclose(
            camera.params, [700.0 if odd else 500.0, 510.0, 322.5, 236.25, 0.1 if odd else 0.0, 0, 0, 0], atol=1e-8
        )


@pytest.mark.parametrize("format", ["bin", "txt"])
# nerfstudio reads no fisheye with a k4
@pytest.mark.parametrize(
    "camera_type, distortion", [("PERSPECTIVE", PERSPECTIVE), ("FISHEYE", FISHEYE[:3] + [0.0] * 3)]
)
def test_nerfstudio_reads_the_same_poses(tmp_path, helpers, format, camera_type, distortion):
    poses = helpers.poses(20, seed=2)
    cameras = helpers.cameras(20, False, distortion, CameraType[camera_type])
    names = [f"{i:02d}.png" for i in range(20)]
    (tmp_path / "sparse/0").mkdir(parents=True)
    write_colmap_model(tmp_path / "sparse/0", to_opencv(poses), cameras, names, format=format)
    config = ColmapDataParserConfig(
        data=tmp_path, colmap_path="sparse/0", downscale_factor=1, load_3D_points=False, eval_mode="all"
    )
    outputs = config.setup().get_dataparser_outputs("train")
    assert [path.name for path in outputs.image_filenames] == names
    original = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    np.testing.assert_allclose(original, poses, atol=1e-5)
    for key in ("fx", "fy", "cx", "cy", "width", "height", "distortion_params", "camera_type"):
        torch.testing.assert_close(getattr(outputs.cameras, key), getattr(cameras, key), check_dtype=False)


@pytest.mark.parametrize("format", ["bin", "txt"])
def test_points(tmp_path, helpers, pycolmap, format):
    rng = np.random.default_rng(0)
    points = ExportedPoints(
        xyz=rng.normal(size=(7, 3)), rgb=rng.integers(0, 256, (7, 3)).astype(np.uint8), error=np.full(7, -1.0)
    )
    write_colmap_model(tmp_path, helpers.poses(3), helpers.cameras(3), ["a", "b", "c"], points, format)
    read = pycolmap.Reconstruction(str(tmp_path)).points3D
    assert len(read) == 7
    for i in range(7):
        np.testing.assert_array_equal(read[i + 1].xyz, points.xyz[i])
        np.testing.assert_array_equal(read[i + 1].color, points.rgb[i])
        assert read[i + 1].track.length() == 0


@pytest.mark.parametrize("format", ["bin", "txt"])
@pytest.mark.parametrize("distortion", [None, PERSPECTIVE])
def test_tracks_are_where_pycolmap_projects_the_points(tmp_path, helpers, pycolmap, format, distortion):
    """Points seen by some cameras of an orbit; one is claimed to be seen by a camera that looks away from it."""
    rng = np.random.default_rng(1)
    poses, cameras = helpers.orbit(6), helpers.cameras(6, False, distortion)
    xyz = rng.normal(size=(40, 3)) * 0.2
    seen_by = np.array([(i, j) for i in range(40) for j in range(6) if (i + j) % 3 and i != 7] + [(39, 2)])
    seen_by = np.unique(seen_by, axis=0)
    xyz[39] = 3.0 * poses[2, :, 3].numpy()  # behind camera 2
    points = ExportedPoints(xyz, np.full((40, 3), 9, np.uint8), np.linspace(0.0, 1.0, 40), seen_by)
    names = [f"{i}.png" for i in range(6)]
    write_colmap_model(tmp_path, to_opencv(poses), cameras, names, points, format)

    reconstruction = pycolmap.Reconstruction(str(tmp_path))
    assert len(reconstruction.points3D) == 40
    images, found = reconstruction.images, set()
    for key in reconstruction.points3D:
        point = reconstruction.points3D[key]
        np.testing.assert_allclose(point.error, points.error[key - 1])
        for element in point.track.elements:
            image = images[element.image_id]
            observation = image.points2D[element.point2D_idx]
            assert observation.point3D_id == key
            np.testing.assert_allclose(observation.xy, image.project_point(point.xyz), atol=1e-6)
            found.add((key - 1, int(image.name[0])))
    expected = {tuple(row) for row in seen_by.tolist()}
    assert {pair for pair in found if pair[0] != 39} == {pair for pair in expected if pair[0] != 39}
    assert (39, 2) in expected and (39, 2) not in found
    assert reconstruction.points3D[8].track.length() == 0, "the point that nobody sees"
    assert sum(image.num_points3D for image in images.values()) == len(found)


def test_no_points_gives_an_empty_file(tmp_path, helpers, pycolmap):
    write_colmap_model(tmp_path, helpers.poses(3), helpers.cameras(3), ["a", "b", "c"])
    assert (tmp_path / "points3D.bin").stat().st_size == 8
    assert len(pycolmap.Reconstruction(str(tmp_path)).points3D) == 0


@pytest.mark.parametrize(
    "distortion, camera_type, message",
    [
        ([0.0, 0.0, 0.01, 0.0, 0.0, 0.0], CameraType.PERSPECTIVE, "third and fourth order.* --images undistorted"),
        ([0.0, 0.0, 0.0, 0.01, 0.0, 0.0], CameraType.PERSPECTIVE, "k4 is not zero; export with `hashpose-export nerf"),
        ([0.1, 0.0, 0.0, 0.0, 0.01, 0.0], CameraType.FISHEYE, "no tangential distortion"),
        (
            None,
            CameraType.EQUIRECTANGULAR,
            "EQUIRECTANGULAR cannot be stored in a COLMAP model; export with `hashpose-export nerf",
        ),
    ],
)
def test_cameras_that_colmap_cannot_express_are_refused(tmp_path, helpers, distortion, camera_type, message):
    with pytest.raises(HashPoseError, match=message):
        write_colmap_model(
            tmp_path, helpers.poses(2), helpers.cameras(2, True, distortion, camera_type), ["a.png", "b.png"]
        )
    assert list(tmp_path.iterdir()) == []


def test_broken_intrinsics_are_refused(tmp_path, helpers):
    cameras = helpers.cameras(2)
    cameras.fx[1] = float("nan")
    with pytest.raises(HashPoseError, match="training camera 1 is not a finite number"):
        write_colmap_model(tmp_path, helpers.poses(2), cameras, ["a", "b"])
    cameras.fx[1] = -3.0
    with pytest.raises(HashPoseError, match="training camera 1 is not positive"):
        write_colmap_model(tmp_path, helpers.poses(2), cameras, ["a", "b"])


def test_names_a_format_would_garble_are_refused(tmp_path, helpers, pycolmap):
    poses, cameras = helpers.poses(2), helpers.cameras(2)
    with pytest.raises(HashPoseError, match="white space in 'a b.png'; use --format bin"):
        write_colmap_model(tmp_path, poses, cameras, ["a b.png", "c.png"], format="txt")
    with pytest.raises(HashPoseError, match="unique image names"):
        write_colmap_model(tmp_path, poses, cameras, ["a", "a"])
    assert list(tmp_path.iterdir()) == []
    # and the format recommended instead holds the name
    write_colmap_model(tmp_path, poses, cameras, ["a b.png", "c.png"], format="bin")
    assert set(images_by_name(pycolmap.Reconstruction(str(tmp_path)))) == {"a b.png", "c.png"}


@pytest.mark.parametrize("format", ["bin", "txt"])
def test_names_with_other_letters(tmp_path, helpers, pycolmap, format):
    names = ["Gänsefüßchen.png", "日本/富士.png"]
    write_colmap_model(tmp_path, helpers.poses(2), helpers.cameras(2), names, format=format)
    read = pycolmap.Reconstruction(str(tmp_path))
    assert [read.images[key].name for key in (1, 2)] == names
    by_nerfstudio = colmap_utils.read_images_binary if format == "bin" else colmap_utils.read_images_text
    assert [image.name for image in by_nerfstudio(tmp_path / f"images.{format}").values()] == names


@pytest.mark.parametrize("distortion", [None, PERSPECTIVE])
@pytest.mark.parametrize("with_points", [True, False])
def test_binary_files_are_those_that_pycolmap_writes(tmp_path, helpers, pycolmap, distortion, with_points):
    rng = np.random.default_rng(1)
    seen_by = np.unique(np.stack([rng.integers(0, 40, 120), rng.integers(0, 6, 120)], axis=1), axis=0)
    colors = rng.integers(0, 256, (40, 3)).astype(np.uint8)
    points = ExportedPoints(rng.uniform(-0.4, 0.4, (40, 3)), colors, rng.uniform(0, 2, 40), seen_by)
    names = ["ä b.png", *"edcba"]
    poses, cameras = to_opencv(helpers.orbit(6)), helpers.cameras(6, False, distortion)
    files = write_colmap_model(tmp_path, poses, cameras, names, points if with_points else None)
    (tmp_path / "pycolmap").mkdir()
    pycolmap.Reconstruction(str(tmp_path)).write_binary(str(tmp_path / "pycolmap"))
    for file in files:
        assert file.read_bytes() == (tmp_path / "pycolmap" / file.name).read_bytes()
