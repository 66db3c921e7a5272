"""Exports from the viewer while training, a resumed run, and ns-viewer on a run's checkpoint."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from client import Client, eventually
from conftest import NUM_CAMERAS, LiveRun, free_port
from test_live import shows
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from hashpose_ns.cameras.alignment import Similarity, align_poses, pose_errors
from hashpose_ns.guard.compare import run_guard
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.report import read_verdict
from hashpose_ns.matches.report import MatchesReport


def read_transforms(path) -> torch.Tensor:
    """Poses of a transforms.json in the frame of its matrices, in the order of the frames."""
    content = json.loads(path.read_text())
    return torch.tensor([frame["transform_matrix"] for frame in content["frames"]], dtype=torch.float64)[:, :3]


def test_exports_are_the_poses_of_now_and_replace_those_of_the_same_step(live_run, client):
    folder = live_run.folder / "exports" / f"step-{live_run.live.step:06d}"
    client.set("Format", "transforms.json")
    client.press("Export now")
    written = folder / "nerfstudio" / "transforms.json"
    eventually(lambda: written.is_file() and "Exported to" in client.texts())
    refined, initial = live_run.now().double(), live_run.poses.initial_camera_to_worlds.double()
    expected = align_poses(refined, initial).apply_to_poses(refined)
    errors = pose_errors(read_transforms(written), expected, Similarity.identity())
    assert float(errors.rotation_deg.max()) < 1e-3 and float(errors.center.max()) < 1e-5
    client.set("Format", "COLMAP")
    model, before = folder / "colmap" / "sparse" / "0" / "images.bin", None
    for _ in range(2):
        client.press("Export now")
        eventually(lambda: model.is_file() and model.stat().st_mtime_ns != before)  # each time a new file
        before = model.stat().st_mtime_ns
    eventually(lambda: len(list(folder.iterdir())) == 2)  # the replaced one goes last
    assert sorted(path.name for path in folder.iterdir()) == ["colmap", "nerfstudio"]  # nothing half-written is left


def test_an_export_that_cannot_be_written_is_said_in_the_panel(live_run, client):
    live_run.advance(1)
    blocked = live_run.folder / "exports" / f"step-{live_run.live.step:06d}" / "colmap"
    blocked.mkdir(parents=True)
    (blocked / "mine.txt").write_text("kept")
    client.set("Format", "COLMAP")
    client.press("Export now")
    eventually(lambda: "is not overwritten because mine.txt" in client.texts())
    assert (blocked / "mine.txt").read_text() == "kept"
    live_run.advance(1)


@pytest.fixture
def ns_viewer_port(live_run):
    """ns-viewer on the run's checkpoint of now, which the guard has judged, and of which matches were asked."""
    from nerfstudio.scripts.viewer.run_viewer import RunViewer, ViewerConfigWithoutNumRays

    live_run.trainer.save_checkpoint(live_run.live.step)
    run_guard(live_run.trainer.pipeline.scene, GuardConfig(steps=4, rays=64)).write(live_run.folder)
    MatchesReport("refused", "too few matches", {}, [], 1.0).write(live_run.folder)
    port = free_port()
    config = ViewerConfigWithoutNumRays(websocket_port=port)
    command = RunViewer(load_config=live_run.folder / "config.yml", viewer=config)
    threading.Thread(target=command.main, daemon=True).start()
    return port


def connected(port: int) -> Client:
    while True:
        try:
            return Client(port)
        except ConnectionRefusedError:
            threading.Event().wait(0.2)


def test_ns_viewer_shows_the_checkpoint_and_leaves_training_alone(live_run, ns_viewer_port):
    client = connected(ns_viewer_port)
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{ns_viewer_port}", origin="http://evil.example")
    eventually(lambda: shows(client, live_run.now()))
    eventually(lambda: f"Step **{live_run.live.step}** of 100000, {NUM_CAMERAS} cameras" in client.texts())
    report = read_verdict(live_run.folder)
    eventually(lambda: f"Guard: **{report.verdict}**; held" in client.texts())
    eventually(lambda: "Matches: training starts at the poses as they are: too few matches." in client.texts())
    turn = sum(std**2 for std in report.cameras[0].rotation_std_deg) ** 0.5
    eventually(lambda: f"Uncertainty, given the field: rotation {turn:.2g} deg" in client.texts())
    assert {"/hashpose/refined", "/hashpose/initial", "/hashpose/moved"} <= set(client.nodes)
    for label in ("Pause poses", "Hold", "Reset to start", "Degrees", "Turn"):
        assert client.control(label)["visible"] is False
    client.set("Paths", True), client.set("Reference cameras", True)
    eventually(lambda: {"/hashpose/paths", "/hashpose/reference"} <= set(client.nodes))
    late = connected(ns_viewer_port)
    eventually(lambda: shows(late, live_run.now()))
    client.set("Format", "COLMAP")
    client.press("Export now")
    folder = live_run.folder / "exports" / f"step-{live_run.live.step:06d}"
    eventually(lambda: (folder / "colmap" / "sparse" / "0" / "images.bin").is_file())
    client.close(), late.close()


def test_a_resumed_run_shows_where_it_goes_on_and_the_way_so_far(live_run, tmp_path):
    live_run.trainer.save_checkpoint(live_run.live.step)
    recorded = list(live_run.trainer.pose_history.steps)
    resumed = LiveRun(live_run.scene, tmp_path, "--load-dir", live_run.folder / "nerfstudio_models")
    client = Client(resumed.port)
    eventually(lambda: shows(client, live_run.now()))
    assert torch.equal(resumed.now(), live_run.now())
    resumed.advance(3)
    eventually(lambda: shows(client, resumed.now()) and resumed.live.state.step == live_run.live.step + 3)
    eventually(lambda: resumed.live._tracks.steps[: len(recorded)] == recorded)
    client.set("Hold", True)
    eventually(lambda: resumed.poses.held == {0})
    held = resumed.now()[0]
    resumed.advance(3)
    assert torch.equal(resumed.now()[0], held) and not torch.equal(resumed.now(), live_run.now())
    resumed.end()
    client.close()
