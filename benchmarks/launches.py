"""How many operations does a training step ask of the device?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/launches.py --output benchmarks/results/launches.json

On a GPU a small step takes as long as it takes to launch its kernels. Launches can be counted anywhere: this counts the
ATen operations that a step of nerfstudio's own loop hands to the device and that do work there. Views, and memory that
is only allocated, are not counted. An operation is at least one kernel (a sum of a whole batch, a sort or an
accumulating index are more), so that the counts are lower bounds.

Waits of Python for the device are counted where pixels, rays and all else of the step are on a GPU, if need be on an
emulated one (tests/emulated_gpu.py): reads of a number, results whose size depends on numbers, and copies from or to
memory that is not pinned, each with its line.

Operations of the backward pass are counted for the part whose forward pass they belong to. The hash encoding counts as
it is on a GPU: its Triton kernels and what is around them, whatever computes it here. On a GPU its own record of
kernels stands beside the counts.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import training
import tyro
from record import REPOSITORY, Output, show, synchronize, write_record
from torch.utils._python_dispatch import TorchDispatchMode

from hashpose_ns.encoding.triton import TritonBackend

NO_WORK = ("empty", "new_empty", "empty_strided", "new_empty_strided", "empty_like", "_unsafe_view", "set_", "resize_")
"""Operations that allocate or rename."""
LOGGING = ("_record_poses", "_log_poses", "_check_finite")
"""Whose waits are left out: they are not part of most steps."""
STEPS = 7
"""Steps of which the median counts: those that log are rarer."""


@dataclass
class Args(Output):
    """Settings."""

    methods: tuple[str, ...] = ("hashpose-blender", "hashpose-small")
    """Methods to count."""
    settings: tuple[str, ...] = ()
    """Further settings, as dotted.path=value."""


class Launches(training.Parts, TorchDispatchMode):
    """Counts operations by the part of the step that asks for them."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        training.Parts.__init__(self)
        self.counting = True
        self.ranges: list[tuple[int, int, str]] = []
        self.counts: dict[tuple[str, str], Counter] = defaultdict(Counter)

    def part(self) -> tuple[str, str]:
        """Where we are: the part, and whether in its forward or backward pass."""
        node = torch._C._current_autograd_node()
        if node is None:
            return self.stack[-1], "forward"
        number = node._sequence_nr()
        inside = [(end - begin, name) for begin, end, name in self.ranges if begin <= number < end]
        return min(inside)[1] if inside else "gradients of parameters", "backward"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if not (func.is_view or name in NO_WORK or func.namespace != "aten"):
            self.counts[self.part()][name] += 1
        return func(*args, **(kwargs or {}))

    def enter(self, name: str) -> int:
        super().enter(name)
        return torch._C._autograd._get_sequence_nr()

    def leave(self, token: int) -> None:
        self.ranges.append((token, torch._C._autograd._get_sequence_nr(), self.stack[-1]))
        super().leave()


class CountedTriton(TritonBackend):
    """The Triton backend, its kernels counted and not run: another backend computes what they would."""

    def __init__(self, launches: Launches, backend: Any) -> None:
        self.launches, self.backend = launches, backend

    def _count(self, *kernels: str) -> None:
        for kernel in kernels if self.launches.counting else ():
            self.launches.counts[self.launches.part()][kernel] += 1

    def forward(self, *args):
        self._count("encode_kernel")
        with torch._C._DisableTorchDispatch():
            return self.backend.forward(*args)

    def backward(self, grad_output, x, tables, grid, x_needs_grad, table_needs_grad):
        if any(table_needs_grad):
            self._count("zero_", "table_gradient_kernel")
        if x_needs_grad:
            self._count("x_gradient_kernel")
        with torch._C._DisableTorchDispatch():
            return self.backend.backward(grad_output, x, tables, grid, x_needs_grad, table_needs_grad)


