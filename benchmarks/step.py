"""How many milliseconds does a training step take, of what does it consist, and how much memory does it need?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/step.py --output benchmarks/results/step.json

hashpose, nerfacto (without tinycudann: nerfstudio's PyTorch fallbacks) and BARF at equal rays, through nerfstudio's own
training loop with its logging and the viewer off. Each has a process of its own; they take turns. A time is that of a
block of steps between two looks at the clock, divided by their number; medians and quartiles are over blocks. Beside
the wall clock stands the process's CPU time, which other processes of a shared machine disturb less.

The breakdown measures hashpose once more with a clock (and, on a GPU, a wait) around every part: its sum is somewhat
more than the plain step. Parts exclude the parts inside them.

Two versions of the package, or of its settings, are compared by

    ... --versions before=FOLDER after=.
    ... --versions plain=. compiled=.,pipeline.model.compile=True

A process for each checkout trains the same method on the same scene, in turns of one short block: CPU time, or the wall
clock where there is a GPU. The benchmark's own code is this checkout's.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import training
import tyro
from record import CLOCK, Output, memory_mb, show, summary, synchronize, write_record

VERSION_ROUNDS = 40
"""Default of `rounds` for versions."""


@dataclass
class Args(Output):
    """Settings."""

    size: training.SizeName = "small"
    """`small`: hashpose-small, 512 rays; `paper`: hashpose-blender, 1024 rays x 128 samples; `tiny`: to try it out."""
    rounds: int | None = None
    """Turns of every method or version; by default 5 of a method, 40 of a version."""
    seconds: float = 4.0
    """About how long a turn of a method takes."""
    methods: list[str] | None = None
    """Some of the methods alone."""
    versions: tuple[str, ...] = ()
    """Compare these, as NAME=FOLDER of a checkout, or NAME=FOLDER,SETTING=VALUE,..., and no methods."""
    steps: int = 20
    """Steps in a turn of a version."""


@dataclass
class Case:
    """Something to train."""

    method: str
    settings: dict[str, Any]
    steps: int = 1
    """Least number of steps in a block."""
    checkout: str | None = None
    """Folder of another version of the package."""


def cases(size: training.Size) -> dict[str, Case]:
    """What is compared."""
    rays = {training.RAYS: size.rays}
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


def version(size: training.Size, text: str, steps: int) -> tuple[str, Case]:
    """Name and case of NAME=FOLDER,SETTING=VALUE,..."""
    name, folder = text.split("=", 1)
    checkout, *pairs = folder.split(",")
    settings = {training.RAYS: size.rays, "pipeline.model.num_samples": size.samples, **training.read_settings(pairs)}
    return name, Case(size.method, settings, steps, str(Path(checkout).resolve()))


class Sections(training.Parts):
    """Seconds spent in the parts of a step of this package's methods, each without the parts inside it."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        model = trainer.pipeline.model
        encoding = model.field.encoding
        self.around_all(
            trainer,
            (trainer.pipeline.datamanager.train_ray_generator, "forward", "data: rays"),
            (model.sampler, "forward", "samples along rays"),
            (model, "get_outputs", "rendering, positions"),
            (encoding, "forward", "encoding, forward"),
            *((backend, "backward", "encoding, backward") for backend in encoding._backends.values()),
            *((model, function, "loss and metrics") for function in ("get_loss_dict", "get_metrics_dict")),
            (torch.Tensor, "backward", "backward of the rest"),
            *((trainer, f, "checks, poses' history") for f in ("_check_finite", "_record_poses", "_log_poses")),
        )
        for network in (model.field.density_network, model.field.color_network):
            self.around(network, "forward", "decoder, forward")
            network.register_full_backward_pre_hook(lambda *_: self.enter("decoder, backward"))
            network.register_full_backward_hook(lambda *_: self.leave())
        self.restart()

    def restart(self) -> None:
        """Begins to count anew."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.since = time.perf_counter()

    def lap(self) -> None:
        """The time since the last lap is the running part's."""
        synchronize()
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def enter(self, name: str) -> None:
        self.lap()
        super().enter(name)

    def leave(self, token: Any = None) -> None:
        self.lap()
        super().leave()


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
        synchronize()
        seconds, cpu = time.perf_counter() - self.begin, time.process_time() - self.cpu
        parts = None
        if self.sections is not None:
            self.sections.lap()
            parts = dict(self.sections.seconds)
        self.connection.send((seconds, cpu, parts, memory_mb()))
        self.left, split = self.connection.recv()
        if not self.left:
            sys.exit()
        if split and self.sections is None:
            self.sections = Sections(self.trainer)
        if self.sections is not None:
            self.sections.restart()
        self.begin, self.cpu = time.perf_counter(), time.process_time()


