"""Trains variants x seeds through `ns-train` and collects their pose errors: one JSON file, one figure, one table.

    python benchmarks/pose_runs.py --suite readings --seeds 3 --output benchmarks/results

Runs are separate processes with one thread each. A run that is complete in the work folder is not repeated.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, List, Tuple

import tyro
from rich.console import Console
from rich.table import Table

from hashpose_ns.bench.environment import processor

REPOSITORY = Path(__file__).parent.parent
DEMO_SCENE = REPOSITORY / "hashpose_ns" / "data" / "demo_chair"
QUIET = shlex.split(
    "--vis tensorboard --logging.local-writer.enable False --steps-per-save 1000000 --steps-per-eval-batch 1000000 "
    "--steps-per-eval-image 1000000 --steps-per-eval-all-images 1000000 --steps-per-pose-log 250 --guard.mode off"
)
OBJECT = (
    "--pipeline.datamanager.initial-poses perturbed --pipeline.model.scene none --pipeline.model.clip-to-box True "
    "--pipeline.model.scene-box-scale 0.8 --pipeline.model.sampler uniform --pipeline.model.near-plane 2 "
    "--pipeline.model.far-plane 6 --pipeline.model.background-color white "
)
NOISE = "--pipeline.datamanager.perturbation.rotation {0} --pipeline.datamanager.perturbation.translation {0} "
READING = "--pipeline.model.field.encoding.gradient "


@dataclass
class Suite:
    """Variants of one experiment."""

    method: str
    """Method name."""
    settings: str
    """Flags that all variants share."""
    parser: str
    """Dataparser and its flags; {data} stands for the scene's folder."""
    variants: Dict[str, str] = field(default_factory=lambda: {"default": ""})
    """Name -> flags."""
    data: Path = DEMO_SCENE
    """The scene, where --data is not given."""


BLENDER = "blender-data --data {data}"
CPU_FIELD = (
    "--pipeline.datamanager.train-num-rays-per-batch 512 --pipeline.model.num-samples 32 "
    "--pipeline.datamanager.pixel-sampler.edge-fraction 0.5 --pipeline.model.field.decoder.width 64 "
    "--pipeline.model.field.decoder.density-activation exp --pipeline.model.field.encoding.num-levels 8 "
    "--pipeline.model.field.encoding.log2-hashmap-size 16 --pipeline.model.field.encoding.base-resolution 8 "
    "--pipeline.model.field.encoding.max-resolution 256 --optimizers.encoding.optimizer.lr 1e-2 "
    "--optimizers.encoding.scheduler.lr-final 1e-3 --optimizers.decoder.optimizer.lr 1e-2 "
    "--optimizers.decoder.scheduler.lr-final 1e-3 --optimizers.camera-opt.scheduler.lr-final 1e-4 "
)
"""Sizes and rates of hashpose-small, for the methods whose defaults are the paper's."""
EVEN = "--pipeline.model.num-samples 32 --pipeline.model.num-importance-samples 0"
IMPORTANCE = "--pipeline.model.num-samples 24 --pipeline.model.num-importance-samples 24"
GUARDED = " --guard.mode report --guard.fallback-at 0.3 0.55"
SAMPLES = {"default": "", "even samples": EVEN, "guarded": GUARDED}
SAMPLES_OF_LLFF = {"even samples": "", "importance samples": IMPORTANCE}
LATE_DIRECTIONS = "--pipeline.model.field.decoder.direction-start 0.6 "
COARSE_FIRST = (
    LATE_DIRECTIONS + "--optimizers.camera-opt.optimizer.lr 6e-3 "
    "--pipeline.model.camera-optimizer.start 0 --pipeline.model.camera-optimizer.warmup 0 "
)
"""Large errors: poses fast and from the start, view directions late."""
NOISY_CHAIR = (
    OBJECT + NOISE.format(0.15) + "--pipeline.datamanager.camera-res-scale-factor 0.25 --max-num-iterations 2500 "
    "--pipeline.model.curriculum.mode lr --pipeline.model.curriculum.window 0.05 0.5 " + COARSE_FIRST
)
"""NeRF-Synthetic chair at 100x100 with all 100 training views; --data is the scene's folder at 400x400."""
FERN = (
    CPU_FIELD + "--pipeline.datamanager.camera-res-scale-factor 0.25 --max-num-iterations 12000 "
    "--pipeline.datamanager.pixel-sampler.edge-fraction 0 --pipeline.model.curriculum.mode none "
    "--pipeline.model.field.decoder.direction-start 0.6 --pipeline.model.camera-optimizer.start 0.005 "
    "--pipeline.model.camera-optimizer.warmup 0.005 --optimizers.encoding.optimizer.lr 3e-3 "
    "--optimizers.camera-opt.scheduler.lr-final 5e-4 "
)

