"""Poses over training, in memory and in a file: what paths in the viewer, replays and figures are drawn from.

The file, `hashpose_ns.runs.files.HISTORY_FILE`, is a sequence of numpy arrays as `numpy.save` writes them: a step []
and the poses [N, 3, 4] of that step in turn.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
from jaxtyping import Float, Int

from hashpose_ns.atomic import write_whole

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
        source: file to take records over from; None starts empty. Of one that is damaged, what is whole is taken.
        before_step: records of this step and later ones are left out.
        num_cameras: records of another number of cameras are left out; None takes any.
    """

    def __init__(
        self, path: Path, source: Path | None = None, before_step: int = 0, num_cameras: Optional[int] = None
    ) -> None:
        self.path = path
        self.steps: List[int] = []
        self.camera_to_worlds: List[Float[np.ndarray, "num_cameras 3 4"]] = []
        earlier = io.BytesIO()
        for step, poses in zip(*read_pose_history(source)) if source is not None else ():
            if step < before_step and len(poses) == (num_cameras or len(poses)):
                self._append(int(step), poses, earlier)
        write_whole(path, earlier.getvalue())

    def append(self, step: int, camera_to_worlds: Float[np.ndarray, "num_cameras 3 4"]) -> None:
        """Keeps the poses after a step, in single precision."""
        with open(self.path, "ab") as file:
            self._append(step, np.array(camera_to_worlds, dtype=np.float32), file)

    def _append(self, step: int, poses: Float[np.ndarray, "num_cameras 3 4"], file: io.BufferedIOBase) -> None:
        self.steps.append(step)
        self.camera_to_worlds.append(poses)
        np.save(file, np.array(step, dtype=np.int64))
        np.save(file, poses)


def read_pose_history(path: Path) -> Tuple[Int[np.ndarray, "records"], Float[np.ndarray, "records num_cameras 3 4"]]:
    """Steps [R] and camera-to-world poses [R, N, 3, 4] of a run, up to the first record that is cut off, is none, or is
    of another number of cameras; none without a file."""
    steps: List[int] = []
    poses: List[np.ndarray] = []
    try:
        with open(path, "rb") as file:
            while True:
                step, pose = (np.lib.format.read_array(file, allow_pickle=False) for _ in range(2))
                if step.shape != () or step.dtype.kind not in "iu" or int(step) <= (steps[-1] if steps else -1):
                    break
                shape = poses[0].shape if poses else (len(pose), 3, 4)
                if pose.dtype != np.float32 or pose.shape != shape:
                    break
                steps.append(int(step))
                poses.append(pose)
    except Exception:  # the end of the file, or whatever numpy makes of one that is damaged
        pass
    return np.array(steps, dtype=np.int64), np.stack(poses) if poses else np.zeros((0, 0, 3, 4), dtype=np.float32)
