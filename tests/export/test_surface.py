"""Points sampled from the surfaces of a trained field, against a field whose surface is known."""

import copy

import numpy as np
import pytest
import torch

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.exported import ExportedPoints
from hashpose_ns.export.points import with_points, write_ply
from hashpose_ns.export.poses import exported_cameras
from hashpose_ns.export.projection import project
from hashpose_ns.export.surface import sample_surfaces, thin
from nerfstudio.cameras.cameras import CameraType

RADIUS = 0.5
SAMPLE = 2.5 / 128
"""Distance between samples of a ray: from 0.5 to 3.0 in 128."""


def sampled(pipeline, num_points=1000, poses=None, masks=None):
    outputs = pipeline.datamanager.train_dataparser_outputs
    poses = outputs.cameras.camera_to_worlds if poses is None else poses
    return sample_surfaces(pipeline.model, outputs.cameras, poses, num_points, masks)


def test_points_lie_on_the_surface_and_have_its_colour(ball):
    points = sampled(ball)
    assert 300 < len(points.positions) <= 1000
    distances = points.positions.norm(dim=-1)
    assert float((distances - RADIUS).abs().max()) < SAMPLE
    # spread over the whole ball that the ring of cameras sees
    directions = points.positions / distances[:, None]
    assert (directions[:, :2].amin(0) < -0.9).all() and (directions[:, :2].amax(0) > 0.9).all()
    expected = 0.5 + 0.5 * torch.sin(6.0 * points.positions + torch.tensor([0.0, 1.0, 2.0]))
    assert float((points.colors - expected).abs().median()) < 0.05


def test_views_that_a_point_is_said_to_be_seen_by_can_see_it(ball):
    points = sampled(ball)
    cameras = ball.datamanager.train_dataparser_outputs.cameras
    point, camera = points.seen_by.unbind(dim=1)
    poses = cameras.camera_to_worlds[camera]
    _, visible = project(cameras, camera, poses, points.positions[point])
    assert visible.all()
    # in front of the ball and not behind it
    outwards = torch.nn.functional.normalize(points.positions[point], dim=-1)
    towards = torch.nn.functional.normalize(poses[:, :, 3] - points.positions[point], dim=-1)
    assert float((outwards * towards).sum(-1).min()) > 0.0
    counts = torch.bincount(point, minlength=len(points.positions))
    assert int(counts.min()) >= 4  # its own view and three others
    assert len(torch.unique(points.seen_by, dim=0)) == len(points.seen_by)
    assert (point.diff() >= 0).all()
    assert (points.errors >= 0).all() and float(points.errors.max()) < 0.005 * 48


def test_a_lost_camera_adds_no_points_and_sees_none(ball):
    """A camera that the field does not know renders surfaces elsewhere; here its images would put points off the ball
    only if no other view were asked."""
    cameras = ball.datamanager.train_dataparser_outputs.cameras
    poses = cameras.camera_to_worlds.clone()
    lost = poses.clone()
    lost[3, :, 3] += torch.tensor([0.0, 0.0, 5.0])  # looks past the ball, at nothing
    points = sampled(ball, poses=lost)
    assert 3 not in points.seen_by[:, 1]
    assert float((points.positions.norm(dim=-1) - RADIUS).abs().max()) < SAMPLE


def test_what_only_one_view_sees_is_left_out(ball, monkeypatch):
    """A thing right before one camera, as fields put there to explain what poses do not, is no surface of the scene."""
    field = ball.model.field
    density, center = field.get_density, ball.datamanager.train_dataparser_outputs.cameras.camera_to_worlds[2, :, 3]

    def with_floater(samples):
        values, positions = density(samples)
        return values + 300.0 * ((positions - 0.6 * center).norm(dim=-1, keepdim=True) < 0.1), positions

    monkeypatch.setattr(field, "get_density", with_floater)
    cameras = ball.datamanager.train_dataparser_outputs.cameras
    bundle = cameras.generate_rays(camera_indices=2, coords=torch.tensor([[[24.0, 24.0]]]))
    depth = float(ball.model.get_outputs_for_camera_ray_bundle(bundle)["depth"])
    assert depth < 0.7, "the floater is there"
    points = sampled(ball)
    near = (points.positions - 0.6 * center).norm(dim=-1) < 0.15
    assert float(near.float().mean()) < 0.02 and len(points.positions) > 300


def test_masked_pixels_give_no_points(ball, tmp_path):
    from PIL import Image

    half = np.zeros((48, 48), np.uint8)
    half[24:] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    cameras = ball.datamanager.train_dataparser_outputs.cameras
    points = sampled(ball, masks=[tmp_path / "mask.png"] * len(cameras))
    own = points.seen_by[torch.cat([torch.tensor([True]), points.seen_by[:, 0].diff() > 0])]
    pixels, _ = project(cameras, own[:, 1], cameras.camera_to_worlds[own[:, 1]], points.positions)
    assert len(points.positions) > 100 and float(pixels[:, 1].min()) > 23.0