def watch(trainer: Any, launches: Launches) -> None:
    """Makes the parts of a trainer's step known."""
    model, field = trainer.pipeline.model, trainer.pipeline.model.field
    trainer._is_checked = lambda step: False  # a CPU's losses are checked in every step, a GPU's now and then
    encoding = field.encoding
    choose = encoding._backend
    encoding._backend = lambda points, grid: CountedTriton(launches, choose(points, grid))
    launches.around_all(
        trainer,
        (trainer.pipeline.datamanager.train_ray_generator, "forward", "data: rays (nerfstudio)"),
        (model, "_set_planes", "samples"),
        (model.sampler, "forward", "samples"),
        (model, "get_outputs", "rendering"),
        (field, "get_density", "positions"),
        (field, "get_outputs", "decoder"),
        (encoding, "forward", "encoding"),
        (field.density_network, "forward", "decoder"),
        (model, "get_loss_dict", "loss"),
        (model, "get_metrics_dict", "metrics"),
    )


def count(method: str, scene: Path, output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Median counts of a step, all levels open and poses moving: part -> forward, backward; and the step's waits."""
    few = {training.RAYS: 64, "pipeline.model.num_samples": 8}
    trainer = training.make_trainer(method, scene, output, {**few, **settings})
    launches = Launches()
    watch(trainer, launches)
    steps: list[dict[tuple[str, str], Counter]] = []
    trainer.pipeline.train()
    for step in range(training.START_STEP + 1, training.START_STEP + 4 + STEPS):
        trainer.pipeline.model.update_to_step(step)
        launches.counts, launches.ranges = defaultdict(Counter), []
        with launches:
            trainer.train_iteration(step)
        steps.append(launches.counts)
    steps = sorted(steps[3:], key=lambda counts: sum(counter.total() for counter in counts.values()))
    middle = steps[len(steps) // 2]
    parts: dict[str, dict[str, int]] = defaultdict(lambda: {"forward": 0, "backward": 0})
    for (part, direction), counter in middle.items():
        parts[part][direction] += counter.total()
    total = {key: sum(part[key] for part in parts.values()) for key in ("forward", "backward")}
    launches.counting = False
    kernels = on_the_device(trainer, training.START_STEP + 4 + STEPS) if torch.cuda.is_available() else None
    operations = {
        f"{part}, {direction}": dict(counter.most_common()) for (part, direction), counter in middle.items() if counter
    }
    waited = None if torch.cuda.is_available() else waits(method, scene, output, {**few, **settings})
    return {"parts": dict(parts), "total": total, "waits": waited, "on_the_device": kernels, "operations": operations}


def waits(method: str, scene: Path, output: Path, settings: dict[str, Any]) -> list[str]:
    """What Python waits for in a step that logs nothing, on the emulated GPU."""
    sys.path.append(str(REPOSITORY / "tests"))
    import emulated_gpu

    with emulated_gpu.emulation():
        trainer = training.make_trainer(method, scene, output / "emulated", settings)
        training.advance(trainer, range(training.START_STEP, training.START_STEP + 2))
        with emulated_gpu.waits() as found:
            training.advance(trainer, [training.START_STEP + 2])
    return [str(wait) for wait in found if not wait.where.endswith(LOGGING)]


def on_the_device(trainer: Any, first: int) -> dict[str, float]:
    """What a GPU did in a step, by its own record: kernels, copies and fills, and their milliseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for step in range(first, first + STEPS):
            trainer.pipeline.model.update_to_step(step)
            trainer.train_iteration(step)
        synchronize()
    found: Counter = Counter()
    for event in record.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kind = "copies" if "Memcpy" in event.name else "fills" if "Memset" in event.name else "kernels"
            found[kind] += 1
            found["ms"] += event.time_range.elapsed_us() / 1000
    return {kind: round(number / STEPS, 3) for kind, number in found.items()}


def main(args: Args) -> None:
    """Counts, prints, writes."""
    results = {}
    settings = training.read_settings(args.settings)
    with tempfile.TemporaryDirectory() as folder:
        scene = training.make_scene(Path(folder) / "scene", views=10, resolution=16)
        for number, method in enumerate(args.methods):
            results[method] = count(method, scene, Path(folder) / str(number), settings)
    for method, result in results.items():
        parts = sorted(result["parts"].items(), key=lambda item: -item[1]["forward"] - item[1]["backward"])
        rows = [{"part": name, **part} for name, part in (*parts, ("sum", result["total"]))]
        show(f"Operations of a step, {method}", rows)
        for line in ["not counted here"] if result["waits"] is None else result["waits"] or ["none"]:
            print(f"Waits: {line}")
    write_record(args.output, settings=settings, results=results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