SUITES = {
    "readings": Suite(
        "hashpose-small",
        NOISY_CHAIR,
        BLENDER,
        {
            "lambda 0": READING + "linear",
            "product": READING + "product",
            "product_norm": READING + "product_norm",
            "axis": READING + "axis",
        },
    ),
    "curriculum": Suite(
        "hashpose-small",
        NOISY_CHAIR,
        BLENDER,
        {mode: f"--pipeline.model.curriculum.mode {mode}" for mode in ("mask", "repeat", "none")},
    ),
    "directions": Suite(
        "hashpose-small", NOISY_CHAIR, BLENDER, {"from the start": "--pipeline.model.field.decoder.direction-start 0"}
    ),
    "blender": Suite(
        "hashpose-blender",
        CPU_FIELD + COARSE_FIRST + "--pipeline.datamanager.camera-res-scale-factor 0.25 --max-num-iterations 16000 "
        "--pipeline.model.clip-to-box True --pipeline.model.scene-box-scale 0.8 "
        "--pipeline.model.curriculum.window 0.02 0.2 --pipeline.eval-num-images 25",
        BLENDER,
    ),
    "fern": Suite("hashpose-llff", FERN, "llff-data --data {data}", SAMPLES_OF_LLFF),
    "fern_given": Suite(
        "hashpose-llff",
        FERN + "--pipeline.datamanager.initial-poses given",
        "llff-data --data {data}",
        {**SAMPLES_OF_LLFF, "guarded": IMPORTANCE + GUARDED},
    ),
    "noise": Suite(
        "hashpose-small",
        OBJECT + LATE_DIRECTIONS,
        BLENDER,
        {f"noise {noise}": NOISE.format(noise) for noise in (0.05, 0.1, 0.15)},
    ),
    "small_choices": Suite(
        "hashpose-small",
        OBJECT + NOISE.format(0.05) + LATE_DIRECTIONS + "--max-num-iterations 2500",
        BLENDER,
        {
            "base": "",
            "curriculum lr, 0 to 0.3": "--pipeline.model.curriculum.mode lr --pipeline.model.curriculum.window 0 0.3",
            "softplus": "--pipeline.model.field.decoder.density-activation softplus",
            "float32": "--pipeline.model.field.decoder.precision float32",
            "directions from the start": "--pipeline.model.field.decoder.direction-start 0",
            "uniform pixels": "--pipeline.datamanager.pixel-sampler.edge-fraction 0",
        },
    ),
    "fox": Suite(
        "hashpose-small",
        LATE_DIRECTIONS
        + "--pipeline.datamanager.initial-poses perturbed --pipeline.datamanager.perturbation.protocol l2g "
        "--pipeline.datamanager.perturbation.rotation 0.022 --pipeline.datamanager.perturbation.translation 0 "
        "--pipeline.datamanager.camera-res-scale-factor 0.5 --max-num-iterations 6000 --pipeline.eval-num-images 5",
        "nerfstudio-data --data {data} --eval-mode all",
        SAMPLES,
    ),
    "fox_given": Suite(
        "hashpose-small",
        LATE_DIRECTIONS + "--pipeline.datamanager.camera-res-scale-factor 0.5 --max-num-iterations 6000",
        "nerfstudio-data --data {data} --eval-mode all",
        SAMPLES,
    ),
}


@dataclass
class Args:
    """Settings."""

    suite: str
    """One of the suites in this file, such as readings, curriculum, blender, fern or fox."""
    output: Path
    """Folder for SUITE.json and SUITE.png."""
    seeds: int = 1
    """Seeds 0 .. n - 1, of the perturbation and of training."""
    data: Path = Path()
    """Another scene than the suite's."""
    work: Path = Path("/tmp/hashpose_pose_runs")
    """Folder for the runs."""
    jobs: int = 2
    """Runs at a time."""
    variants: Tuple[str, ...] = ()
    """Only these of the suite's variants."""


