"""Figures of a run: cameras before, after and true, and errors over training. matplotlib is imported when drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.plotting.axes import log_axis
from hashpose_ns.plotting.cameras import Views, frustum_collection, frustum_points, frustum_size, show_limits

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BEFORE, AFTER, TRUE, GAP = "#999999", "#0072B2", "#009E73", "#D55E00"
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def plot_cameras(
    initial: Float[Tensor, "num_cameras 3 4"],
    refined: Float[Tensor, "num_cameras 3 4"],
    reference: Float[Tensor, "num_cameras 3 4"],
    path: Path,
    title: str = "",
) -> None:
    """Draws initial and refined cameras, each aligned to the reference ones, and a line from each to its reference.

    Args:
        initial: [N, 3, 4] camera-to-world poses before training.
        refined: [N, 3, 4] poses after training.
        reference: [N, 3, 4] poses to compare with; their frame is the figure's.
        path: the picture to write.
        title: printed above.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    reference, *others = (poses.detach().cpu().double() for poses in (reference, initial, refined))
    before, after = (align_poses(poses, reference).apply_to_poses(poses).numpy() for poses in others)
    true = reference.numpy()
    size = frustum_size(true)
    pyramids = frustum_points(np.stack([true, before, after]), size)
    views = Views(true, pyramids.reshape(-1, 3))
    view = views.oblique()
    figure = Figure(figsize=(12, 5.8), layout="constrained")
    for axes, name, moved, color in zip(figure.subplots(1, 2), ("before", "after"), pyramids[1:], (BEFORE, AFTER)):
        axes.add_collection(frustum_collection(view, pyramids[0], TRUE, 1.1))
        axes.add_collection(frustum_collection(view, moved, color, 1.1))
        gaps = view.project(np.stack([moved[:, 0], pyramids[0, :, 0]], axis=1))
        axes.add_collection(LineCollection(list(gaps), colors=GAP, linewidths=1.6))
        show_limits(axes, views.limits(view))
        axes.set_title(f"{name} training", color=color, fontsize=14)
    names = {TRUE: "reference", BEFORE: "before", AFTER: "after", GAP: "distance between centres"}
    handles = [Line2D([], [], color=color, label=label) for color, label in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def plot_pose_errors(logs: Dict[str, Sequence[Sequence[Dict[str, float]]]], path: Path, title: str = "") -> None:
    """Draws mean rotation and translation errors over training, a colour per variant and a line per seed.

    A single run's median and worst camera are drawn as well.

    Args:
        logs: name of a variant -> for each seed, the records of its pose log, see `hashpose_ns.runs.files`.
        path: the picture to write.
        title: printed above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    alone = sum(len(seeds) for seeds in logs.values()) == 1
    statistics = {"mean": "-", "median": "--", "max": ":"} if alone else {"mean": "-"}
    for (name, seeds), color in zip(logs.items(), COLORS * len(logs)):
        for seed, records in enumerate(seeds):
            prefix = "pose_error_after_" if "pose_error_after_rotation_deg_mean" in records[0] else "pose_change_"
            steps = [record["step"] for record in records]
            for axes, measure, scale in zip(panels, ("rotation_deg", "translation"), (1.0, 100.0)):
                for statistic, style in statistics.items():
                    values = [scale * record[f"{prefix}{measure}_{statistic}"] for record in records]
                    # Poses that have not moved yet are rounding away from where they were.
                    values = [value if value > 1e-6 else float("nan") for value in values]
                    label = f"{name}, {statistic}" if alone else name if seed == 0 else None
                    axes.plot(steps, values, style, color=color, label=label, linewidth=1.3)
    for axes, label in zip(panels, ("rotation error [deg]", "translation error x100 (BARF's metric)")):
        log_axis(axes)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
