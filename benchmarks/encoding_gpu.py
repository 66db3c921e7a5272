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
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from encoding_cpu import BASELINE, GRID, NOTED_GRID, make_encodings, make_steps
from record import Output, cuda_ms, show, write_record

from hashpose_ns.encoding.grid import READINGS
from hashpose_ns.errors import HashPoseError, exits_on_user_error
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.utils.external import TCNN_EXISTS

TCNN = "tiny-cuda-nn"
"""Half precision and a grid of its own conventions: timed, not compared with float64."""
TOLERANCE = 1e-4
"""Largest difference from float64 that passes, relative to the largest number of the result."""
STEPS = 10
"""Steps between two looks at the clock."""


@dataclass
class Args(Output):
    """Settings of the benchmark."""

    points: tuple[int, ...] = (16384, 131072, 1048576)
    """Numbers of points to encode."""
    repeats: int = 20
    """Repeats, of 10 steps each; the median counts."""
    gradient: str = "axis"
    """Reading of the smoothed gradient to time, see HashEncodingConfig."""
    commit: str | None = None
    """Commit to note in the file, where the checkout's .git is not at hand."""


def results(encoding: torch.nn.Module, x: torch.Tensor, grad_output: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features, gradient of the points, gradients of all tables."""
    x = x.clone().requires_grad_()
    features = encoding(x)
    grads = torch.autograd.grad(features, [x, *encoding.parameters()], grad_output)
    tables = torch.cat([grad.flatten() for grad in grads[1:]])
    return {"features": features.detach(), "x gradient": grads[0], "table gradients": tables}


def errors_against_float64(encoding: torch.nn.Module, device: torch.device, count: int = 4096) -> dict[str, float]:
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


def check(encodings: dict[str, torch.nn.Module], device: torch.device) -> Iterator[dict[str, Any]]:
    """Errors of all but tiny-cuda-nn, for every reading, one after the other.

    Raises:
        HashPoseError: If one of them is above the tolerance.
    """
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
            for result, error in errors.items():
                if not error <= TOLERANCE:
                    which = f", {reading}" if ours else ""
                    raise HashPoseError(f"The {result} of {name}{which} differs from float64 by {error:.1e}.")
            yield dict(encoding=name, gradient=reading, **errors)


def measure(
    encodings: dict[str, torch.nn.Module], count: int, repeats: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Times of all encodings for one number of points, one after the other."""
    x = torch.rand(count, 3, device=device, requires_grad=True)
    grad_output = torch.randn(count, 32, device=device)
    ahead = torch.rand(8192, 8192, device=device)  # about 20 ms a product in float32 on an H100
    for name, encoding in encodings.items():
        row: dict[str, Any] = dict(points=count, encoding=name)
        for what, step in zip(("forward", "forward_backward"), make_steps(encoding, x, grad_output)):
            row[f"{what}_step_ms"] = cuda_ms(step, repeats, STEPS)
            row[f"{what}_kernels_ms"] = cuda_ms(step, max(3, repeats // 4), STEPS, ahead)
        encoding.zero_grad(set_to_none=True)
        yield row


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, compared with nerfstudio's."""
    baseline = next(row["forward_backward_step_ms"] for row in rows if row["encoding"] == BASELINE)
    return [{**row, "forward_backward_ratio": baseline / row["forward_backward_step_ms"]} for row in rows]


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
    encodings = make_encodings(device, ("eager", "triton"), args.gradient)
    if TCNN_EXISTS:
        encodings[TCNN] = HashEncoding(max_res=2048, implementation="tcnn", **GRID).to(device)
    else:
        print(f"Skipping {TCNN}, because it is not installed.")
    errors = list(check(encodings, device))
    worst = max(value for row in errors for value in row.values() if isinstance(value, float))
    print(f"All agree with float64: the largest difference is {worst:.1e} of the largest number.")
    rows = [row for n in args.points for row in with_ratios(list(measure(encodings, n, args.repeats, device)))]
    show(f"Hash encoding, {torch.cuda.get_device_name()}, torch {torch.__version__}", rows)
    if args.commit:
        os.environ.setdefault("HASHPOSE_COMMIT", args.commit)
    write_record(
        args.output,
        triton=sys.modules["triton"].__version__ if "triton" in sys.modules else None,
        grid=NOTED_GRID,
        gradient=args.gradient,
        repeats=args.repeats,
        errors_against_float64=errors,
        results=rows,
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
