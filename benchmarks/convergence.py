"""Fewer steps and a larger basin: trains variants x noise x seeds on chair at small scale. Writes convergence.json,
a table and two figures.

    python benchmarks/convergence.py --data path/to/chair --output benchmarks/results

Every run is a fork of this process, with one thread. A run that is complete in the work folder is not repeated.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
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
from torch import Tensor

from hashpose_ns.bench.environment import processor
from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.runs.files import HISTORY_FILE
from hashpose_ns.runs.history import read_pose_history

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

EDGES = {"pipeline.datamanager.pixel_sampler.edge_fraction": 0.5}
DELAY = {"pipeline.model.camera_optimizer.start": 0.03}
ORBIT = {"pipeline.model.camera_optimizer.side": "orbit"}
RATES = {
    "pipeline.model.curriculum.window": [0.04, 0.5],
    "optimizers.encoding.optimizer.lr": 4e-2,
    "optimizers.encoding.scheduler.lr_final": 4e-3,
    "optimizers.encoding.scheduler.cooldown": 0.25,
    "optimizers.decoder.optimizer.lr": 5e-3,
    "optimizers.decoder.scheduler.cooldown": 0.25,
    "optimizers.camera_opt.optimizer.lr": 8e-3,
    "optimizers.camera_opt.scheduler.lr_final": 1.2e-3,
    "optimizers.camera_opt.scheduler.cooldown": 0.25,
}
IMPORTANCE = {"pipeline.model.num_samples": 24, "pipeline.model.num_importance_samples": 24}
SETTLING = {"pipeline.model.camera_optimizer.settling.decay": 0.7}
RECOVERY = {"recovery.at": [0.3, 0.45, 0.6]}
IDEAS = {
    "importance": IMPORTANCE,
    "edges": EDGES,
    "delay": DELAY,
    "orbit": ORBIT,
    "rates": RATES,
    "settling": SETTLING,
    "recovery": RECOVERY,
}
SHIFTS = {
    "pipeline.model.camera_optimizer.start": 0.0,
    "pipeline.model.camera_optimizer.rotation_start": 0.2,
    "pipeline.model.scene_box_scale": 1.4,
    "pipeline.model.field.encoding.base_resolution": 4,
}
"""For cameras that are shifted so far that their pictures lie beside the object: shifts before turns, in a box that has
room for what they show."""
GUARDED = {"guard.mode": "report", "guard.fallback_at": [0.3, 0.55]}
"""Poses that refinement does not make better go back to where they started; hashpose-object's setting."""
SHORT = {"max_num_iterations": 2400}
"""Steps where there are ideas; the plain recipe has 3000."""


def together(ideas: List[str]) -> Dict[str, Any]:
    """Settings of several ideas."""
    return {**SHORT, **{key: value for idea in ideas for key, value in IDEAS[idea].items()}}


VARIANTS: Dict[str, Dict[str, Any]] = {
    "plain": {},
    **{f"plain + {idea}": together([idea]) for idea in IDEAS if idea != "settling"},
    "best": together(list(IDEAS)),
    "best, guarded": {**together(list(IDEAS)), **GUARDED},
    "best, shifts first": {**together(list(IDEAS)), **SHIFTS},
    "best, 2000 steps": {**together(list(IDEAS)), "max_num_iterations": 2000},
    **{f"best - {idea}": together([other for other in IDEAS if other != idea]) for idea in IDEAS},
}
"""Name -> settings beside BASE. Settling alone would only lower rates that the plain recipe lowers by the clock."""

NOISES: Dict[str, Tuple[str, float, float]] = {
    "true poses": ("barf", 0.0, 0.0),
    **{str(noise): ("barf", noise, noise) for noise in (0.006, 0.05, 0.1, 0.15, 0.2, 0.3)},
    "L2G .07/.5": ("l2g", 0.07, 0.5),
}
"""Name -> protocol, rotation and translation of the perturbation."""

SEEDS = range(3)
PLAN: List[Tuple[str, str, int]] = [
    *[(variant, "0.15", seed) for seed in SEEDS for variant in ("best", "plain")],
    *[(variant, "0.3", seed) for seed in SEEDS for variant in ("best", "plain")],
    *[(variant, "L2G .07/.5", seed) for seed in SEEDS for variant in ("best, shifts first", "plain")],
    *[(variant, "0.15", seed) for seed in SEEDS for variant in VARIANTS if "best -" in variant],
    *[(variant, noise, seed) for seed in SEEDS for noise in NOISES for variant in ("best", "plain")],
    *[("best, guarded", noise, seed) for seed in SEEDS for noise in NOISES if noise not in ("0.1", "0.2")],
    *[(variant, "0.15", seed) for seed in SEEDS for variant in VARIANTS if "plain +" in variant],
    *[(variant, "0.15", seed) for seed in SEEDS for variant in ("best, 2000 steps", "best, shifts first")],
]
"""Variant, noise and seed of every run."""


