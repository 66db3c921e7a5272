"""The grid of moving rays over a photograph: the picture, and the panel of a run whose rays move."""

from __future__ import annotations

import numpy as np
import pytest
from client import eventually

from hashpose_ns.cameras.local_to_global import GRID, make_pose_optimizer
from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.cameras.warp import WarpConfig
from hashpose_ns.viewer.colors import SELECTED, START
from hashpose_ns.viewer.warping import WarpField, warp_field, warp_picture, warp_text


def field_of(size: float, motion: float) -> WarpField:
    """A grid over a picture, of which one point moves to the right."""
    middles = (np.arange(GRID) + 0.5) * size / GRID
    before = np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(-1, 2)
    after = before.copy()
    after[3 * GRID + 4, 0] += motion
    return WarpField(before, after)


def test_motions_are_drawn_larger_by_a_round_number_and_to_half_a_step_of_the_grid():
    assert field_of(80.0, 0.012).factor == 200 and field_of(80.0, 5.0).factor == 1  # a step is 10 pixels
    assert field_of(80.0, 20.0).factor == pytest.approx(0.2) and field_of(80.0, 0.0).factor == 10_000
    text = warp_text(field_of(80.0, 0.012))
    assert text == "Rays off their camera's motion by 0.012 px at most, drawn 200 times as large."


def test_the_picture_and_the_panel(live_run, client):
    live, model = live_run.live, live_run.trainer.pipeline.model
    twists, lock = model.camera_optimizer, live.viewer.train_lock
    assert warp_field(live.run, 0, lock) is None and not client.control("Motions of rays")["visible"]
    size = float(live.run.train.cameras[0].width)
    drawn = warp_picture(live.run, 0, field_of(size, 0.4 * size / GRID / 100)).astype(int)
    scale = drawn.shape[1] / size
    at = np.round(scale * np.array([3.5 * size / GRID, 4.5 * size / GRID])).astype(int)
    moved = round(scale * 0.4 * size / GRID)
    assert tuple(drawn[at[1], at[0] + moved]) == SELECTED and tuple(drawn[at[1] - moved, at[0] + moved]) != SELECTED
    assert tuple(drawn[at[1], at[0]]) in (START, SELECTED)
    try:
        model.camera_optimizer = rays = make_pose_optimizer(
            PoseOptimizerConfig(model="local-to-global", warp=WarpConfig(width=16, embedding=8)),
            num_cameras=len(live.names),
            device="cpu",
            initial_camera_to_worlds=twists.initial_camera_to_worlds,
            half_extent=(0.3, 0.3),
        )
        field = warp_field(live.run, 1, lock)
        assert field is not None and 0 < field.largest < 0.5 * size and (field.before > 0).all()
        live.refresh()
        eventually(lambda: client.control("Motions of rays")["visible"])
        client.set("Motions of rays", True)
        eventually(lambda: "![motions of rays](data:image/jpeg;base64," in client.texts())
        eventually(lambda: "Rays off their camera's motion by " in client.texts())
        rays.handed_over.fill_(True)
        rays._restore()
        live.refresh()
        eventually(lambda: "motions of rays" not in client.texts())
        assert not client.control("Motions of rays")["visible"]
    finally:
        client.set("Motions of rays", False)
        model.camera_optimizer = twists
        live.refresh()
        eventually(live_run.is_shown)
