"""Cameras before and after training, the paths they took, from above and from the side; photographs beside renders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from hashpose_ns.bench import files
from hashpose_ns.bench.reporting.figures import STYLE, load_cameras, save, wrapped
from hashpose_ns.bench.reporting.frame import Group
from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.plotting.cameras import Views, frustum_collection, frustum_points, frustum_size, show_limits
from hashpose_ns.plotting.figures import AFTER, BEFORE, GAP, TRUE
from hashpose_ns.runs.files import HISTORY_FILE
from hashpose_ns.runs.history import read_pose_history

COLUMNS = 4
"""Pictures side by side."""
IMAGES, RENDERS = 3, 5
"""Held-out images shown at most, and renders side by side; more go below."""

Poses = Float[np.ndarray, "num_cameras 3 4"]
Picture = Float[np.ndarray, "height width 3"]


def shown_runs(group: Group) -> List[Tuple[str, Any]]:
    """Title and run of each preset: that of the first seed which all presets have, if there is one."""
    able = {
        preset: {run.seed: run for run in group.of(preset, "done").itertuples() if load_cameras(run.folder) is not None}
        for preset in group.presets
    }
    able = {preset: runs for preset, runs in able.items() if runs}
    common = set.intersection(*map(set, able.values())) if able else set()
    return [(group.presets[preset], runs[min(common or runs)]) for preset, runs in able.items()]


def aligned(poses: Poses, reference: Poses) -> Poses:
    """Poses taken to the reference frame."""
    source, target = (torch.from_numpy(array).double() for array in (poses, reference))
    return align_poses(source, target).apply_to_poses(source).numpy()


def draw_cameras(group: Group, path: Path) -> bool:
    """Cameras before training and after it with each preset, aligned to the reference ones, from two sides.

    Returns:
        Whether there was anything to draw.
    """
    pictures: List[Tuple[str, Poses, Poses, str]] = []  # title, aligned poses, reference poses, colour
    starts: List[Poses] = []
    for title, run in shown_runs(group):
        cameras = load_cameras(run.folder)
        assert cameras is not None
        initial, refined, reference = (cameras[name] for name in ("initial", "refined", "reference"))
        # drawn once where presets share it, and not where it is the reference
        known = any(start.shape == initial.shape and np.allclose(start, initial, atol=1e-5) for start in starts)
        if not known and not np.allclose(initial, reference, atol=1e-5):
            before = f"before: {title}" if starts else "before training"
            pictures.append((before, aligned(initial, reference), reference, BEFORE))
            starts.append(initial)
        pictures.append((title, aligned(refined, reference), reference, AFTER))
    if not pictures:
        return False
    views = Views(pictures[0][2], np.concatenate([poses[:, :, 3] for picture in pictures for poses in picture[1:3]]))
    size = frustum_size(pictures[0][2])
    with rc_context({**STYLE, "axes.grid": False}):
        figure, panels = _panels(views, len(pictures), margin=size)
        for (title, poses, reference, color), axes in zip(pictures, panels):
            for view, axis in zip(views.above_and_beside(), axes):
                axis.add_collection(frustum_collection(view, frustum_points(reference, size), TRUE, 0.7))
                axis.add_collection(frustum_collection(view, frustum_points(poses, size), color, 0.9))
                gaps = view.project(np.stack([poses[:, :, 3], reference[:, :, 3]], axis=1))
                axis.add_collection(LineCollection(list(gaps), colors=GAP, linewidths=1.5))
            axes[0].set_title(wrapped(title), color="#555555" if color == BEFORE else "#111111")
        labels = {TRUE: "reference", BEFORE: "before", AFTER: "after", GAP: "from centre to reference centre"}
        handles = [
            Line2D([], [], color=color, linewidth=2, label=label)
            for color, label in labels.items()
            if starts or color != BEFORE
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        save(figure, path)
    return True


def draw_paths(group: Group, path: Path) -> bool:
    """The paths of the camera centres over training, one seed of each preset, from two sides.

    All poses of a run are taken to the reference frame by the similarity of its last ones.

    Returns:
        Whether there was anything to draw.
    """
    pictures = [(title, *found) for title, run in shown_runs(group) if (found := centers_over_training(run.folder))]
    if not pictures:
        return False
    colormap = colormaps["YlGnBu"]
    reference = pictures[0][1]
    views = Views(reference, np.concatenate([centers.reshape(-1, 3) for *_, centers in pictures]))
    with rc_context({**STYLE, "axes.grid": False}):
        figure, panels = _panels(views, len(pictures), margin=0.5 * frustum_size(reference))
        for (title, reference, progress, centers), axes in zip(pictures, panels):
            colors = colormap(0.2 + 0.8 * (progress[:-1] + progress[1:]) / 2)
            for view, axis in zip(views.above_and_beside(), axes):
                flat = view.project(centers)  # [R, N, 2]
                for way in flat.transpose(1, 0, 2):
                    pieces = np.stack([way[:-1], way[1:]], axis=1)
                    axis.add_collection(LineCollection(list(pieces), colors=colors, linewidths=1.3, capstyle="round"))
                true = view.project(reference[:, :, 3])
                axis.scatter(*true.T, s=26, facecolors="none", edgecolors=TRUE, linewidths=1.1, zorder=3)
                axis.scatter(*flat[-1].T, s=7, color=colormap(1.0), zorder=4)
            axes[0].set_title(wrapped(title))
        handles = [
            Line2D([], [], color=colormap(0.25), linewidth=2, label="early in training"),
            Line2D([], [], color=colormap(0.6), linewidth=2, label="half-way"),
            Line2D([], [], color=colormap(1.0), linewidth=2, marker="o", markersize=4, label="late, and the end"),
            Line2D([], [], color=TRUE, linestyle="", marker="o", markerfacecolor="none", label="reference centre"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        save(figure, path)
    return True


def centers_over_training(
    folder: Path,
) -> Optional[Tuple[Poses, np.ndarray, Float[np.ndarray, "records num_cameras 3"]]]:
    """Reference poses, progress from 0 to 1 and centres in the reference frame; None if no poses were kept."""
    path, cameras = folder / HISTORY_FILE, load_cameras(folder)
    if cameras is None or not path.is_file():
        return None
    steps, poses = read_pose_history(path)
    reference = cameras["reference"]
    usable = np.isfinite(poses).all(axis=(1, 2, 3)) if len(poses) else np.zeros(0, dtype=bool)
    if usable.sum() < 2 or poses.shape[1:] != reference.shape:
        return None
    steps, poses = steps[usable], poses[usable]
    similarity = align_poses(torch.from_numpy(poses[-1]).double(), torch.from_numpy(reference).double())
    centers = np.concatenate([cameras["initial"][None, :, :, 3], poses[:, :, :, 3]])
    progress = np.concatenate([[0.0], (steps + 1) / (steps[-1] + 1)])
    return reference, progress, similarity.apply_to_points(torch.from_numpy(centers)).numpy()


def _panels(views: Views, count: int, margin: float) -> Tuple[Figure, Sequence[Sequence[Axes]]]:
    """A figure with two prepared axes, from above and from the side, for each of so many pictures.

    Args:
        views: what is shown.
        count: number of pictures.
        margin: kept free around, in scene units.
    """
    limits = [views.limits(view) + [[-margin], [margin]] for view in views.above_and_beside()]
    width = max(np.ptp(limit, axis=0)[0] for limit in limits)
    heights = [max(float(np.ptp(limit, axis=0)[1] / width), 0.3) for limit in limits]
    blocks = -(-count // COLUMNS)
    columns = -(-count // blocks)
    inches = min(4.2, 12.4 / columns)
    figure = Figure(
        figsize=(inches * columns + 0.3, blocks * (sum(heights) * inches + 0.45) + 0.35), layout="constrained"
    )
    grid = figure.subplots(2 * blocks, columns, squeeze=False, height_ratios=heights * blocks)
    for axis in grid.flat:
        axis.set_axis_off()
    panels = []
    for index in range(count):
        row, column = 2 * (index // columns), index % columns
        panels.append(grid[row : row + 2, column])
        for axis, limit, side in zip(panels[-1], limits, ("from above", "from the side")):
            show_limits(axis, limit)
            axis.set(frame_on=True, xticks=[], yticks=[], ylabel="" if column else side)
            axis.set_axis_on()
    return figure, panels


# -- photographs and renders -------------------------------------------------------------------------------------------


def draw_views(group: Group, path: Path) -> Optional[str]:
    """Draws photographs and renders of some held-out images that all presets rendered, one seed of each.

    Returns:
        Which cameras the renders were made with, in words; None if there was nothing to draw.
    """
    for variant, words in (("tto", "after test-time optimisation"), ("aligned", "aligned, not optimised")):
        chosen: Dict[str, Dict[str, Path]] = {}
        for preset, title in group.presets.items():
            rendered = [found for folder in group.of(preset, "done").folder if (found := _renders(folder, variant))]
            if rendered:
                chosen[title] = rendered[0]
        names = sorted(set.intersection(*map(set, chosen.values()))) if chosen else []
        if names:
            break
    else:
        return None
    names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(IMAGES, len(names))).round().astype(int))]
    pairs = {title: [read_pair(pictures[name]) for name in names] for title, pictures in chosen.items()}
    titles = list(pairs)
    photograph = pairs[titles[0]][0][0]
    columns, blocks = 1 + min(RENDERS, len(titles)), -(-len(titles) // RENDERS)
    width = min(3.2, 12.6 / columns)
    height = blocks * (len(names) * (width * photograph.shape[0] / photograph.shape[1] + 0.34) + 0.35)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0.0, wspace=0.0)  # type: ignore[union-attr]
        grid = figure.subplots(blocks * len(names), columns, squeeze=False, subplot_kw=dict(xticks=[], yticks=[]))
        for index, row in enumerate(grid):
            image, block = index % len(names), index // len(names)
            shown = titles[block * RENDERS : (block + 1) * RENDERS]
            cells = [("photograph", pairs[shown[0]][image][0], f"held-out image {int(names[image])}")]
            cells += [
                (wrapped(title, int(8 * width)), render, f"{psnr(target, render):.2f} dB")
                for title in shown
                for target, render in [pairs[title][image]]
            ]
            for axis, (title, picture, words_below) in zip(row, cells):
                axis.imshow(picture, interpolation="bicubic")
                axis.set_xlabel(words_below, fontsize=9)
                axis.set_title(title if image == 0 else "")
            for axis in row[len(cells) :]:
                axis.set_axis_off()
        save(figure, path)
    return words


def _renders(folder: Path, variant: str) -> Dict[str, Path]:
    """Number of an image -> picture with the photograph on the left and the render on the right."""
    return {path.stem.rpartition("_")[2]: path for path in (folder / files.RENDERS).glob(f"eval_{variant}_img_*.png")}


def read_pair(path: Path) -> Tuple[Picture, Picture]:
    """Photograph and render out of one picture, values in [0, 1]."""
    with Image.open(path) as image:
        both = np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    half = both.shape[1] // 2
    return both[:, :half], both[:, half : 2 * half]


def psnr(photograph: Picture, render: Picture) -> float:
    """PSNR of pictures of 8 bits, in dB."""
    return float(-10.0 * np.log10(np.mean((photograph - render) ** 2) + 1e-12))