ERROR = ("pose_error_after_rotation_deg_mean", "pose_change_rotation_deg_mean")
"""What the mean rotation error is called in a log, with and without noise."""
CODE = ("hashpose_ns", "benchmarks/convergence.py")


@dataclass
class Args:
    """Settings."""

    data: Path
    """NeRF-Synthetic chair at 400x400."""
    output: Path
    """Folder for convergence.json, convergence.png and convergence_ideas.png."""
    work: Path = Path("/tmp/hashpose_convergence")
    """Folder for the runs."""
    jobs: int = 2
    """Runs at a time, each with one thread; 0 trains nothing and reports on the runs that are there."""


def train(settings: Dict[str, Any], data: Path, folder: Path, noise: str, seed: int) -> None:
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
    protocol, rotation, translation = NOISES[noise]
    manager.perturbation = dataclasses.replace(
        manager.perturbation, protocol=protocol, rotation=rotation, translation=translation, seed=seed
    )
    if rotation == 0:
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


def start(settings: Dict[str, Any], data: Path, folder: Path, noise: str, seed: int) -> int:
    """Begins to train in a fork and returns its process number."""
    shutil.rmtree(folder, ignore_errors=True)  # a run that was cut off has left a log
    folder.mkdir(parents=True)
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
    return child


def run_all(args: Args, console: Console) -> List[Dict[str, Any]]:
    """Trains what has no record yet, and returns all records in the order of the plan."""
    folders = {key: args.work / "_".join(map(str, key)).translate(str.maketrans(" /+", "-_p")) for key in PLAN}
    waiting = [key for key in dict.fromkeys(PLAN) if not (folders[key] / "record.json").exists()]
    if args.jobs == 0:
        folders = {key: folder for key, folder in folders.items() if key not in waiting}
        waiting = []
    running: Dict[int, Tuple[str, str, int]] = {}
    while waiting or running:
        while waiting and len(running) < args.jobs:
            variant, noise, seed = key = waiting.pop(0)
            running[start({**BASE, **VARIANTS[variant]}, args.data, folders[key], noise, seed)] = key
        child, status = os.wait()
        key = running.pop(child)
        if status != 0:
            log = (folders[key] / "output.log").read_text()[-2000:]
            raise RuntimeError(f"{folders[key].name} failed:\n{log}")
        console.print(table([read(key, folders[key], args.data)]), len(waiting), "to go")
    return [read(key, folder, args.data) for key, folder in folders.items()]


def read(key: Tuple[str, str, int], folder: Path, data: Path) -> Dict[str, Any]:
    """A run's record with its summary."""
    record = json.loads((folder / "record.json").read_text())
    pixels = pixel_error(folder / "hashpose-blender" / "run" / HISTORY_FILE, data)
    return {"variant": key[0], "noise": key[1], "seed": key[2], **summary(record), "pixels": pixels, **record}


def pixel_error(history: Path, data: Path) -> float:
    """How far the object's points (a ball of radius 0.5 about the origin) are from where they belong in the pictures
    of the aligned cameras, in pixels, mean over points and cameras."""
    reference, focal = true_cameras(data)
    refined = torch.from_numpy(read_pose_history(history)[1][-1])
    aligned = align_poses(refined, reference).apply_to_poses(refined)
    points = torch.randn(512, 3, generator=torch.Generator().manual_seed(0))
    points = 0.5 * points / points.norm(dim=-1, keepdim=True) * torch.linspace(0, 1, 512)[:, None].pow(1 / 3)

    def project(poses: Tensor) -> Tensor:
        local = (points[None] - poses[:, None, :, 3]) @ poses[:, :, :3]
        return focal * local[..., :2] / -local[..., 2:]

    return float((project(aligned) - project(reference)).norm(dim=-1).mean())


@functools.lru_cache(maxsize=1)
def true_cameras(data: Path) -> Tuple[Tensor, float]:
    """Camera-to-world matrices and the focal length in pixels at the runs' resolution."""
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    cameras = BlenderDataParserConfig(data=data).setup().get_dataparser_outputs("train").cameras
    scale = BASE["pipeline.datamanager.camera_res_scale_factor"]
    return cameras.camera_to_worlds, float(cameras.fx[0]) * scale


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

    console = Console(width=160)
    runs = run_all(args, console)
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
    plot(runs, args.output / "convergence.png")
    plot_ideas(runs, args.output / "convergence_ideas.png")
    console.print(table(runs))


