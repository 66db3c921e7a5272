"""Whether the pose uncertainties mean something: what one run predicts against the spread of runs over seeds.

    python benchmarks/uncertainty_runs.py --seeds 5 --output benchmarks/results

Runs start from the same perturbed poses of the demo scene and differ in the seed of the field and of the rays. Writes
uncertainty.json and uncertainty.png. A run that is complete in the work folder is not repeated.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

import torch
import tyro
from guard_runs import train
from pose_runs import DEMO_SCENE, NOISE, OBJECT, git

from hashpose_ns.bench.environment import processor


@dataclass
class Args:
    """Settings."""

    output: Path
    """Folder for uncertainty.json and uncertainty.png."""
    seeds: int = 5
    """Runs."""
    steps: int = 2000
    """Steps of each run."""
    work: Path = Path("/tmp/hashpose_uncertainty_runs")
    """Folder for the runs."""


def main(args: Args) -> None:
    """Trains, compares, writes."""
    from scipy.stats import spearmanr

    from hashpose_ns.cameras.alignment import align_poses, pose_errors
    from hashpose_ns.cameras.uncertainty import pose_covariances
    from hashpose_ns.export.poses import load_trained_pipeline

    poses, predicted, errors, commands = [], [], [], []
    for seed in range(args.seeds):
        settings = (
            f"hashpose-small {OBJECT}{NOISE.format(0.05)}--pipeline.datamanager.perturbation.seed 0 "
            f"--machine.seed {seed} --max-num-iterations {args.steps} blender-data --data {DEMO_SCENE}"
        )
        commands.append(f"ns-train {settings}")
        pipeline = load_trained_pipeline(train(settings, f"seed {seed}", args), test_mode="val")
        optimizer = pipeline.model.camera_optimizer
        reference = optimizer.reference_camera_to_worlds.double()
        refined = optimizer.refined_camera_to_worlds().detach().double()
        poses.append(align_poses(refined, reference).apply_to_poses(refined))
        found = pose_errors(refined, reference)
        errors.append({"rotation_deg": found.rotation_deg.tolist(), "center": found.center.tolist()})
        covariances = pose_covariances(pipeline)
        predicted.append(
            {
                "rotation_deg": covariances.rotation_deg.norm(dim=-1).tolist(),
                "center": covariances.translation.norm(dim=-1).tolist(),
            }
        )
        print(f"seed {seed}: {found.rotation_deg.mean():.3f} deg", flush=True)
    spread = spreads(torch.stack(poses))
    summary: Dict[str, Any] = {}
    for kind in ("rotation_deg", "center"):
        said = torch.tensor([run[kind] for run in predicted]).mean(dim=0)
        wrong = torch.tensor([run[kind] for run in errors]).square().mean(dim=0).sqrt()
        summary[kind] = {
            "predicted_median": float(said.median()),
            "spread_median": float(spread[kind].median()),
            "error_median": float(wrong.median()),
            "spread_over_predicted": float((spread[kind] / said).median()),
            "error_over_predicted": float((wrong / said).median()),
            "rank_correlation_with_spread": float(spearmanr(said, spread[kind]).statistic),
            "rank_correlation_with_error": float(spearmanr(said, wrong).statistic),
        }
    content = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": git("rev-parse", "HEAD"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_per_run": 1},
        "runs": commands,
        "summary": summary,
        "spread": {kind: values.tolist() for kind, values in spread.items()},
        "predicted": predicted,
        "errors": errors,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "uncertainty.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(spread, predicted, errors, args.output / "uncertainty.png")
    print(json.dumps(summary, indent=1))


def spreads(poses: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Deviation of each camera's aligned poses [runs, cameras, 3, 4] from their mean, over runs: degrees, and scene
    units."""
    import roma

    mean_rotation = roma.special_procrustes(poses[..., :3].mean(dim=0))
    turned = torch.rad2deg(roma.rotmat_to_rotvec(mean_rotation.mT @ poses[..., :3]).norm(dim=-1))
    moved = (poses[..., 3] - poses[..., 3].mean(dim=0)).norm(dim=-1)
    freedom = len(poses) - 1
    return {
        "rotation_deg": (turned.square().sum(dim=0) / freedom).sqrt(),
        "center": (moved.square().sum(dim=0) / freedom).sqrt(),
    }


def draw(spread: Dict[str, torch.Tensor], predicted: List[Dict], errors: List[Dict], path: Path) -> None:
    """Each camera's spread and error against what was predicted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, kind, unit in zip(axes, ("rotation_deg", "center"), ("rotation [deg]", "centre [scene units]")):
        said = torch.tensor([run[kind] for run in predicted]).mean(dim=0)
        wrong = torch.tensor([run[kind] for run in errors]).square().mean(dim=0).sqrt()
        axis.loglog(said, wrong, "s", color="#D55E00", label="error against the true poses", alpha=0.8)
        axis.loglog(said, spread[kind], "o", color="#0072B2", label="spread over seeds", alpha=0.8)
        ends = [float(said.min()), float(said.max())]
        axis.loglog(ends, ends, "--", color="0.5", label="as predicted")
        axis.set_xlabel(f"predicted deviation, {unit}")
        axis.set_ylabel(unit)
        axis.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
