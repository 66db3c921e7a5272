"""How long do the hash encoding's forward and backward pass take on a GPU? Measured for this package's Triton kernels
and its eager torch, nerfstudio's torch code and, where it is installed, tiny-cuda-nn, in one run.

    PYTHONPATH=. python benchmarks/encoding_gpu.py --output benchmarks/results/encoding_gpu.json

Before anything is timed, results are compared with float64 on the same device, for every reading of the smoothed
gradient; where they differ the script ends with exit code 1. The grid has 16 levels from 16 to 2048, 2 features and
2^19 rows; gradients are those of all tables and of the points. Two times, medians in milliseconds:

* step: what a training loop sees that waits for nothing: steps one after the other, Python and launches included;
* kernels: the same steps queued behind other work, so that the GPU need not wait for Python (as far as the driver's
  queue reaches; eager code fills it).

Needs PyTorch, nerfstudio, an NVIDIA GPU and, for Triton, a C compiler; no network. It was not run on a GPU so far: no
number in this repository comes from it.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import torch
import tyro
from encoding_cpu import forward, forward_backward
from record import write_record
from rich.table import Table

from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.encoding.backends import get_backend
from hashpose_ns.encoding.grid import READINGS
from hashpose_ns.errors import HashPoseError, exits_on_user_error
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.utils.external import TCNN_EXISTS
from nerfstudio.utils.rich_utils import CONSOLE

BASELINE = "nerfstudio torch"
"""What the ratios refer to."""
TCNN = "tiny-cuda-nn"
"""Half precision and a grid of its own conventions: timed, not compared with float64."""
TOLERANCE = 1e-4
"""Largest difference from float64 that passes, relative to the largest number of the result."""
GRID = dict(num_levels=16, log2_hashmap_size=19, features_per_level=2)
STEPS = 10
"""Steps between two looks at the clock."""


@dataclass
class Args:
    """Settings of the benchmark."""

    points: Tuple[int, ...] = (16384, 131072, 1048576)
    """Numbers of points to encode."""
    repeats: int = 20
    """Repeats, of 10 steps each; the median counts."""
    gradient: str = "axis"
    """Reading of the smoothed gradient to time, see HashEncodingConfig."""
    output: Optional[Path] = None
    """JSON file to write."""
    commit: Optional[str] = None
    """Commit to note in the file, where the checkout's .git is not at hand."""


def make_encodings(device: torch.device, gradient: str) -> Dict[str, torch.nn.Module]:
    """Everything to compare that works here."""
    encodings: Dict[str, torch.nn.Module] = {
        BASELINE: HashEncoding(max_res=2048, implementation="torch", **GRID).to(device)
    }
    if TCNN_EXISTS:
        encodings[TCNN] = HashEncoding(max_res=2048, implementation="tcnn", **GRID).to(device)
    else:
        CONSOLE.print(f"Skipping {TCNN}, because it is not installed.")
    for backend in ("eager", "triton"):
        encoding = HashEncodingConfig(backend=backend, gradient=gradient, **GRID).setup(num_dims=3).to(device)
        reason = get_backend(backend).unsupported(device, torch.float32, encoding.grid)
        if reason is None:
            encodings[f"hashpose {backend}"] = encoding
        else:
            CONSOLE.print(f"Skipping {backend}, because {reason}.", markup=False)
    return encodings