def curve(run: Dict[str, Any]) -> Tuple[List[float], List[float], List[float]]:
    """Steps, CPU seconds and mean rotation errors of a run's log."""
    errors = [next(value for key, value in entry.items() if key in ERROR) for entry in run["log"]]
    # The log's clock is the wall's, of a machine with other jobs; the run's CPU time is spread along it.
    scale = run["cpu_seconds"] / run["log"][-1]["train_seconds"]
    return [e["step"] for e in run["log"]], [scale * e["train_seconds"] for e in run["log"]], errors


def finish(figure: Any, panels: Any, path: Path) -> None:
    """Axes of errors, legends and the file."""
    for axes in panels:
        axes.set_yscale("log")
        axes.axhline(0.5, color="tab:red", linewidth=0.8, linestyle="--")
        labels = dict(zip(*axes.get_legend_handles_labels()[::-1]))
        axes.legend(labels.values(), labels.keys(), fontsize="small")
        axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


COLORS = {"plain": "tab:gray", "best": "tab:blue", "best, guarded": "tab:orange", "best, shifts first": "tab:green"}
LEAST = 0.1
"""Where the figure's logarithmic axis has poses that did not move [deg]."""


def plot(runs: List[Dict[str, Any]], path: Path) -> None:
    """Rotation error over steps and CPU time at noise 0.15, and at the end over the noise: plain against best."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (over_steps, over_time, at_end) = plt.subplots(1, 3, figsize=(17, 4.5), width_ratios=(3, 3, 4))
    names = [noise for noise in NOISES if any(r["noise"] == noise for r in runs)]
    for index, (variant, color) in enumerate(COLORS.items()):
        some = [r for r in runs if r["variant"] == variant]
        for r in (r for r in some if r["noise"] == "0.15" and variant in ("plain", "best")):
            steps, seconds, errors = curve(r)
            over_steps.plot(steps, errors, color=color, label=variant)
            over_time.plot(seconds, errors, color=color, label=variant)
        for r in some:
            place = names.index(r["noise"]) + 0.18 * (index - 1.5) + 0.05 * (r["seed"] - 1)
            at_end.plot(place, max(r["rotation_mean"], LEAST), "o", color=color, label=variant)
    over_steps.set(xlabel="step", ylabel="mean rotation error [deg]", title="noise 0.15, 3 seeds")
    over_time.set(xlabel="CPU seconds", title="the same")
    at_end.set(xlabel="noise that poses start from", title=f"at the end, a point for each seed; 0 is drawn at {LEAST}")
    at_end.set_xticks(range(len(names)), names)
    finish(figure, (over_steps, over_time, at_end), path)


def plot_ideas(runs: List[Dict[str, Any]], path: Path) -> None:
    """At noise 0.15, over steps and over CPU time, geometric means over seeds: each idea alone and each left out."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(14, 9), sharey=True)
    for row, prefix, reference in ((panels[0], "plain + ", "plain"), (panels[1], "best - ", "best")):
        variants = [v for v in VARIANTS if v.startswith(prefix) or v == reference]
        for index, variant in enumerate(variants):
            curves = [curve(r) for r in runs if r["variant"] == variant and r["noise"] == "0.15"]
            if not curves:
                continue
            steps, seconds, errors = torch.tensor(curves, dtype=torch.float64).unbind(dim=1)
            style = {"color": "black" if variant == reference else f"C{index}", "label": variant}
            row[0].plot(steps[0], errors.log().mean(0).exp(), **style)
            row[1].plot(seconds.mean(0), errors.log().mean(0).exp(), **style)
        row[0].set(xlabel="step", ylabel="mean rotation error [deg]")
        row[1].set(xlabel="CPU seconds")
    panels[0, 0].set_title("noise 0.15: plain, and each idea alone")
    panels[1, 0].set_title("best, and each idea left out")
    finish(figure, panels.flat, path)


def table(runs: List[Dict[str, Any]]) -> Table:
    """A row per run."""
    out = Table(
        "variant", "noise", "seed", "rotation", "median", "worst", "< 0.5", "pixels", "translation x100", "CPU s"
    )
    for r in runs:
        out.add_row(
            r["variant"],
            str(r["noise"]),
            str(r["seed"]),
            *(
                f"{r[key]:.2f}"
                for key in ("rotation_mean", "rotation_median", "rotation_worst", "below_half", "pixels")
            ),
            f"{100 * r['translation_mean']:.2f}",
            f"{r['cpu_seconds']:.0f}",
        )
    return out


if __name__ == "__main__":
    main(tyro.cli(Args))