def test_points_come_in_the_input_frame_with_the_drift_undone(ball, helpers):
    """The field lives in the learned frame. Drift of the whole scene reaches neither poses nor points."""
    exported = with_points(ball.scene, exported_cameras(ball.scene), "field", 500)
    radii = np.linalg.norm(exported.points.xyz, axis=1)
    assert np.abs(radii - 2.5 * RADIUS).max() < 2.5 * SAMPLE  # the dataset is 2.5 times as large
    assert exported.points.rgb.dtype == np.uint8 and len(exported.points.xyz) <= 500

    drift = helpers.similarity(scale=1.4)
    drifted = copy.deepcopy(exported.frame)
    object.__setattr__(drifted, "similarity", drift.inverse())
    moved = drifted.points(drift.apply_to_points(torch.from_numpy(exported.points.xyz) / 2.5))
    np.testing.assert_allclose(moved, exported.points.xyz, atol=1e-7)  # poses in that frame are float32


def test_cameras_put_back_see_no_points(ball):
    exported = with_points(ball.scene, exported_cameras(ball.scene, put_back=[1, 2]), "field", 300)
    assert not {1, 2} & set(exported.points.seen_by[:, 1].tolist())
    everyone = range(len(exported.names))
    with pytest.raises(HashPoseError, match="All cameras keep their initial poses"):
        with_points(ball.scene, exported_cameras(ball.scene, put_back=everyone), "field", 300)
    with pytest.raises(HashPoseError, match="--num-points has to be positive"):
        with_points(ball.scene, exported, "field", 0)


def test_an_empty_field_is_told_and_gives_no_points(ball, monkeypatch, capfd):
    nothing = lambda samples: (torch.zeros(*samples.shape, 1), samples.frustums.get_positions())  # noqa: E731
    monkeypatch.setattr(ball.model.field, "get_density", nothing)
    assert with_points(ball.scene, exported_cameras(ball.scene), "field", 300).points is None
    assert "Too few views agree on any point" in capfd.readouterr().out


def test_thinning_keeps_the_preferred_point_of_each_place():
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(200, 3, generator=generator)
    near = places + 1e-4 * torch.randn(200, 3, generator=generator)
    kept = thin(torch.cat([places, near]), torch.zeros(3), 200)
    assert 150 < len(kept) <= 200
    chosen = set(kept.tolist())
    assert all(index < 200 or index - 200 not in chosen for index in chosen)
    assert len(chosen & set(range(200))) / len(chosen) > 0.95, "the first of two is preferred"
    assert thin(places, torch.zeros(3), 200).tolist() == list(range(200))
    # far away, where pixels are large, so are voxels
    shell = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=-1)
    both = torch.cat([shell, 50.0 * shell])
    kept = thin(both, torch.zeros(3), 3000)
    assert 0.2 < float((kept < 4000).float().mean()) < 0.8


@pytest.mark.parametrize("camera_type", [CameraType.PERSPECTIVE, CameraType.FISHEYE])
@pytest.mark.parametrize("distortion", [None, [0.05, -0.03, 0.004, -0.001, -0.001, 0.002]])
def test_projection_inverts_the_rays(helpers, camera_type, distortion):
    cameras = helpers.cameras(8, False, distortion, camera_type)
    cameras.camera_to_worlds = helpers.poses(8).float()
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(8, (300,), generator=generator)
    pixels = torch.rand(300, 2, generator=generator) * torch.tensor([640.0, 480.0])
    rays = cameras.generate_rays(camera_indices=indices[:, None], coords=pixels.flip(-1))
    points = rays.origins + rays.directions * (0.5 + 4.0 * torch.rand(300, 1, generator=generator))
    found, visible = project(cameras, indices, cameras.camera_to_worlds[indices], points)
    assert visible.all()
    torch.testing.assert_close(found, pixels, atol=0.02, rtol=0)
    behind = rays.origins - rays.directions
    assert not project(cameras, indices, cameras.camera_to_worlds[indices], behind)[1].any()


def test_ply_is_read_by_trimesh(tmp_path):
    import trimesh

    rng = np.random.default_rng(0)
    points = ExportedPoints(rng.normal(size=(50, 3)) + 1e6, rng.integers(0, 256, (50, 3)).astype(np.uint8), np.ones(50))
    write_ply(tmp_path / "points.ply", points)
    cloud = trimesh.load(tmp_path / "points.ply")
    np.testing.assert_allclose(cloud.vertices, points.xyz, atol=1e-9)
    np.testing.assert_array_equal(cloud.colors[:, :3], points.rgb)
