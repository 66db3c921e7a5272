"""What only a GPU can tell, in one command: backends against float64, milliseconds a step, chair by BARF's protocol.

    python benchmarks/gpu_chair.py --data path/to/chair --output $OUT --steps 20000

Needs nerfstudio, roma and pytest importable; the package itself need not be installed. Writes gpu_chair.json and
prints a table. Not run on a GPU so far: no number in this repository comes from it.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from record import REPOSITORY, show, write_record

from hashpose_ns.runs.files import CONFIG, read_pose_log

PLUGINS = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    "NERFSTUDIO_METHOD_CONFIGS": "hashpose-blender=hashpose_ns.methods:blender",
    "PYTHONWARNINGS": "ignore",
}

RECIPES = {
    "paper": "",
    "best": "--pipeline.model.num-samples 64 --pipeline.model.num-importance-samples 64 --recovery.at 0.3 0.45 0.6 "
    "--pipeline.datamanager.pixel-sampler.edge-fraction 0.5 --pipeline.model.curriculum.window 0.04 0.5 "
    "--pipeline.model.clip-to-box True --pipeline.model.scene-box-scale 0.8 "
    "--pipeline.model.camera-optimizer.side orbit --pipeline.model.camera-optimizer.start 0.03 "
    "--pipeline.model.camera-optimizer.warmup 0 --pipeline.model.camera-optimizer.settling.decay 0.7 "
    "--pipeline.model.field.decoder.direction-start 0.6 "
    "--optimizers.encoding.optimizer.lr 4e-2 --optimizers.encoding.scheduler.lr-final 4e-3 "
    "--optimizers.encoding.scheduler.cooldown 0.25 --optimizers.decoder.optimizer.lr 1e-3 "
    "--optimizers.decoder.scheduler.lr-final 1e-4 --optimizers.decoder.scheduler.cooldown 0.25 "
    "--optimizers.camera-opt.optimizer.lr 8e-3 --optimizers.camera-opt.scheduler.lr-final 1e-3 "
    "--optimizers.camera-opt.scheduler.cooldown 0.25",
}
"""Name -> flags. `best` is what benchmarks/suites/convergence.yaml found, with a rate for the larger decoder."""
SCORES = {
    "rotation [deg]": "pose_error_after_rotation_deg_mean",
    "translation": "pose_error_after_translation_mean",
    "PSNR aligned": "psnr_aligned",
    "PSNR optimised": "psnr_tto",
}
"""Columns of the table and where ns-eval has them."""


@dataclass
class Args:
    """Settings."""

    data: Path
    """NeRF-Synthetic scene at 400x400, with transforms_train.json and transforms_test.json."""
    output: Path
    """Folder for gpu_chair.json."""
    steps: int = 20_000
    """Training steps; the paper takes 200 000."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the perturbation and of training."""
    recipes: tuple[Literal["paper", "best"], ...] = ("paper", "best")
    """The preset as it is, and with what a study at small scale found (docs/convergence.md)."""
    eval_images: int = 25
    """Held-out images to score, of 200."""
    tests: bool = True
    """Whether to run the encoding's tests first."""
    flags: str = ""
    """More flags for ns-train in one string, such as --flags="--pipeline.model.field.encoding.gradient linear"."""


def run(command: list[str], log: Path) -> tuple[int, float]:
    """Runs a command with this package as a plugin; exit code and seconds."""
    begin = time.perf_counter()
    with log.open("w") as output:
        done = subprocess.run(command, env={**os.environ, **PLUGINS}, stdout=output, stderr=subprocess.STDOUT)
    return done.returncode, time.perf_counter() - begin


def train_and_evaluate(args: Args, recipe: str, seed: int) -> dict[str, Any]:
    """One training by `ns-train hashpose-blender` and its ns-eval."""
    name, work = f"{recipe}_{seed}", args.output / "runs"
    train = [
        *(sys.executable, "-m", "nerfstudio.scripts.train", "hashpose-blender", "--output-dir", str(work)),
        *("--experiment-name", name, "--timestamp", "run", "--machine.seed", str(seed), "--vis", "tensorboard"),
        *("--max-num-iterations", str(args.steps), "--pipeline.datamanager.perturbation.seed", str(seed)),
        *("--pipeline.eval-num-images", str(args.eval_images), "--logging.local-writer.enable", "False"),
        *("--steps-per-eval-batch", "0", "--steps-per-eval-image", "0", "--steps-per-eval-all-images", "0"),
        *shlex.split(RECIPES[recipe]),
        *shlex.split(args.flags),
        *("blender-data", "--data", str(args.data)),
    ]
    folder = work / name / "hashpose-blender" / "run"
    code, seconds = run(train, args.output / f"{name}_train.log")
    result: dict[str, Any] = {
        "recipe": recipe,
        "seed": seed,
        "command": train,
        "exit_code": code,
        "wall_seconds": seconds,
    }
    if code:
        return result
    log = read_pose_log(folder)
    middle = log[(len(log) - 1) // 2]
    # The second half of training: start-up, compilation and the first steps are not what a step costs.
    seconds, steps = (log[-1][key] - middle[key] for key in ("train_seconds", "step"))
    result["ms_per_step"] = 1e3 * seconds / steps
    result["log"] = log
    scores = args.output / f"{name}_eval.json"
    evaluate = [sys.executable, "-m", "nerfstudio.scripts.eval", "--load-config", str(folder / CONFIG)]
    code, result["eval_seconds"] = run([*evaluate, "--output-path", str(scores)], args.output / f"{name}_eval.log")
    if code == 0:
        result["results"] = json.loads(scores.read_text())["results"]
    return result


def main(args: Args) -> None:
    """Runs everything and writes the JSON after every part, so that a time limit loses little."""
    args.output.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {"device": device, "runs": []}
    if args.tests:
        report["encoding_tests_exit_code"], _ = run(
            [sys.executable, "-m", "pytest", str(REPOSITORY / "tests" / "encoding")], args.output / "encoding_tests.log"
        )
    rows = []
    for recipe, seed in itertools.product(args.recipes, args.seeds):
        result = train_and_evaluate(args, recipe, seed)
        report["runs"].append(result)
        write_record(args.output / "gpu_chair.json", **report)
        scores = result.get("results", {})
        row = {"recipe": recipe, "seed": seed, "ms a step": result.get("ms_per_step")}
        rows.append({**row, **{column: scores.get(key) for column, key in SCORES.items()}})
    if args.tests:
        print(f"encoding tests: exit code {report['encoding_tests_exit_code']}")
    show(f"hashpose-blender on {device}, {args.steps} steps", rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
