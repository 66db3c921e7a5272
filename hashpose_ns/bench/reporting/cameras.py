"""Cameras before and after training, and the ways they went, from above and from the side."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hashpose_ns.bench.reporting.curves import STYLE, load_cameras, save
from hashpose_ns.bench.reporting.runs import BenchRun
from hashpose_ns.bench.reporting.tables import Group, Row
from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.runs.files import HISTORY_FILE
from hashpose_ns.runs.history import read_pose_history
from hashpose_ns.figures import AFTER, BEFORE, GAP, TRUE, frustum_lines

COLUMNS = 4
"""Pictures side by side."""
SIDES = ("from above", "from the side")

Poses = Float[np.ndarray, "num_cameras 3 4"]


@dataclass(frozen=True, eq=False)
class Views:
    """Two orthographic views of a set of cameras, in the reference frame."""

    center: Float[np.ndarray, "3"]
    """What is in the middle of the pictures."""
    axes: Float[np.ndarray, "2 2 3"]
    """For each view, the directions that point right and up in it."""
    reach: Float[np.ndarray, "2 2"]
    """For each view, half its width and half its height."""

    @classmethod
    def of(cls, reference: Poses, centers: Float[np.ndarray, "num_points 3"]) -> Views:
        """Views along and across what most cameras hold for upwards, across to where they spread most.

        Args:
            reference: true poses, which are seen whole.
            centers: what else should be seen, unless it lies far out.
        """
        true = reference[:, :, 3]
        up = reference[:, :, 1].mean(axis=0)
        up = up / np.linalg.norm(up) if np.linalg.norm(up) > 0.1 else np.array([0.0, 0.0, 1.0])
        flat = true - true.mean(axis=0)
        flat = flat - np.outer(flat @ up, up)
        # the direction of largest spread; the cameras' right where centres leave it open
        right = np.linalg.svd(flat)[2][0] if np.linalg.norm(flat) > 1e-9 else reference[0, :, 0]
        right = right - (right @ up) * up
        right = right / np.linalg.norm(right)
        middle = (true.min(axis=0) + true.max(axis=0)) / 2
        axes = np.array([[right, np.cross(up, right)], [right, up]])

        def extent(points: np.ndarray) -> np.ndarray:
            return np.abs((points - middle) @ axes.transpose(0, 2, 1)).max(axis=1)

        needed = extent(true)
        reach = 1.05 * np.minimum(np.maximum(extent(centers), needed), 1.5 * needed) + 0.16 * needed.max() + 1e-9
        width = float(reach[:, 0].max())
        return cls(middle, axes, np.stack([np.full(2, width), np.maximum(reach[:, 1], 0.3 * width)], axis=1))

    @property
    def aspects(self) -> List[float]:
        """Height over width of each view."""
        return [float(height / width) for width, height in self.reach]

    def project(self, points: Float[np.ndarray, "*batch 3"], side: int) -> Float[np.ndarray, "*batch 2"]:
        """Points in a view's plane."""
        return (points - self.center) @ self.axes[side].T

    def fit(self, axis: Axes, side: int) -> None:
        """An empty frame that shows this view."""
        width, height = self.reach[side]
        axis.set_xlim(-width, width)
        axis.set_ylim(-height, height)
        axis.set_aspect("equal")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(True)
            spine.set_color("#d5dade")


def shown_runs(group: Group) -> List[Tuple[Row, BenchRun]]:
    """One run of each preset: that of the first seed which all presets have, where there is one."""
    able = {row.preset: {run.seed: run for run in row.done if load_cameras(run) is not None} for row in group.rows}
    rows = [row for row in group.rows if able[row.preset]]
    common = set.intersection(*[set(able[row.preset]) for row in rows]) if rows else set()
    return [(row, able[row.preset][min(common or able[row.preset])]) for row in rows]


def draw_cameras(group: Group, path: Path) -> bool:
    """Cameras before training and after it with each preset, aligned to the reference ones, from two sides.

    Returns:
        Whether there was anything to draw.
    """
    pictures: List[Tuple[str, Poses, Poses, str]] = []  # title, aligned poses, reference poses, colour
    starts: List[Poses] = []
    for row, run in shown_runs(group):
        cameras = load_cameras(run)
        assert cameras is not None
        initial, refined, reference = (cameras[name] for name in ("initial", "refined", "reference"))
        # drawn once where presets share it, and not where it is the reference
        known = any(start.shape == initial.shape and np.allclose(start, initial, atol=1e-5) for start in starts)
        if not known and not np.allclose(initial, reference, atol=1e-5):
            title = f"before: {row.title}" if starts else "before training"
            pictures.append((title, _aligned(initial, reference), reference, BEFORE))
            starts.append(initial)
        pictures.append((row.title, _aligned(refined, reference), reference, AFTER))
    if not pictures:
        return False
    with rc_context({**STYLE, "axes.grid": False}):
        views = Views.of(pictures[0][2], np.concatenate([aligned[:, :, 3] for _, aligned, _, _ in pictures]))
        figure, panels = _panels(len(pictures), views.aspects)
        for (title, aligned, reference, color), axes in zip(pictures, panels):
            size = 0.1 * views.reach.max()
            for side, axis in enumerate(axes):
                for cameras, tint, width in ((reference, TRUE, 0.7), (aligned, color, 0.9)):
                    lines = np.concatenate([frustum_lines(camera, size) for camera in cameras])
                    axis.add_collection(LineCollection(views.project(lines, side), colors=tint, linewidths=width))  # type: ignore
                gaps = np.stack([aligned[:, :, 3], reference[:, :, 3]], axis=1)
                axis.add_collection(LineCollection(views.project(gaps, side), colors=GAP, linewidths=1.5))  # type: ignore
                views.fit(axis, side)
            axes[0].set_title("\n".join(textwrap.wrap(title, 26)), color="#555555" if color == BEFORE else "#111111")
        labels = [(TRUE, "reference"), (BEFORE, "before"), (AFTER, "after"), (GAP, "from centre to reference centre")]
        labels = [label for label in labels if label[0] != BEFORE or starts]
        handles = [Line2D([], [], color=color, linewidth=2, label=label) for color, label in labels]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        save(figure, path)
    return True


