"""Texts, curves and losses of the viewer's panel, and that nothing happens without nerfstudio's viewer."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from hashpose_ns.errors import HashPoseError
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig
from hashpose_ns.photometry.image_losses import MEMORY, ImageLosses
from hashpose_ns.viewer import curves
from hashpose_ns.viewer.boundary import MAX_REPORTS, Boundary
from hashpose_ns.viewer.panel import PosePanel
from hashpose_ns.viewer.state import STATISTICS, PoseTracks
from hashpose_ns.viewer.widgets import plain


def test_without_nerfstudios_viewer_there_is_nothing(unchecked):
    panel = PosePanel()
    assert panel.training_callbacks(SimpleNamespace(optimizers=SimpleNamespace(optimizers={}))) == []
    assert panel.live is None and panel.actions is None


def test_a_panel_that_cannot_be_set_up_leaves_the_viewer_alone(capfd, unchecked):
    panel = PosePanel()
    config = SimpleNamespace(websocket_host="127.0.0.1")
    panel._setup(SimpleNamespace(viser_server=None, pipeline=None, trainer=None, config=config))
    assert "panel failed" in capfd.readouterr().out
    assert panel.training_callbacks(SimpleNamespace(optimizers=SimpleNamespace(optimizers={}))) == []


def test_image_losses_are_the_running_means_of_each_image():
    generator = torch.Generator().manual_seed(0)
    losses = ImageLosses(4, torch.device("cpu"))
    sums, counts = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for _ in range(30):
        images = torch.randint(0, 3, (16,), generator=generator)  # none of the last image
        errors = torch.randn(16, 3, generator=generator)
        losses.add(images, errors)
        sums, counts = MEMORY * sums, MEMORY * counts
        for image, error in zip(images.tolist(), errors.double()):
            for column in (image, 4):
                sums[column] += error.square().mean()
                counts[column] += 1
    means = ImageLosses.means(losses.sums)
    torch.testing.assert_close(means[[0, 1, 2, 4]].double(), (sums / counts)[[0, 1, 2, 4]], rtol=1e-5, atol=0)
    assert math.isnan(float(means[3]))
    torch.testing.assert_close(losses.overall(), means[-1])
    assert ImageLosses.means(None) is None


@pytest.mark.parametrize("count", [0, 1, 2, 149, 150, 151, 100_000])
def test_thinned_keeps_the_ends(count):
    indices = curves.thinned(count)
    assert len(indices) == min(count, curves.MAX_POINTS) and indices == sorted(set(indices))
    if count:
        assert indices[0] == 0 and indices[-1] == count - 1


def test_error_curves_are_small_and_end_now(tmp_path, unchecked):
    tracks = PoseTracks(tmp_path, from_file=True)
    tracks.steps = list(range(5000))
    tracks.errors = [dict.fromkeys(STATISTICS, 1.0 / (1 + step)) for step in range(5000)]
    errors = SimpleNamespace(summary=lambda: dict.fromkeys(STATISTICS, 0.5))
    state = SimpleNamespace(step=6000, errors=errors, has_reference=True)
    for kind, scale in ((curves.ROTATION, 1.0), (curves.TRANSLATION, 100.0)):
        text = curves.error_figure(kind, tracks, state, log=True).to_json()
        content = json.loads(text)
        assert len(text) < 20_000 and content["layout"]["yaxis"]["type"] == "log"
        assert [trace["name"] for trace in content["data"]] == ["mean", "median", "worst"]
        for trace in content["data"]:
            assert len(trace["x"]) == len(trace["y"]) <= curves.MAX_POINTS
            assert trace["x"][0] == 0 and trace["x"][-1] == 6000 and trace["y"][-1] == 0.5 * scale
            assert trace["y"][0] == scale


def test_psnr_goes_on_from_the_runs_log(tmp_path):
    records = [{"step": step, "train_loss": 0.01, "held_out_psnr": 15.0 + step} for step in (0, 5, 10, 15)]
    (tmp_path / "pose_errors.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    content = curves.psnr_figure([(8, torch.tensor(0.1)), (12, torch.tensor(0.001))], tmp_path, log=False).content
    training, held_out = content["data"]
    assert training["x"] == [0, 5, 8, 12] and training["y"] == [20.0, 20.0, 10.0, 30.0]
    assert held_out["x"] == [0, 5, 10, 15] and held_out["y"][-1] == 30.0
    assert curves.psnr_figure([], tmp_path / "nowhere", log=False).content["data"][0]["x"] == []


def test_level_curves_are_the_curriculums_weights():
    curriculum = Curriculum(CurriculumConfig(), num_levels=4, total_steps=1000)
    *levels, now = curves.level_figure(curriculum, 1000, 300, log=False).content["data"]
    assert len(levels) == 4 and now["x"] == [300, 300]
    for level, trace in enumerate(levels):
        expected = [float(f"{curriculum.weights(step)[level]:.4g}") for step in trace["x"]]
        assert trace["y"] == expected and trace["x"][0] == 0 and trace["x"][-1] == 1000
    assert len(curves.level_figure(None, 1000, 300, log=True).content["data"]) == 1


def test_curves_hold_only_what_json_and_a_logarithm_can():
    values = [float("nan"), float("inf"), 0.0, -1.0, 2.0]
    trace = ("name", [0, 1, 2, 3, 4], values, "#000000")
    assert json.loads(curves.Figure([trace], "", log=True).to_json())["data"][0]["y"] == [None] * 4 + [2.0]
    assert json.loads(curves.Figure([trace], "", log=False).to_json())["data"][0]["y"] == [None, None, 0.0, -1.0, 2.0]


@pytest.mark.parametrize(
    "values, ticks",
    [
        ([12.0, 32.0], [10.0, 20.0]),
        ([0.3, 30.0], [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]),
        ([1e-4, 10.0], [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]),
    ],
)
def test_logarithmic_axes_have_round_labels(values, ticks):
    axis = curves.Figure([("name", [0, 1], values, "#000000")], "", log=True).content["layout"]["yaxis"]
    assert axis["ticktext"] == [f"{tick:g}" for tick in ticks]


def test_names_are_no_markup():
    assert plain("a b.png") == "a b.png"
    assert not set("{}<>_*[]()`\\|~#!&$\"'") & set(plain("{}<>_*[]()`\\|~!$\"'").replace("&#", ""))


def test_boundary_tells_user_errors_and_reports_others_once(capfd):
    told = []
    boundary = Boundary(told.append)
    for _ in range(3):
        with boundary:
            raise HashPoseError("That cannot be done.")
        with boundary:
            raise KeyError("broken")
    assert told == ["That cannot be done.", "That failed: KeyError: 'broken'."] + ["That cannot be done."] * 2
    output = capfd.readouterr().out
    assert output.count("broken") == 1 and "test_panel_parts.py" in output.replace("\n", "")
    for number in range(3 * MAX_REPORTS):
        with boundary:
            raise RuntimeError(f"number {number}")
    assert capfd.readouterr().out.count("number") == MAX_REPORTS - 1
    with pytest.raises(KeyboardInterrupt), boundary:
        raise KeyboardInterrupt
