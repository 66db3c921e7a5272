"""The report's figures, drawn without a display: errors over training, camera by camera and scene by scene."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from PIL import Image

from hashpose_ns.bench import files
from hashpose_ns.bench.reporting.frame import PSNR, ROTATION, TRANSLATION, Aggregate, Group
from hashpose_ns.plotting.axes import log_axis
from hashpose_ns.plotting.figures import BEFORE, COLORS

STYLE: Dict[str, Any] = {
    **sns.axes_style("whitegrid"),
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
DPI = 120


def save(figure: Figure, path: Path) -> None:
    """Writes a figure: photographs as .jpg, the rest as .png with 256 colours, a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    image = Image.open(buffer).convert("RGB")
    if path.suffix == ".jpg":
        image.save(path, quality=90, subsampling=0)
    else:
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def wrapped(title: str, width: int = 24) -> str:
    """A title in lines."""
    return "\n".join(textwrap.wrap(title, width))


def palette(titles: Sequence[str]) -> Dict[str, Any]:
    """Title -> colour, the same in all figures of a group."""
    colors = COLORS if len(titles) <= len(COLORS) else sns.color_palette("husl", len(titles))
    return dict(zip(titles, colors))


# -- over training -----------------------------------------------------------------------------------------------------

CURVES = {
    "rotation_deg_mean": (1.0, "rotation [deg]"),
    "translation_mean": (100.0, "translation x100"),
    "held_out_psnr": (1.0, "held-out PSNR [dB]"),
}
"""Key of a pose log, after `pose_error_after_` or `pose_change_` -> factor and label of the axis."""


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Pose logs as a long frame: `preset`, `title`, `seed`, `state`, `step`, `seconds`, `curve`, `value` (finite)."""
    rows = []
    for run in runs.itertuples():
        for record in run.log:
            for name, (scale, _) in CURVES.items():
                keys = (name, f"pose_error_after_{name}", f"pose_change_{name}")
                value = next((record[key] for key in keys if key in record), None)
                if value is not None and np.isfinite(value):
                    step, seconds = record["step"], record.get("train_seconds", np.nan)
                    rows.append((run.preset, run.title, run.seed, run.state, step, seconds, name, scale * value))
    return pd.DataFrame(rows, columns=["preset", "title", "seed", "state", "step", "seconds", "curve", "value"])


def at_common_steps(data: pd.DataFrame) -> pd.DataFrame:
    """Curves of runs that are done at the steps that all seeds of a preset logged, with their mean `seconds`."""
    data = data[data.state == "done"]
    by = ["preset", "curve"]
    seeds = data.groupby(by).seed.transform("nunique")
    there = data.groupby([*by, "step"]).seed.transform("nunique")
    common = data[there == seeds].copy()
    common["seconds"] = common.groupby([*by, "step"]).seconds.transform("mean")
    return common


def draw_curves(group: Group, path: Path) -> bool:
    """Pose errors and held-out PSNR against steps and against time: means over seeds and their standard deviations.

    Returns:
        Whether there was anything to draw.
    """
    data = curves(group.runs)
    if data.empty:
        return False
    names = [name for name in CURVES if (data.curve == name).any()]
    longest = data.seconds.max()
    unit, factor = ("s", 1.0) if longest < 180 else ("min", 1 / 60) if longest < 10800 else ("h", 1 / 3600)
    data["seconds"] *= factor
    means, colors = at_common_steps(data), palette(list(group.presets.values()))
    all_moved = all("pose_change_rotation_deg_mean" in log[-1] for log in group.runs.log if log)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.1 * len(names), 6.6), layout="constrained")
        for column, axes in zip(names, figure.subplots(2, len(names), squeeze=False, sharey="col").T):
            label, before = CURVES[column][1], _before(group, column)
            for axis, x, x_label in zip(axes, ("step", "seconds"), ("steps", f"training time [{unit}]")):
                some = means[means.curve == column]
                sns.lineplot(
                    some, x=x, y="value", hue="title", palette=colors, errorbar="sd", linewidth=2, legend=False, ax=axis
                )
                cut = data[(data.curve == column) & (data.state != "done")]
                for (title, _, state), run in cut.groupby(["title", "seed", "state"], sort=False):
                    axis.plot(run[x], run.value, ":", color=colors[title], linewidth=1.5)
                    if state == "failed":
                        style = dict(color=colors[title], markersize=7, markeredgewidth=1.8)
                        axis.plot(run[x].iloc[-1:], run.value.iloc[-1:], "x", **style)
                if before is not None:
                    axis.axhline(before, color=BEFORE, linestyle="--", linewidth=1.2, zorder=1)
                psnr = column == "held_out_psnr"
                axis.set(xlabel=x_label, ylabel=label if psnr or not all_moved else f"moved: {label}")
                axis.set_xlim(left=0)
                if not psnr and not all_moved:
                    log_axis(axis)
            axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}K" if x >= 1000 else f"{x:g}"))
        handles = [Line2D([], [], color=color, linewidth=2, label=title) for title, color in colors.items()]
        if any(_before(group, name) is not None for name in names):
            handles.append(Line2D([], [], color=BEFORE, linestyle="--", label="before training"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        save(figure, path)
    return True


def _before(group: Group, name: str) -> Optional[float]:
    """The error before training, mean over runs, as it is shown."""
    key = f"pose_error_before_{name}"
    values = [log[0][key] for log in group.runs.log if log and key in log[0]]
    return CURVES[name][0] * float(np.mean(values)) if values and np.isfinite(values).all() else None


# -- camera by camera --------------------------------------------------------------------------------------------------


def load_cameras(folder: Path) -> Optional[Dict[str, np.ndarray]]:
    """A run's cameras.npz; None if it is missing, or a pose in it is not finite."""
    try:
        with np.load(folder / files.CAMERAS) as arrays:
            cameras = {name: arrays[name] for name in arrays.files}
        poses = [cameras[name] for name in ("initial", "refined", "reference")]
    except (OSError, ValueError, KeyError):
        return None
    return cameras if all(np.isfinite(pose).all() for pose in poses) else None