def results(encoding: torch.nn.Module, x: torch.Tensor, grad_output: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Features, gradient of the points, gradients of all tables."""
    x = x.clone().requires_grad_()
    features = encoding(x)
    grads = torch.autograd.grad(features, [x, *encoding.parameters()], grad_output)
    tables = torch.cat([grad.flatten() for grad in grads[1:]])
    return {"features": features.detach(), "x gradient": grads[0], "table gradients": tables}


def errors_against_float64(encoding: torch.nn.Module, device: torch.device, count: int = 4096) -> Dict[str, float]:
    """Largest difference of each result from that of double precision, relative to the largest number in it.

    hashpose's is compared with its plain reference, nerfstudio's with itself. Points lie on a lattice of 1/8192: their
    positions on every level are exact in float32, so that no point falls into another cell in float64.
    """
    x = torch.randint(0, 8193, (count, 3), device=device) / 8192
    grad_output = torch.randn(count, 32, device=device)
    exact = copy.deepcopy(encoding).double()
    if not isinstance(encoding, HashEncoding):
        exact.config = copy.copy(encoding.config)
        exact.config.backend = "reference"
    expected = results(exact, x.double(), grad_output.double())
    actual = results(encoding, x, grad_output)
    return {name: ((actual[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items()}


def check(encodings: Dict[str, torch.nn.Module], device: torch.device) -> List[dict]:
    """Errors of all but tiny-cuda-nn, for every reading.

    Raises:
        HashPoseError: If one of them is above the tolerance.
    """
    rows = []
    for name, encoding in encodings.items():
        if name == TCNN:
            continue
        ours = not isinstance(encoding, HashEncoding)
        for reading in READINGS if ours else (None,):
            trial = copy.deepcopy(encoding)
            if ours:
                trial.config = copy.copy(encoding.config)
                trial.config.gradient = reading
            errors = errors_against_float64(trial, device)
            rows.append(dict(encoding=name, gradient=reading, **errors))
            for result, error in errors.items():
                if not error <= TOLERANCE:
                    which = f", {reading}" if ours else ""
                    raise HashPoseError(f"The {result} of {name}{which} differs from float64 by {error:.1e}.")
    return rows


def milliseconds(step: Callable[[], object], repeats: int, ahead: Optional[torch.Tensor] = None) -> float:
    """Median time of a step, between CUDA events around several; queued behind products of ``ahead``, if given."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for repeat in range(repeats + 1):
        torch.cuda.synchronize()
        if ahead is not None:
            for _ in range(3):
                torch.mm(ahead, ahead)
        begin.record()
        for _ in range(STEPS):
            step()
        end.record()
        end.synchronize()
        if repeat:  # the first one warms up
            times.append(begin.elapsed_time(end) / STEPS)
    return statistics.median(times)


def measure(encodings: Dict[str, torch.nn.Module], count: int, repeats: int, device: torch.device) -> List[dict]:
    """Times of all encodings for one number of points."""
    x = torch.rand(count, 3, device=device, requires_grad=True)
    grad_output = torch.randn(count, 32, device=device)
    ahead = torch.rand(8192, 8192, device=device)  # about 20 ms a product in float32 on an H100
    rows = []
    for name, encoding in encodings.items():
        row = dict(points=count, encoding=name)
        steps = {"forward": forward(encoding, x), "forward_backward": forward_backward(encoding, x, grad_output)}
        for what, step in steps.items():
            row[f"{what}_step_ms"] = milliseconds(step, repeats)
            row[f"{what}_kernels_ms"] = milliseconds(step, max(3, repeats // 4), ahead)
        encoding.zero_grad(set_to_none=True)
        rows.append(row)
    return rows


@exits_on_user_error
def main(args: Args) -> None:
    """Runs the benchmark, prints a table and, if asked, writes a JSON file."""
    if args.gradient not in READINGS:
        raise HashPoseError(f"gradient must be one of {', '.join(READINGS)}, not '{args.gradient}'.")
    if not torch.cuda.is_available():
        raise HashPoseError(
            "This benchmark needs a CUDA GPU and PyTorch sees none here; benchmarks/encoding_cpu.py is made for CPUs."
        )
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    encodings = make_encodings(device, args.gradient)
    errors = check(encodings, device)
    worst = max(value for row in errors for value in row.values() if isinstance(value, float))
    CONSOLE.print(f"All agree with float64: the largest difference is {worst:.1e} of the largest number.")
    rows = [row for count in args.points for row in measure(encodings, count, args.repeats, device)]

    gpu = torch.cuda.get_device_name()
    table = Table(title=f"Hash encoding, {gpu}, torch {torch.__version__}; ms: step (kernels)")
    for column in ("points", "encoding", "forward", "forward + backward", f"times {BASELINE}"):
        table.add_column(column, justify="left" if column == "encoding" else "right")
    baseline = {row["points"]: row["forward_backward_step_ms"] for row in rows if row["encoding"] == BASELINE}
    for row in rows:
        row["forward_backward_ratio"] = baseline[row["points"]] / row["forward_backward_step_ms"]
        table.add_row(
            str(row["points"]),
            row["encoding"],
            f"{row['forward_step_ms']:.3f} ({row['forward_kernels_ms']:.3f})",
            f"{row['forward_backward_step_ms']:.3f} ({row['forward_backward_kernels_ms']:.3f})",
            f"{row['forward_backward_ratio']:.1f}x",
        )
    CONSOLE.print(table)

    if args.output is not None:
        if args.commit:
            os.environ.setdefault("HASHPOSE_COMMIT", args.commit)
        write_record(
            args.output,
            triton=sys.modules["triton"].__version__ if "triton" in sys.modules else None,
            grid=dict(**GRID, base=16, max=2048, dims=3),
            gradient=args.gradient,
            repeats=args.repeats,
            errors_against_float64=errors,
            results=rows,
        )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
