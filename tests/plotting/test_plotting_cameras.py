"""Viewing pyramids, and viewpoints from which all cameras are seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hashpose_ns.plotting.cameras import FRUSTUM_EDGES, Views, frustum_points
from hashpose_ns.plotting.figures import plot_cameras


def cameras_around(num_cameras: int = 12, seed: int = 0) -> np.ndarray:
    """Cameras on a dome, looking at its middle; up is +z, as in an object capture."""
    generator = np.random.default_rng(seed)
    back = generator.normal(size=(num_cameras, 3))
    back[:, 2] = np.abs(back[:, 2]) + 0.2
    back /= np.linalg.norm(back, axis=-1, keepdims=True)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    return np.stack([right, np.cross(back, right), back, 3 * back], axis=-1)


def forward_facing(num_cameras: int = 12) -> np.ndarray:
    """Cameras side by side that look along +x; up is +z."""
    poses = np.tile(np.array([[0.0, 0, -1, 0], [-1, 0, 0, 0], [0, 1, 0, 0]]), (num_cameras, 1, 1))
    poses[:, 1, 3] = np.linspace(-1, 1, num_cameras)
    return poses


def test_pyramids_look_where_the_cameras_look():
    poses = cameras_around()
    points = frustum_points(poses, 0.5)
    np.testing.assert_allclose(points[:, 0], poses[:, :, 3])
    middle = points[:, 1:].mean(axis=1) - points[:, 0]
    np.testing.assert_allclose(middle, -0.5 * poses[:, :, 2], atol=1e-12)
    right_and_up = points[:, 3] - points[:, 1]  # the diagonal of the base
    np.testing.assert_allclose(right_and_up, 0.5 * (poses[:, :, 0] + poses[:, :, 1]), atol=1e-12)


def test_each_pyramid_has_its_own_extents():
    extents = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    points = frustum_points(np.tile(np.eye(3, 4), (2, 1, 1)), extents)
    for (width, height, depth), (tip, *corners) in zip(extents, points):
        assert tuple(tip) == (0, 0, 0)
        assert {tuple(c) for c in corners} == {(x, y, -depth) for x in (-width, width) for y in (-height, height)}
    # the four edges around are the sides of a rectangle, not its diagonals
    lengths = np.linalg.norm(np.diff(points[0][FRUSTUM_EDGES[4:]], axis=1)[:, 0], axis=-1)
    np.testing.assert_allclose(np.sort(lengths), [2, 2, 4, 4])


@pytest.mark.parametrize("turn", [0.0, 1.0, -2.0])
def test_the_oblique_view_is_a_pinhole_camera_that_holds_all_points(turn):
    """Pixels of a pinhole camera are linear in homogeneous coordinates: a 3x4 matrix fitted to some points must predict
    the others."""
    points = np.random.default_rng(0).uniform(-1, 1, (60, 3)) * [2, 1, 1] + [5, 0, 3]
    views = Views(cameras_around(), points)
    view = views.oblique(turn)
    pixels = view.project(points)
    low, high = views.limits(view)
    assert (pixels >= low).all() and (pixels <= high).all()
    homogeneous = np.hstack([points, np.ones((60, 1))])
    rows = []
    for x, (u, v) in zip(homogeneous[:30], pixels[:30]):
        rows += [np.concatenate([x, 0 * x, -u * x]), np.concatenate([0 * x, x, -v * x])]
    matrix = np.linalg.svd(np.array(rows))[2][-1].reshape(3, 4)
    projected = homogeneous[30:] @ matrix.T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], pixels[30:], atol=1e-8)
    # its centre is the eye, and the picture is not mirrored
    np.testing.assert_allclose(matrix @ [*view.eye, 1.0], 0, atol=1e-8)
    np.testing.assert_allclose(np.linalg.det(view.axes), 1.0)
    assert view.project(np.array([5.0, 0, 4]))[1] > view.project(np.array([5.0, 0, 3]))[1], "up is up"


def test_the_viewer_stands_behind_forward_facing_cameras_and_outside_of_others():
    poses = forward_facing()
    views = Views(poses)
    eye = views.oblique().eye
    assert views.forward_facing and eye[0] < -views.radius and eye[2] > 0
    # right in the picture is what is right for the cameras
    assert views.oblique().axes[0] @ poses[0, :, 0] > 0.7
    views = Views(cameras_around(40))
    assert not views.forward_facing
    assert np.linalg.norm(views.oblique().eye - views.center) == pytest.approx(3.5 * views.radius)


def test_a_camera_that_flew_off_is_left_out():
    poses = cameras_around(40)
    expected = Views(poses)
    poses = np.concatenate([poses, poses[:1] + [0, 0, 0, 1e4]])
    views = Views(poses)
    np.testing.assert_allclose(views.center, expected.center)
    np.testing.assert_allclose(views.radius, expected.radius)
    assert np.ptp(views.limits(views.oblique()), axis=0).max() < 10


def test_parallel_views_are_true_to_scale():
    poses = cameras_around(40) * [1, 1, 1, 4]
    poses[:, 1, 3] *= 2
    above, beside = Views(poses).above_and_beside()
    flat, upright = above.project(poses[:, :, 3]), beside.project(poses[:, :, 3])
    assert above.axes[2] @ Views(poses).up == pytest.approx(1.0)
    np.testing.assert_allclose(flat[:, 0], upright[:, 0], err_msg="one above the other, both share the horizontal")
    assert np.std(flat[:, 0]) >= np.std(flat[:, 1]), "which is the direction of the largest spread"
    for view in (above, beside):
        np.testing.assert_allclose(np.linalg.det(view.axes), 1.0)
    lengths = np.linalg.norm(poses[1:, :, 3] - poses[:-1, :, 3], axis=-1)
    both = np.concatenate([flat, upright[:, 1:]], axis=1)
    np.testing.assert_allclose(np.linalg.norm(np.diff(both, axis=0), axis=-1), lengths)


@pytest.mark.parametrize("poses", [np.tile(np.eye(3, 4), (4, 1, 1)), cameras_around(1)], ids=["identity", "one"])
def test_cameras_in_one_place_are_seen_too(poses):
    views = Views(poses, smallest=0.1)
    for view in (views.oblique(), *views.above_and_beside()):
        assert np.isfinite(view.axes).all() and np.isfinite(view.project(poses[:, :, 3])).all()
    assert np.linalg.norm(views.oblique().eye - views.center) == pytest.approx(0.35)


def test_the_figure_of_cameras_is_drawn(tmp_path):
    import matplotlib.image

    poses = torch.from_numpy(cameras_around())
    moved = torch.cat([poses[:, :, :3], poses[:, :, 3:] + 0.3 * torch.randn(12, 3, 1).double()], dim=2)
    plot_cameras(moved, poses, poses, tmp_path / "cameras.png", "a title")
    image = 255 * matplotlib.image.imread(tmp_path / "cameras.png")[..., :3]
    middle = image.shape[1] // 2

    def inked(part: np.ndarray, color: tuple) -> bool:
        return bool((np.abs(part - color).max(axis=-1) < 3).sum() > 50)

    for color, before, after in (
        ((153, 153, 153), True, False),
        ((0, 114, 178), False, True),
        ((213, 94, 0), True, False),
    ):
        drawn = image[: int(0.9 * len(image))]  # without the legend
        assert (inked(drawn[:, :middle], color), inked(drawn[:, middle:], color)) == (before, after)
