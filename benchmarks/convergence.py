"""Fewer steps and a larger basin: trains variants x noise x seeds on chair at small scale, one after another, and
writes convergence.json, a table and a figure.

    python benchmarks/convergence.py --data path/to/chair --output benchmarks/results

Every run is a fork of this process, with one thread. A run that is complete in the work folder is not repeated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded
os.environ.setdefault("PYTHONWARNINGS", "ignore")

import torch
import tyro
from pose_runs import git
from rich.console import Console
from rich.table import Table

from hashpose_ns.bench.environment import processor

BASE: Dict[str, Any] = {
    "vis": "tensorboard",
    "logging.local_writer.enable": False,
    "steps_per_eval_batch": 0,
    "steps_per_eval_image": 0,
    "steps_per_eval_all_images": 0,
    "steps_per_save": 0,
    "steps_per_pose_log": 250,
    "logging.steps_per_log": 1000,
    "max_num_iterations": 3000,
    "guard.mode": "off",
    "pipeline.datamanager.camera_res_scale_factor": 0.25,
    "pipeline.datamanager.train_num_rays_per_batch": 512,
    "pipeline.held_out_rays": 0,
    "pipeline.model.num_samples": 32,
    "pipeline.model.clip_to_box": True,
    "pipeline.model.scene_box_scale": 0.8,
    "pipeline.model.field.encoding.num_levels": 8,
    "pipeline.model.field.encoding.log2_hashmap_size": 16,
    "pipeline.model.field.encoding.base_resolution": 8,
    "pipeline.model.field.encoding.max_resolution": 256,
    "pipeline.model.field.decoder.width": 64,
    "pipeline.model.field.decoder.density_activation": "exp",
    "pipeline.model.field.decoder.direction_start": 0.6,
    "pipeline.model.curriculum.window": [0.05, 0.5],
    "pipeline.model.camera_optimizer.start": 0.0,
    "pipeline.model.camera_optimizer.warmup": 0.0,
    "optimizers.encoding.optimizer.lr": 1e-2,
    "optimizers.encoding.scheduler.lr_final": 1e-3,
    "optimizers.decoder.optimizer.lr": 1e-2,
    "optimizers.decoder.scheduler.lr_final": 1e-3,
    "optimizers.camera_opt.optimizer.lr": 6e-3,
    "optimizers.camera_opt.scheduler.lr_final": 1e-4,
}
"""`hashpose-blender`, the paper's recipe, at the sizes and rates of hashpose-bench's scale `small` for large errors."""

EDGES = {"pipeline.datamanager.pixel_sampler.edge_fraction": 0.85}
DELAY = {"pipeline.model.camera_optimizer.start": 0.03}
ORBIT = {"pipeline.model.camera_optimizer.side": "orbit"}
WINDOW = {"pipeline.model.curriculum.window": [0.04, 0.5]}
RATES = {
    "optimizers.encoding.optimizer.lr": 4e-2,
    "optimizers.encoding.scheduler.lr_final": 4e-3,
    "optimizers.encoding.scheduler.cooldown": 0.25,
    "optimizers.decoder.optimizer.lr": 5e-3,
    "optimizers.decoder.scheduler.cooldown": 0.25,
    "optimizers.camera_opt.optimizer.lr": 8e-3,
    "optimizers.camera_opt.scheduler.lr_final": 1.2e-3,
    "optimizers.camera_opt.scheduler.cooldown": 0.25,
}
RECOVERY = {"recovery.at": [0.3, 0.6], "recovery.suspicion": 2.0}
BEST = {**EDGES, **DELAY, **ORBIT, **WINDOW, **RATES}

VARIANTS: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "best": BEST,
    "best + recovery": {**BEST, **RECOVERY},
}
"""Name -> settings beside BASE."""

PLAN: List[Tuple[str, float, int]] = [
    *[(variant, 0.15, seed) for seed in range(3) for variant in ("plain", "best", "best + recovery")],
    *[(variant, 0.05, 0) for variant in ("plain", "best + recovery")],
    ("best", 0.0, 0),
]
"""Variant, noise and seed of every run; noise 0 starts from the true poses."""


CODE = ("hashpose_ns", "benchmarks/convergence.py")


@dataclass
class Args:
    """Settings."""

    data: Path
    """NeRF-Synthetic chair at 400x400."""
    output: Path
    """Folder for convergence.json and convergence.png."""
    work: Path = Path("/tmp/hashpose_convergence")
    """Folder for the runs."""


def train(settings: Dict[str, Any], data: Path, folder: Path, noise: float, seed: int) -> None:
    """One training in this process."""
    from hashpose_ns.bench.configs import base_config
    from hashpose_ns.bench.settings import apply_setting
    from hashpose_ns.cameras.alignment import pose_errors
    from nerfstudio.scripts.train import _set_random_seed

    torch.set_num_threads(1)
    config = base_config("hashpose", "blender")
    for key, value in settings.items():
        apply_setting(config, key, value)
    manager = config.pipeline.datamanager
    manager.data = manager.dataparser.data = data
    manager.perturbation = dataclasses.replace(manager.perturbation, rotation=noise, translation=noise, seed=seed)
    if noise == 0:
        manager.initial_poses = "given"
    config.machine.seed = seed
    config.output_dir, config.experiment_name, config.timestamp = folder.parent, folder.name, "run"
    _set_random_seed(seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    before = time.process_time()
    trainer.train()
    poses = trainer.pipeline.model.camera_optimizer
    with torch.no_grad():
        errors = pose_errors(poses.refined_camera_to_worlds(), poses.reference_camera_to_worlds)
    log = [json.loads(line) for line in (trainer.base_dir / "pose_errors.jsonl").read_text().splitlines()]
    kept = ("step", "seconds", "loss", "_mean", "_median", "_max")
    log = [{key: round(value, 5) for key, value in entry.items() if key.endswith(kept)} for entry in log]
    record = {
        "commit": git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--", *CODE) else ""),
        "cpu_seconds": round(time.process_time() - before, 2),
        "train_seconds": log[-1]["train_seconds"],
        "rotation_deg": [round(float(value), 4) for value in errors.rotation_deg],
        "translation": [round(float(value), 5) for value in errors.translation],
        "log": log,
    }
    (folder / "record.json").write_text(json.dumps(record) + "\n")


def run(settings: Dict[str, Any], data: Path, folder: Path, noise: float, seed: int) -> Dict[str, Any]:
    """Trains in a fork and returns its record."""
    if not (folder / "record.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                output = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
                train(settings, data, folder, noise, seed)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if os.waitpid(child, 0)[1] != 0:
            raise RuntimeError(f"{folder.name} failed:\n" + (folder / "output.log").read_text()[-2000:])
    return json.loads((folder / "record.json").read_text())


def summary(record: Dict[str, Any]) -> Dict[str, float]:
    """What a table says of a run."""
    rotations = torch.tensor(record["rotation_deg"])
    return {
        "rotation_mean": float(rotations.mean()),
        "rotation_median": float(rotations.median()),
        "rotation_worst": float(rotations.max()),
        "below_half": float((rotations < 0.5).float().mean()),
        "translation_mean": float(torch.tensor(record["translation"]).mean()),
        "cpu_seconds": record["cpu_seconds"],
    }


def main(args: Args) -> None:
    """Runs the plan."""
    import hashpose_ns.methods  # noqa: F401  imported once, before the forks
    import nerfstudio.scripts.train  # noqa: F401
    from hashpose_ns.figures import plot_pose_errors

    console, runs = Console(width=160), []
    for variant, noise, seed in PLAN:
        folder = args.work / f"{variant.replace(' ', '')}_{noise}_{seed}"
        record = run({**BASE, **VARIANTS[variant]}, args.data, folder, noise, seed)
        runs.append({"variant": variant, "noise": noise, "seed": seed, **summary(record), **record})
        console.print(table(runs[-1:]))
    report = {
        "command": "python benchmarks/convergence.py --data path/to/chair --output benchmarks/results",
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_per_run": 1},
        "base": {"method": "hashpose-blender", **BASE},
        "variants": VARIANTS,
        "runs": runs,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "convergence.json").write_text(
        json.dumps(report, indent=None).replace('{"variant"', '\n{"variant"') + "\n"
    )
    logs = {
        f"{variant}, noise {noise}": [r["log"] for r in runs if (r["variant"], r["noise"]) == (variant, noise)]
        for noise in (0.15, 0.05)
        for variant in ("plain", "best", "best + recovery")
    }
    plot_pose_errors({name: log for name, log in logs.items() if log}, args.output / "convergence.png")
    console.print(table(runs))


def table(runs: List[Dict[str, Any]]) -> Table:
    """A row per run."""
    out = Table("variant", "noise", "seed", "rotation", "median", "worst", "< 0.5", "translation x100", "CPU s")
    for r in runs:
        out.add_row(
            r["variant"],
            str(r["noise"]),
            str(r["seed"]),
            *(f"{r[key]:.2f}" for key in ("rotation_mean", "rotation_median", "rotation_worst", "below_half")),
            f"{100 * r['translation_mean']:.2f}",
            f"{r['cpu_seconds']:.0f}",
        )
    return out


if __name__ == "__main__":
    main(tyro.cli(Args))
