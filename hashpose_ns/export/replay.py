"""A run's cameras and errors over training, as its folder holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Literal, Optional, Tuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, align_poses, centers_coincide, pose_errors
from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.checkpoint import read_last_checkpoint
from hashpose_ns.runs.files import CHECKPOINTS, HISTORY_FILE, read_pose_log
from hashpose_ns.runs.history import read_pose_history

Align = Literal["reference", "input", "none"]
"""What the cameras of each record are aligned to."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A number over training."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    unit: str
    from_zero: bool = True
    """Whether the axis begins at 0; at the smallest value otherwise."""

    def at(self, step: float) -> Optional[float]:
        """The last value that was measured at or before a step; None before the first."""
        count = np.searchsorted(self.steps, step, side="right")
        return float(self.values[count - 1]) if count else None


@dataclass(frozen=True, eq=False)
class Replay:
    """Everything a replay shows, in one frame of reference."""

    steps: Float[np.ndarray, "records"]
    """Training step of each record."""
    cameras: Float[np.ndarray, "records num_cameras 3 4"]
    """Camera-to-world poses, OpenGL axes."""
    start: Float[np.ndarray, "num_cameras 3 4"]
    """Poses that training started from."""
    reference: Optional[Float[np.ndarray, "num_cameras 3 4"]]
    """Poses that errors are measured against; None where those are the start."""
    curves: List[Curve]
    """What is drawn beside the cameras."""


def load_replay(run: Path, align: Align = "reference") -> Replay:
    """What a run's folder knows of the way its poses took. Neither the dataset nor the field is loaded.

    Args:
        run: folder of a run, finished or not. The poses are in nerfstudio's frame.
        align: what each record is aligned to, by a similarity of its own: the reference, the start, or nothing. After a
            start with all centres in one point that would blow the first steps up to full size; there all records get
            the last one's similarity.

    Raises:
        HashPoseError: if the run recorded no poses, or a file cannot be read.
    """
    path = run / HISTORY_FILE
    if not path.is_file():
        raise HashPoseError(
            f"There is no {HISTORY_FILE} in {run}, which training writes; a run of an older version must be trained "
            "again for a replay."
        )
    steps, recorded = read_pose_history(path)
    finite = np.isfinite(recorded).all(axis=(1, 2, 3))  # the last record of a run that diverged may not be
    steps, poses = steps[finite], torch.from_numpy(recorded[finite]).double()
    if len(steps) < 2:
        raise HashPoseError(f"{path} holds {len(steps)} records of poses; a replay needs at least 2.")
    start, reference = _start_and_reference(run, poses[0])
    target = start if reference is None else reference

    way = torch.cat([start[None], poses])
    # Errors are those of the cameras as they are drawn by default
    shown = _similarities(way, start, target)
    errors = [pose_errors(record, target, similarity) for record, similarity in zip(poses, shown[1:])]
    what = "movement" if reference is None else "error"
    curves = [
        Curve(f"mean rotation {what}", steps, np.array([float(error.rotation_deg.mean()) for error in errors]), "°"),
        Curve(f"mean centre {what}", steps, np.array([float(error.center.mean()) for error in errors]), ""),
    ]
    psnr = {record["step"]: record["held_out_psnr"] for record in read_pose_log(run) if "held_out_psnr" in record}
    if len(psnr) > 1:
        curves.append(Curve("held-out PSNR", np.array([*psnr]), np.array([*psnr.values()]), " dB", from_zero=False))

    similarities = {
        "reference": shown,
        "input": _similarities(way, start, start),
        "none": [Similarity.identity()] * len(way),
    }[align]
    drawn_start, *cameras = [s.apply_to_poses(record).numpy() for s, record in zip(similarities, way)]
    return Replay(
        steps=steps.astype(np.float64),
        cameras=np.stack(cameras),
        start=drawn_start,
        reference=None if reference is None else reference.numpy(),
        curves=curves,
    )


def _similarities(
    way: Float[Tensor, "records num_cameras 3 4"],
    start: Float[Tensor, "num_cameras 3 4"],
    target: Float[Tensor, "num_cameras 3 4"],
) -> List[Similarity]:
    """The map of each record to the frame of the target."""
    if centers_coincide(target.float()):
        return [Similarity.identity()] * len(way)
    if centers_coincide(start.float()):
        return [align_poses(way[-1], target)] * len(way)
    return [align_poses(record, target) for record in way]


def _start_and_reference(run: Path, first: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
    """Both from the latest checkpoint; the first record, and nothing, where no checkpoint has been saved yet."""
    state = read_last_checkpoint(run / CHECKPOINTS)
    if state is None:
        return first, None
    found = {
        key.rpartition("camera_optimizer.")[2]: value.double()
        for key, value in state["pipeline"].items()
        if key.endswith("_camera_to_worlds")
    }
    if not {"initial_camera_to_worlds", "reference_camera_to_worlds"} <= set(found):
        raise HashPoseError(f"The checkpoints of {run} hold no poses; the method refines none.")
    start, reference = found["initial_camera_to_worlds"], found["reference_camera_to_worlds"]
    if not first.shape == start.shape == reference.shape:
        raise HashPoseError(f"The poses recorded in {run} are not those of its checkpoint: {len(first)}, {len(start)}.")
    return start, None if torch.allclose(start, reference, atol=1e-6) else reference