def work(connection: Any, case: Case, scene: Path, output: Path) -> None:
    """A process that trains."""
    if case.checkout is not None:
        sys.path.insert(0, case.checkout)  # nothing of the package is imported yet
    from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation

    sys.stdout = open(os.devnull, "w")
    before = memory_mb()
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
        for _ in range(2):
            seconds = self.ask(case.steps)[0]
        if case.checkout is None:
            self.steps = max(case.steps, round(0.5 / seconds * case.steps))

    def ask(self, steps: int, split: bool = False) -> Any:
        """Seconds for some steps, by the wall clock and of CPU time, their parts, and memory so far."""
        self.connection.send((steps, split))
        return self.connection.recv()

    def turn(self, seconds: float) -> None:
        """Some blocks of steps; one of a version."""
        begin = time.perf_counter()
        while True:
            spent, cpu, _, self.memory = self.ask(self.steps)
            self.times.append(1000 * spent / self.steps)
            self.cpu.append(1000 * cpu / self.steps)
            if self.case.checkout is not None or time.perf_counter() - begin + 0.5 * spent > seconds:
                return

    def breakdown(self, blocks: int) -> dict[str, float]:
        """Milliseconds a step of each part, medians over blocks; from here on, clocks slow the step down."""
        self.ask(self.steps, split=True)
        laps = [self.ask(self.steps)[2] for _ in range(blocks)]
        names = sorted(set().union(*laps), key=lambda name: -laps[-1].get(name, 0.0))
        return {n: round(1e3 * statistics.median(lap.get(n, 0) for lap in laps) / self.steps, 3) for n in names}

    def result(self) -> dict[str, Any]:
        """What was measured."""
        if self.case.checkout is not None:
            return {**summary(self.times if CLOCK == "wall" else self.cpu), "turns": len(self.times)}
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
    if args.versions:
        chosen = dict(version(size, text, args.steps) for text in args.versions)
    rounds = args.rounds or (VERSION_ROUNDS if args.versions else 5)
    workers: dict[str, Worker] = {}
    results: dict[str, Any] = {}
    breakdown: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        scene = training.make_scene(Path(folder) / "scene", size.views, size.resolution)
        for number, (name, case) in enumerate(chosen.items()):
            try:
                workers[name] = Worker(case, scene, Path(folder) / str(number))
            except EOFError:  # its traceback is on the console; the others go on
                results[name] = {"error": "failed"}
        for _ in range(rounds):
            for worker in workers.values():
                worker.turn(args.seconds)
        results.update({name: worker.result() for name, worker in workers.items()})
        if size.method in workers and not args.versions:
            breakdown = workers[size.method].breakdown(2 * rounds)
        for worker in workers.values():
            worker.connection.send((0, False))
            worker.process.join()

    base = results.get(size.method, {}).get("ms", float("nan"))
    for result in results.values():
        if "error" not in result and not args.versions:
            result["ratio"] = round(result["ms"] / base, 2)
    title = f"ms per step, {args.size}, {size.rays} rays, {torch.get_num_threads()} threads"
    unprinted = ["settings", "memory_mb_before", "blocks", "steps_per_block", *([] if args.versions else ["ms_least"])]
    show(title, [{"name": name, **result} for name, result in results.items()], unprinted)
    if args.versions:
        more: dict[str, Any] = {"clock": CLOCK, "steps": args.steps, "results": results}
    else:
        show("ms of parts", [{"part": name, "ms": ms} for name, ms in breakdown.items()])
        more = {"results": results, "breakdown_ms": breakdown}
    write_record(args.output, size=args.size, **vars(size), **more)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
