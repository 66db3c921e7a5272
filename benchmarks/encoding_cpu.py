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
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import torch
import tyro
from record import write_record
from rich.table import Table

from hashpose_ns.bench.environment import processor
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.encoding.backends import get_backend
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.utils.rich_utils import CONSOLE

BASELINE = "nerfstudio torch"
"""What the ratios refer to."""
DRJIT = "Dr.Jit"


@dataclass
class Args:
    """Settings of the benchmark."""

    points: Tuple[int, ...] = (16384, 131072)
    """Numbers of points to encode."""
    repeats: int = 10
    """Repeats of which the fastest counts."""
    threads: Optional[int] = None
    """Threads of torch and of the kernel; torch's default if not given."""
    gradient: str = "axis"
    """Reading of the smoothed gradient, see HashEncodingConfig."""
    output: Optional[Path] = None
    """JSON file to write."""


def least_ms(functions: Dict[str, Callable[[], object]], repeats: int) -> Dict[str, float]:
    """Least wall time of each function. They take turns, so that a busy machine is busy for all of them."""
    best = {name: float("inf") for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return best


def forward(encoding: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def step() -> None:
        with torch.no_grad():
            encoding(x)

    return step


def forward_backward(encoding: torch.nn.Module, x: torch.Tensor, grad_output: torch.Tensor) -> Callable[[], object]:
    grad_output = grad_output.to(encoding(x[:1]).dtype)  # tiny-cuda-nn's features have half precision

    def step() -> None:
        encoding.zero_grad(set_to_none=True)
        x.grad = None
        encoding(x).backward(grad_output)

    return step


def drjit_steps(x: torch.Tensor, grad_output: torch.Tensor) -> Tuple[Callable[[], object], Callable[[], object]]:
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

    encodings: Dict[str, torch.nn.Module] = {BASELINE: HashEncoding(max_res=2048, implementation="torch")}
    for backend in ("eager", "cpp"):
        encoding = HashEncodingConfig(backend=backend, gradient=args.gradient).setup(num_dims=3)
        reason = get_backend(backend).unsupported(torch.device("cpu"), torch.float32, encoding.grid)
        if reason is None:
            encodings[f"hashpose {backend}"] = encoding
        else:
            CONSOLE.print(f"Skipping {backend}, because {reason}.")

    rows: List[dict] = []
    for count in args.points:
        x = torch.rand(count, 3, requires_grad=True)
        grad_output = torch.randn(count, 32)
        steps = {name: forward(e, x) for name, e in encodings.items()}
        both_steps = {name: forward_backward(e, x, grad_output) for name, e in encodings.items()}
        try:
            steps[DRJIT], both_steps[DRJIT] = drjit_steps(x, grad_output)
            drjit = "measured"
        except Exception as error:  # an ImportError, or no LLVM
            drjit = f"not measured: {error}"
        only_forward, both = least_ms(steps, args.repeats), least_ms(both_steps, args.repeats)
        for name in steps:
            rows.append(
                dict(
                    points=count,
                    encoding=name,
                    forward_ms=only_forward[name],
                    forward_ratio=only_forward[BASELINE] / only_forward[name],
                    forward_backward_ms=both[name],
                    forward_backward_ratio=both[BASELINE] / both[name],
                )
            )

    threads = torch.get_num_threads()
    table = Table(title=f"Hash encoding, {processor()}, {threads} threads, torch {torch.__version__}; ms (speed-up)")
    for column in ("points", "encoding", "forward", "forward + backward"):
        table.add_column(column, justify="left" if column == "encoding" else "right")
    for row in rows:
        table.add_row(
            str(row["points"]),
            row["encoding"],
            f"{row['forward_ms']:.1f} ({row['forward_ratio']:.1f}x)",
            f"{row['forward_backward_ms']:.1f} ({row['forward_backward_ratio']:.1f}x)",
        )
    CONSOLE.print(table)

    if args.output is not None:
        write_record(
            args.output,
            grid=dict(num_levels=16, features_per_level=2, log2_hashmap_size=19, base=16, max=2048, dims=3),
            gradient=args.gradient,
            drjit=drjit,
            repeats=args.repeats,
            results=rows,
        )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
