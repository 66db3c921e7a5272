"""Folders of runs as hashpose-bench leaves them, without training: real cameras and pictures, shrinking errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import torch
from PIL import Image, ImageFilter
from scenes import chair_frames, chair_image

from hashpose_ns.cameras.alignment import Similarity, pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, identity_poses, perturb_poses
from hashpose_ns.runs.files import HISTORY_FILE
from hashpose_ns.runs.history import PoseHistory

ENVIRONMENT = {
    "python": "3.11.9",
    "torch": "2.15.0",
    "nerfstudio": "1.1.5",
    "hashpose": "0.1.0",
    "processor": "A processor",
    "cores": 2,
    "gpu": None,
    "threads": 1,
}


def chair_poses(count: Optional[int] = None) -> torch.Tensor:
    """The chair's training cameras, [N, 3, 4] float64."""
    _, frames = chair_frames("train", count)
    return torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)[:, :3]


def forward_facing_poses(count: int = 18) -> torch.Tensor:
    """Cameras on a wavy grid in a plane that look the same way, [N, 3, 4] float64."""
    poses = identity_poses(count).double()
    i = torch.arange(count)
    poses[:, 0, 3], poses[:, 1, 3] = (i % 6 - 2.5) * 0.2, (i // 6 - 1) * 0.2
    poses[:, 2, 3] = 0.05 * torch.sin(i.double())
    return perturb_poses(poses, PerturbationConfig(protocol="l2g", rotation=0.05, translation=0.02, seed=9))


def make_run(
    root: Path,
    suite: str = "small",
    scene: str = "chair",
    preset: str = "hash",
    seed: int = 0,
    *,
    state: str = "done",
    start: str = "perturbed",
    reference: Optional[torch.Tensor] = None,
    left: float = 0.05,
    noise: float = 0.15,
    steps: int = 2000,
    records: int = 12,
    pictures: int = 3,
    size: int = 24,
    blur: float = 1.0,
    asked: Optional[Dict[str, Any]] = None,
    results: Optional[Dict[str, float]] = None,
) -> Path:
    """Writes one run's folder.

    Args:
        root: the bench's output folder.
        suite, scene, preset, seed: which run.
        state: done, failed (half-way) or unfinished (half-way).
        start: perturbed, identity, or given (poses are then only moved).
        reference: true poses; the chair's where none are given.
        left: fraction of the initial error at the end.
        noise: standard deviation of the twists that perturb the poses.
        steps: length of training.
        records: how often poses and errors are logged.
        pictures: number of held-out images that are rendered.
        size: their width and height.
        blur: of the renders, in pixels.
        asked: more entries of run.json, or others.
        results: more metrics of results.json, or others.
    """
    folder = root / suite / scene / preset / f"seed_{seed}"
    folder.mkdir(parents=True)
    reference = chair_poses() if reference is None else reference
    gauge = Similarity(
        torch.tensor(1.0 if start == "identity" else 1.03, dtype=torch.float64),
        torch.linalg.matrix_exp(torch.tensor([[0.0, -0.02, 0.01], [0.02, 0.0, 0.03], [-0.01, -0.03, 0.0]]).double()),
        torch.tensor([0.05, -0.02, 0.03], dtype=torch.float64),
    )

    def poses_at(error: float) -> torch.Tensor:
        if start == "identity":
            moved = perturb_poses(reference, PerturbationConfig("l2g", 0.02 * error, 0.01 * error, seed))
            moved[:, :, 3] = (1 - error) * (moved[:, :, 3] - moved[:, :, 3].mean(dim=0))
            return identity_poses(len(reference)).double() if error == 1 else moved
        moved = perturb_poses(reference, PerturbationConfig("barf", noise * error, noise * error, seed))
        return moved if error in (0, 1) else gauge.apply_to_poses(moved)

    def error_at(progress: float) -> float:
        decay = left ** min(1.0, progress / 0.8)
        return 0.0 if start == "given" and progress == 0 else decay if start != "given" else left * progress

    entries = {
        "suite": suite,
        "scale": "small",
        "scene": scene,
        "preset": preset,
        "seed": seed,
        "title": preset,
        "scenario": {"perturbed": "blender-barf-0.15", "identity": "llff-identity", "given": "blender-given"}[start],
        "settings": {"max_num_iterations": steps, "machine.seed": seed, "pipeline.model.camera_optimizer.mode": "SE3"},
        "base_method": "hashpose-small",
        "command": f"hashpose-bench run {suite} --scenes {scene} --presets {preset} --seeds {seed}-{seed}",
        "commit": "0123456789ab",
        "environment": ENVIRONMENT,
        "started": f"2025-01-01T00:{seed:02d}:00",
        **(asked or {}),
    }
    (folder / "run.json").write_text(json.dumps(entries))
    (folder / "log.txt").write_text("Training\n")

    initial = poses_at(error_at(0.0))
    before = pose_errors(initial, reference).summary("pose_error_before_")
    history = PoseHistory(folder / HISTORY_FILE)
    lines = []
    for k in range(records if state == "done" else records // 2):
        progress = (k / (records - 1)) ** 2
        step, poses = round(progress * (steps - 1)), poses_at(error_at(progress))
        record = {"step": step, "train_seconds": 0.02 * step + 0.5, "train_loss": 0.1}
        if start == "given":
            record.update(pose_errors(poses, reference).summary("pose_change_"))
        else:
            record.update(before, **pose_errors(poses, reference).summary("pose_error_after_"))
        record["held_out_psnr"] = 14.0 + 14 * (1 - math.exp(-3 * progress)) - blur + 0.2 * seed
        lines.append(json.dumps(record))
        history.append(step, poses.numpy())
    (folder / "pose_errors.jsonl").write_text("\n".join(lines) + "\n")

    if state == "failed":
        failure = {
            "error": "The loss is not a number",
            "step": steps // 2,
            "log_tail": ["step 1", "Error: <loss> | nan"],
        }
        (folder / "failure.json").write_text(json.dumps(failure))
    if state != "done":
        return folder

    refined = poses_at(error_at(1.0))
    errors, errors_before = pose_errors(refined, reference), pose_errors(initial, reference)
    measures = {name: getattr(errors, name).numpy() for name in ("rotation_deg", "translation", "center")}
    measures.update({f"{name}_before": getattr(errors_before, name).numpy() for name in list(measures)})
    np.savez(
        folder / "cameras.npz",
        initial=initial.numpy(),
        refined=refined.numpy(),
        reference=reference.numpy(),
        names=np.array([f"r_{i}.png" for i in range(len(reference))]),
        **measures,
    )
    psnrs = _render(folder / "renders", pictures, size, blur) or [25.0]
    metrics = {"psnr_tto": float(np.mean(psnrs)), "ssim_tto": 0.9, "psnr_aligned": float(np.mean(psnrs)) - 1.5}
    metrics["ssim_aligned"] = 0.88
    if start == "given":
        metrics.update(errors.summary("pose_change_"))
    else:
        metrics.update(before, **errors.summary("pose_error_after_"))
        exact = pose_errors(refined, reference, barf_exact=True).rotation_deg
        metrics["barf_rotation_deg_mean"] = float(exact.mean())
    outcome = {
        "results": {**metrics, **(results or {})},
        "steps": steps,
        "train_seconds": 0.02 * steps + seed,
        "ms_per_step": 20.0 + 0.1 * seed,
        "eval_seconds": 31.0,
        "peak_memory_mb": 812.0,
        "parameters": 1234567,
    }
    (folder / "results.json").write_text(json.dumps(outcome))
    return folder


def _render(folder: Path, pictures: int, size: int, blur: float) -> list:
    """Photographs beside blurred ones; the PSNR of each."""
    folder.mkdir()
    _, frames = chair_frames("test", pictures)
    psnrs = []
    for i, frame in enumerate(frames):
        photograph = chair_image(frame, size, white=True)
        render = photograph.filter(ImageFilter.GaussianBlur(blur))
        both = np.concatenate([np.asarray(photograph), np.asarray(render)], axis=1)
        for variant in ("tto", "aligned"):
            Image.fromarray(both).save(folder / f"eval_{variant}_img_{7 * i:04d}.png")
        difference = np.asarray(photograph, float) - np.asarray(render, float)
        psnrs.append(-10 * math.log10(np.mean((difference / 255) ** 2)))
    return psnrs
