"""Poses over training, in memory and in a file: what paths in the viewer, replays and figures are drawn from.

The file, `hashpose_ns.runs.files.HISTORY_FILE`, is a sequence of numpy arrays as `numpy.save` writes them: a step []
and the poses [N, 3, 4] of that step in turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Tuple

import numpy as np
from jaxtyping import Float, Int

MAX_RECORDS = 240
"""How many records a whole training leaves."""


def is_recorded(step: int, total_steps: int) -> bool:
    """Whether poses after a step are kept. Poses move most in the beginning: record k of n falls on total * (k / n)^2.

    Args:
        step: the step, from 0.
        total_steps: length of training.
    """
    if step in (0, total_steps - 1):
        return True
    before, now = (int(MAX_RECORDS * (at / total_steps) ** 0.5) for at in (step - 1, step))
    return before != now


class PoseHistory:
    """The training cameras' poses at some steps of a run, appended to a file as they come.

    Args:
        path: the file; one that exists is taken over up to `before_step` and otherwise replaced.
        source: file to take records over from; None begins anew.
        before_step: records of this step and later ones are left out.
    """

    def __init__(self, path: Path, source: Path | None = None, before_step: int = 0) -> None:
        self.path = path
        self.steps: List[int] = []
        self.camera_to_worlds: List[Float[np.ndarray, "num_cameras 3 4"]] = []
        earlier = list(zip(*read_pose_history(source))) if source is not None and source.is_file() else []
        self.path.write_bytes(b"")
        for step, poses in earlier:
            if step < before_step:
                self._append(int(step), poses)

    def append(self, step: int, camera_to_worlds: Float[np.ndarray, "num_cameras 3 4"]) -> None:
        """Keeps the poses after a step, in single precision."""
        self._append(step, np.array(camera_to_worlds, dtype=np.float32))

    def _append(self, step: int, poses: Float[np.ndarray, "num_cameras 3 4"]) -> None:
        self.steps.append(step)
        self.camera_to_worlds.append(poses)
        with open(self.path, "ab") as file:
            np.save(file, np.array(step, dtype=np.int64))
            np.save(file, poses)


def read_pose_history(path: Path) -> Tuple[Int[np.ndarray, "records"], Float[np.ndarray, "records num_cameras 3 4"]]:
    """Steps [R] and camera-to-world poses [R, N, 3, 4] of a run; a last record that was cut off is left out."""
    steps, poses = [], []
    with open(path, "rb") as file:
        while True:
            try:
                step, pose = np.load(file), np.load(file)
            except (EOFError, ValueError):
                break
            steps.append(int(step))
            poses.append(pose)
    return np.array(steps, dtype=np.int64), np.stack(poses) if poses else np.zeros((0, 0, 3, 4), dtype=np.float32)
