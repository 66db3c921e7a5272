"""Named measures that suites take of a run beside its scores: `(pipeline, seed, **options) -> numbers`."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Union

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.files import read_json

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline

Poses = Float[Tensor, "num_cameras 3 4"]


def pixels(pipeline: HashPosePipeline, seed: int, radius: float = 0.5) -> Dict[str, Any]:
    """How far off the refined cameras see the points of a ball about the origin, in pixels, see `pixel_error`.

    Args:
        pipeline: a trained one, with reference poses.
        seed: not used.
        radius: of the ball, in scene units; the object's.
    """
    optimizer = pipeline.model.camera_optimizer
    refined, reference = optimizer.refined_camera_to_worlds().detach(), optimizer.reference_camera_to_worlds
    return {"pixels": pixel_error(pipeline.datamanager.train_dataset.cameras, reference, refined, radius)}


def guard(
    pipeline: HashPosePipeline,
    seed: int,
    initial: Union[str, float] = "initial",
    refined: Union[str, float] = "refined",
    cameras: int = 0,
    steps: int = 200,
) -> Dict[str, Any]:
    """The guard's verdict on two sets of poses, and their true errors.

    Args:
        pipeline: one with reference poses.
        seed: of the noise.
        initial: what is judged against: `initial`, `refined` or `reference` poses, `frame` for the reference ones in
            another frame, or the size of BARF's noise on the reference ones by its mean rotation in degrees.
        refined: what is judged, likewise.
        cameras: how many cameras of `refined` are moved, the others keeping those of `initial`; 0 for all.
        steps: of the guard's training.
    """
    from hashpose_ns.cameras.alignment import pose_errors
    from hashpose_ns.guard.compare import compare_poses
    from hashpose_ns.guard.config import GuardConfig

    reference = pipeline.model.camera_optimizer.reference_camera_to_worlds
    pair = [_poses(pipeline, which, 2 * seed + offset) for offset, which in enumerate((initial, refined))]
    if cameras:
        moved = [(7 * seed + 13 * index) % len(reference) for index in range(cameras)]
        some = pair[0].clone()
        some[moved] = pair[1][moved].to(some)
        pair[1] = some
    begin = time.process_time()
    verdict = compare_poses(pipeline.scene, pair[0], pair[1], steps, GuardConfig())
    found = {
        "verdict": verdict.verdict,
        "log_ratio": verdict.log_ratio,
        "p_helped": verdict.p_helped,
        "p_hurt": verdict.p_hurt,
        "psnr_initial": float((-10 * verdict.first.log10()).mean()),
        "psnr_refined": float((-10 * verdict.second.log10()).mean()),
        "hurt_cameras": verdict.hurt_cameras,
        "cpu_seconds": round(time.process_time() - begin, 2),
    }
    for name, poses in zip(("initial", "refined"), pair):
        found[f"error_{name}_deg"] = float(pose_errors(poses, reference).rotation_deg.mean())
        found[f"error_{name}_pixels"] = pixel_error(pipeline.datamanager.train_dataset.cameras, reference, poses, 0.75)
    return found


def _poses(pipeline: HashPosePipeline, which: Union[str, float], seed: int) -> Poses:
    from hashpose_ns.cameras.alignment import Similarity
    from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses

    optimizer = pipeline.model.camera_optimizer
    reference = optimizer.reference_camera_to_worlds
    if which == "initial":
        return optimizer.initial_camera_to_worlds
    if which == "refined":
        return optimizer.refined_camera_to_worlds().detach()
    if which == "reference":
        return reference
    if which == "frame":
        rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
        frame = Similarity(torch.tensor(1.3).double(), rotation * torch.linalg.det(rotation), torch.ones(3).double())
        return frame.apply_to_poses(reference)
    if isinstance(which, str):
        raise HashPoseError(
            f"The guard cannot judge poses '{which}'; give initial, refined, reference, frame or degrees."
        )
    deviation = which / 57.2958 / 1.596  # of each component: the mean length of a normal vector is 1.596 deviations
    return perturb_poses(reference, PerturbationConfig(rotation=deviation, translation=deviation, seed=seed))


def uncertainty(pipeline: HashPosePipeline, seed: int) -> Dict[str, Any]:
    """Each camera's predicted standard deviation (norms over axes): `rotation_deg`, `center` in scene units."""
    from hashpose_ns.photometry.uncertainty import pose_covariances

    found = pose_covariances(pipeline.scene)
    return {
        "rotation_deg": found.rotation_deg.norm(dim=-1).tolist(),
        "center": found.translation.norm(dim=-1).tolist(),
    }


