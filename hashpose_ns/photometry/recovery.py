"""The search for lost cameras: found by their loss, tried at many other poses against the field as it is, moved."""

from __future__ import annotations

from typing import List, Optional

from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.recovery import RecoveryConfig, hypotheses, near_hypotheses
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.scores import PoseJudge
from nerfstudio.utils.rich_utils import get_progress

GAIN = 0.6
"""A camera is moved if its loss falls below this fraction of what it was; a lost one's right pose takes more away."""

NEAR_GAIN = 0.8
"""The same for a pose close by. A wrong one does less harm there, and the field has been trained to fit the photograph
from where the camera was."""

FIRST_DIVISOR, LATER_DIVISOR = 6, 2
"""Divisors of `RecoveryConfig.rays`: rays a step of optimisation, from every hypothesis and in later rounds."""

ROUNDS = (12, 3)
"""How many of the best hypotheses each later round of optimisation continues with."""

NEAR_LAST_RATE = 0.1
"""Fraction that the rate decays to from close by. By then the field is sharp, and steps as long as elsewhere throw a
camera from its right pose."""

GIVE_UP_AFTER = 2
"""Suspects come by their loss, worst first: after this many that were not lost, the rest are even less likely to be."""


def recover_cameras(scene: PosedScene, config: RecoveryConfig, late: bool = False) -> List[int]:
    """Looks for lost cameras and moves those whose loss becomes clearly smaller elsewhere.

    Args:
        scene: the field, poses and images.
        config: settings.
        late: whether to look close to where cameras are, and for those that are lost beyond doubt at other poses than
            before.
    Returns:
        The cameras that were moved.
    """
    optimizer = scene.poses
    poses = optimizer.refined_camera_to_worlds().detach()
    candidates = [i for i in range(len(poses)) if bool(optimizer.trainable[i]) and i not in optimizer.held]
    judges = {i: PoseJudge(scene, i, config.rays) for i in candidates}
    losses = {i: float(judge.losses(poses[i : i + 1])) for i, judge in judges.items() if len(judge.pixels)}
    median = sorted(losses.values())[len(losses) // 2] if losses else 0.0
    limit = median * (config.late_suspicion if late else config.suspicion)
    doubtful, far = optimizer.doubtful_cameras(near=late), optimizer.doubtful_cameras()
    suspects = sorted((i for i in losses if losses[i] > limit and i in doubtful), key=lambda i: -losses[i])
    suspects = suspects[: max(round(config.cameras * len(poses)), 1)]
    if not suspects:
        return []
    moved, innocent = [], 0
    with get_progress("Looking for lost cameras", suffix="cameras") as progress:
        for index in progress.track(suspects):
            better = None
            if late:
                tried = near_hypotheses(optimizer, index, config)
                better = _better(judges[index], tried, config, NEAR_GAIN * losses[index], near=True)
            if better is None and index in far and (not late or losses[index] > config.beyond_doubt * median):
                tried = hypotheses(optimizer, index, config, seed=int(late))
                better = _better(judges[index], tried, config, GAIN * losses[index])
            if better is not None:
                optimizer.set_refined(index, better)
                moved.append(index)
                continue
            innocent += 1
            if innocent == GIVE_UP_AFTER:
                break
    return moved


def _better(
    judge: PoseJudge,
    tried: Float[Tensor, "count 3 4"],
    config: RecoveryConfig,
    enough: float,
    near: bool = False,
) -> Optional[Float[Tensor, "3 4"]]:
    """The best pose that rounds of optimisation make of hypotheses, if its loss is below a limit."""
    # Losses of poses ten degrees off say little; what they become by optimisation says much.
    lr, last = (config.lr / 2, NEAR_LAST_RATE) if near else (config.lr, 1.0)
    tried, losses = judge.optimized(tried, config.steps, config.rays // FIRST_DIVISOR, lr, last)
    for best in ROUNDS:
        tried, losses = judge.optimized(tried[:best], config.steps, config.rays // LATER_DIVISOR, lr / 2, last)
    return tried[0] if float(losses[0]) < enough else None
