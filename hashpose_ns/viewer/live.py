"""Keeps the viewer's picture of the poses up to date, at a small share of the time."""

from __future__ import annotations

import atexit
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Set, Tuple

import numpy as np
import torch
from torch import Tensor

from hashpose_ns.guard.report import read_verdict
from hashpose_ns.matches.report import read_matches
from hashpose_ns.matches.strategy import cached_matches
from hashpose_ns.photometry.image_losses import ImageLosses
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.runs.config import read_config
from hashpose_ns.runs.files import CONFIG
from hashpose_ns.viewer.boundary import Boundary
from hashpose_ns.viewer.colors import ColorScale
from hashpose_ns.viewer.matching import ShownMatches, data_url
from hashpose_ns.viewer.scene import POINTS, STARTED, PoseScene, to_viser, view_of_all
from hashpose_ns.viewer.state import PoseReading, PoseState, PoseTracks
from hashpose_ns.viewer.warping import rays_move, warp_field, warp_picture, warp_text
from hashpose_ns.viewer.widgets import (
    BY_LOSS,
    BY_NOTHING,
    BY_POSITION,
    BY_ROTATION,
    Widgets,
    camera_matches_text,
    camera_text,
    legend_text,
    matches_text,
    status_text,
    verdict_text,
)

if TYPE_CHECKING:
    from viser import ClientHandle

    from hashpose_ns.guard.report import GuardReport
    from hashpose_ns.matches.features import MatchedImages
    from hashpose_ns.viewer.actions import PoseActions
    from nerfstudio.viewer.viewer import Viewer

INTERVAL = 0.5
"""Seconds between updates at least."""

SHARE = 0.0075
"""Fraction of the time that updates may take on their own thread. Sending them takes about as much again."""

BYTES_PER_SECOND = 200_000
"""Of drawn objects, on average."""

MIN_GAP = 0.1
"""Minimum number of seconds between updates, even if they are requested."""

TEXT_INTERVAL, CURVE_INTERVAL, PICTURE_INTERVAL, MATCH_INTERVAL = 1.0, 2.0, 4.0, 4.0
"""Seconds between texts, curves, pictures and looks at matches at least."""

SETTLING_SECONDS = 5.0
"""Plotly's script, 5 MB, is sent when the first browser has been there so long and has what it needs itself."""


