"""Structure from motion, fields, and fields that start from matches, cell by cell: scenes, runs, one table.

    OMP_NUM_THREADS=1 python benchmarks/matches.py --data DATA --work WORK \\
        --output benchmarks/results/matches_sfm.json --rows sfm-given sfm-incremental sfm-global

A cell is a scene of the suites `benchmarks/suites/matches-*.yaml` and a row is one of their presets; all without
`--cells` and `--rows`. Runs are those of hashpose-bench: what is complete is left alone, what was cut off resumes. The
record has a line for every run in the work folder that was asked for, whenever it was made.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from match_gate import Case, chosen, load
from PIL import Image, ImageFilter
from record import REPOSITORY, Output, show, write_record

from hashpose_ns.bench import suites
from hashpose_ns.errors import HashPoseError

SUITES = ("matches-objects", "matches-captures", "matches-fern")
METRICS = (
    ("before_deg", "rotation_deg_before"),
    ("by_centers_deg", "rotation_deg"),
    ("aligned_deg", "rotation_deg_aligned"),
    ("worst_deg", "rotation_deg_max"),
    ("translation_x100", "translation_x100"),
    ("not_placed", "not_placed"),
    ("by_centers_placed_deg", "rotation_deg_placed"),
    ("aligned_placed_deg", "rotation_deg_aligned_placed"),
    ("worst_placed_deg", "rotation_deg_max_placed"),
    ("psnr_aligned", "psnr_aligned"),
    ("psnr_tto", "psnr"),
    ("match_seconds", "match_seconds"),
    ("sfm_seconds", "sfm_seconds"),
    ("cpu_seconds", "cpu_seconds"),
)
"""Name in the record, name of the report's metric: of all cameras unless it says `placed`."""


@dataclass
class Args(Output):
    """Settings."""

    data: Path = Path("../shared/data")
    """Folder of chair_400, lego_400, fox_270, flower_504 and fern_480."""
    work: Path = Path("bench_output/matches")
    """Folder for scenes and runs."""
    cells: tuple[str, ...] = ()
    """Some of the suites' scenes."""
    rows: tuple[str, ...] = ()
    """Some of the suites' presets."""
    seeds: tuple[str, ...] = ("1",)
    """Seeds, as hashpose-bench takes them: their number, a list, or a range."""
    jobs: int = 1
    """Runs at a time."""
    nice: int = 19
    """How much others' processes go first: 19 lets all of them."""
    settings: tuple[str, ...] = ()
    """What `hashpose-bench run --set` is to be told."""


# -- scenes ------------------------------------------------------------------------------------------------------------


def linked(source: str) -> Callable[[Path, Path], None]:
    """A capture as it is."""
    return lambda data, folder: folder.symlink_to((data / source).resolve())


def far_apart(scene: str, views: int) -> Callable[[Path, Path], None]:
    """An object with some of its training views, each as far from the others as it can be; all test views."""

    def make(data: Path, folder: Path) -> None:
        source = (data / f"{scene}_400").resolve()
        meta = json.loads((source / "transforms_train.json").read_text(encoding="utf-8"))
        _, cameras = load(scene, data)
        meta["frames"] = [meta["frames"][index] for index in chosen(cameras, Case(scene, views=views))]
        folder.mkdir()
        (folder / "transforms_train.json").write_text(json.dumps(meta), encoding="utf-8")
        for name in ("train", "test", "transforms_test.json"):
            (folder / name).symlink_to(source / name)

    return make


def blurred(source: str, deviation: float) -> Callable[[Path, Path], None]:
    """A capture in nerfstudio's format with all of its images blurred by a Gaussian of some pixels."""

    def make(data: Path, folder: Path) -> None:
        meta = json.loads((data / source / "transforms.json").read_text(encoding="utf-8"))
        (folder / "images").mkdir(parents=True)
        for frame in meta["frames"]:
            name = f"images/{Path(frame['file_path']).stem}.png"
            with Image.open(data / source / frame["file_path"]) as image:
                image.filter(ImageFilter.GaussianBlur(deviation)).save(folder / name)
            frame["file_path"] = name
        (folder / "transforms.json").write_text(json.dumps(meta), encoding="utf-8")

    return make


SCENES = {
    "chair_100": linked("chair_400"),
    "lego_100": linked("lego_400"),
    **{f"chair_{views}": far_apart("chair", views) for views in (50, 25, 12, 9)},
    "lego_25": far_apart("lego", 25),
    "fox_270": linked("fox_270"),
    "fox_blurred": blurred("fox_270", 3.0),
    "flower_504": linked("flower_504"),
    "fern_480": linked("fern_480"),
}
"""Name of a folder that the suites ask for -> what makes it from the data."""


