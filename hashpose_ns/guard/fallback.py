"""Poses that refinement does not make better go back to where training started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from hashpose_ns.guard.compare import in_words, judge_refinement
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.report import back_sentence
from hashpose_ns.guard.verdict import can_decide
from hashpose_ns.optim.schedules import moments

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline


def fall_back_unless_helped(pipeline: "HashPosePipeline", adam: Optimizer, config: GuardConfig, last: bool) -> str:
    """Judges the refined poses in the middle of training; where they fit held-out pixels worse than those training
    started from, and at the last look also where they fit no better, cameras go back there.

    With errors of tenths of a pixel, refinement at rates that are made for large ones does more harm than good, and a
    look at held-out pixels sees it (docs/guard.md). Too few images to tell leave poses as they are.

    Args:
        pipeline: in training; of it, only poses are touched.
        adam: the optimizer of the poses, which forgets where they were going.
        config: settings.
        last: whether cameras that go back stay there.
    Returns:
        What was found and done, in words.
    """
    optimizer = pipeline.model.camera_optimizer
    if not optimizer.has_moved:
        return "poses are where they started"
    verdict = judge_refinement(pipeline, config)
    found = in_words(verdict)
    no_better = verdict.verdict == "undecided" and can_decide(len(verdict.first))
    if verdict.verdict != "hurt" and not (last and no_better):
        return found
    rate = 0.0 if last else config.fallback_rate
    optimizer.fall_back(rate)
    for moment in moments(adam, optimizer.pose_adjustment):
        moment.zero_()
    for group in adam.param_groups:  # the schedule hears of it a step later
        group["lr"] *= rate
    return f"{found}; {back_sentence(rate)}"
