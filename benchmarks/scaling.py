"""How does the time of a training step grow with rays, samples, number of views and resolution of the images?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/scaling.py --output benchmarks/results/scaling.json

One of these is changed at a time. All trainers live in one process and take turns; a time is the median over blocks of
steps between two looks at the clock; without a GPU it is CPU time (use one thread), which other processes of a shared
machine disturb less. Cost should grow linearly in rays and samples and not at all in views and resolution: the exponent
is the slope of log(ms) over log(number), from the two largest numbers. A figure goes beside the JSON file.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import training
import tyro
from record import CLOCK, Output, show, summary, take_turns, write_record

AXES: dict[training.SizeName, dict[str, tuple[int, ...]]] = {
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
class Args(Output):
    """Settings."""

    size: training.SizeName = "small"
    """What is not changed: `small` is hashpose-small, `paper` hashpose-blender, `tiny` to try the script."""
    rounds: int = 7
    """Blocks of every trainer."""
    seconds: float = 0.7
    """About how long a block takes."""


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds over each number, both logarithmic; dashed: in proportion."""
    from matplotlib.figure import Figure

    from hashpose_ns.plotting.axes import log_axis

    names = list(dict.fromkeys(row["axis"] for row in rows))
    drawing = Figure(figsize=(11, 3), layout="constrained")
    axes = drawing.subplots(1, len(names), sharey=True)
    for plot, name in zip(axes, names):
        x, y = zip(*[(row["value"], row["ms"]) for row in rows if row["axis"] == name])
        plot.semilogx(x, y, "o-", base=2)
        if name in ("rays", "samples"):
            plot.plot(x, [y[-1] * value / x[-1] for value in x], "--", color="gray")
        plot.set_xticks(x, [str(value) for value in x])
        plot.set_xlabel({"resolution": "image height = width", "views": "training images"}.get(name, name))
        plot.grid(True, alpha=0.3)
    log_axis(axes[0])
    axes[0].set_ylabel(f"ms per step ({CLOCK})")
    drawing.savefig(path, dpi=110)


def main(args: Args) -> None:
    """Measures, prints, writes."""
    size = training.SIZES[args.size]
    values = [(axis, value) for axis, numbers in AXES[args.size].items() for value in numbers]
    changed = {(axis, value): dataclasses.replace(size, **{axis: value}) for axis, value in values}
    runs, steps, views = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for each in dict.fromkeys(changed.values()):  # the middle of every axis is the same
            scene = Path(temporary) / f"scene_{each.views}_{each.resolution}"
            if not scene.exists():
                training.make_scene(scene, each.views, each.resolution)
            settings = {training.RAYS: each.rays, **training.sample_settings(each.method, each.samples)}
            trainer = training.make_trainer(each.method, scene, Path(temporary) / "out", settings)
            views[each] = len(trainer.pipeline.datamanager.train_dataset)
            runs[each] = training.stepper(trainer)
            runs[each](1)
        gc.collect()
        for each, ms in take_turns({each: partial(run, 3) for each, run in runs.items()}, 1).items():
            steps[each] = max(2, round(1000 * args.seconds / (ms[0] / 3)))
        blocks = take_turns({each: partial(run, steps[each]) for each, run in runs.items()}, args.rounds)
    rows: list[dict[str, Any]] = []
    for (axis, value), each in changed.items():
        times = summary([ms / steps[each] for ms in blocks[each]])
        rows.append({"axis": axis, "value": value, **times, "training_views": views[each]})
    exponents = {}
    for axis in AXES[args.size]:
        (small, fast), (large, slow) = [(row["value"], row["ms"]) for row in rows if row["axis"] == axis][-2:]
        exponents[axis] = round(math.log(slow / fast) / math.log(large / small), 2)
    show(f"ms per step, {size.method}, {torch.get_num_threads()} threads", rows)
    show("Exponents of the last two", [exponents])
    asked = {"size": args.size, **vars(size), "clock": CLOCK}
    write_record(args.output, **asked, results=rows, exponents=exponents)
    if args.output is not None:
        figure(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
