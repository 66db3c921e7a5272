"""Poses that refinement does not improve return to where training started."""

from __future__ import annotations

from typing import Callable, Optional

from torch.optim import Optimizer

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.guard.compare import DOUBTS, in_words, judge_refinement
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.report import back_sentence
from hashpose_ns.guard.verdict import can_decide
from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.optim.schedules import moments
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.strategy import PoseStrategy, Say, steps_at


class FallBack(PoseStrategy):
    """Judges the refined poses at some fractions of training; a guard that cannot judge changes nothing.

    Args:
        config: settings.
        matches: gives the matches between the training images, or None where there are none.
    """

    def __init__(self, config: GuardConfig, matches: Callable[[], Optional[MatchedImages]] = lambda: None) -> None:
        self.config = config
        self.matches = matches

    def validate(self) -> None:
        self.config.validate()

    def before_step(self, scene: PosedScene, adam: Optimizer, step: int, say: Say) -> None:
        steps = steps_at(self.config.fallback_at, scene.total_steps) if self.config.mode != "off" else set()
        if step not in steps:
            return
        say("guard: judging the refined poses by held-out pixels ...")
        try:
            said = fall_back_unless_helped(scene, adam, self.config, step == max(steps), self.matches())
        except (HashPoseError, RuntimeError) as error:
            said = f"no verdict. {one_line(error)}"
        say(f"guard: {said}")


def fall_back_unless_helped(
    scene: PosedScene,
    adam: Optimizer,
    config: GuardConfig,
    last: bool,
    matched: Optional[MatchedImages] = None,
) -> str:
    """Judges the refined poses in the middle of training; if they fit held-out pixels worse than those training started
    from, and at the last look also if they fit no better, cameras return there.

    With errors of tenths of a pixel, refinement at rates that are made for large ones does more harm than good, and
    held-out pixels show it (docs/guard.md). With too few images to tell, poses stay as they are. From a trusted start
    they go back also where matches fit them worse. Cameras that were shifted before training are judged against the
    poses that were given, and go back to those.

    Args:
        scene: in training; of it, only poses are touched.
        adam: the optimizer of the poses; its moments are reset.
        config: settings.
        last: whether cameras that return are frozen there.
        matched: matches between the training images, where there are any.
    Returns:
        What was found and done, in words.
    """
    optimizer = scene.poses
    if not optimizer.is_corrected:
        return "poses are where they started"
    shifted = optimizer.rebased and not optimizer.is_trusted
    verdict = judge_refinement(scene, config, since_base=not shifted, matched=matched)
    found = in_words(verdict)
    kept = config.keep_rebased and optimizer.rebased and optimizer.is_trusted
    no_better = verdict.verdict == "undecided" and can_decide(len(verdict.first)) and not kept
    # Matches contradict whatever pixels say where a trusted start has been left for the worse.
    left = optimizer.is_trusted and verdict.matches_contradict
    if verdict.verdict != "hurt" and not left and not (last and no_better):
        return found
    if left and verdict.doubt is None:
        found = f"{found}, and {DOUBTS['matches']}"
    rate = 0.0 if last else config.fallback_rate
    if shifted:
        _take_back_shift(optimizer)
    optimizer.fall_back(rate)
    for moment in moments(adam, optimizer.pose_adjustment):
        moment.zero_()
    for group in adam.param_groups:  # the schedule follows a step later
        group["lr"] *= rate
    return f"{found}; {back_sentence(rate)}"


def _take_back_shift(optimizer: PoseOptimizer) -> None:
    """Has refinement start at the given poses after all. Cameras that somebody holds stay where they are."""
    held = {index: optimizer.refined_camera_to_worlds()[index].detach() for index in optimizer.held}
    optimizer.rebase(optimizer.initial_camera_to_worlds, trusted=False)
    for index, pose in held.items():
        optimizer.set_refined(index, pose)