def verdicts(pipeline: HashPosePipeline, seed: int) -> Dict[str, Any]:
    """What the run's folder says without ground truth: `matches`, the gate's verdict on a start from matches, and
    `guard`, its verdict on the refined poses. Nothing of what did not judge.

    Args:
        pipeline: a trained one, loaded from its folder.
        seed: not used.
    """
    folder, found = pipeline.config.run_folder, {}
    for name in ("matches", "guard"):
        verdict = (read_json(folder / f"{name}.json") or {}).get("verdict") if folder is not None else None
        if isinstance(verdict, str):
            found[name] = verdict
    return found


def epipolar(pipeline: HashPosePipeline, seed: int) -> Dict[str, Any]:
    """Median distance in pixels of verified matches from their epipolar lines, `median_px` by the refined poses,
    `median_px_initial` by the initial and `median_px_reference` by the reference ones, and `agreeing`, the fraction of
    matches within two pixels by the refined ones. It knows no frame, and so no turn that all cameras share.

    Args:
        pipeline: one with reference poses.
        seed: not used.
    """
    from hashpose_ns.matches.config import MatchConfig
    from hashpose_ns.matches.features import NoMatches
    from hashpose_ns.matches.gate import support
    from hashpose_ns.matches.strategy import matched_images

    try:
        images = matched_images(pipeline.scene, MatchConfig())
    except NoMatches as reason:
        raise HashPoseError(f"The measure 'epipolar' cannot be taken, because {reason}.") from reason
    poses = pipeline.model.camera_optimizer
    found = {}
    for name, of in (
        ("", poses.refined_camera_to_worlds().detach()),
        ("_initial", poses.initial_camera_to_worlds),
        ("_reference", poses.reference_camera_to_worlds),
    ):
        seen = support(images, of.double().cpu().numpy())
        if math.isfinite(seen.median):
            found[f"median_px{name}"] = round(seen.median, 4)
        found.update({} if name else {"agreeing": round(seen.share, 4)})
    return found


MEASURES: Dict[str, Callable[..., Dict[str, Any]]] = {
    "pixels": pixels,
    "guard": guard,
    "uncertainty": uncertainty,
    "verdicts": verdicts,
    "epipolar": epipolar,
}
"""All measures by name."""
OF_FIELDS = ("uncertainty", "verdicts")
"""Measures that need a trained field, which runs of structure from motion do without."""


def pixel_error(cameras: Any, reference: Poses, poses: Poses, radius: float) -> float:
    """Mean distance in pixels at which two sets of poses see points of a ball about the origin.

    The sets are compared after the similarity of the points that brings them closest (from the alignment of the
    cameras, by three Gauss-Newton steps): what no photograph can tell is left out. Lens distortion is ignored, and so
    are points behind a camera.

    Args:
        cameras: nerfstudio's, for focal lengths.
        reference: poses of the cameras.
        poses: other poses of the same cameras, in any frame.
        radius: of the ball, in scene units.
    """
    import roma

    from hashpose_ns.cameras.alignment import align_poses

    reference, focal = reference.double().cpu(), cameras.fx.double().cpu().view(-1, 1, 1)
    aligned = align_poses(poses.double().cpu(), reference).apply_to_poses(poses.double().cpu())
    draws = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = radius * draws / draws.norm(dim=-1, keepdim=True) * torch.linspace(0, 1, 300).double()[:, None].pow(1 / 3)

    def seen(from_poses: Poses, at: Float[Tensor, "points 3"]) -> Float[Tensor, "num_cameras points 2"]:
        local = (at - from_poses[:, None, :, 3]) @ from_poses[:, :, :3]
        return torch.where(local[..., 2:] < -0.2, -focal * local[..., :2] / local[..., 2:], 0.0)

    target = seen(reference, points)

    def residual(change: Float[Tensor, "7"]) -> Tensor:
        turned = points @ roma.rotvec_to_rotmat(change[:3]).T
        return (seen(aligned, (1 + change[6]) * turned + change[3:6]) - target).flatten()

    change, steps = torch.zeros(7, dtype=torch.float64), 1e-5 * torch.eye(7, dtype=torch.float64)
    for _ in range(3):
        jacobian = torch.stack([(residual(change + step) - residual(change - step)) / 2e-5 for step in steps], dim=-1)
        change = change - torch.linalg.lstsq(jacobian, residual(change)[:, None]).solution[:, 0]
    return float(residual(change).view(-1, 2).norm(dim=-1).mean())
