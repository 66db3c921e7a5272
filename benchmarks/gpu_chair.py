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
from typing import Dict, List, Literal, Tuple

import torch
import tyro
from record import REPOSITORY, write_record
from rich.console import Console
from rich.table import Table

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


@dataclass
class Args:
    """Settings."""

    data: Path
    """NeRF-Synthetic scene at 400x400, with transforms_train.json and transforms_test.json."""
    output: Path
    """Folder for gpu_chair.json."""
    steps: int = 20_000
    """Training steps; the paper takes 200 000."""
    seeds: Tuple[int, ...] = (0,)
    """Seeds of the perturbation and of training."""
    recipes: Tuple[Literal["paper", "best"], ...] = ("paper", "best")
    """The preset as it is, and with what a study at small scale found (docs/convergence.md)."""
    eval_images: int = 25
    """Held-out images to score, of 200."""
    tests: bool = True
    """Whether to run the encoding's tests first."""
    flags: str = ""
    """More flags for ns-train in one string, such as --flags="--pipeline.model.field.encoding.gradient linear"."""


def run(command: List[str], log: Path) -> Tuple[int, float]:
    """Runs a command with this package as a plugin; exit code and seconds."""
    begin = time.perf_counter()
    with log.open("w") as output:
        code = subprocess.run(
            command, env={**os.environ, **PLUGINS}, stdout=output, stderr=subprocess.STDOUT
        ).returncode
    return code, time.perf_counter() - begin


def train_and_evaluate(args: Args, recipe: str, seed: int) -> Dict:
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
    result: Dict = {"recipe": recipe, "seed": seed, "command": train, "exit_code": code, "wall_seconds": seconds}
    if code:
        return result
    log = [json.loads(line) for line in (folder / "pose_errors.jsonl").read_text().splitlines()]
    middle = log[(len(log) - 1) // 2]
    # The second half of training: start-up, compilation and the first steps are not what a step costs.
    result["ms_per_step"] = (
        1e3 * (log[-1]["train_seconds"] - middle["train_seconds"]) / (log[-1]["step"] - middle["step"])
    )
    result["log"] = log
    scores = args.output / f"{name}_eval.json"
    evaluate = [sys.executable, "-m", "nerfstudio.scripts.eval", "--load-config", str(folder / "config.yml")]
    code, result["eval_seconds"] = run([*evaluate, "--output-path", str(scores)], args.output / f"{name}_eval.log")
    if code == 0:
        result["results"] = json.loads(scores.read_text())["results"]
    return result


def main(args: Args) -> None:
    """Runs everything and writes the JSON after every part, so that a time limit loses little."""
    args.output.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    report: Dict = {"device": device, "runs": []}
    if args.tests:
        report["encoding_tests_exit_code"], _ = run(
            [sys.executable, "-m", "pytest", str(REPOSITORY / "tests" / "encoding")], args.output / "encoding_tests.log"
        )
    table = Table(title=f"hashpose-blender on {device}, {args.steps} steps")
    columns = ("recipe", "seed", "ms a step", "rotation [deg]", "translation x100", "PSNR aligned", "PSNR optimised")
    for column in columns:
        table.add_column(column)
    for recipe, seed in itertools.product(args.recipes, args.seeds):
        result = train_and_evaluate(args, recipe, seed)
        report["runs"].append(result)
        write_record(args.output / "gpu_chair.json", **report)
        scores = result.get("results", {})
        table.add_row(
            recipe,
            str(seed),
            f"{result.get('ms_per_step', float('nan')):.2f}",
            f"{scores.get('pose_error_after_rotation_deg_mean', float('nan')):.3f}",
            f"{100 * scores.get('pose_error_after_translation_mean', float('nan')):.3f}",
            f"{scores.get('psnr_aligned', float('nan')):.2f}",
            f"{scores.get('psnr_tto', float('nan')):.2f}",
        )
    if args.tests:
        Console().print(f"encoding tests: exit code {report['encoding_tests_exit_code']}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
