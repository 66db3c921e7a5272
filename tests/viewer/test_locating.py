"""A photograph is looked for from the viewer: found, said, and walked to; uploads are offered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ball_world import ball_picture, ball_world, looking_in, shorten_searches

from hashpose_ns.photometry.search_config import SearchConfig
from hashpose_ns.viewer import locating
from hashpose_ns.viewer.boundary import Boundary
from hashpose_ns.viewer.locating import Locating
from hashpose_ns.viewer.scene import to_viser

VIEW = looking_in(12, seed=5)[5]


class Handle(SimpleNamespace):
    """A control without a browser."""

    def on_upload(self, call) -> None:
        self.call = call

    on_click = on_upload


class Gui:
    """viser's, of which handles are kept by their labels."""

    def __init__(self) -> None:
        self.handles: dict[str, Handle] = {}

    def __enter__(self): ...

    def __exit__(self, *_): ...

    def add_folder(self, label, **_):
        return self

    def add_markdown(self, text, visible=True):
        return Handle(content=text, visible=visible)

    def add_dropdown(self, label, options, value, hint=None):
        return self.handles.setdefault(label, Handle(options=options, value=value))

    def add_button(self, label, **_):
        return self.handles.setdefault(label, Handle(disabled=False))

    add_upload_button = add_button


@pytest.fixture
def world(tmp_path: Path, monkeypatch, unchecked):
    """The panel's folder on a run that has learned a ball, and what is told."""
    shorten_searches(monkeypatch)
    monkeypatch.setattr(locating, "WALK_SECONDS", 0.0)
    scene = ball_world(tmp_path / "data")[0]
    told: list[str] = []
    server = SimpleNamespace(gui=Gui())
    viewer = SimpleNamespace(viser_server=server)
    panel = Locating(viewer, scene, Boundary(told.append), 1.0)
    panel.config = SearchConfig(hypotheses=16, rays=8_000)
    return SimpleNamespace(panel=panel, scene=scene, told=told, gui=server.gui)


def test_an_uploaded_photograph_is_found_and_walked_to(world, tmp_path):
    picture = ball_picture(world.scene, VIEW, tmp_path / "picture.png")
    panel = world.panel
    uploaded = SimpleNamespace(name="../there/picture.png", content=picture.read_bytes())
    world.gui.handles["Upload another"].call(SimpleNamespace(target=SimpleNamespace(value=uploaded)))
    assert panel.choice.value == "picture.png" and set(panel.held_out) < set(panel.choice.options)
    ways = []

    class Camera(SimpleNamespace):
        def __setattr__(self, name, value):
            ways.append((name, np.array(value)))
            super().__setattr__(name, value)

    camera = Camera(position=np.zeros(3), wxyz=np.array([1.0, 0.0, 0.0, 0.0]), fov=1.0)
    ways.clear()
    world.gui.handles["Where was it taken?"].call(SimpleNamespace(client=SimpleNamespace(camera=camera, atomic=Gui)))
    panel.thread.join(timeout=60)
    assert world.told == [] and not panel.find.disabled
    assert "picture.png: found" in panel.text.content.replace("&#95;", "_") and panel.picture.visible
    positions, wxyz = to_viser(VIEW[None])
    np.testing.assert_allclose(camera.position, positions[0], atol=0.5)  # viser's units are ten times ours
    assert abs(float(np.dot(camera.wxyz, wxyz[0]))) > 0.9995
    steps = np.stack([value for name, value in ways if name == "position"])
    assert len(steps) == locating.WALK_STEPS
    assert np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 0.1 * np.linalg.norm(positions[0])


def test_what_shows_nothing_is_said_and_a_held_out_image_is_measured(world):
    panel = world.panel
    from PIL import Image

    blank = Path(panel.uploads.name) / "blank.png"
    Image.new("RGB", (48, 48)).save(blank)
    panel.files["blank.png"] = blank
    panel.start("blank.png")
    panel.thread.join(timeout=60)
    assert "one colour" in world.told[0] and not panel.text.visible and not panel.find.disabled
    name = next(iter(panel.held_out))
    panel.start(name)
    panel.thread.join(timeout=60)
    assert "From the dataset&#39;s pose" in panel.text.content or "From the dataset's pose" in panel.text.content
    assert torch.is_tensor(panel.run.aligned_held_out_poses())
