"""Errors over training, camera by camera at its end, and scene by scene. Figures are drawn without a display."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from hashpose_ns.bench.reporting.metrics import PSNR, ROTATION, TRANSLATION
from hashpose_ns.bench.reporting.runs import BenchRun
from hashpose_ns.bench.reporting.tables import Aggregate, Group, Row
from hashpose_ns.figures import BEFORE, COLORS

STYLE: Dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.grid": True,
    "grid.color": "#e3e6e9",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}
DPI = 120
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5))]
"""Line styles; with the colours they tell more presets apart than colours alone."""


def save(figure: Figure, path: Path) -> None:
    """Writes a figure: photographs as .jpg, the rest as .png with 256 colours, a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    image = Image.open(buffer).convert("RGB")
    if path.suffix == ".jpg":
        image.save(path, quality=90, subsampling=0)
    else:
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def colors_of(rows: Sequence[Row]) -> Dict[str, Tuple[str, Any]]:
    """Preset -> colour and line style, the same in all figures of a group."""
    return {row.preset: (COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]) for i, row in enumerate(rows)}


def log_axis(axis: Axes, which: str = "y") -> None:
    """A logarithmic axis with plain numbers, on 1, 2 and 5 where it spans less than two decades."""
    values = axis.dataLim.intervaly if which == "y" else axis.dataLim.intervalx
    if not (np.isfinite(values).all() and values[1] > 0):
        return
    getattr(axis, f"set_{which}scale")("log", nonpositive="mask")
    ticks = axis.yaxis if which == "y" else axis.xaxis
    low, high = axis.get_ylim() if which == "y" else axis.get_xlim()
    if low < 1e-4 * high:  # what differs by rounding only
        low = 1e-4 * high
        getattr(axis, f"set_{which}lim")(low, high)
    decades = np.log10(high / low)

    def label(value: float, _: Any) -> str:
        digit = int(round(value / 10 ** np.floor(np.log10(value) + 1e-9)))
        wanted = (1,) if decades > 2.5 else (1, 2, 5) if decades > 0.7 else (1, 2, 3, 4, 5, 6, 8)
        return f"{value:g}" if digit in wanted else ""

    ticks.set_major_formatter(FuncFormatter(label))
    ticks.set_minor_formatter(FuncFormatter(label) if decades <= 2.5 else NullFormatter())
    axis.tick_params(axis=which, which="minor", labelsize=9)  # type: ignore


# -- over training -----------------------------------------------------------------------------------------------------


def series(run: BenchRun, name: str) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, training seconds and values of one entry of a run's log, where it is finite.

    Args:
        run: the run.
        name: the record's key; of pose measures what follows `pose_error_after_` or `pose_change_`.
    """
    found = []
    for record in run.log:
        for key in (name, f"pose_error_after_{name}", f"pose_change_{name}"):
            value = record.get(key)
            if value is not None and np.isfinite(value):
                found.append((record["step"], record.get("train_seconds", np.nan), value))
                break
    return tuple(np.array(found, dtype=float).reshape(-1, 3).T)  # type: ignore


def mean_series(runs: Sequence[BenchRun], name: str) -> Optional[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Means over runs at the steps that all of them logged: steps, seconds, values."""
    logged = [series(run, name) for run in runs]
    if not logged:
        return None
    common = sorted(set.intersection(*[set(steps) for steps, _, _ in logged]))
    picked = [np.isin(steps, common) for steps, _, _ in logged]
    seconds = np.mean([times[pick] for (_, times, _), pick in zip(logged, picked)], axis=0)
    return np.array(common), seconds, np.mean([values[pick] for (_, _, values), pick in zip(logged, picked)], axis=0)


CURVES = (
    ("rotation_deg_mean", 1.0, "rotation [deg]"),
    ("translation_mean", 100.0, "translation x100"),
    ("held_out_psnr", 1.0, "held-out PSNR [dB]"),
)


