"""What does the exponential map of poses cost, how exact is it, against nerfstudio's, and does training end the same?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/exponential.py --output benchmarks/results/exponential.json

Forward and backward pass for some numbers of cameras, the two maps by turns: operations handed to the device, and
milliseconds of CPU time. Errors, of poses and of gradients, are the largest of 500 twists in float32 against the
exponential of matrices in float64. `--runs before=FOLDER after=FOLDER` notes how runs with two versions ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from launches import Launches
from record import Output, show, summary, take_turns, write_record

from hashpose_ns.cameras import lie
from hashpose_ns.runs.files import POSE_LOG, last_record
from nerfstudio.cameras import lie_groups

MAPS = {"hashpose": lie.exp_map_SE3, "nerfstudio": lie_groups.exp_map_SE3}
NOTED = ("step", "train_loss", "held_out_psnr", "rotation_deg_mean", "rotation_deg_max", "translation_mean")
"""What is noted of a run, at its end."""


@dataclass
class Args(Output):
    """Settings."""

    cameras: tuple[int, ...] = (36, 1000)
    """Numbers of cameras."""
    angles: tuple[float, ...] = (0.0, 1e-6, 1e-4, 5e-3, 9.9e-3, 0.0101, 0.03, 0.1, 0.5, 1.0, 2.0, 3.1)
    """Angles (radians) of the twists whose errors are measured."""
    repeats: int = 300
    """Turns of each map."""
    runs: tuple[str, ...] = ()
    """Names and folders with runs of two versions, as NAME=FOLDER."""


def both_passes(function: Callable, twists: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses and the gradient of their weighted sum."""
    twists = twists.detach().requires_grad_()
    poses = function(twists)
    return poses.detach(), torch.autograd.grad(poses, twists, weights)[0]


def exact(twists: torch.Tensor) -> torch.Tensor:
    """The exponential of 4x4 matrices."""
    x, y, z = twists[:, 3:].unbind(1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    matrices = torch.nn.functional.pad(torch.cat([skew, twists[:, :3, None]], dim=2), (0, 0, 0, 1))
    return torch.linalg.matrix_exp(matrices)[:, :3]


def cost(count: int, repeats: int) -> list[dict[str, Any]]:
    """Operations and time of both maps."""
    twists, weights = 0.1 * torch.randn(count, 6), torch.randn(count, 3, 4)
    passes = {name: partial(both_passes, function, twists, weights) for name, function in MAPS.items()}
    rows = []
    for name, ms in take_turns(passes, repeats).items():
        with Launches() as launches:
            passes[name]()
        operations = sum(counter.total() for counter in launches.counts.values())
        rows.append({"cameras": count, "map": name, "operations": operations, "ms": summary(ms)["ms"]})
    return rows


def errors(angle: float) -> list[dict[str, Any]]:
    """Largest errors of both maps at an angle."""
    axes = torch.nn.functional.normalize(torch.randn(500, 3, dtype=torch.float64), dim=-1)
    twists = torch.cat([torch.randn(500, 3, dtype=torch.float64), angle * axes], dim=-1).float()
    weights = torch.randn(500, 3, 4)
    expected = both_passes(exact, twists.double(), weights.double())
    rows = []
    for name, function in MAPS.items():
        found = (float((a - b).abs().max()) for a, b in zip(both_passes(function, twists, weights), expected))
        largest = {key: float(f"{error:.2e}") for key, error in zip(("pose", "gradient"), found)}
        rows.append({"angle": angle, "map": name, **largest})
    return rows


def ended(folder: Path) -> list[dict[str, Any]]:
    """The last records of all runs in a folder."""
    last = [last_record(log.parent) for log in sorted(folder.rglob(POSE_LOG))]
    return [{name: record.get(name, record.get(f"pose_error_after_{name}")) for name in NOTED} for record in last]


def main(args: Args) -> None:
    """Measures, prints, writes."""
    torch.manual_seed(0)
    costs = [row for count in args.cameras for row in cost(count, args.repeats)]
    exactness = [row for angle in args.angles for row in errors(angle)]
    runs = {name: ended(Path(folder)) for name, folder in (pair.split("=", 1) for pair in args.runs)}
    for title, rows in {"Cost": costs, "Largest errors": exactness, **runs}.items():
        show(title, rows)
    write_record(args.output, costs=costs, errors=exactness, runs=runs)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
