"""Pictures of the live viewer for the documentation, taken from the real page while the demo trains.

    python docs/make_viewer_screenshots.py                                     # of the demo
    python docs/make_viewer_screenshots.py --data path/to/chair_400 --only matches

Needs a Chromium and playwright, as the tests in `tests/viewer/test_browser.py` do, and takes some minutes. Training is
paused by nerfstudio's own button for each picture, so that the field can be rendered as sharp as the page.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Literal, Optional, Tuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "viewer")]  # the tests drive the same browser

import numpy as np  # noqa: E402
from browser import browser_page, chromium, free_port, training  # noqa: E402
from PIL import Image  # noqa: E402

from hashpose_ns.demo import Demo  # noqa: E402

SHARP = "window.pageScale = 1; Object.defineProperty(window, 'devicePixelRatio', { get: () => window.pageScale });"
"""Without a graphics card the page draws few pictures a second and answers by drawing ever coarser ones, down to a
fifth of the resolution that it believes the screen to have."""


def neighbours(data: Path, folder: Path, number: int) -> None:
    """Writes a capture of the views of a NeRF-Synthetic scene that lie nearest to its first one."""
    meta = json.loads((data / "transforms_train.json").read_text())
    centres = np.array([frame["transform_matrix"] for frame in meta["frames"]])[:, :3, 3]
    nearest = np.argsort(np.linalg.norm(centres - centres[0], axis=1), kind="stable")
    folder.mkdir()
    for split, chosen in (("train", nearest[:number]), ("test", nearest[:1])):
        frames = [dict(meta["frames"][i]) for i in chosen]
        for frame in frames:
            frame["file_path"] = str((data / frame["file_path"]).resolve())
        (folder / f"transforms_{split}.json").write_text(json.dumps({**meta, "frames": frames}))


@dataclass
class Screenshots:
    """Takes the pictures."""

    output_dir: Path = ROOT / "docs" / "images"
    """Where they go."""
    steps: int = 2500
    """Training steps of the demo."""
    middle: int = 400
    """Step of the second picture."""
    render_resolution: int = 512
    """Longest side of the field's picture behind the cameras."""
    size: Tuple[int, int] = (1280, 851)
    """Width and height of the page; nerfstudio's 51 pixels of header are cut off."""
    data: Optional[Path] = None
    """NeRF-Synthetic's chair, for the picture of matches; the demo's pictures are too small for them."""
    only: Literal["all", "demo", "matches"] = "all"
    """Which pictures to take. Those of matches need --data."""

    def main(self) -> None:
        """Takes the pictures that are asked for."""
        if chromium() is None:
            sys.exit("No Chromium is installed (Debian: apt-get install chromium).")
        self.sharpness = 1.0
        if self.only != "matches":
            self.demo()
        if self.data is not None:
            self.matches(self.data)

    def demo(self) -> None:
        """Trains the demo and takes a picture at its start, in its middle and at its end."""
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            command = Demo(steps=self.steps, viewer_port=port).train_command(Path(folder))
            command[command.index("--viewer.quit-on-train-completion") + 1] = "False"
            with training(Path(folder) / "log.txt", port, *command[1:]) as run, browser_page(self.size) as page:
                run.wait_for_viewer()
                page.add_init_script(SHARP)
                page.on("console", lambda message: self._stay_sharp(page, message.text))
                page.goto(run.url)
                page.get_by_text("Rotation error").first.wait_for()
                self._take(page, "start")
                self._wait(page, lambda: self._step(page) >= self.middle)
                self._take(page, "middle")
                self._wait(page, lambda: self._step(page) >= self.steps - 1)
                self._wait(page, lambda: "Guard:" in page.inner_text("body"))
                self._take(page, "end")

    def matches(self, data: Path) -> None:
        """Trains 36 neighbouring views of the chair from poses by matches; shows the matches of one of them."""
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            neighbours(data, Path(folder) / "chair", 36)
            command = Demo(viewer_port=port, steps=2000).train_command(Path(folder))
            command[command.index("--viewer.quit-on-train-completion") + 1] = "False"
            command[-1] = str(Path(folder) / "chair")
            parser = command.index("blender-data")
            command[parser:parser] = ["--picture-size", "small"]
            with training(Path(folder) / "log.txt", port, *command[1:]) as run, browser_page(self.size) as page:
                run.wait_for_viewer(600.0)
                page.add_init_script(SHARP)
                page.on("console", lambda message: self._stay_sharp(page, message.text))
                page.goto(run.url)
                page.get_by_text("Rotation error").first.wait_for()
                self._wait(page, lambda: self._step(page) >= self.middle)
                for label in ("Matched points", "Matches on photograph"):
                    page.get_by_label(label).click()
                self._take(page, "matches", "Hold")

    def _stay_sharp(self, page, message: str) -> None:
        """When the page has almost come down to its coarsest, lets that be the full resolution."""
        found = re.search(r"Setting DPR to ([\d.]+)", message)
        if found:
            self.sharpness = float(found[1])
            if self.sharpness < 0.5:
                page.evaluate("window.pageScale = 5")

    @staticmethod
    def _step(page) -> int:
        return int(re.search(r"Step (\d+) of", page.inner_text("body"))[1])

    @staticmethod
    def _wait(page, what: Callable[[], bool], seconds: float = 1200.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise TimeoutError(page.inner_text("body"))
            page.wait_for_timeout(200)

    def _take(self, page, name: str, last: Optional[str] = None) -> None:
        pause = page.get_by_role("button", name="Pause Training")
        resumes = pause.is_visible()  # training may be over
        if resumes:
            pause.click()
        if name == "start":
            page.mouse.move(0.375 * self.size[0], 0.5 * self.size[1])
            page.mouse.wheel(0, -300)  # a little nearer than the view that is given
        page.locator(".js-plotly-plot").first.wait_for()
        field = "xpath=//label[text()='Max res']/ancestor::div[contains(@class, 'Flex-root')][1]//input[@type='text']"
        before = page.locator(field).input_value()
        page.locator(field).fill(str(self.render_resolution))
        self._wait(page, lambda: f"Resolution: {self.render_resolution}" in page.inner_text("body"))
        self._wait(page, lambda: 0.9 < self.sharpness < 1.1)
        page.evaluate("document.querySelectorAll('*').forEach((element) => { element.scrollTop = 0; })")
        if last is not None:
            page.get_by_text(last, exact=True).evaluate("element => element.scrollIntoView({ block: 'end' })")
        page.wait_for_timeout(3000)
        shot = page.screenshot(clip={"x": 0, "y": 51, "width": self.size[0], "height": self.size[1] - 51})
        path = self.output_dir / f"viewer_{name}.png"
        with Image.open(io.BytesIO(shot)) as image:
            image.convert("RGB").save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        page.locator(field).fill(before)
        if resumes:
            page.get_by_role("button", name="Resume Training").click()


if __name__ == "__main__":
    import tyro

    tyro.cli(Screenshots).main()