def prepare(suite: suites.Suite, cells: list[str], data: Path, scenes: Path) -> None:
    """Makes what cells ask for and is not there yet."""
    scenes.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        place = suite.scenes[cell]
        folder = scenes / Path(str(place["folder"] if isinstance(place, dict) else place)).name
        if not folder.exists():
            staging = scenes / f".{folder.name}"
            if staging.is_symlink():
                staging.unlink()
            shutil.rmtree(staging, ignore_errors=True)
            SCENES[folder.name](data, staging)
            staging.rename(folder)


# -- runs --------------------------------------------------------------------------------------------------------------


def run(suite: suites.Suite, cells: list[str], rows: list[str], args: Args) -> int:
    """Has hashpose-bench do what is missing. Returns its exit code."""
    words = ["run", "--suite", str(suite_file(suite.name)), "--data", str(args.work / "scenes")]
    words += ["--output-dir", str(args.work / "runs"), "--jobs", str(args.jobs), "--report", "False"]
    words += ["--scenes", *cells, "--presets", *rows, "--seeds", *args.seeds]
    words += ["--set", *args.settings] if args.settings else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "hashpose_ns.bench.cli", *words]
    return subprocess.run(command, env=environment, preexec_fn=lambda: os.nice(args.nice)).returncode


def suite_file(name: str) -> Path:
    """Where one of the suites is."""
    return REPOSITORY / "benchmarks" / "suites" / f"{name}.yaml"


def table(args: Args, wanted: dict[str, tuple[list[str], list[str]]]) -> list[dict[str, Any]]:
    """A line for every run that was asked for: what it is, numbers, and what gate and guard said.

    Args:
        args: settings.
        wanted: suite -> cells and rows.
    """
    from hashpose_ns.bench.reporting.frame import read_runs

    found, problems = read_runs(args.work / "runs")
    for problem in problems:
        print(problem)
    lines = []
    for each in found.itertuples():
        cells, rows = wanted.get(each.suite, ([], []))
        if each.scene not in cells or each.preset not in rows:
            continue
        line: dict[str, Any] = {"cell": each.scene, "row": each.preset, "seed": each.seed, "state": each.state}
        if each.state == "failed":
            line["error"] = each.error
        if each.moved:
            line["moved_from_given"] = True  # what follows is movement, not error
        for name, metric in METRICS:
            value = getattr(each, metric)
            if not math.isnan(value):
                line[name] = round(value, 4)
        line["images"] = each.outcome.get("sfm_images")
        for name, measured in each.outcome.get("measures", {}).items():
            line[name] = measured
        line["steps"] = each.outcome.get("steps")
        line["parameters"] = each.outcome.get("parameters")
        line["commit"] = each.asked.get("commit")
        lines.append(
            {key: value for key, value in line.items() if value is not None and value == value}  # NaN is not itself
        )
    order = [(cell, row) for cells, rows in wanted.values() for cell in cells for row in rows]
    return sorted(lines, key=lambda line: (order.index((line["cell"], line["row"])), line["seed"]))


def main(args: Args) -> int:
    """Makes scenes, does the runs, and writes the table."""
    args.data, args.work = args.data.absolute(), args.work.absolute()
    loaded = [suites.load_suite(str(suite_file(name))) for name in SUITES]
    for kind, names, known in (
        ("cell", args.cells, {cell for suite in loaded for cell in suite.scenes}),
        ("row", args.rows, {preset.name for suite in loaded for preset in suites.suite_presets(suite)}),
    ):
        for name in names:
            if name not in known:
                raise HashPoseError(f"There is no {kind} '{name}'{suites.nearest(name, known)}")
    code, wanted = 0, {}
    for suite in loaded:
        cells = [cell for cell in suite.scenes if not args.cells or cell in args.cells]
        rows = [preset.name for preset in suites.suite_presets(suite) if not args.rows or preset.name in args.rows]
        if not cells or not rows:
            continue
        wanted[suite.name] = cells, rows
        prepare(suite, cells, args.data, args.work / "scenes")
        code = max(code, run(suite, cells, rows, args))
        lines = table(args, wanted)
        write_record(args.output, runs=lines)
    show("matches", lines, leave_out=("commit", "parameters", "steps", "images"))
    return code


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
