"""Pictures of poses: cameras before, after and true, and errors over training. matplotlib is imported when drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import align_poses

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BEFORE, AFTER, TRUE, GAP = "#999999", "#0072B2", "#009E73", "#D55E00"
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def frustum_lines(camera_to_world: np.ndarray, size: float) -> np.ndarray:
    """Line segments [8, 2, 3] of a viewing pyramid; OpenGL axes, looking down -z."""
    corners = size * np.array([[-1, -1, -2], [1, -1, -2], [1, 1, -2], [-1, 1, -2]]) / 2
    tip, corners = camera_to_world[:, 3], corners @ camera_to_world[:, :3].T + camera_to_world[:, 3]
    return np.array([(tip, corner) for corner in corners] + [(corners[i], corners[(i + 1) % 4]) for i in range(4)])


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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    reference = reference.detach().cpu().double()
    true = reference.numpy()
    size = 0.12 * float(np.linalg.norm(true[:, :, 3] - true[:, :, 3].mean(0), axis=-1).mean() + 1e-9)
    figure = plt.figure(figsize=(12, 6))
    for column, (name, poses, color) in enumerate((("before", initial, BEFORE), ("after", refined, AFTER))):
        poses = poses.detach().cpu().double()
        aligned = align_poses(poses, reference).apply_to_poses(poses).numpy()
        axes = figure.add_subplot(1, 2, column + 1, projection="3d")
        for cameras, tint in ((true, TRUE), (aligned, color)):
            lines = np.concatenate([frustum_lines(camera, size) for camera in cameras])
            axes.add_collection3d(Line3DCollection(lines, colors=tint, linewidths=1.1))
        gaps = np.stack([aligned[:, :, 3], true[:, :, 3]], axis=1)
        axes.add_collection3d(Line3DCollection(gaps, colors=GAP, linewidths=1.6))
        everything = np.concatenate([true[:, :, 3], aligned[:, :, 3]])
        center, radius = (everything.max(0) + everything.min(0)) / 2, np.ptp(everything, axis=0).max() / 2 + size
        axes.set_xlim(center[0] - radius, center[0] + radius)
        axes.set_ylim(center[1] - radius, center[1] + radius)
        axes.set_zlim(center[2] - radius, center[2] + radius)
        axes.set_box_aspect((1, 1, 1), zoom=1.45)
        axes.set_axis_off()
        axes.view_init(elev=35, azim=-60)
        axes.set_title(f"{name} training", color=color, fontsize=14, y=0.96)
    handles = [
        plt.Line2D([], [], color=color, label=label)
        for color, label in (
            (TRUE, "reference"),
            (BEFORE, "before"),
            (AFTER, "after"),
            (GAP, "distance between centres"),
        )
    ]
    figure.legend(handles=handles, loc="lower center", ncol=4, frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_pose_errors(logs: Dict[str, Sequence[Sequence[Dict[str, float]]]], path: Path, title: str = "") -> None:
    """Draws mean rotation and translation errors over training, a colour per variant and a line per seed.

    Where there is only one run, its median and its worst camera are drawn as well.

    Args:
        logs: name of a variant -> for each seed, the records of its pose_errors.jsonl.
        path: the picture to write.
        title: printed above.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    alone = sum(len(seeds) for seeds in logs.values()) == 1
    statistics = {"mean": "-", "median": "--", "max": ":"} if alone else {"mean": "-"}
    for (name, seeds), color in zip(logs.items(), COLORS * len(logs)):
        for seed, records in enumerate(seeds):
            prefix = "pose_error_after_" if "pose_error_after_rotation_deg_mean" in records[0] else "pose_change_"
            steps = [record["step"] for record in records]
            for axis, measure, scale in ((axes[0], "rotation_deg", 1.0), (axes[1], "translation", 100.0)):
                for statistic, style in statistics.items():
                    values = [scale * record[f"{prefix}{measure}_{statistic}"] for record in records]
                    # Poses that have not moved yet are rounding away from where they were.
                    values = [value if value > 1e-6 else float("nan") for value in values]
                    label = f"{name}, {statistic}" if alone else name if seed == 0 else None
                    axis.plot(steps, values, style, color=color, label=label, linewidth=1.3)
    axes[0].set_ylabel("rotation error [deg]")
    axes[1].set_ylabel("translation error x100 (BARF's metric)")
    for axis in axes:
        axis.set_yscale("log")
        for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatted(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.tick_params(axis="y", which="both", labelsize=7)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