def draw_curves(group: Group, path: Path) -> bool:
    """Pose errors and held-out PSNR against steps and against time, a thin line per seed, a thick one for their mean.

    Returns:
        Whether there was anything to draw.
    """
    curves = [curve for curve in CURVES if any(len(series(run, curve[0])[0]) for run in group.runs)]
    if not curves:
        return False
    logged = [run for run in group.runs if run.log]
    longest = max(run.log[-1].get("train_seconds", 0.0) for run in logged)
    unit, factor = ("s", 1.0) if longest < 180 else ("min", 1 / 60) if longest < 10800 else ("h", 1 / 3600)
    colors, all_moved = colors_of(group.rows), all("pose_change_rotation_deg_mean" in run.log[-1] for run in logged)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.1 * len(curves), 6.6), layout="constrained")
        axes = figure.subplots(2, len(curves), squeeze=False, sharey="col")
        for column, (name, scale, label) in enumerate(curves):
            for row in group.rows:
                color, dashes = colors[row.preset]
                mean = mean_series(row.done, name)
                alone = len(row.done) == 1
                for run in row.runs:
                    steps, seconds, values = series(run, name)
                    done = run.state == "done"
                    style = dict(color=color, linewidth=0.8, alpha=0.45) if done else dict(color=color, linewidth=1.5)
                    for axis, x in ((axes[0, column], steps), (axes[1, column], factor * seconds)):
                        if not (done and alone):
                            axis.plot(x, scale * values, linestyle="-" if done else ":", **style)
                        if run.state == "failed" and len(x):
                            axis.plot(x[-1:], scale * values[-1:], "x", color=color, markersize=7, markeredgewidth=1.8)
                if mean is not None:
                    for axis, x in ((axes[0, column], mean[0]), (axes[1, column], factor * mean[1])):
                        axis.plot(x, scale * mean[2], color=color, linestyle=dashes, linewidth=2.0)
            before = _before(group, name)
            for axis, x_label in ((axes[0, column], "steps"), (axes[1, column], f"training time [{unit}]")):
                if before is not None:
                    axis.axhline(scale * before, color=BEFORE, linestyle="--", linewidth=1.2, zorder=1)
                axis.set_xlabel(x_label)
                axis.set_xlim(left=0)
                psnr = name == "held_out_psnr"
                axis.set_ylabel(f"moved: {label}" if all_moved and not psnr else label)
                if not psnr and not all_moved:
                    log_axis(axis)
            axes[0, column].xaxis.set_major_formatter(
                FuncFormatter(lambda x, _: f"{x / 1000:g}K" if x >= 1000 else f"{x:g}")
            )
        handles = [
            Line2D([], [], color=colors[row.preset][0], linestyle=colors[row.preset][1], linewidth=2, label=row.title)
            for row in group.rows
        ]
        if any(_before(group, name) is not None for name, _, _ in curves):
            handles.append(Line2D([], [], color=BEFORE, linestyle="--", label="before training"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        save(figure, path)
    return True


def _before(group: Group, name: str) -> Optional[float]:
    """The error before training, mean over runs; None where there is none."""
    key = f"pose_error_before_{name}"
    values = [run.log[0][key] for run in group.runs if run.log and key in run.log[0]]
    return float(np.mean(values)) if values and np.isfinite(values).all() else None


# -- camera by camera --------------------------------------------------------------------------------------------------


def load_cameras(run: BenchRun) -> Optional[Dict[str, np.ndarray]]:
    """A run's cameras.npz; None where it is missing, or a pose in it is not finite."""
    path = run.folder / "cameras.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            cameras = {name: arrays[name] for name in arrays.files}
        poses = [cameras[name] for name in ("initial", "refined", "reference")]
    except (OSError, ValueError, KeyError):
        return None
    return cameras if all(np.isfinite(pose).all() for pose in poses) else None


MEASURES = (
    ("rotation_deg", 1.0, "rotation [deg]"),
    ("translation", 100.0, "translation x100"),
    ("center", 100.0, "centres x100"),
)


def draw_camera_errors(group: Group, path: Path) -> bool:
    """A dot per camera and seed before and after training, and their medians.

    Returns:
        Whether there was anything to draw.
    """
    pooled: List[Tuple[Row, Dict[str, Float[np.ndarray, "cameras"]]]] = []
    for row in group.rows:
        loaded = [cameras for run in row.done if (cameras := load_cameras(run)) is not None]
        names = [f"{name}{when}" for name, _, _ in MEASURES for when in ("", "_before")]
        errors = {
            name: np.concatenate([cameras[name] for cameras in loaded])
            for name in names
            if loaded and all(name in cameras for cameras in loaded)
        }
        if errors:
            pooled.append((row, errors))
    if not pooled:
        return False
    colors, jitter = colors_of(group.rows), np.random.default_rng(0)
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(12.3, 1.5 + 0.72 * len(pooled)), layout="constrained")
        axes = figure.subplots(1, len(MEASURES), sharey=True)
        for axis, (name, scale, label) in zip(axes, MEASURES):
            for lane, (row, errors) in enumerate(pooled):
                for suffix, offset, color in (("_before", -0.2, BEFORE), ("", 0.2, colors[row.preset][0])):
                    if f"{name}{suffix}" not in errors or (suffix and row.moved):
                        continue
                    # exact poses have no place on a logarithmic axis
                    values = np.maximum(scale * errors[f"{name}{suffix}"], 1e-3)
                    heights = lane + offset + jitter.uniform(-0.14, 0.14, len(values))
                    alpha = float(np.clip(40 / len(values), 0.18, 0.75))
                    axis.scatter(values, heights, s=13, color=color, alpha=alpha, linewidths=0, zorder=3)
                    middle = np.median(values)
                    axis.plot(
                        [middle] * 2, [lane + offset - 0.19, lane + offset + 0.19], color="#111111", lw=1.8, zorder=4
                    )
            log_axis(axis, "x")
            axis.set_xlabel(f"moved: {label}" if all(row.moved for row, _ in pooled) else label)
            axis.set_ylim(len(pooled) - 0.45, -0.55)
            axis.set_yticks(range(len(pooled)), ["\n".join(textwrap.wrap(row.title, 24)) for row, _ in pooled])
            axis.tick_params(axis="y", length=0)
        dots = [("a camera after training", colors[pooled[0][0].preset][0])]
        if not all(row.moved for row, _ in pooled):
            dots.insert(0, ("a camera before training", BEFORE))
        handles = [
            Line2D([], [], linestyle="", marker="o", markersize=5, color=color, label=text) for text, color in dots
        ]
        bar: Dict[str, Any] = dict(linestyle="", marker="|", markersize=10, markeredgewidth=2)
        handles.append(Line2D([], [], color="#111111", label="median", **bar))
        figure.legend(handles=handles, loc="outside upper right", ncols=3)
        save(figure, path)
    return True


# -- scene by scene ----------------------------------------------------------------------------------------------------


def draw_scenes(aggregate: Aggregate, path: Path) -> bool:
    """A dot per preset and scene, with its spread over seeds; published ones, hollow, where they may stand beside them.

    Returns:
        Whether there was anything to draw.
    """
    titles, scenes = aggregate.presets, aggregate.scenes
    palette = {preset: COLORS[i % len(COLORS)] for i, preset in enumerate(titles)}
    offsets = dict(zip(titles, np.linspace(-0.3, 0.3, len(titles)) if len(titles) > 1 else [0.0]))
    drawn = False
    with rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure = Figure(figsize=(max(9.0, 1.6 + 1.2 * len(scenes)), 8.4), layout="constrained")
        axes = figure.subplots(3, 1, sharex=True)
        handles = [Line2D([], [], color=palette[p], marker="o", linestyle="", label=titles[p]) for p in titles]
        for axis, metric in zip(axes, (ROTATION, TRANSLATION, PSNR)):
            for place, group in enumerate(aggregate.groups):
                for row in group.rows:
                    statistic = row.statistic(metric)
                    if statistic.value is None or (row.moved and metric.of_poses):
                        continue
                    where, color = place + offsets[row.preset], palette[row.preset]
                    axis.errorbar(where, statistic.value, statistic.spread, fmt="o", color=color, markersize=6, lw=1.3)
                    drawn = True
            axis.set_ylabel(metric.title)
            for edge in range(1, len(scenes)):
                axis.axvline(edge - 0.5, color=STYLE["grid.color"], linewidth=0.8, zorder=0)
        if aggregate.comparable:
            handles += _published_dots(axes, aggregate)
        for axis in axes[:2]:
            log_axis(axis)
        axes[-1].set_xticks(range(len(scenes)), scenes)
        axes[-1].set_xlim(-0.6, len(scenes) - 0.4)
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        if drawn:
            save(figure, path)
    return drawn


def _published_dots(axes: Sequence[Axes], aggregate: Aggregate) -> List[Line2D]:
    """Draws what was published for all scenes; entries of the legend."""
    handles = []
    for marker, source in zip("sD^vPX", [row.title for row in aggregate.published]):
        style: Dict[str, Any] = dict(marker=marker, markerfacecolor="none", markeredgecolor="#555555", linestyle="")
        for axis, metric in zip(axes, (ROTATION, TRANSLATION, PSNR)):
            for place, group in enumerate(aggregate.groups):
                values = [row.values.get(metric.name) for row in group.published if row.title == source]
                if values and values[0] is not None:
                    axis.plot(place, values[0], markersize=6, **style)
        handles.append(Line2D([], [], label=f"{source} (published)", **style))
    return handles
