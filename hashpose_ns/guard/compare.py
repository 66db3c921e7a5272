"""The guard itself: initial against refined poses of a run."""

from __future__ import annotations

import dataclasses
import time
from typing import Optional

from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.errors import HashPoseError
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.judge import compare_errors
from hashpose_ns.guard.matches import disagreement
from hashpose_ns.guard.movement import movement
from hashpose_ns.guard.report import CameraReport, GuardReport
from hashpose_ns.guard.verdict import ALPHA, Verdict, can_decide, decide, tells
from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.photometry.scene import PosedScene

ALL_RAYS = 50_000
"""Rays for the uncertainties of all cameras together: up to 512 for each, and not below 64."""

DOUBTS = {
    "coarse": "show no more than thumbnails of the images would, and wrong poses can agree on a blur",
    "converging": "cameras mostly turned towards each other or apart, which pixels cannot tell from another depth",
    "strays": "most of the rotation is that of cameras that moved far and do not fit clearly better for it",
    "matches": "matches between the images fit them worse",
    "far": "matches between the images are still far off",
}
"""What is said of each reason to doubt that poses got better."""


def compare_poses(
    scene: PosedScene,
    initial: Float[Tensor, "num_cameras 3 4"],
    refined: Float[Tensor, "num_cameras 3 4"],
    steps: int,
    config: GuardConfig,
    matched: Optional[MatchedImages] = None,
) -> Verdict:
    """Judges one set of poses against another.

    The refined poses are aligned to the initial ones first: a drift of the whole scene, which training leaves free, is
    no difference, and both sets then see the same scene box and the same near and far planes.

    Args:
        scene: whose images, intrinsics and model settings are used.
        initial: poses of the training cameras.
        refined: the same cameras' other poses, up to a similarity.
        steps: as in `compare_errors`.
        config: settings.
        matched: matches between the training images, where there are any.
    """
    config.validate()
    aligned = align_poses(refined, initial).apply_to_poses(refined)
    seen = disagreement(matched, initial, refined) if matched is not None else None
    config = config.with_matches(seen is not None and tells(seen))
    return decide(compare_errors(scene, initial, aligned, steps, config), movement(initial, aligned), config, seen)


def judge_refinement(
    scene: PosedScene, config: GuardConfig, since_base: bool = False, matched: Optional[MatchedImages] = None
) -> Verdict:
    """Judges refined poses, as they are now, against the initial ones.

    Args:
        scene: as in `compare_poses`.
        config: settings.
        since_base: judge them against where refinement started instead, which matches may have moved.
        matched: matches between the training images, where there are any.
    """
    poses = scene.poses
    earlier = poses.base_camera_to_worlds if since_base else poses.initial_camera_to_worlds
    refined = poses.refined_camera_to_worlds().detach()
    return compare_poses(scene, earlier, refined, config.steps_for(scene.total_steps), config, matched)


def run_guard(scene: PosedScene, config: GuardConfig, matched: Optional[MatchedImages] = None) -> GuardReport:
    """Judges refined poses against the initial ones.

    Args:
        scene: of a trained run; it is left as it was.
        config: settings.
        matched: matches between the training images, where there are any.
    Raises:
        HashPoseError: the run refines no poses, or a setting is out of range.
    """
    optimizer = scene.poses
    if optimizer.config.mode == "off":
        raise HashPoseError("This run refines no poses (camera-optimizer.mode is off), so there is nothing to judge.")
    from hashpose_ns.photometry.uncertainty import pose_covariances

    begin = time.perf_counter()
    verdict = judge_refinement(scene, config, matched=matched)
    uncertainty = pose_covariances(scene, max(min(ALL_RAYS // len(verdict.first), 512), 64))
    psnr_initial, psnr_refined = verdict.psnrs()
    gains, hurt = psnr_refined - psnr_initial, verdict.hurt_cameras
    rotation_deg, translation = uncertainty.rotation_deg, uncertainty.translation
    names = optimizer.image_names or [str(index) for index in range(len(verdict.first))]
    cameras = [
        CameraReport(
            name=name,
            psnr_initial=float(psnr_initial[index]),
            psnr_refined=float(psnr_refined[index]),
            psnr_gain=float(gains[index]),
            p_hurt=float(verdict.p_camera_hurt[index]),
            hurt=index in hurt,
            doubtful=index in verdict.doubtful_cameras,
            rotation_std_deg=rotation_deg[index].tolist(),
            translation_std=translation[index].tolist(),
        )
        for index, name in enumerate(names)
    ]
    kept = not optimizer.has_moved
    return GuardReport(
        verdict="kept" if kept else verdict.verdict,
        sentence="all cameras are where training started" if kept else in_words(verdict),
        step=scene.step,
        psnr_initial=float(psnr_initial.mean()),
        psnr_refined=float(psnr_refined.mean()),
        psnr_gain=float(gains.mean()),
        log_ratio=verdict.log_ratio,
        p_helped=verdict.p_helped,
        p_hurt=verdict.p_hurt,
        hurt_cameras=[camera.name for camera in cameras if camera.hurt],
        doubtful_cameras=[camera.name for camera in cameras if camera.doubtful],
        cameras=cameras,
        settings={
            **dataclasses.asdict(config),
            "steps": config.steps_for(scene.total_steps),
            "fallback_at": list(config.fallback_at),
        },
        seconds=round(time.perf_counter() - begin, 3),
    )


def in_words(verdict: Verdict) -> str:
    """What held-out pixels say, in one sentence without its full stop."""
    count = len(verdict.first)
    before, after = verdict.psnrs()
    gain = float((after - before).mean())
    fit = f"held-out pixels of {count} images fit {'better' if gain >= 0 else 'worse'} by {abs(gain):.2f} dB"
    p = min(verdict.p_helped, verdict.p_hurt)
    if verdict.verdict != "undecided":
        return f"{fit} at the refined poses (p = {p:.1g})"
    if verdict.doubt is not None:
        return f"{fit} at the refined poses, but {DOUBTS[verdict.doubt]}"
    if not can_decide(count):
        return f"{fit} at the refined poses, but {count} images are too few to tell"
    if p < ALPHA / 2:
        return f"{fit} at the refined poses, too little to matter"
    return f"{fit} at the refined poses, no more than chance explains (p = {p:.1g})"
