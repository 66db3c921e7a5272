"""What `hashpose-bench planar` leaves behind: a table on the console, a JSON file and figures."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    from rich.console import Console

    from hashpose_ns.bench.planar.alignment import Problem, Run
    from hashpose_ns.bench.planar.gradients import LevelSweeps
    from hashpose_ns.bench.planar.settings import Planar

SUCCESS = 1.0
"""A patch, or the mean of a run's patches, is aligned below this corner error, in pixels."""
FILES = {
    "planar.json": "every number, with settings and command",
    "patches.png": "patches on the photograph and recovered pictures, first seed",
    "errors.png": "corner error against steps and seconds",
    "gradients.png": "what a patch feels across cells",
}


def check_output(folder: Path, overwrite: bool) -> None:
    """Raises HashPoseError where results cannot be written, before any work goes into them."""
    if folder.exists() and not folder.is_dir():
        raise HashPoseError(f"{folder} exists and is not a folder; choose another --output-dir.")
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise HashPoseError(f"{folder} cannot be written, for {existing} cannot; choose another --output-dir.")
    for name in FILES:
        if (folder / name).exists() and not overwrite:
            raise HashPoseError(f"{folder / name} exists; choose another --output-dir or add --overwrite.")


def summarise(runs: List[Run]) -> List[Dict[str, Any]]:
    """Per representation, over its seeds: how often it succeeded, and medians."""
    summary = []
    for name in dict.fromkeys(str(run.representation) for run in runs):
        mine = [run for run in runs if str(run.representation) == name]
        patches = [error for run in mine for error in run.patch_errors]
        summary.append(
            {
                "representation": name,
                "runs": len(mine),
                "successes": sum(run.corner_errors[-1] < SUCCESS for run in mine),
                "patches": len(patches),
                "patches_aligned": sum(error < SUCCESS for error in patches),
                "corner_error_before_median": statistics.median(run.corner_errors[0] for run in mine),
                "corner_error_median": statistics.median(run.corner_errors[-1] for run in mine),
                "corner_error_mean": statistics.mean(run.corner_errors[-1] for run in mine),
                "patch_error_median": statistics.median(patches),
                "psnr_median": statistics.median(run.psnr for run in mine),
                "seconds_median": statistics.median(run.seconds[-1] for run in mine),
            }
        )
    return summary


def print_table(console: Console, runs: List[Run]) -> None:
    """Prints the summary."""
    from rich.table import Table

    table = Table(title="Planar alignment")
    table.add_column("representation", no_wrap=True)
    for column in ("aligned", "patches", "pixels before", "after", "PSNR", "seconds"):
        table.add_column(column, justify="right")
    for row in summarise(runs):
        table.add_row(
            row["representation"],
            f"{row['successes']}/{row['runs']}",
            f"{row['patches_aligned']}/{row['patches']}",
            f"{row['corner_error_before_median']:.2f}",
            f"{row['corner_error_median']:.2f}",
            f"{row['psnr_median']:.2f}",
            f"{row['seconds_median']:.1f}",
        )
    console.print(table)
    console.print(
        f"Aligned: runs, and patches, whose corner error is below {SUCCESS:g} pixel. Errors, PSNR in dB and processor "
        "seconds are medians over seeds."
    )


def write_output(settings: Planar, problem: Problem, runs: List[Run], sweeps: List[LevelSweeps]) -> List[str]:
    """Writes all files, or none.

    Args:
        settings: of the experiment.
        problem: the first seed's.
        runs: all of them.
        sweeps: of the gradients.

    Returns:
        A line for each file.

    Raises:
        HashPoseError: if the folder cannot be written.
    """
    from hashpose_ns.bench.planar import figures

    folder = settings.output_dir
    first = [run for run in runs if run.seed == runs[0].seed]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
            files = {name: Path(staging) / name for name in FILES}
            files["planar.json"].write_text(_to_json(_results(settings, problem, runs, sweeps)), encoding="utf-8")
            figures.plot_patches(problem, first, settings.steps, files["patches.png"])
            figures.plot_errors(runs, SUCCESS, files["errors.png"])
            figures.plot_gradients(sweeps, files["gradients.png"])
            folder.mkdir(exist_ok=True)
            for name, path in files.items():
                os.replace(path, folder / name)
    except OSError as error:
        raise HashPoseError(f"{folder} cannot be written ({error.strerror}).") from error
    return [f"  {what}: {folder / name}" for name, what in FILES.items()]


def _results(settings: Planar, problem: Problem, runs: List[Run], sweeps: List[LevelSweeps]) -> Dict[str, Any]:
    """All numbers."""
    from hashpose_ns.bench.environment import environment

    height, width, _ = problem.photograph.shape
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **environment(),
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(settings).items()},
        "photograph": {"file": settings.image.name, "width": width, "height": height, "patch_side": problem.side},
        "success_below_pixels": SUCCESS,
        "summary": summarise(runs),
        "gradients": [sweep.statistics() for sweep in sweeps],
        "runs": [run.record() for run in runs],
    }


def _to_json(results: Dict[str, Any]) -> str:
    """JSON with a line per entry of its lists: the curves of a hundred runs stay readable."""
    parts = []
    for key, value in _rounded(results).items():
        if isinstance(value, list):
            lines = ",\n".join("  " + json.dumps(entry) for entry in value)
            parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rounded(value: Any) -> Any:
    """Floats to five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value
