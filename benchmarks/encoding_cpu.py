"""Times the hash encoding on the CPU: nerfstudio's own in torch, this package's in eager torch and in C++, and Dr.Jit's
where it is installed, in one run.

    python benchmarks/encoding_cpu.py --output benchmarks/results/encoding_cpu.json

Every number is the least wall time of several repeats, in milliseconds. "forward + backward" is one training step's
share: features, then the gradients of all tables and of the points. The grid has 16 levels from 16 to 2048, 2 features
and 2^19 rows. Dr.Jit computes the reading `product`, which this package's reading should be set to for a fair ratio of
the backward pass: `--gradient product`. Its kernels are compiled before anything is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from record import Output, show, take_turns, write_record

from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.encoding.backends import get_backend
from nerfstudio.field_components.encodings import HashEncoding

BASELINE = "nerfstudio torch"
"""What the ratios refer to."""
DRJIT = "Dr.Jit"
GRID = dict(num_levels=16, features_per_level=2, log2_hashmap_size=19)
NOTED_GRID = dict(**GRID, base=16, max=2048, dims=3)
"""The grid as records have it."""


@dataclass
class Args(Output):
    """Settings of the benchmark."""

    points: tuple[int, ...] = (16384, 131072)
    """Numbers of points to encode."""
    repeats: int = 10
    """Repeats of which the fastest counts."""
    threads: int | None = None
    """Threads of torch and of the kernel; torch's default if not given."""
    gradient: str = "axis"
    """Reading of the smoothed gradient, see HashEncodingConfig."""


def make_encodings(device: torch.device, backends: Sequence[str], gradient: str) -> dict[str, torch.nn.Module]:
    """nerfstudio's encoding in torch and this package's backends that work on a device."""
    encodings: dict[str, torch.nn.Module] = {
        BASELINE: HashEncoding(max_res=2048, implementation="torch", **GRID).to(device)
    }
    for backend in backends:
        encoding = HashEncodingConfig(backend=backend, gradient=gradient, **GRID).setup(num_dims=3).to(device)
        reason = get_backend(backend).unsupported(device, torch.float32, encoding.grid)
        if reason is None:
            encodings[f"hashpose {backend}"] = encoding
        else:
            print(f"Skipping {backend}, because {reason}.")
    return encodings


def make_steps(encoding: torch.nn.Module, x: torch.Tensor, grad_output: torch.Tensor) -> tuple[Callable[[], Any], ...]:
    """Forward pass, and forward and backward pass."""
    grad_output = grad_output.to(encoding(x[:1]).dtype)  # tiny-cuda-nn's features have half precision

    def both() -> None:
        encoding.zero_grad(set_to_none=True)
        x.grad = None
        encoding(x).backward(grad_output)

    return torch.no_grad()(lambda: encoding(x)), both


def drjit_steps(x: torch.Tensor, grad_output: torch.Tensor) -> tuple[Callable[[], Any], ...]:
    """Forward, and forward and backward pass of Dr.Jit's smoothed grid.

    Raises:
        Exception: It is not installed, or finds no LLVM.
    """
    import drjit as dr
    from drjit.llvm.ad import ArrayXf, Float
    from drjit.nn import HashGridEncoding

    dr.set_thread_count(torch.get_num_threads())
    scale = (2048 / 16) ** (1 / 15)
    sizes = dict(n_levels=16, n_features_per_level=2, hashmap_size=2**19, base_resolution=16, per_level_scale=scale)
    grid = HashGridEncoding(
        Float, 3, **sizes, align_corners=True, smooth_weight_gradients=True, smooth_weight_lambda=1.0
    )
    points, weights = (ArrayXf(array.detach().T.contiguous().numpy()) for array in (x, grad_output))

    def both() -> None:
        tables = grid.params
        for inputs in (points, tables):
            dr.enable_grad(inputs)
            dr.clear_grad(inputs)
        grid.set_params(tables)
        dr.backward(dr.sum(grid(points) * weights, axis=None))
        dr.eval(dr.grad(points), dr.grad(tables))
        dr.sync_thread()

    def only_forward() -> None:
        dr.eval(grid(dr.detach(points)))
        dr.sync_thread()

    for step in (only_forward, both):
        step()
    return only_forward, both


def main(args: Args) -> None:
    """Runs the benchmark, prints a table and, if asked, writes a JSON file."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    encodings = make_encodings(torch.device("cpu"), ("eager", "cpp"), args.gradient)
    rows: list[dict[str, Any]] = []
    for count in args.points:
        x = torch.rand(count, 3, requires_grad=True)
        grad_output = torch.randn(count, 32)
        steps = {name: make_steps(encoding, x, grad_output) for name, encoding in encodings.items()}
        try:
            steps[DRJIT] = drjit_steps(x, grad_output)
            drjit = "measured"
        except Exception as error:  # an ImportError, or no LLVM
            drjit = f"not measured: {error}"
        found: dict[str, dict[str, Any]] = {name: {"points": count, "encoding": name} for name in steps}
        for number, what in enumerate(("forward", "forward_backward")):
            functions = {name: both[number] for name, both in steps.items()}
            times = take_turns(functions, args.repeats, warm_up=1, now=time.perf_counter)
            for name, ms in times.items():
                found[name][f"{what}_ms"] = min(ms)
                found[name][f"{what}_ratio"] = min(times[BASELINE]) / min(ms)
        rows += found.values()
    show(f"Hash encoding, {torch.get_num_threads()} threads, least ms and speed-up", rows)
    measured = {"gradient": args.gradient, "drjit": drjit, "repeats": args.repeats, "results": rows}
    write_record(args.output, grid=NOTED_GRID, **measured)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