class LivePoses:
    """Shows the training cameras in nerfstudio's viewer.

    A thread of its own does all the drawing, and only while a browser is connected. It reads poses under the trainer's
    lock, between two steps, so that it works alike while training runs, is paused or is over, and in ns-viewer.

    Args:
        viewer: nerfstudio's viewer.
        widgets: the panel's controls.
        boundary: where exceptions end.
    """

    def __init__(self, viewer: "Viewer", widgets: Widgets, boundary: Boundary) -> None:
        self.viewer, self.widgets, self.boundary = viewer, widgets, boundary
        self.names: List[str] = list(widgets.camera.options)
        self.state: Optional[PoseState] = None
        """What is shown."""
        self._index_of = {name: index for index, name in enumerate(self.names)}
        self._thread = threading.Thread(target=self._run, name="hashpose viewer", daemon=True)
        self._wake = threading.Event()
        self._stopped = False
        self._stale = True
        self._due = dict.fromkeys(("text", "curve", "picture", "matches", "warp"), 0.0)
        # training
        self._actions: Optional["PoseActions"] = None
        self._losses: Optional[ImageLosses] = None
        self._psnr: List[Tuple[int, Tensor]] = []
        self._last_step: Optional[int] = None
        # what was asked for
        self._newcomers: List["ClientHandle"] = []
        self._exports: List[str] = []
        self._first_client: Optional[float] = None
        # what is drawn
        self._scene: Optional[PoseScene] = None
        self._tracks = PoseTracks(self.run_folder, from_file=viewer.trainer is None)
        self._scales: Dict[str, ColorScale] = {}
        self._clickable: Set[int] = set()
        self._figure = None
        self._compared: Optional[Tuple[int, int]] = None
        self._warped: Optional[Tuple[int, int]] = None
        self._report: Optional["GuardReport"] = None
        self._matches: Optional[ShownMatches] = None
        self._matches_said: Optional[str] = None
        """The outcome of matching, in words; None before matching."""
        # nerfstudio's viewer applies corrections to the poses it finds here, where a finished run has refined ones
        self.run.train.cameras.camera_to_worlds = self.run.poses.initial_camera_to_worlds.cpu()

    @property
    def run(self) -> PosedScene:
        """The poses, the field and the images, as they are now."""
        return self.viewer.pipeline.scene

    @property
    def run_folder(self) -> Path:
        """Where config.yml is."""
        return self.viewer.log_filename.parent

    @property
    def step(self) -> int:
        """The last step that is done; 0 before there is one."""
        return self._last_step if self._last_step is not None else self.run.step

    @property
    def selected(self) -> int:
        """Index of the camera that the panel is about."""
        return self._index_of.get(self.widgets.camera.value, 0)

    # -- from other threads --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread, which sleeps until a client connects."""
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Ends this thread and those that render for this viewer: one that is inside of torch when the interpreter ends
        would have the process abort."""
        self._stopped = True
        self._wake.set()
        threads = [thread for thread in threading.enumerate() if getattr(thread, "viewer", None) is self.viewer]
        for thread in threads:  # nerfstudio forgets those of browsers that left, which may render still
            thread.running = False
        for thread in (self._thread, *threads):
            thread.join(timeout=10.0)

    def refresh(self) -> None:
        """Requests a full update."""
        self._stale = True
        self._due = dict.fromkeys(self._due, 0.0)
        self._wake.set()

    def welcome(self, client: "ClientHandle") -> None:
        """Takes note of a new browser."""
        if self._first_client is None:
            self._first_client = time.monotonic()
        self._newcomers.append(client)
        self.refresh()

    def ask_for_export(self, format: str) -> None:
        """Has the poses exported."""
        if format not in self._exports:
            self._exports.append(format)
        self._wake.set()

    def look_through(self, client: "ClientHandle") -> None:
        """Takes a browser's view to the selected camera."""
        if self.state is not None:
            index = self.selected
            camera = self.run.train.cameras[index]
            positions, wxyz = to_viser(self.state.refined[index : index + 1])
            client.camera.position, client.camera.wxyz = positions[0], wxyz[0]
            client.camera.fov = float(2 * torch.atan(0.5 * camera.height[0] / camera.fy[0]))

    def look_at_all(self, client: "ClientHandle") -> None:
        """Takes a browser's view to where all cameras can be seen."""
        if self.state is not None:
            client.camera.position, client.camera.look_at = view_of_all(self.state.refined)

    # -- on the training thread ----------------------------------------------------------------------------------------

    def follow_training(self, actions: "PoseActions") -> None:
        """Takes part in training."""
        self._actions = actions
        self._losses = ImageLosses(len(self.names), self.run.device)
        self.run.renderer.observe_errors(self._losses.add)

    def before_step(self) -> None:
        """Runs a user's request."""
        with self.boundary:
            self._actions.run_submitted()

    def after_step(self, step: int) -> None:
        """Keeps the PSNR of steps whose poses are kept."""
        self._last_step = step
        with self.boundary:
            history = self.viewer.trainer.pose_history
            if history is not None and history.steps and history.steps[-1] == step:
                self._psnr.append((step, self._losses.overall()))

    def show_verdict(self, report: "GuardReport") -> None:
        """What the guard found at the end of training."""
        self._report = report
        self.refresh()

    def show_matches(self, images: "MatchedImages", said: str) -> None:
        """Shows matches.

        Args:
            images: keypoints and matches.
            said: what came of them.
        """
        self._matches, self._matches_said = ShownMatches(images), said
        self.refresh()

    def after_training(self) -> None:
        """Ends the threads where the process is about to end."""
        if self.viewer.trainer.config.viewer.quit_on_train_completion:
            self.stop()
        else:
            self.refresh()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        delay: Optional[float] = None
        last_cost = 0.0
        while True:
            self._wake.wait(delay)
            self._wake.clear()
            if self._stopped:
                return
            if not self.viewer.viser_server.get_clients() and not self._exports:
                delay = None  # until a client connects
                continue
            begin, sent = time.thread_time(), 0
            with self.boundary:
                self._export()
                sent = self._update()
                sent += self._compare()
                sent += self._show_rays()
            cost = time.thread_time() - begin
            # what is done once, such as importing and drawing for the first time, does not count
            delay = max(INTERVAL, min(cost, last_cost) / SHARE, sent / BYTES_PER_SECOND)
            last_cost = cost
            time.sleep(MIN_GAP)

    def _update(self) -> int:
        """Shows the poses of now, where they are not shown yet; the number of bytes that were drawn."""
        viewer, trainer = self.viewer, self.viewer.trainer
        if not getattr(viewer, "camera_handles", None):  # nerfstudio has no scene yet
            return 0
        with viewer.train_lock:
            if trainer is not None and trainer.training_state == "paused":
                self._actions.run_submitted()
            if not self._stale and self.state is not None and self.state.step == self.step:
                return 0
            self._stale = False
            reading = PoseReading.of(self.run.poses, self.step)
            losses = self._losses.sums.cpu().clone() if self._losses is not None else None
        self.state = state = PoseState.of(reading)
        losses = ImageLosses.means(losses)
        if self._scene is None:
            self._scene = PoseScene(viewer, self.run.train.cameras)
        while self._newcomers:  # nerfstudio's first view is from within the scene
            self.look_at_all(self._newcomers.pop())
        self._watch_clicks()
        left_out = self._scene.move_frustums(state)
        more = self._tracks.update(None if trainer is None else trainer.pose_history, state.reference)
        pictured = self._match(state)
        self._draw(state, losses)
        self._write(state, losses, left_out)
        self._plot(state)
        self._stale |= more or left_out > 0
        if trainer is not None and trainer.training_state == "completed":
            for control in self.widgets.training_controls:
                control.disabled = True
        sent, self._scene.bytes_sent = self._scene.bytes_sent + pictured, 0
        return sent

    def _watch_clicks(self) -> None:
        """nerfstudio flies to a frustum that is clicked; here it is selected as well."""

        def select(index: int) -> None:
            self.widgets.camera.value = self.names[index]

        for index, handle in list(self.viewer.camera_handles.items()):
            if index not in self._clickable:
                self._clickable.add(index)
                handle.on_click(lambda _, index=index: select(index))

    def _draw(self, state: PoseState, losses: Optional[Tensor]) -> None:
        widgets, kind = self.widgets, self.widgets.color_by.value
        unknown = torch.full((len(self.names),), float("nan"))
        values = {
            BY_ROTATION: state.errors.rotation_deg,
            BY_POSITION: state.errors.center,
            BY_LOSS: unknown if losses is None else losses[:-1],
            BY_NOTHING: None,
        }[kind]
        scale = self._scales.setdefault(kind, ColorScale())
        self._scene.draw(
            state,
            self._tracks,
            {layer: box.value for layer, box in widgets.layers.items()},
            widgets.aligned.value,
            None if values is None else scale.colors(np.asarray(values)),
            self.selected,
            None if self._matches is None else self._matches.points,
        )
        _set_text(widgets.legend, legend_text(kind, scale, state.has_reference))

    def _is_due(self, what: str, interval: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            self._stale = True  # and so looked at again, also when nothing moves any more
            return False
        self._due[what] = now + interval
        return True

    def _write(self, state: PoseState, losses: Optional[Tensor], left_out: int) -> None:
        if not self._is_due("text", TEXT_INTERVAL):
            return
        widgets, index, run = self.widgets, self.selected, self.run
        note = self._scene.note(len(self.names))
        psnr = float("nan") if losses is None else float(-10.0 * torch.log10(losses[-1]))
        if self._report is None and self.viewer.trainer is None:
            self._report = read_verdict(self.run_folder)
        shown = self._matches
        matches = matches_text(self._matches_said or "", None if shown is None else shown.supports)
        of_camera = "" if shown is None else camera_matches_text(shown.camera, shown.camera_supports)
        left = f"{left_out} frustums still to move." if left_out else ""
        texts = (matches, verdict_text(self._report), note, left)
        _set_text(widgets.status, status_text(state, run.total_steps, psnr, texts))
        loss = float("nan") if losses is None else float(losses[index])
        frozen = not bool(run.poses.trainable[index])
        text = camera_text(state, index, self.names[index], loss, frozen, self._report)
        _set_text(widgets.camera_text, "\n\n".join(filter(None, (text, of_camera))))
        if self._actions is not None and not self._actions.waiting:  # a click is still pending
            for box, value in ((widgets.hold, index in state.held), (widgets.pause, state.paused)):
                if box.value != value:
                    box.value = value

    def _plot(self, state: PoseState) -> None:
        if self._figure is None and time.monotonic() < self._first_client + SETTLING_SECONDS:
            self._stale = True
            return
        if not self._is_due("curve", CURVE_INTERVAL):
            return
        from hashpose_ns.viewer import curves

        kind, log, run = self.widgets.curve.value, self.widgets.log.value, self.run
        if kind == curves.PSNR:
            figure = curves.psnr_figure(self._psnr, self.run_folder, log)
        elif kind == curves.LEVELS:
            figure = curves.level_figure(run.curriculum, run.total_steps, state.step, log)
        elif kind == curves.MATCHES:
            shown = self._matches
            if shown is not None:
                self._stale |= shown.follow(self._tracks.steps, self._tracks.poses)
            medians, supports = ({}, None) if shown is None else (shown.medians, shown.supports)
            figure = curves.match_figure(medians, supports, state.step, log)
        else:
            figure = curves.error_figure(kind, self._tracks, state, log)
        if self._figure is None:
            with self.widgets.curves:
                self._figure = self.viewer.viser_server.gui.add_plotly(figure, aspect=0.7)
        else:
            self._figure.figure = figure

    def _match(self, state: PoseState) -> int:
        """Works out what matches say of the poses that are shown; the number of bytes that were sent."""
        if self._matches_said is None:
            self._look_for_matches()
        matches, widgets = self._matches, self.widgets
        _set_visible(widgets.layers[STARTED], state.rebased)
        if matches is None:
            return 0
        _set_visible(widgets.layers[POINTS], True)
        _set_visible(widgets.residuals, True)
        selected, points, picture = self.selected, widgets.layers[POINTS].value, widgets.residuals.value
        if not matches.is_new(state, selected, points, picture) or not self._is_due("matches", MATCH_INTERVAL):
            return 0
        matches.look(state, selected, points, self.run if picture else None)
        _set_visible(widgets.residual_picture, picture)
        _set_text(widgets.residual_picture, f"![matches on the photograph]({matches.picture})" if picture else "")
        return len(matches.picture)

    def _look_for_matches(self) -> None:
        """Takes what the run's folder and the user's cache have, in ns-viewer."""
        report = read_matches(self.run_folder)
        self._matches_said = report.outcome if report is not None else ""
        trainer = self.viewer.trainer
        config = read_config(self.run_folder / CONFIG) if trainer is None else trainer.config
        images = cached_matches(self.run, getattr(config, "matches", None))
        self._matches = ShownMatches(images) if images is not None else None

    def _compare(self) -> int:
        """Renders the selected camera, where that is asked for; the number of bytes that were sent."""
        picture, what = self.widgets.picture, (self.selected, self.step)
        if self.state is None or not self.widgets.compare.value:
            picture.visible = False
            return 0
        if picture.visible and (what == self._compared or time.monotonic() < self._due["picture"]):
            return 0
        from hashpose_ns.viewer.comparison import render_training_camera, side_by_side

        left, right, seconds = render_training_camera(self.run, what[0], self.viewer.train_lock)
        self._compared = what
        self._due["picture"] = time.monotonic() + max(PICTURE_INTERVAL, seconds / SHARE)
        url = side_by_side(left, right)
        picture.content, picture.visible = f"![photograph and render]({url})", True
        return len(url)

    def _show_rays(self) -> int:
        """Draws how the selected camera's rays move, where they do and it is asked for; the number of bytes sent."""
        widgets, what = self.widgets, (self.selected, self.step)
        _set_visible(widgets.warp, rays_move(self.run.poses))
        if self.state is None or not (widgets.warp.visible and widgets.warp.value):
            _set_visible(widgets.warp_picture, False)
            _set_text(widgets.warp_picture, "")
            return 0
        if widgets.warp_picture.visible and (what == self._warped or time.monotonic() < self._due["warp"]):
            return 0
        field = warp_field(self.run, what[0], self.viewer.train_lock)
        if field is None:
            return 0
        self._warped, self._due["warp"] = what, time.monotonic() + PICTURE_INTERVAL
        url = data_url(warp_picture(self.run, what[0], field))
        widgets.warp_picture.content = f"![motions of rays]({url})\n\n{warp_text(field)}"
        _set_visible(widgets.warp_picture, True)
        return len(url)

    def _export(self) -> None:
        while self._exports:
            from hashpose_ns.viewer.export_now import export_now

            format, viewer = self._exports.pop(0), self.viewer
            folder = export_now(self.run, self.run_folder, self.step, format, viewer.train_lock)
            self.boundary.tell(f"Exported to {folder}")


def _set_visible(handle, visible: bool) -> None:
    if handle.visible != visible:
        handle.visible = visible


def _set_text(handle, text: str) -> None:
    if handle.content != text:
        handle.content = text
