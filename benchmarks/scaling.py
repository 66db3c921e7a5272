"""How does the time of a training step grow with rays, samples, number of views and resolution of the images?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/scaling.py --output benchmarks/results/scaling.json

One of these is changed at a time. All trainers live in one process and take turns; a time is the median over blocks of
steps between two looks at the clock; without a GPU it is CPU time (use one thread), which other processes of a shared
machine disturb less. Cost should grow linearly in rays and samples and not at all in views and resolution: the exponent
is the slope of log(ms) over log(number), from the two largest numbers.
"""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
import training
import tyro
from record import write_record
from rich.console import Console
from rich.table import Table

AXES: Dict[training.SizeName, Dict[str, Tuple[int, ...]]] = {
    "tiny": {"rays": (32, 64), "samples": (8, 16), "views": (10, 20), "resolution": (16, 32)},
    "small": {
        "rays": (128, 256, 512, 1024, 2048),
        "samples": (8, 16, 32, 64, 128),
        "views": (10, 100, 1000),
        "resolution": (50, 100, 200, 400),
    },
    "paper": {
        "rays": (256, 512, 1024, 2048, 4096),
        "samples": (32, 64, 128, 256, 512),
        "views": (10, 100, 1000),
        "resolution": (100, 200, 400, 800),
    },
}


@dataclass
class Args:
    """Settings."""

    size: training.SizeName = "small"
    """What is not changed: `small` is hashpose-small, `paper` hashpose-blender, `tiny` to try the script."""
    rounds: int = 7
    """Blocks of every trainer."""
    seconds: float = 0.7
    """About how long a block takes."""
    output: Optional[Path] = None
    """JSON file to write; a figure of the same name goes beside it."""


class Subject:
    """A trainer, and how long its steps took."""

    def __init__(self, size: training.Size, changed: Dict[str, int], folder: Path) -> None:
        values = {**vars(size), **changed}
        views, resolution = values["views"], values["resolution"]
        scene = folder / f"scene_{views}_{resolution}"
        if not scene.exists():
            training.make_scene(scene, views, resolution)
        settings = {
            "pipeline.datamanager.train_num_rays_per_batch": values["rays"],
            **training.sample_settings(size.method, values["samples"]),
        }
        self.trainer = training.make_trainer(size.method, scene, folder / "out", settings)
        self.step, self.times = training.START_STEP, []
        self.run(1)
        self.steps = 1

    def run(self, steps: int) -> float:
        """Seconds for some steps: nerfstudio's iteration with the callbacks around it."""
        from nerfstudio.engine.callbacks import TrainingCallbackLocation as Place

        training.synchronize()
        begin = training.clock()
        for _ in range(steps):
            self.trainer.pipeline.train()
            for callback in self.trainer.callbacks:
                callback.run_callback_at_location(self.step, location=Place.BEFORE_TRAIN_ITERATION)
            self.trainer.train_iteration(self.step)
            for callback in self.trainer.callbacks:
                callback.run_callback_at_location(self.step, location=Place.AFTER_TRAIN_ITERATION)
            self.step += 1
        training.synchronize()
        return training.clock() - begin

    def block(self, seconds: float) -> None:
        """One block; the first one only finds out how many steps make one."""
        if not self.times and self.steps == 1:
            self.steps = max(2, round(seconds / (self.run(3) / 3)))
            return
        self.times.append(1000 * self.run(self.steps) / self.steps)


def figure(rows: List[Dict[str, Any]], path: Path) -> None:
    """Milliseconds over each number, both logarithmic; dashed: in proportion."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["axis"] for row in rows))
    drawing = Figure(figsize=(11, 3), layout="constrained")
    axes = drawing.subplots(1, len(names), sharey=True)
    for plot, name in zip(axes, names):
        points = [(row["value"], row["ms"]) for row in rows if row["axis"] == name]
        x, y = zip(*points)
        plot.loglog(x, y, "o-", base=2)
        if name in ("rays", "samples"):
            plot.loglog(x, [y[-1] * value / x[-1] for value in x], "--", color="gray", base=2)
        plot.set_xticks(x, [str(value) for value in x])
        plot.set_xlabel({"resolution": "image height = width", "views": "training images"}.get(name, name))
        plot.grid(True, alpha=0.3)
    ticks = [2**power for power in range(math.floor(math.log2(min(r["ms"] for r in rows))), 12)]
    ticks = [tick for tick in ticks if tick <= 2 * max(row["ms"] for row in rows)]
    axes[0].set_yticks(ticks, [str(tick) for tick in ticks])
    axes[0].set_ylabel(f"ms per step ({training.CLOCK})")
    drawing.savefig(path, dpi=110)


def main(args: Args) -> None:
    """Measures, prints, writes."""
    size = training.SIZES[args.size]
    subjects: Dict[Tuple[str, int], Subject] = {}
    made: Dict[Tuple, Subject] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for axis, values in AXES[args.size].items():
            for value in values:
                key = tuple(sorted({**vars(size), axis: value}.items()))
                if key not in made:  # the middle of every axis is the same
                    made[key] = Subject(size, {axis: value}, Path(temporary))
                subjects[axis, value] = made[key]
        gc.collect()
        for _ in range(args.rounds + 1):
            for subject in made.values():
                subject.block(args.seconds)
    rows = []
    for (axis, value), subject in subjects.items():
        row = {"axis": axis, "value": value, "ms": statistics.median(subject.times), "ms_least": min(subject.times)}
        rows.append({**row, "training_views": len(subject.trainer.pipeline.datamanager.train_dataset)})
    exponents = {}
    for axis in AXES[args.size]:
        (small, fast), (large, slow) = [(row["value"], row["ms"]) for row in rows if row["axis"] == axis][-2:]
        exponents[axis] = round(math.log(slow / fast) / math.log(large / small), 2)

    table = Table(title=f"ms per step, {size.method}, {torch.get_num_threads()} threads")
    for column in ("", "number", "median", "least", "exponent"):
        table.add_column(column)
    for row in rows:
        last = row["value"] == AXES[args.size][row["axis"]][-1]
        numbers = f"{row['ms']:.2f}", f"{row['ms_least']:.2f}", str(exponents[row["axis"]]) if last else ""
        table.add_row(row["axis"], str(row["value"]), *numbers)
    Console().print(table)
    if args.output is not None:
        asked = {"size": args.size, **vars(size), "clock": training.CLOCK}
        write_record(args.output, **asked, results=rows, exponents=exponents)
        figure(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
