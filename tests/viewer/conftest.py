"""A training run with the live viewer on, in this process, which tests let go on for some steps at a time."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Dict, Iterator

import pytest
import torch
import tyro
from client import Client, eventually
from commands import FEW_RAYS, SMALL_FIELD
from scenes import blender_scene

NUM_CAMERAS = 6
STEPS = 100_000


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LiveRun:
    """ns-train, its training loop on a thread, paused between calls of `advance`.

    Args:
        scene: the data.
        folder: for the run.
        extra: more arguments.
    """

    def __init__(self, scene: Path, folder: Path, *extra) -> None:
        from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
        from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
        from nerfstudio.scripts.train import _set_random_seed

        self.port = free_port()
        arguments = [
            *("hashpose-blender", "--experiment-name", "scene", "--timestamp", "run", "--vis", "viewer"),
            *("--pipeline.datamanager.data", scene, "--output-dir", folder),
            *("--max-num-iterations", STEPS, "--start-paused", True),
            *("--pipeline.model.camera-optimizer.start", 0, "--pipeline.model.camera-optimizer.warmup", 0),
            *("--viewer.websocket-host", "127.0.0.1", "--viewer.websocket-port", self.port),
            *("--viewer.quit-on-train-completion", True, "--steps-per-pose-log", 20),
            *SMALL_FIELD,
            *FEW_RAYS,
            *extra,
        ]
        config = tyro.cli(AnnotatedBaseConfigUnion, args=[str(argument) for argument in arguments])
        _set_random_seed(0)
        config.save_config()
        self.scene, self.folder = scene, config.get_base_dir()
        self.trainer = config.setup(local_rank=0, world_size=1)
        self.trainer.setup()
        self.poses = self.trainer.pipeline.model.camera_optimizer
        self.adam = self.trainer.optimizers.optimizers["camera_opt"]
        self.live = self.trainer.pipeline.pose_panel.live
        self.refined: Dict[int, torch.Tensor] = {}
        """Step -> refined poses after it."""
        self._target = 0
        self.trainer.callbacks.append(
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self._after_step)
        )
        self.thread = threading.Thread(target=self.trainer.train, daemon=True)
        self.thread.start()

    def _after_step(self, step: int) -> None:
        self.refined[step] = self.now()
        if len(self.refined) >= self._target:
            self.trainer.training_state = "paused"

    def now(self) -> torch.Tensor:
        """Refined poses; while training is paused."""
        with torch.no_grad():
            return self.poses.refined_camera_to_worlds().clone()

    def advance(self, steps: int) -> None:
        """Trains so many steps."""
        self._target = len(self.refined) + steps
        self.trainer.training_state = "training"
        eventually(lambda: len(self.refined) >= self._target and self.trainer.training_state == "paused")

    def go_round(self) -> None:
        """Returns when the viewer's thread has done all that it has to do now."""
        for _ in range(2):  # it wakes up after the first time, and the second time it is through with that
            self.live._wake.set()
            eventually(lambda: not self.live._wake.is_set())

    def is_shown(self) -> bool:
        """Whether the panel has caught up."""
        shown = self.live.state
        return shown is not None and torch.equal(shown.refined, self.now())

    def end(self) -> None:
        """Ends training as Ctrl+C does not: the last checkpoint is saved."""
        self.trainer.stop_training = True
        self.thread.join(timeout=60)


@pytest.fixture(scope="session")
def live_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    """A paused run with the viewer on, a few steps in. Tests may leave it anywhere, with nothing held or paused."""
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.cuda, "is_available", lambda: False)
    folder = tmp_path_factory.mktemp("live")
    run = LiveRun(blender_scene(folder / "scene", NUM_CAMERAS), folder / "out")
    run.advance(5)
    yield run
    run.end()
    patch.undo()


@pytest.fixture
def client(live_run: LiveRun) -> Iterator[Client]:
    """A client that sees the poses of now."""
    client = Client(live_run.port)
    eventually(live_run.is_shown)
    eventually(lambda: any(props.get("label") == "Export now" for props in list(client.gui.values())))
    yield client
    client.close()