def run(suite: Suite, args: Args, variant: str, seed: int) -> Tuple[str, int, List[str], List[Dict[str, float]]]:
    """Trains one variant with one seed and returns its pose log."""
    from hashpose_ns.figures import read_pose_log

    name = f"{args.suite}_{variant.replace(' ', '_').replace(',', '')}_{seed}"
    data = args.data if args.data != Path() else suite.data
    command = [
        "ns-train", suite.method, "--output-dir", str(args.work), "--experiment-name", name, "--timestamp", "run",
        "--machine.seed", str(seed), "--pipeline.datamanager.perturbation.seed", str(seed),
        *QUIET, *shlex.split(suite.settings), *shlex.split(suite.variants[variant]),
        *shlex.split(suite.parser.format(data=data)),
    ]  # fmt: skip
    log = args.work / name / suite.method / "run" / "pose_errors.jsonl"
    if not (log.parent / "nerfstudio_models").exists():  # written when training has ended
        log.unlink(missing_ok=True)
        program = str(Path(sys.executable).parent / command[0])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return variant, seed, command, read_pose_log(log)


def main(args: Args) -> None:
    """Runs a suite."""
    from hashpose_ns.figures import plot_pose_errors

    console, suite = Console(), SUITES[args.suite]
    if args.variants:
        suite = replace(suite, variants={name: suite.variants[name] for name in args.variants})
    pairs = [(variant, seed) for seed in range(args.seeds) for variant in suite.variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(run, suite, args, variant, seed) for variant, seed in pairs]
        results = []
        for future in futures:
            results.append(future.result())
            variant, seed, _, records = results[-1]
            error = final(records, "rotation_deg_mean")
            console.print(f"[{len(results)}/{len(pairs)}] {variant}, seed {seed}: {error:.3f} deg")
    commit = git("rev-parse", "HEAD")
    if git("status", "--porcelain", "--", "hashpose_ns", "benchmarks/pose_runs.py"):
        commit += " with uncommitted changes"
    args.output.mkdir(parents=True, exist_ok=True)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_per_run": 1},
        "runs": [
            {"variant": variant, "seed": seed, "command": shlex.join(command), "log": records}
            for variant, seed, command, records in results
        ],
    }
    (args.output / f"{args.suite}.json").write_text(json.dumps(report, indent=1) + "\n")
    logs = {name: [records for variant, _, _, records in results if variant == name] for name in suite.variants}
    plot_pose_errors(logs, args.output / f"{args.suite}.png", args.suite)
    console.print(table(results))


def final(records: List[Dict[str, float]], measure: str) -> float:
    """An error at the end of training; the movement, where training started from the given poses."""
    return records[-1].get(f"pose_error_after_{measure}", records[-1].get(f"pose_change_{measure}", float("nan")))


def table(results: List[Tuple[str, int, List[str], List[Dict[str, float]]]]) -> Table:
    """Mean and spread over seeds per variant."""
    rows: Dict[str, List[List[Dict[str, float]]]] = {}
    for variant, _, _, records in results:
        rows.setdefault(variant, []).append(records)
    out = Table()
    for column in (
        "variant",
        "seeds",
        "before [deg]",
        "after: mean of seeds",
        "each seed",
        "translation x100",
        "worst camera",
    ):
        out.add_column(column)
    for variant, runs in rows.items():
        after = [final(records, "rotation_deg_mean") for records in runs]
        out.add_row(
            variant,
            str(len(runs)),
            f"{statistics.mean(r[0].get('pose_error_before_rotation_deg_mean', 0.0) for r in runs):.2f}",
            f"{statistics.mean(after):.2f} +- {statistics.stdev(after) if len(after) > 1 else 0:.2f}",
            " ".join(f"{value:.2f}" for value in after),
            f"{100 * statistics.mean(final(r, 'translation_mean') for r in runs):.2f}",
            f"{max(final(r, 'rotation_deg_max') for r in runs):.2f}",
        )
    return out


def git(*arguments: str) -> str:
    """What git prints in this repository."""
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main(tyro.cli(Args))
