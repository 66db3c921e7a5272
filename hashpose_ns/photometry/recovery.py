"""The search for lost cameras: found by their loss, tried at many other poses against the field as it is, moved."""

from __future__ import annotations

from typing import List

from hashpose_ns.cameras.recovery import RecoveryConfig, hypotheses
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.scores import PoseJudge
from nerfstudio.utils.rich_utils import get_progress

GAIN = 0.6
"""A camera is moved if its loss falls below this fraction of what it was; a lost one's right pose takes more away."""

FIRST_DIVISOR, LATER_DIVISOR = 6, 2
"""Divisors of `RecoveryConfig.rays`: rays a step of optimisation, from every hypothesis and in later rounds."""

ROUNDS = (12, 3)
"""How many of the best hypotheses each later round of optimisation continues with."""

GIVE_UP_AFTER = 2
"""Suspects come by their loss, worst first: after this many that were not lost, the rest are even less likely to be."""


def recover_cameras(scene: PosedScene, config: RecoveryConfig, late: bool = False) -> List[int]:
    """Looks for lost cameras and moves those whose loss becomes clearly smaller elsewhere.

    Args:
        scene: the field, poses and images.
        config: settings.
        late: whether to look only for those that are lost beyond doubt, and at other poses than before.
    Returns:
        The cameras that were moved.
    """
    optimizer = scene.poses
    poses = optimizer.refined_camera_to_worlds().detach()
    candidates = [i for i in range(len(poses)) if bool(optimizer.trainable[i]) and i not in optimizer.held]
    judges = {i: PoseJudge(scene, i, config.rays) for i in candidates}
    losses = {i: float(judge.losses(poses[i : i + 1])) for i, judge in judges.items() if len(judge.pixels)}
    suspicion = config.beyond_doubt if late else config.suspicion
    limit = suspicion * sorted(losses.values())[len(losses) // 2] if losses else 0.0
    doubtful = optimizer.doubtful_cameras()
    suspects = sorted((i for i in losses if losses[i] > limit and i in doubtful), key=lambda i: -losses[i])
    suspects = suspects[: max(round(config.cameras * len(poses)), 1)]
    if not suspects:
        return []
    moved, innocent = [], 0
    with get_progress("Looking for lost cameras", suffix="cameras") as progress:
        for index in progress.track(suspects):
            judge, tried = judges[index], hypotheses(optimizer, index, config, seed=int(late))
            # Losses of poses ten degrees off say little; what they become by optimisation says much.
            tried, found = judge.optimized(tried, config.steps, config.rays // FIRST_DIVISOR, config.lr)
            for best in ROUNDS:
                tried, found = judge.optimized(tried[:best], config.steps, config.rays // LATER_DIVISOR, config.lr / 2)
            if float(found[0]) < GAIN * losses[index]:
                optimizer.set_refined(index, tried[0])
                moved.append(index)
            else:
                innocent += 1
                if innocent == GIVE_UP_AFTER:
                    break
    return moved