def draw_paths(group: Group, path: Path) -> bool:
    """The ways of the camera centres over training, one seed of each preset, from two sides.

    All poses of a run are taken to the reference frame by the similarity of its last ones.

    Returns:
        Whether there was anything to draw.
    """
    pictures = []
    for row, run in shown_runs(group):
        history = _centers_over_training(run)
        cameras = load_cameras(run)
        if history is not None and cameras is not None:
            pictures.append((row.title, cameras["reference"], *history))
    if not pictures:
        return False
    colormap = colormaps["YlGnBu"]
    with rc_context({**STYLE, "axes.grid": False}):
        views = Views.of(pictures[0][1], np.concatenate([centers.reshape(-1, 3) for _, _, _, centers in pictures]))
        figure, panels = _panels(len(pictures), views.aspects)
        for (title, reference, progress, centers), axes in zip(pictures, panels):
            colors = colormap(0.2 + 0.8 * (progress[:-1] + progress[1:]) / 2)
            for side, axis in enumerate(axes):
                flat = views.project(centers, side)  # [R, N, 2]
                for camera in range(flat.shape[1]):
                    pieces = np.stack([flat[:-1, camera], flat[1:, camera]], axis=1)
                    axis.add_collection(LineCollection(pieces, colors=colors, linewidths=1.3, capstyle="round"))  # type: ignore
                true = views.project(reference[:, :, 3], side)
                axis.scatter(*true.T, s=26, facecolors="none", edgecolors=TRUE, linewidths=1.1, zorder=3)
                axis.scatter(*flat[-1].T, s=7, color=colormap(1.0), zorder=4)
                views.fit(axis, side)
            axes[0].set_title("\n".join(textwrap.wrap(title, 26)))
        handles = [
            Line2D([], [], color=colormap(0.25), linewidth=2, label="early in training"),
            Line2D([], [], color=colormap(0.6), linewidth=2, label="half-way"),
            Line2D([], [], color=colormap(1.0), linewidth=2, marker="o", markersize=4, label="late, and the end"),
            Line2D([], [], color=TRUE, linestyle="", marker="o", markerfacecolor="none", label="reference centre"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        save(figure, path)
    return True


def _centers_over_training(run: BenchRun) -> Optional[Tuple[np.ndarray, Float[np.ndarray, "records num_cameras 3"]]]:
    """Progress from 0 to 1 and the centres in the reference frame; None where no poses were kept."""
    path, cameras = run.folder / HISTORY_FILE, load_cameras(run)
    if cameras is None or not path.is_file():
        return None
    steps, poses = read_pose_history(path)
    reference = cameras["reference"]
    usable = np.isfinite(poses).all(axis=(1, 2, 3)) if len(poses) else np.zeros(0, dtype=bool)
    if usable.sum() < 2 or poses.shape[1:] != reference.shape:
        return None
    steps, poses = steps[usable], poses[usable]
    start = cameras["initial"]
    similarity = align_poses(torch.from_numpy(poses[-1]).double(), torch.from_numpy(reference).double())
    centers = np.concatenate([start[None, :, :, 3], poses[:, :, :, 3]])
    progress = np.concatenate([[0.0], (steps + 1) / (steps[-1] + 1)])
    return progress, similarity.apply_to_points(torch.from_numpy(centers)).numpy()


def _aligned(poses: Poses, reference: Poses) -> Poses:
    source, target = torch.from_numpy(poses).double(), torch.from_numpy(reference).double()
    return align_poses(source, target).apply_to_poses(source).numpy()


def _panels(count: int, aspects: Sequence[float]) -> Tuple[Figure, Sequence[Sequence[Axes]]]:
    """A figure with two axes, one above the other, for each of so many pictures.

    Args:
        count: number of pictures.
        aspects: height over width of the upper and the lower axes.
    """
    blocks = -(-count // COLUMNS)
    columns = -(-count // blocks)
    width = min(4.2, 12.4 / columns)
    height = blocks * (sum(aspects) * width + 0.45) + 0.35
    figure = Figure(figsize=(width * columns + 0.3, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, hspace=0.01, wspace=0.01)  # type: ignore
    grid = figure.subplots(2 * blocks, columns, squeeze=False, height_ratios=list(aspects) * blocks)
    panels = [(grid[2 * (i // columns), i % columns], grid[2 * (i // columns) + 1, i % columns]) for i in range(count)]
    for block in range(blocks):
        for side, name in enumerate(SIDES):
            grid[2 * block + side, 0].set_ylabel(name)
    for i in range(count, blocks * columns):
        for side in range(2):
            grid[2 * (i // columns) + side, i % columns].set_axis_off()
    return figure, panels
