"""What a person does to poses while they are trained. Everything happens between two training steps."""

from __future__ import annotations

from collections import deque
from typing import Callable, Deque, Iterable, List, Optional, Tuple

import roma
import torch
from torch import Tensor
from torch.optim import Optimizer

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.errors import HashPoseError
from hashpose_ns.host import sent
from hashpose_ns.optim.schedules import moments


class PoseActions:
    """Pauses all poses, holds, resets and turns single ones.

    The methods change poses at once: call them with the trainer's lock held, or `submit` them to be run by
    `run_submitted` between two steps. Pausing gives the poses no gradient. A held camera has none either, but shares a
    parameter with the others, and Adam would move it on by its momentum: around each of Adam's steps its row is put
    back, in the parameter and in Adam's moments.

    Args:
        poses: the camera optimizer.
        optimizers: torch's optimizers, of which the one that moves the poses is found.
    """

    def __init__(self, poses: PoseOptimizer, optimizers: Iterable[Optimizer] = ()) -> None:
        self.poses = poses
        self._submitted: Deque[Callable[[], None]] = deque()
        self._generator = torch.Generator().manual_seed(0)  # training's own stream of random numbers stays as it is
        self._kept: List[Tuple[Tensor, Tensor]] = []
        self._adam: Optional[Optimizer] = None
        for optimizer in optimizers if poses.config.mode != "off" else ():
            if any(parameter is poses.pose_adjustment for parameter in _parameters(optimizer)):
                self._adam = optimizer
                optimizer.register_step_pre_hook(lambda *_: self._keep_held())
                optimizer.register_step_post_hook(lambda *_: self._put_held_back())

    # -- between threads -----------------------------------------------------------------------------------------------

    def submit(self, action: Callable[[], None]) -> None:
        """Has an action run between two steps; from any thread."""
        self._submitted.append(action)

    @property
    def waiting(self) -> bool:
        """Whether something that was submitted was not run yet."""
        return bool(self._submitted)

    def run_submitted(self) -> None:
        """Runs what was submitted, in order; on the training thread, or with the trainer's lock. An action that fails
        raises and leaves the rest for the next call."""
        while self._submitted:
            self._submitted.popleft()()

    # -- actions -------------------------------------------------------------------------------------------------------

    def pause(self, paused: bool) -> None:
        """Stops all poses, or releases them; the field is trained either way."""
        self.poses.paused = paused

    def hold(self, index: int, held: bool) -> None:
        """Holds a camera where it is, or releases it."""
        self._check_refined(index)
        if held:
            self.poses.held.add(index)
        else:
            self.poses.held.discard(index)

    @torch.no_grad()
    def reset(self, index: int) -> None:
        """Puts a camera back to where refinement started, exactly, and has Adam forget where it was going."""
        self._check_refined(index)
        self.poses.put_back([index])
        self._forget(index)

    @torch.no_grad()
    def turn(self, index: int, degrees: float) -> None:
        """Turns a camera about its own centre by an angle, about a random axis, and has Adam forget where it was going.

        Args:
            index: the camera.
            degrees: angle, below 180.
        """
        self._check_refined(index)
        axis = torch.randn(3, generator=self._generator, dtype=torch.float64)
        rotation = roma.rotvec_to_rotmat(torch.deg2rad(torch.tensor(float(degrees))) * axis / axis.norm())
        pose = self.poses.refined_camera_to_worlds()[index].double()
        turned = torch.cat([pose[:, :3] @ rotation.to(pose.device), pose[:, 3:]], dim=-1)
        self.poses.set_refined(index, turned)
        self._forget(index)

    def _check_refined(self, index: int) -> None:
        if self.poses.config.mode == "off" or not bool(self.poses.trainable[index]):
            raise HashPoseError("This camera is frozen by the run's settings.")

    # -- Adam ----------------------------------------------------------------------------------------------------------

    def _moments(self) -> List[Tensor]:
        """What the optimizer remembers of each camera, a row each."""
        return moments(self._adam, self.poses.pose_adjustment) if self._adam is not None else []

    def _forget(self, index: int) -> None:
        for moment in self._moments():
            moment[index] = 0.0

    def _held_rows(self) -> Tensor:
        return sent(torch.tensor(sorted(self.poses.held)), self.poses.pose_adjustment.device)

    def _keep_held(self) -> None:
        if self.poses.held:
            rows = self._held_rows()
            values = [self.poses.pose_adjustment.detach(), *self._moments()]
            self._kept = [(value, value[rows]) for value in values]

    @torch.no_grad()
    def _put_held_back(self) -> None:
        if not self.poses.held:
            return
        rows, kept = self._held_rows(), self._kept
        for moment in self._moments()[len(kept) - 1 :]:  # made in this very step
            moment[rows] = 0.0
        for value, row_values in kept:
            value[rows] = row_values
        self._kept = []


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
