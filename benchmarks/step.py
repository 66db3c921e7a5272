"""How many milliseconds does a training step take, of what does it consist, and how much memory does it need?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/step.py --output benchmarks/results/step.json

hashpose, nerfacto (without tinycudann: nerfstudio's PyTorch fallbacks) and BARF at equal rays, through nerfstudio's own
training loop with its logging and the viewer off. Each has a process of its own; they take turns. A time is that of a
block of steps between two looks at the clock, divided by their number; medians and quartiles are over blocks. Beside
the wall clock stands the process's CPU time, which other processes of a shared machine disturb less.

The breakdown measures hashpose once more with a clock (and, on a GPU, a wait) around every part: its sum is somewhat
more than the plain step. Parts exclude the parts inside them.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
import training
import tyro
from record import write_record
from rich.console import Console
from rich.table import Table
from step_parts import split_step

RAYS = "pipeline.datamanager.train_num_rays_per_batch"


@dataclass
class Args:
    """Settings."""

    size: training.SizeName = "small"
    """`small`: hashpose-small, 512 rays; `paper`: hashpose-blender, 1024 rays x 128 samples; `tiny`: to try it out."""
    rounds: int = 5
    """Turns of every method."""
    seconds: float = 4.0
    """About how long a turn takes."""
    methods: Optional[List[str]] = None
    """Some of the methods alone."""
    output: Optional[Path] = None
    """JSON file to write."""


@dataclass
class Case:
    """Something to train."""

    method: str
    settings: Dict[str, Any]
    steps: int = 1
    """Least number of steps in a block."""


def cases(size: training.Size) -> Dict[str, Case]:
    """What is compared."""
    rays = {RAYS: size.rays}
    found = {
        size.method: Case(size.method, {**rays, **training.sample_settings(size.method, size.samples)}),
        # Its proposal networks learn in one of about five steps.
        "nerfacto": Case("nerfacto", rays, steps=12),
        "barf": Case("barf" if size.samples < 128 else "barf-blender", rays),
    }
    if size.samples != 128:
        few = training.sample_settings("barf", size.samples)
        found[f"barf, {size.samples} samples"] = Case("barf", {**rays, **few})
    return found


class Pace:
    """A callback of the training loop that does as many steps as it is asked for, and says how long they took."""

    def __init__(self, connection: Any, trainer: Any) -> None:
        self.connection, self.trainer = connection, trainer
        self.left, self.sections = 1, None
        self.begin, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self, step: int) -> None:
        self.left -= 1
        if self.left:
            return
        training.synchronize()
        seconds, cpu = time.perf_counter() - self.begin, time.process_time() - self.cpu
        if self.sections is not None:
            self.sections._lap()
        parts = dict(self.sections.seconds) if self.sections is not None else None
        self.connection.send((seconds, cpu, parts, training.memory_mb()))
        self.left, split = self.connection.recv()
        if not self.left:
            sys.exit()
        if split and self.sections is None:
            self.sections = split_step(self.trainer)
        if self.sections is not None:
            self.sections.seconds.clear()
            self.sections.since = time.perf_counter()
        self.begin, self.cpu = time.perf_counter(), time.process_time()


def work(connection: Any, case: Case, scene: Path, output: Path) -> None:
    """A process that trains one method."""
    from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation

    sys.stdout = open(os.devnull, "w")
    before = training.memory_mb()
    trainer = training.make_trainer(case.method, scene, output, case.settings)
    connection.send(before)
    place = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
    trainer.callbacks.append(TrainingCallback(place, Pace(connection, trainer)))
    trainer.train()


class Worker:
    """The other end of such a process."""

    def __init__(self, case: Case, scene: Path, output: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.case, self.times, self.cpu, self.steps = case, [], [], case.steps
        self.process = context.Process(target=work, args=(other, case, scene, output))
        self.process.start()
        other.close()
        self.before = self.connection.recv()
        self.connection.recv()  # the first step, which compiles and allocates
        self.ask(case.steps)
        self.steps = max(case.steps, round(0.5 / self.ask(case.steps)[0] * case.steps))

    def ask(self, steps: int, split: bool = False) -> Any:
        """Seconds for some steps, by the wall clock and of CPU time, their parts, and memory so far."""
        self.connection.send((steps, split))
        return self.connection.recv()

    def turn(self, seconds: float) -> None:
        """Some blocks of steps."""
        begin = time.perf_counter()
        while True:
            spent, cpu, _, self.memory = self.ask(self.steps)
            self.times.append(1000 * spent / self.steps)
            self.cpu.append(1000 * cpu / self.steps)
            if time.perf_counter() - begin + 0.5 * spent > seconds:
                return

    def result(self) -> Dict[str, Any]:
        """What was measured."""
        low, median, high = statistics.quantiles(self.times, n=4) if len(self.times) > 1 else 3 * self.times
        return {
            "ms": round(median, 3),
            "ms_quartiles": [round(low, 3), round(high, 3)],
            "ms_least": round(min(self.times), 3),
            "cpu_ms": round(statistics.median(self.cpu), 3),
            "blocks": len(self.times),
            "steps_per_block": self.steps,
            "settings": self.case.settings,
            "memory_mb": self.memory,
            "memory_mb_before": self.before,
        }


def main(args: Args) -> None:
    """Measures, prints, writes."""
    size = training.SIZES[args.size]
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # those of the libraries, in every process
    chosen = {name: case for name, case in cases(size).items() if args.methods is None or name in args.methods}
    workers: Dict[str, Worker] = {}
    results: Dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scene = training.make_scene(Path(folder) / "scene", size.views, size.resolution)
        for number, (name, case) in enumerate(chosen.items()):
            try:
                workers[name] = Worker(case, scene, Path(folder) / str(number))
            except EOFError:  # its traceback is on the console; the others go on
                results[name] = {"error": "failed"}
        for _ in range(args.rounds):
            for worker in workers.values():
                worker.turn(args.seconds)
        results.update({name: worker.result() for name, worker in workers.items()})
        breakdown: Dict[str, float] = {}
        if size.method in workers:
            ours = workers[size.method]
            ours.ask(ours.steps, split=True)
            laps = [ours.ask(ours.steps)[2] for _ in range(2 * args.rounds)]
            names = sorted(set().union(*laps), key=lambda name: -laps[-1].get(name, 0.0))
            breakdown = {
                n: round(1e3 * statistics.median(lap.get(n, 0) for lap in laps) / ours.steps, 3) for n in names
            }
        for worker in workers.values():
            worker.connection.send((0, False))
            worker.process.join()

    table = Table(title=f"ms per step, {args.size}, {size.rays} rays, {torch.get_num_threads()} threads")
    for column in ("method", "median", "quartiles", "CPU time", "times hashpose's", "peak memory [MB]"):
        table.add_column(column)
    base = results.get(size.method, {}).get("ms", float("nan"))
    for name, result in results.items():
        if "error" in result:
            table.add_row(name, "failed")
            continue
        result["ratio"] = round(result["ms"] / base, 2)
        quartiles = " to ".join(f"{value:.1f}" for value in result["ms_quartiles"])
        memory = ", ".join(f"{key} {value:.0f}" for key, value in result["memory_mb"].items())
        table.add_row(
            name, f"{result['ms']:.2f}", quartiles, f"{result['cpu_ms']:.2f}", f"{result['ratio']:.1f}", memory
        )
    Console().print(table)
    Console().print("\n".join(f"{ms:8.3f} ms  {name}" for name, ms in breakdown.items()))
    if args.output is not None:
        write_record(args.output, size=args.size, **vars(size), results=results, breakdown_ms=breakdown)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
