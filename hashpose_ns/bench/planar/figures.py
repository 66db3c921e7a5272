"""The figures of `hashpose-bench planar`. matplotlib is imported when drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, List

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.bench.planar.alignment import Problem, Run, render
from hashpose_ns.bench.planar.warps import anchored, patch_corners, warp_points
from hashpose_ns.encoding.grid import READINGS
from hashpose_ns.figures import COLORS

if TYPE_CHECKING:
    from hashpose_ns.bench.planar.gradients import LevelSweeps

COLUMNS = 6
"""Panels side by side."""
STYLES = ("-", "--", ":", "-.")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _draw_outlines(axis: Any, warps: Float[Tensor, "patches 3 3"], problem: Problem, **style: Any) -> None:
    """Outlines of the patches in pixels, each in its colour where the style has none."""
    height, width, _ = problem.photograph.shape
    middle = np.array([width - 1, height - 1]) / 2
    corners = patch_corners(problem.side, problem.longer).expand(len(warps), 4, 2)
    outlines = warp_points(warps, corners).numpy() * problem.longer / 2 + middle
    for outline, color in zip(outlines, COLORS):
        axis.plot(*np.vstack([outline, outline[:1]]).T, **{"color": color, "solid_joinstyle": "miter", **style})


def _show(axis: Any, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture.clip(0, 1), interpolation="bicubic")
    axis.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)


def plot_patches(problem: Problem, runs: List[Run], step: int, path: Path) -> None:
    """The photograph with the patches where they are, where they start and where every representation put them, and
    the picture that it recovered.

    Args:
        problem: photograph and true warps.
        runs: one of every representation.
        step: length of training.
        path: the picture to write.
    """
    plt = _pyplot()
    height, width, _ = problem.photograph.shape
    columns = min(len(runs) + 1, COLUMNS)
    blocks = -(-(len(runs) + 1) // columns)
    panel = 2.3
    figure, grid = plt.subplots(
        2 * blocks, columns, figsize=(panel * columns, blocks * (2 * panel * height / width + 1.0)), squeeze=False
    )
    for axis in grid.flat:
        axis.set_axis_off()
    photograph = problem.photograph.numpy()
    true, start = problem.true, torch.eye(3).expand(5, 3, 3)
    _show(grid[0, 0], photograph, "true patches")
    _draw_outlines(grid[0, 0], true, problem, linewidth=1.6)
    _show(grid[1, 0], photograph, "start: all in the middle")
    _draw_outlines(grid[1, 0], start, problem, linewidth=1.6)
    for number, run in enumerate(runs, start=1):
        above, below = grid[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        _show(above, 0.35 + 0.65 * photograph, f"{run.representation}\n{run.corner_errors[-1]:.2f} pixels")
        _draw_outlines(above, true, problem, color="black", linewidth=2.6)
        _draw_outlines(above, anchored(run.warps, true), problem, linewidth=1.4)
        with torch.no_grad():
            picture = render(run.image, (width, height), step).numpy()
        _show(below, picture, f"recovered, {run.psnr:.1f} dB")
    handles = [
        plt.Line2D([], [], color="black", linewidth=2.6, label="true"),
        *(plt.Line2D([], [], color=c, label="anchor" if i == 0 else f"patch {i}") for i, c in enumerate(COLORS[:5])),
    ]
    figure.legend(handles=handles, loc="lower center", ncol=6, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.05 / blocks, 1, 1))
    figure.savefig(path, dpi=140)
    plt.close(figure)


def plot_errors(runs: List[Run], success: float, path: Path) -> None:
    """Mean corner error against steps and against processor time: thin lines are runs, thick ones medians over seeds.

    Args:
        runs: of all representations and seeds.
        success: the error, in pixels, below which patches count as aligned.
        path: the picture to write.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for number, name in enumerate(dict.fromkeys(str(run.representation) for run in runs)):
        mine = [run for run in runs if str(run.representation) == name]
        style = {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}
        for axis, values in zip(axes, ("steps", "seconds")):
            horizontal = np.array([getattr(run, values) for run in mine], dtype=float)
            errors = np.array([run.corner_errors for run in mine])
            if len(mine) > 1:
                axis.plot(horizontal.T, errors.T, linewidth=0.6, alpha=0.35, **style)
            axis.plot(np.median(horizontal, 0), np.median(errors, 0), linewidth=2.0, label=name, **style)
    axes[0].set(xlabel="step", ylabel="mean corner error [pixels]", yscale="log")
    axes[1].set(xlabel="processor time [s]")
    axes[0].yaxis.set_major_formatter("{x:g}")
    for axis in axes:
        axis.axhline(success, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def plot_gradients(sweeps: List[LevelSweeps], path: Path) -> None:
    """What displacements feel across each fitted grid, for every reading: the encoding alone at a single pixel, a whole
    patch, and how rough the common gradient of a number of pixels is.

    Args:
        sweeps: across each grid.
        path: the picture to write.
    """
    plt = _pyplot()
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, grid = plt.subplots(len(sweeps), 3, figsize=(12, 2.6 * len(sweeps) + 0.4), squeeze=False)
    for (pixel, patch, rough), sweep in zip(grid, sweeps):
        for face in sweep.close_faces:
            pixel.axvline(face, color="#777777", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        statistics = sweep.statistics()
        for number, (reading, color) in enumerate(zip(READINGS, COLORS)):
            style = {"color": color, "linewidth": 1.3, "label": reading, "zorder": 3 - 0.1 * number}
            gradient = sweep.gradients[reading][0].mean(-1)
            if reading == "product_norm":  # hardly apart from axis
                style.update(linestyle=(0, (4, 2)), zorder=4)
            pixel.plot(sweep.close, _over_rms(sweep.brightness_gradients[reading]), **style)
            patch.plot(sweep.displacements, _over_rms(gradient), **style)
            rough.plot(statistics["pixels"], statistics["readings"][reading]["roughness"], marker="o", ms=3, **style)
        loss = patch.twinx()
        loss.fill_between(sweep.displacements, sweep.losses[0], color="#dddddd", linewidth=0)
        loss.set(ylim=(0, 1.05 * float(sweep.losses[0].max())), yticks=[])
        patch.set(zorder=1, frame_on=False)
        pixel.set_title(f"{sweep.name}: cells of {sweep.cell:.2g} pixels", fontsize=9, loc="left")
        pixel.set_ylabel("gradient / rms")
        rough.set(xscale="log", yscale="log", ylabel="change over 0.1 pixel / rms")
        for axis in (pixel, patch, rough, loss):
            axis.spines[["top", "right"]].set_visible(False)
        for axis in (pixel, patch):
            axis.axhline(0, color="black", linewidth=0.6, zorder=0)
        for scale, ticks in ((rough.xaxis, statistics["pixels"]), (rough.yaxis, (0.03, 0.05, 0.1, 0.2, 0.4))):
            scale.set_major_locator(FixedLocator(ticks))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_locator(NullLocator())
        rough.grid(alpha=0.25)
    titles = (
        "one pixel: the encoding alone\n(dotted: faces of the finest cells)",
        "a whole patch: d loss / d displacement\n(grey: the loss, the same for all)",
        "roughness of the gradient that\na number of pixels share",
    )
    for axis, title in zip(grid[0], titles):
        axis.annotate(title, (0.5, 1.17), xycoords="axes fraction", ha="center", va="bottom", fontsize=10)
    for axis, label in zip(grid[-1], ("displacement [pixels]", "displacement [pixels]", "pixels")):
        axis.set_xlabel(label)
    grid[0, 2].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _over_rms(gradient: Float[Tensor, "num"]) -> Float[Tensor, "num"]:
    """Adam does not feel a gradient's size."""
    return gradient / gradient.square().mean().sqrt()
