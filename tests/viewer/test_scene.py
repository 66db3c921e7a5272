"""What is drawn, in a viser server without clients: thinning, alignment and objects."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import roma
import torch
import trimesh
import viser
from client import drawn_pose
from conftest import free_port

from hashpose_ns.cameras.alignment import Similarity, align_poses
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.plotting.cameras import FRUSTUM_EDGES, frustum_points
from hashpose_ns.runs.history import PoseHistory
from hashpose_ns.viewer.colors import REFERENCE, SELECTED, ColorScale
from hashpose_ns.viewer.scene import (
    LAYERS,
    MAX_CAMERAS,
    MAX_MOVES,
    MAX_PATH_PIECES,
    PoseScene,
    fitting_frustum_scale,
    view_of_all,
)
from hashpose_ns.viewer.state import PoseReading, PoseState, PoseTracks
from hashpose_ns.viewer.tubes import tubes_glb
from hashpose_ns.viewer.widgets import status_text
from nerfstudio.cameras.cameras import Cameras

ALL = dict.fromkeys(LAYERS, True)


@pytest.fixture(scope="module")
def server():
    server = viser.ViserServer(host="127.0.0.1", port=free_port(), verbose=False)
    yield server
    server.stop()


def make_poses(count: int) -> PoseOptimizer:
    """Refined cameras that differ from where they started and from the reference."""
    generator = torch.Generator().manual_seed(0)
    rotations = roma.random_rotmat(count)
    reference = torch.cat([rotations, 4 * torch.randn(count, 3, 1, generator=generator)], dim=-1)
    initial = reference.clone()
    initial[:, :, 3] += 0.2 * torch.randn(count, 3, generator=generator)
    poses = PoseOptimizerConfig().setup(
        num_cameras=count, device="cpu", initial_camera_to_worlds=initial, reference_camera_to_worlds=reference
    )
    with torch.no_grad():
        poses.pose_adjustment.copy_(0.1 * torch.randn(count, 6, generator=generator))
    return poses


def make_scene(server, poses: PoseOptimizer, thumbnails: int) -> PoseScene:
    count = len(poses.initial_camera_to_worlds)
    handles = {
        int(index): server.scene.add_camera_frustum(f"/cameras/camera_{index:05d}", 1.0, 1.0)
        for index in np.linspace(0, count - 1, thumbnails, dtype=int)
    }
    cameras = Cameras(poses.initial_camera_to_worlds, fx=50.0, fy=50.0, cx=30.0, cy=20.0, width=60, height=40)
    config = SimpleNamespace(camera_frustum_scale=0.1)
    return PoseScene(SimpleNamespace(viser_server=server, camera_handles=handles, config=config), cameras)


def state_of(poses: PoseOptimizer) -> PoseState:
    return PoseState.of(PoseReading.of(poses, step=7))


def sent(server, name: str) -> bytes:
    """The object that a browser would have under a name."""
    buffer = server._websock_server._broadcast_buffer
    return buffer.message_from_id[buffer.id_from_redundancy_key[f"GlbMessage_{name}"]].glb_data


def read_glb(data: bytes) -> trimesh.Trimesh:
    (mesh,) = trimesh.load(io.BytesIO(data), file_type="glb", process=False).geometry.values()
    return mesh


def read_lines(data: bytes) -> np.ndarray:
    """The ends of tubes [n, 2, 3], in scene units."""
    return read_glb(data).vertices.reshape(-1, 2, 3, 3).mean(axis=2) / 10.0


def test_a_thousand_cameras_are_thinned_out_and_it_is_said(server, tmp_path):
    poses = make_poses(1000)
    scene, state = make_scene(server, poses, thumbnails=512), state_of(poses)
    history = PoseHistory(tmp_path / "history")
    for step in range(30):
        history.append(step, poses.refined_camera_to_worlds().detach().numpy())
    tracks = PoseTracks(tmp_path, from_file=False)
    assert not tracks.update(history, state.reference, seconds=60.0)
    scene.draw(state, tracks, ALL, True, None, selected=0)
    for layer in ("refined", "initial", "reference"):
        assert len(read_glb(sent(server, f"/hashpose/{layer}")).faces) <= MAX_CAMERAS * 8 * 6
    assert len(read_glb(sent(server, "/hashpose/paths")).faces) <= (MAX_PATH_PIECES + MAX_CAMERAS) * 6
    assert scene.bytes_sent < 2_000_000
    assert scene.note(1000) == "Drawn: lines and colours of 200 of 1000 cameras, thumbnails of 512 of 1000 cameras"
    assert scene.drawn[0] == 0 and scene.drawn[-1] == 999 and len(set(scene.drawn)) == MAX_CAMERAS
    # frustums come in turns, those furthest off first
    left = [scene.move_frustums(state) for _ in range(5)]
    assert left == [512 - MAX_MOVES, 512 - 2 * MAX_MOVES, 512 - 3 * MAX_MOVES, 0, 0]
    for index, handle in scene.viewer.camera_handles.items():
        np.testing.assert_allclose(drawn_pose(handle.position, handle.wxyz), state.refined[index], atol=1e-5)


@pytest.mark.parametrize("count", [3, 40])
def test_few_cameras_are_all_drawn_and_nothing_is_sent_twice(server, tmp_path, count):
    poses = make_poses(count)
    scene, state = make_scene(server, poses, thumbnails=count), state_of(poses)
    assert scene.note(count) == "" and len(scene.drawn) == count
    tracks = PoseTracks(tmp_path, from_file=True)
    scene.move_frustums(state)
    scene.draw(state, tracks, ALL, True, None, selected=0)
    buffer = server._websock_server._broadcast_buffer
    before = buffer.message_counter
    scene.move_frustums(state)
    scene.draw(state, tracks, ALL, True, None, selected=0)
    assert buffer.message_counter == before


def test_alignment_takes_initial_and_reference_cameras_to_the_learned_frame(server, tmp_path):
    poses = make_poses(20)
    # a drift of everything, which alignment must take out again
    drift = Similarity(
        torch.tensor(1.7).double(), roma.random_rotmat().double(), torch.tensor([1.0, -2.0, 0.5]).double()
    )
    reading = PoseReading.of(poses, step=0)
    refined = drift.apply_to_poses(reading.reference)  # perfect, but for the drift
    state = PoseState.of(PoseReading(**{**vars(reading), "refined": refined}))
    assert float(state.errors.center.max()) < 1e-5
    scene = make_scene(server, poses, thumbnails=20)
    layers = {**ALL, "paths": False}
    scene.draw(state, PoseTracks(tmp_path, from_file=True), layers, True, None, selected=-1)
    shown = {name: read_lines(sent(server, f"/hashpose/{name}")) for name in ("refined", "reference")}
    np.testing.assert_allclose(shown["refined"], shown["reference"], atol=2e-3)
    np.testing.assert_allclose(shown["refined"][::8, 0], refined[:, :, 3], atol=2e-3)
    scene.draw(state, PoseTracks(tmp_path, from_file=True), layers, False, None, selected=-1)
    expected = frustum_points(reading.reference.numpy(), scene.extents)[:, FRUSTUM_EDGES].reshape(-1, 2, 3)
    np.testing.assert_allclose(read_lines(sent(server, "/hashpose/reference")), expected, atol=2e-3)
    # where the field is, either way
    np.testing.assert_array_equal(read_lines(sent(server, "/hashpose/refined")), shown["refined"])


def test_where_matches_had_training_start_is_drawn_where_it_did(server, tmp_path):
    poses = make_poses(20)
    tracks = PoseTracks(tmp_path, from_file=True)
    scene, name = make_scene(server, poses, thumbnails=20), "/hashpose/started"
    scene.draw(state_of(poses), tracks, ALL, False, None, selected=-1)
    assert "started" not in scene._handles and "points" not in scene._handles
    base = poses.reference_camera_to_worlds.clone()
    base[:, :, 3] += 0.01
    poses.rebase(base, trusted=True)
    points, colors = np.random.default_rng(0).normal(size=(30, 3)), np.tile(np.array(REFERENCE, np.uint8), (30, 1))
    scene.draw(state_of(poses), tracks, ALL, False, None, selected=-1, points=(points, colors))
    expected = frustum_points(base.numpy(), scene.extents)[:, FRUSTUM_EDGES].reshape(-1, 2, 3)
    np.testing.assert_allclose(read_lines(sent(server, name)), expected, atol=2e-3)
    dots = read_lines(sent(server, "/hashpose/points"))
    np.testing.assert_allclose(dots.mean(axis=1), points, atol=2e-3)
    assert np.linalg.norm(dots[:, 1] - dots[:, 0], axis=-1).max() < 0.1
    # aligned, it is where the refined cameras are, which have not moved since
    scene.draw(state_of(poses), tracks, ALL, True, None, selected=-1)
    refined = read_lines(sent(server, "/hashpose/refined"))
    np.testing.assert_allclose(read_lines(sent(server, name)), refined, atol=2e-3)
    assert scene._handles["points"].visible is False  # nobody has looked for any


def test_paths_run_from_the_start_to_now_without_the_drift(server, tmp_path):
    poses = make_poses(4)
    history = PoseHistory(tmp_path / "history")
    start = align_poses(poses.initial_camera_to_worlds, poses.reference_camera_to_worlds).apply_to_poses(
        poses.initial_camera_to_worlds
    )
    for step in range(5):  # nothing but drift
        drift = Similarity(
            torch.tensor(1.0 + 0.1 * step).double(), roma.random_rotmat().double(), torch.ones(3).double()
        )
        history.append(step, drift.apply_to_poses(start).numpy())
    reading = PoseReading.of(poses, step=5)
    state = PoseState.of(PoseReading(**{**vars(reading), "refined": torch.from_numpy(history.camera_to_worlds[-1])}))
    tracks = PoseTracks(tmp_path, from_file=False)
    while tracks.update(history, state.reference):
        pass
    scene = make_scene(server, poses, thumbnails=4)
    scene.draw(state, tracks, ALL, True, None, selected=0)
    lines = read_lines(sent(server, "/hashpose/paths")).reshape(5, 4, 2, 3)
    assert np.ptp(lines, axis=(0, 2)).max() < 5e-3  # each camera's path is a point
    scene.draw(state, tracks, ALL, False, None, selected=0)
    lines = read_lines(sent(server, "/hashpose/paths")).reshape(5, 4, 2, 3)
    expected = np.stack(history.camera_to_worlds)[:, :, :, 3]
    np.testing.assert_allclose(lines[:, :, 0], expected, atol=5e-3)
    np.testing.assert_allclose(lines[:4, :, 1], expected[1:], atol=5e-3)


def test_tubes_are_read_back_as_they_were_meant():
    generator = np.random.default_rng(0)
    lines = generator.normal(size=(50, 2, 3)).astype(np.float32)
    lines[:3, 1] = lines[:3, 0] + np.eye(3, dtype=np.float32)  # along the axes
    colors = generator.integers(0, 256, size=(50, 3)).astype(np.uint8)
    mesh = read_glb(tubes_glb(lines, colors, 0.1))
    assert mesh.faces.shape == (50 * 6, 3) and mesh.vertices.shape == (50 * 6, 3)
    vertices = mesh.vertices.reshape(50, 2, 3, 3)
    np.testing.assert_allclose(vertices.mean(axis=2), lines, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vertices - lines[:, :, None], axis=-1), 0.1, atol=1e-5)
    along = (lines[:, 1] - lines[:, 0]) / np.linalg.norm(lines[:, 1] - lines[:, 0], axis=-1, keepdims=True)
    assert np.abs(((vertices - lines[:, :, None]) * along[:, None, None]).sum(-1)).max() < 1e-5
    rgba = mesh.visual.vertex_attributes["color"].reshape(50, 6, 4)
    assert (rgba == rgba[:, :1]).all() and (rgba[..., 3] == 255).all()
    np.testing.assert_allclose(255 * (rgba[:, 0, :3] / 255.0) ** (1 / 2.2), colors, atol=12)  # 8 bits of linear light
    area = trimesh.Trimesh(mesh.vertices, mesh.faces).area_faces.reshape(50, 6).sum(-1)
    side = 2 * 0.1 * np.sin(np.pi / 3)
    np.testing.assert_allclose(area, 3 * side * np.linalg.norm(lines[:, 1] - lines[:, 0], axis=-1), rtol=1e-4)


def test_frustums_have_visers_shape_and_look_down_minus_z(server):
    poses = make_poses(3)
    scene = make_scene(server, poses, thumbnails=3)
    extents = scene.extents[0] * 10.0
    # viser 0.2.7 with nerfstudio's opening angle: tan = cx / fx upwards, times cx / cy sideways
    shape = np.array([30 / 50 * 30 / 20, 30 / 50, 1.0])
    np.testing.assert_allclose(extents, 0.1 * shape / np.cbrt(shape.prod() / 3.0), rtol=1e-5)


@pytest.mark.parametrize("count, depth", [(10, 0.12), (1000, 0.024)])
def test_frustums_are_sized_by_the_spread_of_the_cameras(server, count, depth):
    poses = make_poses(count)
    reference = poses.reference_camera_to_worlds
    cameras = Cameras(reference, fx=50.0, fy=50.0, cx=30.0, cy=20.0, width=60, height=40)
    scale = fitting_frustum_scale(cameras, reference)
    viewer = SimpleNamespace(viser_server=server, camera_handles={}, config=SimpleNamespace(camera_frustum_scale=scale))
    distance = (reference[:, :, 3] - reference[:, :, 3].mean(0)).norm(dim=-1).mean()
    np.testing.assert_allclose(PoseScene(viewer, cameras).extents[:, 2], depth * float(distance), rtol=1e-3)
    assert 0 < fitting_frustum_scale(cameras, torch.eye(3, 4).repeat(count, 1, 1)) < 1


def test_selected_camera_and_colours(server, tmp_path):
    poses = make_poses(5)
    scene, state = make_scene(server, poses, thumbnails=5), state_of(poses)
    colors = np.tile(np.array(REFERENCE, np.uint8), (5, 1))
    scene.draw(state, PoseTracks(tmp_path, from_file=True), ALL, True, colors, selected=2)
    rgba = read_glb(sent(server, "/hashpose/refined")).visual.vertex_attributes["color"].reshape(5, -1, 4)[:, 0, :3]
    linear = [np.round(255 * (np.array(color) / 255.0) ** 2.2) for color in (REFERENCE, SELECTED)]
    np.testing.assert_array_equal(rgba, np.array([linear[int(index == 2)] for index in range(5)]))


def test_colour_scale_is_monotone_still_and_says_its_ends():
    scale = ColorScale()
    values = np.array([0.0, 0.01, 0.1, 1.0, 3.0, np.nan])
    colors = scale.colors(values).astype(float)
    lightness = colors[:5] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= 0).all() and lightness[-1] > lightness[0]
    assert scale.top == 5.0 and tuple(colors[5]) == (153, 153, 153)
    assert "from 0.016 (dark) to 5 degrees (bright)" in scale.legend("Rotation error", "degrees")
    np.testing.assert_array_equal(scale.colors(0.1 * values[:3]), scale.colors(np.array([0.0, 0.001, 0.01])))
    assert scale.top == 5.0  # smaller errors do not move the scale
    assert ColorScale().legend("Rotation error", "degrees") == "Rotation error: 0 everywhere"


def test_view_of_all_is_behind_cameras_that_look_the_same_way_and_outside_of_others():
    forward = torch.eye(3, 4).repeat(5, 1, 1)
    forward[:, 0, 3] = torch.arange(5)
    position, target = view_of_all(forward)
    assert position[2] > target[2] and np.linalg.norm(position - target) > 10 * 2.0  # they are 4 apart
    around = make_poses(30).initial_camera_to_worlds
    position, target = view_of_all(around)
    radius = (10 * around[:, :, 3] - torch.from_numpy(target)).norm(dim=-1).max()
    assert 1.1 * float(radius) < np.linalg.norm(position - target) < 2 * float(radius)
    position, target = view_of_all(torch.eye(3, 4).repeat(4, 1, 1))  # an identity start
    assert np.isfinite([*position, *target]).all() and np.linalg.norm(position - target) > 0


def test_history_of_another_scene_is_left_alone(tmp_path):
    history = PoseHistory(tmp_path / "history")
    history.append(0, make_poses(7).refined_camera_to_worlds().detach().numpy())
    tracks = PoseTracks(Path(tmp_path), from_file=False)
    assert not tracks.update(history, make_poses(5).reference_camera_to_worlds) and tracks.steps == []
    assert not tracks.update(None, make_poses(5).reference_camera_to_worlds)


def test_the_panel_says_when_cameras_were_put_back():
    poses = make_poses(8)
    assert "where they started" not in status_text(state_of(poses), 100, math.nan, [])
    poses.fall_back(0.1)
    assert "back where they started, and are refined again at 0.1" in status_text(state_of(poses), 100, math.nan, [])
    poses.fall_back(0.0)
    text = status_text(state_of(poses), 100, math.nan, [])
    assert "and stay there" in text and state_of(poses).movement.rotation_deg.max() < 1e-3
