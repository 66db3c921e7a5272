"""The record and the figure of L2G-NeRF's noise, from runs of benchmarks/suites/l2g-sweep.yaml.

    python benchmarks/l2g_sweep.py --runs bench_output --output benchmarks/results/l2g_sweep.json

Runs that the record holds already stay, unless a folder has the same one anew. Nothing is trained.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from record import show

from hashpose_ns.runs.files import read_pose_log

COMMAND = "hashpose-bench run --suite benchmarks/suites/l2g-sweep.yaml --data path/to/scenes"
BEFORE, AFTER = "pose_error_before_by_centers_", "pose_error_after_by_centers_"
LOOKS = {
    "centred": ("pictures centred, 100x100", "#0072B2", "o"),
    "centred-guarded": ("pictures centred, guarded", "#0072B2", "s"),
    "larger": ("pictures centred, 400x400", "#009E73", "D"),
    "se3": ("twists", "#D55E00", "^"),
    "local-to-global": ("local-to-global", "#E69F00", "v"),
}
PUBLISHED = {
    "L2G-NeRF, published": ((2, 3, 4, 5, 6, 7, 8), (0.15, 0.16, 0.14, 0.15, 0.17, 0.18, 1.2)),
    "BARF, published": ((2, 3, 4, 5, 6, 7, 8), (0.44, 1.1, 2.3, 11, 15, 22, 24)),
}
"""Rotation in degrees over n: the poster's figure, read off; one object, 200 000 steps."""


@dataclass
class Args:
    """Settings."""

    output: Path
    """The record; the figure goes beside it."""
    runs: tuple[Path, ...] = ()
    """Folders of hashpose-bench."""


def gathered(folder: Path) -> dict[str, Any]:
    """What the record says of one run."""
    done, asked = (json.loads((folder / name).read_text()) for name in ("results.json", "run.json"))
    errors = done["results"]
    curve = [[row["step"], round(row[f"{AFTER}rotation_deg_mean"], 4)] for row in read_pose_log(folder)]
    return {
        **{key: asked[key] for key in ("scene", "preset", "seed", "commit", "steps")},
        "cpu_seconds": done.get("cpu_seconds"),
        "rotation_before": errors[f"{BEFORE}rotation_deg_mean"],
        **{f"rotation_{key}": errors[f"{AFTER}rotation_deg_{key}"] for key in ("mean", "median")},
        "rotation_worst": errors[f"{AFTER}rotation_deg_max"],
        "rotation_mean_by_poses": errors["pose_error_after_rotation_deg_mean"],
        "translation_mean": errors[f"{AFTER}translation_mean"],
        "curve": curve,
    }


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Mean rotation of each run over n, an object a panel, beside what is published."""
    from matplotlib.figure import Figure

    from hashpose_ns.plotting.axes import log_axis

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, scene in zip(panels, ("chair", "lego")):
        for preset, (label, color, marker) in LOOKS.items():
            found = [
                (int(number[1]), run["rotation_mean"])
                for run in runs
                if run["preset"] == preset and (number := re.fullmatch(rf"{scene}-n(\d)", run["scene"]))
            ]
            if found:
                axes.plot(*zip(*found), marker, color=color, label=label, markersize=7)
        for (name, (n, degrees)), style in zip(PUBLISHED.items(), ("-", "--")):
            axes.plot(n, degrees, style, color="#999999", label=name, zorder=0)
        axes.axhline(0.5, color="#999999", linewidth=0.5)
        axes.set(title=scene, xlabel="n (noise r = .01 n, t = .1 n)")
    panels[0].set_ylabel("mean rotation error [deg]")
    log_axis(panels[0])
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(args: Args) -> None:
    """Gathers, prints, writes and draws."""
    kept = json.loads(args.output.read_text()) if args.output.exists() else {"runs": []}
    runs = {(run["scene"], run["preset"], run["seed"]): run for run in kept["runs"]}
    for folder in args.runs:
        for done in folder.glob("*/*/*/seed_*/results.json"):
            run = gathered(done.parent)
            runs[run["scene"], run["preset"], run["seed"]] = run
    ordered = [runs[key] for key in sorted(runs)]
    show("Runs", ordered, leave_out=("curve", "commit", "steps"))
    record = {"command": COMMAND, "machine": "two shared CPU cores, one thread a run", "runs": ordered}
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(ordered, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Args))