MEASURES = {
    "rotation_deg": (1.0, "rotation [deg]"),
    "translation": (100.0, "translation x100"),
    "center": (100.0, "centres x100"),
}
BEFORE_TRAINING, AFTER_TRAINING = "before training", "after training"


def camera_errors(group: Group) -> pd.DataFrame:
    """Errors of all training cameras of runs that are done: `title`, `when`, `measure`, `value`."""
    found = []
    for run in group.runs[group.runs.state == "done"].itertuples():
        cameras = load_cameras(run.folder) or {}
        for measure, (scale, _) in MEASURES.items():
            for suffix, when in (("_before", BEFORE_TRAINING), ("", AFTER_TRAINING)):
                values = cameras.get(measure + suffix)
                if values is not None and not (suffix and run.moved):
                    value = np.maximum(scale * values, 1e-3)  # exact poses have no place on a logarithmic axis
                    found.append(
                        pd.DataFrame({"title": wrapped(run.title), "when": when, "measure": measure, "value": value})
                    )
    return pd.concat(found) if found else pd.DataFrame(columns=["title", "when", "measure", "value"])


def draw_camera_errors(group: Group, path: Path) -> bool:
    """A dot per camera and seed before and after training, and their medians.

    Returns:
        Whether there was anything to draw.
    """
    data = camera_errors(group)
    if data.empty:
        return False
    whens = [when for when in (BEFORE_TRAINING, AFTER_TRAINING) if (data.when == when).any()]
    colors = {BEFORE_TRAINING: BEFORE, AFTER_TRAINING: COLORS[0]}
    style: Dict[str, Any] = dict(x="value", y="title", hue="when", hue_order=whens, legend=False)
    medians: Dict[str, Any] = dict(estimator="median", errorbar=None, linestyle="none", marker="|", markersize=16)
    moved = group.runs[group.runs.state == "done"].moved.all()
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(12.3, 1.5 + 0.72 * data.title.nunique()), layout="constrained")
        for axis, (measure, (_, label)) in zip(figure.subplots(1, len(MEASURES), sharey=True), MEASURES.items()):
            some = data[data.measure == measure]
            both = len(whens) > 1
            sns.stripplot(some, palette=colors, size=3.5, alpha=0.45, dodge=both, ax=axis, **style)
            black = dict.fromkeys(whens, "#111111")
            sns.pointplot(some, palette=black, dodge=0.4 if both else False, ax=axis, **medians, **style)
            log_axis(axis, "x")
            axis.set(xlabel=f"moved: {label}" if moved else label, ylabel="")
        dot: Dict[str, Any] = dict(linestyle="", marker="o", markersize=5)
        handles = [Line2D([], [], color=colors[when], label=f"a camera {when}", **dot) for when in whens]
        bar: Dict[str, Any] = dict(linestyle="", marker="|", markersize=10, markeredgewidth=2)
        handles.append(Line2D([], [], color="#111111", label="median", **bar))
        figure.legend(handles=handles, loc="outside upper right", ncols=3)
        save(figure, path)
    return True


