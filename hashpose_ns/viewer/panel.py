"""The live viewer's panel: watch poses converge and have a hand in it, on nerfstudio's ViewerControl and viser."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Callable, List, Optional

from hashpose_ns.viewer.boundary import Boundary, RenderMachines
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.viewer.viewer_elements import ViewerControl

if TYPE_CHECKING:
    from viser import ClientHandle

    from hashpose_ns.guard.report import GuardReport
    from hashpose_ns.matches.features import MatchedImages
    from hashpose_ns.viewer.actions import PoseActions
    from hashpose_ns.viewer.live import LivePoses
    from hashpose_ns.viewer.locating import Locating
    from hashpose_ns.viewer.widgets import Widgets
    from nerfstudio.viewer.viewer import Viewer

CPU_RESOLUTION = 128
"""Largest picture that nerfstudio renders for a browser while training has only a CPU: training waits meanwhile."""


class PosePanel(ViewerControl):
    """The folder `Poses` in nerfstudio's viewer. Without that viewer nothing is ever set up.

    What a person asks for is run by the training thread before its next step, or under the trainer's lock while
    training is paused.
    """

    def __init__(self) -> None:
        self.live: Optional["LivePoses"] = None
        """What is shown; None without nerfstudio's viewer."""
        self.actions: Optional["PoseActions"] = None
        """What can be done; None where nothing is trained."""
        self.widgets: Optional["Widgets"] = None
        self.locating: Optional["Locating"] = None
        """Looks for photographs, in ns-viewer."""

    def _setup(self, viewer: "Viewer") -> None:
        """Called by nerfstudio when its viewer starts, before a checkpoint is loaded and before there are cameras."""
        super()._setup(viewer)
        self.boundary = Boundary(self.tell)
        with self.boundary:
            viewer.render_statemachines = RenderMachines(viewer.render_statemachines)
            from hashpose_ns.data.names import image_names
            from hashpose_ns.viewer.live import LivePoses
            from hashpose_ns.viewer.scene import fitting_frustum_scale
            from hashpose_ns.viewer.widgets import Widgets

            pipeline: Any = viewer.pipeline
            run, trainer = pipeline.scene, viewer.trainer
            names = image_names(run.train.image_filenames)
            training = trainer is not None and run.poses.config.mode != "off"
            self.widgets = Widgets(self.viser_server, names, viewer.stats_markdown.order + 0.5, training)
            if trainer is not None and run.device.type == "cpu":
                viewer.control_panel._max_res.value = CPU_RESOLUTION
            if viewer.config.camera_frustum_scale == ViewerConfig.camera_frustum_scale:  # nobody chose one
                poses = run.poses.reference_camera_to_worlds.cpu()
                scale = fitting_frustum_scale(run.train.cameras, poses)
                viewer.config = dataclasses.replace(viewer.config, camera_frustum_scale=scale)
            if trainer is None:
                from hashpose_ns.viewer.locating import Locating

                self.locating = Locating(viewer, run, self.boundary, viewer.stats_markdown.order + 0.6)
            live = LivePoses(viewer, self.widgets, self.boundary)
            self._connect(live)
            # viser calls this with a lock held that asking for clients takes as well
            self.viser_server.on_client_connect(live.welcome)
            live.start()
            self.live = live
        from hashpose_ns.viewer.port import Port

        if isinstance(viewer.config.websocket_host, Port):
            viewer.viewer_info = viewer.config.websocket_host.banner
            viewer.config.websocket_host.complete(self.viser_server)

    def training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """What to do around each step; nothing where nerfstudio's viewer is not on."""
        if self.live is None or attributes.optimizers is None:
            return []
        live = self.live
        with self.boundary:
            from hashpose_ns.viewer.actions import PoseActions

            optimizers = attributes.optimizers.optimizers.values()
            self.actions = PoseActions(self.viewer.pipeline.scene.poses, optimizers)
            live.follow_training(self.actions)
            return [
                TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], lambda step: live.before_step()),
                TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], lambda step: live.after_step(step)),
                TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], lambda step: live.after_training()),
            ]
        return []

    def show_verdict(self, report: "GuardReport") -> None:
        """Shows what the guard found at the end of training, where nerfstudio's viewer is on."""
        if self.live is not None:
            self.live.show_verdict(report)

    def show_matches(self, images: "MatchedImages", said: str) -> None:
        """Shows matches between the training images, where nerfstudio's viewer is on.

        Args:
            images: keypoints and matches.
            said: what came of them, a sentence without its full stop.
        """
        if self.live is not None:
            self.live.show_matches(images, said)

    # -- what a person does, on viser's threads ------------------------------------------------------------------------

    def _connect(self, live: "LivePoses") -> None:
        """Ties the controls to what they do. A value that the program itself sets has no client."""
        widgets = self.widgets
        assert widgets is not None
        shown = (
            *widgets.layers.values(),
            widgets.aligned,
            widgets.color_by,
            widgets.camera,
            widgets.compare,
            widgets.residuals,
            widgets.warp,
        )
        for handle in (*shown, widgets.curve, widgets.log):
            handle.on_update(lambda _: live.refresh())
        widgets.look.on_click(lambda event: self._look(event.client, live.look_through))
        widgets.look_at_all.on_click(lambda event: self._look(event.client, live.look_at_all))
        widgets.export.on_click(lambda _: live.ask_for_export(widgets.format.value))
        widgets.pause.on_update(lambda event: event.client and self._pause(widgets.pause.value))
        widgets.hold.on_update(lambda event: event.client and self._hold(live.selected, widgets.hold.value))
        widgets.reset.on_click(lambda _: self._reset(live.selected))
        widgets.turn.on_click(lambda _: self._turn(live.selected, widgets.degrees.value))

    def _look(self, client: Optional["ClientHandle"], how: Callable[["ClientHandle"], None]) -> None:
        with self.boundary:
            if client is not None:
                how(client)

    def _submit(self, action: Callable[["PoseActions"], None], done: str) -> None:
        """Has something done between two steps, and said so."""
        actions, live = self.actions, self.live
        if actions is None or live is None:
            return

        def run() -> None:
            with self.boundary:
                action(actions)
                self.tell(done)
            live.refresh()

        actions.submit(run)
        live.refresh()

    def _pause(self, paused: bool) -> None:
        self._submit(lambda actions: actions.pause(paused), "Poses are paused." if paused else "Poses move again.")

    def _hold(self, index: int, held: bool) -> None:
        done = "is held where it is" if held else "moves again"
        self._submit(lambda actions: actions.hold(index, held), f"{self.live.names[index]} {done}.")

    def _reset(self, index: int) -> None:
        state = self.live.state
        where = "where training started" if state is not None and state.rebased else "at its initial pose"
        done = f"{self.live.names[index]} is back {where}."
        self._submit(lambda actions: actions.reset(index), done)

    def _turn(self, index: int, degrees: float) -> None:
        done = f"{self.live.names[index]} was turned by {degrees:g} deg."
        self._submit(lambda actions: actions.turn(index, degrees), done)

    def tell(self, sentence: str) -> None:
        """Shows a sentence about the user's last action."""
        from hashpose_ns.viewer.widgets import plain

        if self.widgets is None:
            return
        self.widgets.message.content = plain(sentence)
        self.widgets.message.visible = True
