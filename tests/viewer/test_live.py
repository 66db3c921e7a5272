"""What browsers are shown of a run in training, over viser's websocket."""

from __future__ import annotations

import torch
from client import Client, eventually
from conftest import NUM_CAMERAS

from hashpose_ns.viewer.boundary import RenderMachines

TOLERANCE = 1e-5


def shows(client: Client, poses: torch.Tensor) -> bool:
    """Whether a client's frustums stand at these poses."""
    nodes = [client.nodes.get(f"/cameras/camera_{index:05d}", {}) for index in range(len(poses))]
    if any("position" not in node or "wxyz" not in node for node in nodes):
        return False
    return float((client.poses(len(poses)) - poses).abs().max()) < TOLERANCE


def test_frustums_stand_at_the_refined_poses_at_several_steps(live_run, client):
    for steps in (1, 3, 10):
        before = live_run.now()
        live_run.advance(steps)
        assert float((live_run.now() - before).abs().max()) > 1e-4  # the poses did move
        eventually(lambda: shows(client, live_run.now()))


def test_while_training_goes_on_what_is_shown_was_there_at_some_step(live_run, client):
    shown = []
    client.on_move = lambda name, key, value: shown.append((name, key, value))
    for _ in range(3):
        live_run.advance(20)
        eventually(lambda: shows(client, live_run.now()))
    client.on_move = None
    frustums = [(int(name[-5:]), value) for name, key, value in shown if key == "position" and "/cameras/" in name]
    centers = torch.stack([poses[:, :, 3] for poses in live_run.refined.values()])  # [steps, N, 3]
    assert len(frustums) > NUM_CAMERAS  # moved at more than the last step
    for index, position in frustums:
        distance = (centers[:, index] - torch.tensor(position) / 10.0).norm(dim=-1).min()
        assert distance < TOLERANCE


def test_two_clients_see_the_same_and_one_that_joins_late_too(live_run, client):
    second = Client(live_run.port)
    live_run.advance(3)
    eventually(lambda: shows(client, live_run.now()) and shows(second, live_run.now()))
    late = Client(live_run.port)
    eventually(lambda: shows(late, live_run.now()))
    for layer in ("refined", "initial", "moved"):
        name = f"/hashpose/{layer}"
        eventually(lambda name=name: all(name in each.nodes for each in (client, second, late)))
        assert client.nodes[name]["glb_data"] == second.nodes[name]["glb_data"] == late.nodes[name]["glb_data"]
    client.set("Hold", True)
    eventually(lambda: second.control("Hold")["value"] and late.control("Hold")["value"])
    client.set("Hold", False)
    eventually(lambda: not second.control("Hold")["value"] and not live_run.poses.held)
    second.close(), late.close()


def test_a_client_that_vanishes_in_the_middle_of_a_message_does_no_harm(live_run, client, capfd):
    lost = Client(live_run.port)
    eventually(lambda: len(live_run.live.viewer.viser_server.get_clients()) == 2)
    lost.drop()
    live_run.advance(5)
    eventually(lambda: len(live_run.live.viewer.viser_server.get_clients()) == 1)
    eventually(lambda: shows(client, live_run.now()))
    assert "failed" not in capfd.readouterr().out


def test_nothing_is_sent_while_nobody_is_there(live_run):
    viewer = live_run.live.viewer
    server = viewer.viser_server
    # viser forgets a client first and tells nerfstudio afterwards, which until then renders for it
    eventually(lambda: not server.get_clients() and not viewer.render_statemachines)
    live_run.go_round()  # an update that was under way is over
    buffer = server._websock_server._broadcast_buffer
    sent, shown = buffer.message_counter, live_run.live.state
    live_run.advance(30)
    live_run.go_round()
    assert buffer.message_counter == sent and live_run.live.state is shown