# -- scene by scene ----------------------------------------------------------------------------------------------------


def draw_scenes(aggregate: Aggregate, path: Path) -> bool:
    """Means and spreads over seeds of every scene; published ones, hollow, where they may stand beside them.

    Returns:
        Whether there was anything to draw.
    """
    data = pd.concat([group.runs for group in aggregate.groups])
    data, metrics = data[data.state == "done"], (ROTATION, TRANSLATION, PSNR)
    shown = {
        metric: data[np.isfinite(data[metric.name]) & ~(data.moved.astype(bool) & metric.of_poses)]
        for metric in metrics
    }
    metrics = tuple(metric for metric in metrics if len(shown[metric]))
    if not metrics:
        return False
    scenes = [group.scene for group in aggregate.groups]
    colors = palette(list(aggregate.presets.values()))
    style: Dict[str, Any] = dict(hue="title", hue_order=list(colors), palette=colors, order=scenes)
    style.update(linestyle="none", legend=False, dodge=0.5 if len(colors) > 1 else False)
    with rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure = Figure(figsize=(max(9.0, 1.6 + 1.2 * len(scenes)), 0.6 + 2.6 * len(metrics)), layout="constrained")
        axes = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
        for axis, metric in zip(axes, metrics):
            sns.pointplot(shown[metric], x="scene", y=metric.name, errorbar="sd", ax=axis, **style)
            axis.set(xlabel="", ylabel=metric.title)
        handles = [Line2D([], [], color=c, marker="o", linestyle="", label=title) for title, c in colors.items()]
        if aggregate.comparable:
            handles += _published_dots(axes, metrics, aggregate)
        for axis, metric in zip(axes, metrics):
            if metric.of_poses:
                log_axis(axis)
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        save(figure, path)
    return True


def _published_dots(axes: Sequence[Axes], metrics: Sequence[Any], aggregate: Aggregate) -> List[Line2D]:
    """Draws what was published for all scenes; entries of the legend."""
    handles = []
    for marker, source in zip("sD^vPX", [row.title for row in aggregate.published]):
        style: Dict[str, Any] = dict(marker=marker, markerfacecolor="none", markeredgecolor="#555555", linestyle="")
        for axis, metric in zip(axes, metrics):
            for place, group in enumerate(aggregate.groups):
                values = [row.values.get(metric.name) for row in group.published if row.title == source]
                if values and values[0] is not None:
                    axis.plot(place, values[0], markersize=6, **style)
        handles.append(Line2D([], [], label=f"{source} (published)", **style))
    return handles


# -- uncertainties -----------------------------------------------------------------------------------------------------


def draw_uncertainty(data: pd.DataFrame, path: Path) -> None:
    """Each camera's spread over seeds and its error against what was predicted.

    Args:
        data: of `hashpose_ns.bench.reporting.uncertainty.compare`.
        path: the picture to write.
    """
    long = data.melt(["kind", "predicted"], ["spread", "error"], "what", "value")
    labels = {"error": "error against the true poses", "spread": "spread over seeds"}
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        units = {"rotation_deg": "rotation [deg]", "center": "centre [scene units]"}
        for axis, (kind, unit) in zip(figure.subplots(1, 2), units.items()):
            some = long[long.kind == kind].assign(what=lambda frame: frame.what.map(labels))
            sns.scatterplot(some, x="predicted", y="value", hue="what", style="what", palette=COLORS[:2], ax=axis)
            ends = [some.predicted.min(), some.predicted.max()]
            axis.plot(ends, ends, "--", color="0.5", label="as predicted")
            log_axis(axis, "x")
            log_axis(axis)
            axis.set(xlabel=f"predicted deviation, {unit}", ylabel=unit)
            axis.legend(fontsize=9)
        save(figure, path)
