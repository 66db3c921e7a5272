"""What intervenes in the refinement of poses between training steps: one list in the trainer, after gsplat's
`Strategy`."""

from __future__ import annotations

from typing import Callable, Sequence, Set

from torch.optim import Optimizer

from hashpose_ns.cameras.recovery import RecoveryConfig
from hashpose_ns.optim.schedules import moments
from hashpose_ns.photometry.recovery import recover_cameras
from hashpose_ns.photometry.scene import PosedScene

Say = Callable[[str], None]
"""Prints a sentence with the step in front of it."""


class PoseStrategy:
    """Something that changes poses, or how they are refined, between training steps. The trainer calls the hooks of all
    strategies in turn, on the training thread, in runs that refine poses."""

    def validate(self) -> None:
        """Raises HashPoseError if a setting is out of range."""

    def prepare(self, scene: PosedScene, resumed: bool, say: Say) -> None:
        """Called once, before the optimizers are made.

        Args:
            scene: images and poses; the field is not trained.
            resumed: whether a checkpoint is loaded afterwards, poses and all.
            say: tells the user what was done.
        """

    def before_step(self, scene: PosedScene, adam: Optimizer, step: int, say: Say) -> None:
        """Called before a training step.

        Args:
            scene: the field, poses and images.
            adam: the optimizer of the poses.
            step: the step that is about to be taken, from 0, of `scene.total_steps`.
            say: tells the user what was done.
        """

    def after_step(self, scene: PosedScene, adam: Optimizer, step: int, say: Say) -> None:
        """Called after a training step, with the same arguments."""


def steps_at(fractions: Sequence[float], total_steps: int) -> Set[int]:
    """The steps at these fractions of training."""
    return {round(fraction * total_steps) for fraction in fractions}


class Recovery(PoseStrategy):
    """Looks for lost cameras at some fractions of training and moves them. Those that start at trusted poses are none.

    Args:
        config: settings.
    """

    def __init__(self, config: RecoveryConfig) -> None:
        self.config = config

    def validate(self) -> None:
        self.config.validate()

    def before_step(self, scene: PosedScene, adam: Optimizer, step: int, say: Say) -> None:
        late = step in steps_at(self.config.late_at, scene.total_steps)
        if not late and step not in steps_at(self.config.at, scene.total_steps):
            return
        if scene.poses.rate_scale == 0 or not scene.poses.doubtful_cameras(near=late):
            return
        moved = recover_cameras(scene, self.config, late)
        for moment in moments(adam, scene.poses.pose_adjustment):
            moment[moved] = 0.0
        if moved or not late:
            say(f"lost cameras moved: {len(moved)} {moved or ''}")


class Settle(PoseStrategy):
    """Decays the learning rate of poses that oscillate around an optimum, and freezes them in the end. Its settings and
    its state are `PoseOptimizer.settling`."""

    def after_step(self, scene: PosedScene, adam: Optimizer, step: int, say: Say) -> None:
        optimizer, total = scene.poses, scene.total_steps
        settling = optimizer.settling
        if settling is None or not optimizer.active or step / total < optimizer.free_from:
            return
        if step % max(round(settling.config.window * total), 1) == 0:
            settling.look(optimizer.current_twists(), optimizer.trainable)
            if settling.factor == 0.0:
                say("poses have settled and are frozen; the rest of training fits the field alone")
