"""Which of two versions of the package, or of its settings, takes less time for a training step?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/step_versions.py --output benchmarks/results/step_versions.json \\
        --versions before=FOLDER after=.
    ... --versions plain=. compiled=.,pipeline.model.compile=True

A process for each checkout trains the same method on the same scene; they take turns of a few steps, so that a busy
machine is busy for both. CPU time, or the wall clock where there is a GPU. The benchmark's own code is this checkout's.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import training
import tyro
from record import write_record
from rich.console import Console


@dataclass
class Args:
    """Settings."""

    versions: Tuple[str, ...] = ()
    """As NAME=FOLDER of a checkout, or NAME=FOLDER,SETTING=VALUE,..."""
    size: training.SizeName = "small"
    """Sizes, as for step.py."""
    turns: int = 40
    """Turns of each."""
    steps: int = 20
    """Steps in a turn."""
    output: Optional[Path] = None
    """JSON file to write."""
    scene: Optional[Path] = None
    """Used by the processes."""
    settings: Tuple[str, ...] = ()
    """Used by the processes."""


def serve(args: Args) -> None:
    """A process that trains: a line asks for a turn, a line answers with its milliseconds a step."""
    size = training.SIZES[args.size]
    answers, sys.stdout = sys.stdout, sys.stderr
    settings = {
        "pipeline.datamanager.train_num_rays_per_batch": size.rays,
        "pipeline.model.num_samples": size.samples,
        **training.read_settings(args.settings),
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(size.method, args.scene, Path(folder), settings)
        trainer.pipeline.train()
        step = training.START_STEP
        for _ in sys.stdin:
            training.synchronize()
            begin = training.clock()
            for _ in range(args.steps if step > training.START_STEP else 1):
                step += 1
                trainer.pipeline.model.update_to_step(step)
                trainer.train_iteration(step)
            training.synchronize()
            print(1000 * (training.clock() - begin) / args.steps, file=answers, flush=True)


def main(args: Args) -> None:
    """Measures, prints, writes."""
    if args.scene is not None:
        serve(args)
        return
    size = training.SIZES[args.size]
    workers: Dict[str, Any] = {}
    times: Dict[str, List[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scene = training.make_scene(Path(folder) / "scene", size.views, size.resolution)
        for name, version in (pair.split("=", 1) for pair in args.versions):
            checkout, *settings = version.split(",")
            command = [sys.executable, __file__, "--scene", str(scene), "--size", args.size, "--steps", str(args.steps)]
            command += ["--settings", *settings] if settings else []
            environment = {**os.environ, "PYTHONPATH": str(Path(checkout).resolve()), "PYTHONWARNINGS": "ignore"}
            pipes: Dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            workers[name] = subprocess.Popen(command, env=environment, text=True, **pipes)
            times[name] = []
        for turn in range(args.turns + 2):
            for name, worker in workers.items():
                worker.stdin.write("\n")
                worker.stdin.flush()
                spent = float(worker.stdout.readline())
                if turn >= 2:  # the first ones compile and allocate
                    times[name].append(spent)
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    results = {
        name: {
            "ms": round(statistics.median(t), 3),
            "ms_least": round(min(t), 3),
            "turns": len(t),
        }
        for name, t in times.items()
    }
    for name, result in results.items():
        Console().print(f"{name}: {result['ms']:.2f} ms a step of {training.CLOCK} (least {result['ms_least']:.2f})")
    if args.output is not None:
        write_record(args.output, size=args.size, **vars(size), clock=training.CLOCK, steps=args.steps, results=results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
