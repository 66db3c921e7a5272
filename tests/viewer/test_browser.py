"""The live viewer as a person has it: a page in Chromium, while hashpose-small trains."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Callable, Tuple

import numpy as np
import pytest
import torch
from browser import browser_page, chromium, free_port, training
from commands import FEW_RAYS, SMALL_FIELD
from PIL import Image
from scenes import CHAIR, chair_frames

from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.runs.files import HISTORY_FILE
from hashpose_ns.runs.history import read_pose_history

pytest.importorskip("playwright", reason="playwright drives the browser of these tests")
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)


class Panel:
    """The page, and the folder that training writes."""

    def __init__(self, page, run: Path) -> None:
        self.page, self.run = page, run
        self.crashes = []
        page.on("pageerror", lambda error: self.crashes.append(str(error)))

    def numbers(self) -> Tuple[int, float]:
        """Step and mean rotation error in degrees, as the panel has them."""
        text = self.page.inner_text("body")
        step = re.search(r"Step (\d+) of \d+, 40 cameras", text)
        error = re.search(r"Rotation error ([\d.]+) deg", text)
        assert step and error, text
        return int(step[1]), float(error[1])

    def history(self) -> Tuple[np.ndarray, np.ndarray]:
        """Steps and poses in the run's folder."""
        return read_pose_history(self.run / HISTORY_FILE)

    def until(self, what: Callable[[], bool], timeout: float = 60.0) -> None:
        """Waits for something to be so; the page goes on meanwhile."""
        end = time.monotonic() + timeout
        while not what():
            assert time.monotonic() < end, f"not within {timeout} s; the page has:\n{self.page.inner_text('body')}"
            self.page.wait_for_timeout(200)


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    """A page that watches a training that does not end by itself. Poses move from the first step on, slowly."""
    folder, port = tmp_path_factory.mktemp("browser"), free_port()
    arguments = (
        *("hashpose-small", "--output-dir", folder, "--experiment-name", "chair", "--timestamp", "run"),
        *("--vis", "viewer", "--viewer.websocket-host", "127.0.0.1", "--viewer.websocket-port", port),
        *("--max-num-iterations", 200_000, "--steps-per-eval-batch", 0, "--steps-per-eval-image", 0),
        *("--logging.local-writer.enable", "False", "--steps-per-pose-log", 1000, "--pipeline.held-out-rays", 0),
        *("--pipeline.model.camera-optimizer.start", 0, "--pipeline.model.camera-optimizer.warmup", 0),
        *("--optimizers.camera-opt.optimizer.lr", 1e-3),
        *("--pipeline.datamanager.initial-poses", "perturbed", "--pipeline.datamanager.perturbation.rotation", 0.05),
        *("--pipeline.datamanager.camera-res-scale-factor", 0.32, *SMALL_FIELD, *FEW_RAYS),
        *("blender-data", "--data", CHAIR),
    )
    with training(folder / "log.txt", port, *arguments) as run, browser_page() as page:
        run.wait_for_viewer()
        panel = Panel(page, folder / "chair" / "hashpose-small" / "run")
        page.goto(run.url)
        page.get_by_text("Rotation error").first.wait_for()
        yield panel
        assert run.process.poll() is None, "training went on to the end"
        assert panel.crashes == []
        assert "Traceback" not in run.log.read_text() and "panel failed" not in run.log.read_text()


def test_the_page_follows_training(panel, tmp_path):
    step, error = panel.numbers()
    panel.until(lambda: panel.numbers()[0] > step + 20 and panel.numbers()[1] != error)
    webgl = "document.createElement('canvas').getContext('webgl2') !== null"
    assert panel.page.evaluate(webgl), "this browser draws no 3-D"
    panel.page.locator(".js-plotly-plot").first.wait_for()  # the curve
    canvas = panel.page.locator("canvas").first.bounding_box()
    assert canvas["width"] > 600 and canvas["height"] > 500
    shot = panel.page.screenshot(path=tmp_path / "page.png")
    with Image.open(io.BytesIO(shot)) as image:
        scene = image.convert("RGB").crop((0, 100, 900, 600))
        assert len(scene.getcolors(maxcolors=1 << 20)) > 50, f"nothing is drawn; see {tmp_path / 'page.png'}"


def test_pause_export_and_resume(panel):
    """While poses are paused the field trains on, the poses stand still bit by bit, and can be taken away."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is the independent reader of this test")
    page = panel.page
    assert len(np.unique(panel.history()[1][-3:], axis=0)) == 3, "poses move before"
    page.get_by_label("Pause poses").click()
    page.get_by_text("Poses are paused.").first.wait_for()
    step, _ = panel.numbers()
    panel.until(lambda: panel.numbers()[0] > step + 20)  # numbers shown at first may be of before the pause
    step, error = panel.numbers()
    records = len(panel.history()[0])
    panel.until(lambda: len(panel.history()[0]) >= records + 4)
    panel.until(lambda: panel.numbers()[0] > step + 20)
    assert panel.numbers()[1] == error
    steps, poses = panel.history()
    still = poses[records + 1 :]  # a record may have been under way
    assert len(still) >= 3 and (still == still[0]).all()

    page.get_by_text("Export", exact=True).first.click()  # a folder, closed at first; nerfstudio has a tab of that name
    page.get_by_role("button", name="Export now").click()
    page.get_by_text("Exported to").wait_for()
    (model,) = (panel.run / "exports").glob("step-*/colmap/sparse/0")
    assert int(model.parents[2].name.removeprefix("step-")) >= step
    written = {image.name: image for image in pycolmap.Reconstruction(str(model)).images.values()}
    names = [Path(frame["file_path"]).name + ".png" for frame in chair_frames("train")[1]]
    assert set(written) == set(names)
    # where they are, aligned to where they started, which is within a step of the first record
    refined, start = torch.from_numpy(still[0]).double(), torch.from_numpy(poses[0]).double()
    expected = align_poses(refined, start).apply_to_poses(refined)
    centers = np.stack([written[name].projection_center() for name in names])
    np.testing.assert_allclose(centers, expected[:, :, 3], atol=0.02)
    rotations = np.stack([written[name].cam_from_world().rotation.matrix().T for name in names])
    np.testing.assert_allclose(rotations * [1, -1, -1], expected[:, :, :3], atol=0.01)

    page.get_by_label("Pause poses").click()
    page.get_by_text("Poses move again.").wait_for()
    panel.until(lambda: panel.numbers()[1] != error)
    panel.until(lambda: (panel.history()[1][-1] != still[0]).any(axis=(1, 2)).all())
