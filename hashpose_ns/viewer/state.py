"""What the viewer shows: the poses of one moment, and where they have been."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, FrozenSet, List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import PoseErrors, Similarity, align_poses, pose_errors
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.runs.files import HISTORY_FILE
from hashpose_ns.runs.history import PoseHistory, read_pose_history

SAME_POSES = 1e-6
"""Largest entry by which initial and reference poses may differ and still count as the same."""


@dataclass(frozen=True, eq=False)
class PoseReading:
    """The training cameras between two steps, copied to the CPU. Poses are [N, 3, 4], OpenGL axes, float32."""

    step: int
    """The last step that is done."""
    refined: Float[Tensor, "num_cameras 3 4"]
    """In the learned frame."""
    initial: Float[Tensor, "num_cameras 3 4"]
    """In the input's frame."""
    base: Float[Tensor, "num_cameras 3 4"]
    """Where refinement started: the initial poses, or those of matches or centred pictures, in the input's frame."""
    reference: Float[Tensor, "num_cameras 3 4"]
    """In the input's frame."""
    held: FrozenSet[int]
    """Cameras held by hand."""
    paused: bool
    """Whether all poses are stopped by hand."""
    rate_scale: float
    """`PoseOptimizer.rate_scale`: below 1 where the guard put cameras back to their initial poses."""

    @classmethod
    @torch.no_grad()
    def of(cls, poses: PoseOptimizer, step: int) -> PoseReading:
        """Reads a camera optimizer that must not change meanwhile."""
        tensors = (
            poses.refined_camera_to_worlds(),
            poses.initial_camera_to_worlds,
            poses.base_camera_to_worlds,
            poses.reference_camera_to_worlds,
        )
        copies = (tensor.detach().cpu().clone() for tensor in tensors)
        return cls(step, *copies, frozenset(poses.held), poses.paused, poses.rate_scale)


@dataclass(frozen=True, eq=False)
class PoseState(PoseReading):
    """A reading, and what follows from it."""

    to_input: Similarity
    """From the learned frame to the input's: refined onto reference."""
    errors: PoseErrors
    """Refined against reference poses."""
    has_reference: bool
    """Whether the reference differs from where training started; otherwise errors and movement are the same."""

    @classmethod
    def of(cls, reading: PoseReading) -> PoseState:
        """Works out alignment and errors."""
        refined, initial, reference = reading.refined, reading.initial, reading.reference
        has_reference = not torch.allclose(initial, reference, rtol=0.0, atol=SAME_POSES)
        to_input = align_poses(refined, reference)
        errors = pose_errors(refined, reference, to_input)
        return cls(**vars(reading), to_input=to_input, errors=errors, has_reference=has_reference)

    @property
    def rebased(self) -> bool:
        """Whether refinement started at other poses: from matches, or centred."""
        return not torch.equal(self.base, self.initial)

    @property
    def movement(self) -> PoseErrors:
        """Refined against initial poses."""
        return pose_errors(self.refined, self.initial) if self.has_reference else self.errors


STATISTICS = tuple(
    f"{measure}_{statistic}" for measure in ("rotation_deg", "translation") for statistic in ("mean", "median", "max")
)


class PoseTracks:
    """Errors and camera centres at the steps that a run's pose history keeps, worked out once each.

    Args:
        run: the run's folder.
        from_file: whether the history is read from there, once, because there is no trainer that holds it.
    """

    def __init__(self, run: Path, from_file: bool) -> None:
        self.steps: List[int] = []
        self.poses: List[Float[np.ndarray, "num_cameras 3 4"]] = []
        self.errors: List[Dict[str, float]] = []
        self.centers: List[Float[np.ndarray, "num_cameras 3"]] = []
        """As optimised."""
        self.aligned_centers: List[Float[np.ndarray, "num_cameras 3"]] = []
        """Aligned to the reference, in the input's frame."""
        self._read: Optional[Tuple[Sequence[int], Sequence[np.ndarray]]] = None
        if from_file:
            path = run / HISTORY_FILE
            steps, poses = read_pose_history(path) if path.is_file() else ([], [])
            self._read = [int(step) for step in steps], list(poses)

    def update(
        self, history: Optional[PoseHistory], reference: Float[Tensor, "num_cameras 3 4"], seconds: float = 0.05
    ) -> bool:
        """Takes in new records, for about so long.

        Args:
            history: the trainer's, where it has one yet.
            reference: reference poses in the input's frame.
            seconds: when to leave the rest for later.
        Returns:
            Whether some are left.
        """
        steps, records = self._read or ([], [])
        if history is not None:
            steps, records = history.steps, history.camera_to_worlds
        available = min(len(steps), len(records))  # the training thread adds to one after the other
        begin = time.monotonic()
        while len(self.steps) < available and time.monotonic() - begin < seconds:
            poses = torch.as_tensor(records[len(self.steps)])
            if poses.shape != reference.shape:  # of a run with other images
                return False
            similarity = align_poses(poses, reference)
            summary = pose_errors(poses, reference, similarity).summary()
            self.errors.append({name: summary[name] for name in STATISTICS})
            self.poses.append(records[len(self.steps)])
            self.centers.append(poses[:, :, 3].numpy())
            self.aligned_centers.append(similarity.apply_to_points(poses[:, :, 3]).numpy())
            self.steps.append(steps[len(self.steps)])
        return len(self.steps) < available