def test_what_fails_in_drawing_is_reported_once_and_training_goes_on(live_run, client, capfd, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(live_run.live, "_draw", broken)
    for _ in range(3):
        live_run.advance(2)
        eventually(lambda: live_run.live.state.step == live_run.live.step)
        live_run.live.refresh()
        live_run.go_round()
    assert capfd.readouterr().out.count("no such luck") == 1
    monkeypatch.undo()
    live_run.live.refresh()
    eventually(lambda: live_run.is_shown() and shows(client, live_run.now()))


def test_a_browser_that_leaves_while_nerfstudio_looks_at_it_does_not_end_training(live_run, client, monkeypatch):
    viewer = live_run.live.viewer
    eventually(lambda: len(viewer.render_statemachines) == 1)
    (machine,) = viewer.render_statemachines.values()
    monkeypatch.setattr(viewer, "last_step", -(10**9))  # it is time to render for everybody
    # But somebody is not there any more; of our kind, as a late message of the client that is there looks it up too
    monkeypatch.setattr(viewer, "render_statemachines", RenderMachines({-1: machine}))
    live_run.advance(2)
    monkeypatch.undo()
    live_run.advance(1)


def test_a_camera_that_still_moves_when_its_browser_has_left_stops_nobody(live_run, client):
    """nerfstudio holds the lock on all outgoing messages meanwhile, which viser keeps for good when that raises."""
    viewer = live_run.live.viewer
    lost = Client(live_run.port)
    eventually(lambda: len(viewer.render_statemachines) == 2)
    camera = viewer.viser_server.get_clients()[max(viewer.render_statemachines)].camera
    lost.drop()
    eventually(lambda: len(viewer.render_statemachines) == 1)
    for moved in camera._state.camera_cb:  # what viser calls for a message that it had already taken
        moved(camera)
    assert viewer.viser_server._websock_server._atomic_lock.acquire(timeout=5)
    viewer.viser_server._websock_server._atomic_lock.release()
    live_run.advance(2)
    eventually(lambda: shows(client, live_run.now()))


def test_texts_and_curves_follow(live_run, client):
    live_run.advance(20)
    step = live_run.live.step
    eventually(lambda: f"Step **{step}** of 100000, {NUM_CAMERAS} cameras, training PSNR" in client.texts())
    errors = live_run.live.state.errors
    assert f"Rotation error {float(errors.rotation_deg.mean()):.3g} deg" in client.texts()
    assert f"Translation x100 error {100 * float(errors.translation.mean()):.3g}" in client.texts()
    eventually(lambda: any(props["kind"] == "GuiAddPlotlyMessage" for props in client.gui.values() if "kind" in props))
    (plot,) = [props for props in client.gui.values() if "plotly_json_str" in props]
    for curve, name in (("PSNR", "training"), ("Levels", "level 0"), ("Translation", "median")):
        client.set("Curve", curve)
        eventually(lambda name=name: f'"name": "{name}"' in plot["plotly_json_str"])
        assert len(plot["plotly_json_str"]) < 60_000


def test_selecting_a_camera_and_looking_through_it(live_run, client):
    client.set("Camera", "r_3.png")
    eventually(lambda: "camera 4 of 6" in client.texts())
    assert f"Error: rotation {float(live_run.live.state.errors.rotation_deg[3]):.3g} deg" in client.texts()
    assert "Image loss" in client.texts()
    moves = [kind for kind in client.received if kind == "SetCameraFovMessage"]
    client.press("Look through it")
    eventually(lambda: [kind for kind in client.received if kind == "SetCameraFovMessage"] != moves)
    click = {"name": "/cameras/camera_00001", "instance_index": None, "screen_pos": [0.5, 0.5]}
    rays = {"ray_origin": [0.0, 0.0, 0.0], "ray_direction": [0.0, 0.0, 1.0]}
    client.send({"type": "SceneNodeClickMessage", **click, **rays})
    eventually(lambda: "camera 2 of 6" in client.texts() and client.control("Camera")["value"] == "r_1.png")


def test_photograph_beside_render(live_run, client):
    before = live_run.now()
    state = torch.random.get_rng_state()
    client.set("Compare with photograph", True)
    eventually(lambda: "![photograph and render](data:image/png;base64," in client.texts())
    client.set("Compare with photograph", False)
    eventually(lambda: live_run.trainer.pipeline.model.training)  # nerfstudio renders now and then as well
    assert torch.equal(live_run.now(), before) and torch.equal(torch.random.get_rng_state(), state)


def test_layers_are_drawn_when_asked_for(live_run, client):
    client.set("Reference cameras", True), client.set("Paths", True)
    eventually(lambda: {"/hashpose/reference", "/hashpose/paths"} <= set(client.nodes))
    aligned = client.nodes["/hashpose/reference"]["glb_data"]
    client.set("Align", False)
    eventually(lambda: client.nodes["/hashpose/reference"]["glb_data"] != aligned)
    refined = client.nodes["/hashpose/refined"]["glb_data"]
    client.set("Colour by", "Nothing")
    eventually(lambda: client.nodes["/hashpose/refined"]["glb_data"] != refined)
    for label, value in (("Align", True), ("Colour by", "Rotation"), ("Reference cameras", False), ("Paths", False)):
        client.set(label, value)
    eventually(lambda: client.nodes["/hashpose/paths"]["visible"] is False)
    eventually(lambda: client.nodes["/hashpose/refined"]["glb_data"] == refined)
