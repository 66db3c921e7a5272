"""Curves of a run for the viewer: small figures in plotly's JSON, without importing plotly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from hashpose_ns.plotting.axes import log_ticks, tick_label
from hashpose_ns.runs.files import read_pose_log
from hashpose_ns.viewer.colors import CURVES, sequential
from hashpose_ns.viewer.state import PoseState, PoseTracks

if TYPE_CHECKING:
    from hashpose_ns.optim.curriculum import Curriculum
    from hashpose_ns.viewer.matching import Supports

MAX_POINTS = 150
"""Points of a curve."""

LEVEL_POINTS = 60
"""Points of a curve of one level of the grid."""

ROTATION, TRANSLATION, PSNR, LEVELS, MATCHES = "Rotation", "Translation", "PSNR", "Levels", "Matches"
KINDS = (ROTATION, TRANSLATION, PSNR, LEVELS, MATCHES)

Trace = Tuple[str, Sequence[float], Sequence[float], str]
"""Name, x, y and colour."""


class Figure:
    """What viser asks of a plotly figure: its JSON."""

    def __init__(self, traces: Sequence[Trace], title: str, log: bool) -> None:
        axis = {"gridcolor": "rgba(144,146,150,0.3)", "zeroline": False, "automargin": True}
        # JSON has no infinities and no NaN; a logarithm has no zero
        curves = [[v if math.isfinite(v) and (v > 0 or not log) else None for v in y] for _, _, y, _ in traces]
        known = [v for curve in curves for v in curve if v is not None]
        y_axis: Dict[str, Any] = {**axis, "type": "log" if log else "linear"}
        ticks = log_ticks(min(known) / 1.3, max(known) * 1.3) if log and known else []
        if len(ticks) >= 2:  # plotly labels what lies between powers of ten by a single digit
            y_axis.update(tickvals=ticks, ticktext=[tick_label(tick) for tick in ticks])
        self.content: Dict[str, Any] = {
            "data": [
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": [int(value) for value in x],
                    "y": [None if v is None else float(f"{v:.4g}") for v in curve],
                    "line": {"color": color, "width": 1.5},
                }
                for (name, x, _, color), curve in zip(traces, curves)
            ],
            "layout": {
                "title": {"text": f"{title}, by step", "font": {"size": 12}, "x": 0.02},
                "xaxis": axis,
                "yaxis": y_axis,
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "font": {"color": "#909296", "size": 10},
                "margin": {"l": 40, "r": 8, "t": 28, "b": 48},
                "legend": {"orientation": "h", "x": 0, "y": -0.15, "yanchor": "top"},
                "showlegend": len(traces) <= 3,
            },
        }

    def to_json(self) -> str:
        """The figure as plotly.js reads it."""
        return json.dumps(self.content)


def thinned(count: int, wanted: int = MAX_POINTS) -> List[int]:
    """At most `wanted` indices, evenly spread, the first and the last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def error_figure(kind: str, tracks: PoseTracks, state: PoseState, log: bool) -> Figure:
    """Mean, median and worst rotation or translation error over the run, up to now."""
    measure, scale, unit = {
        ROTATION: ("rotation_deg", 1.0, "degrees"),
        TRANSLATION: ("translation", 100.0, "scene units x100"),
    }[kind]
    now = state.errors.summary()
    indices = thinned(len(tracks.steps), MAX_POINTS - 1)
    steps = [tracks.steps[i] for i in indices] + [state.step]
    traces = []
    for (name, statistic), color in zip((("mean", "mean"), ("median", "median"), ("worst", "max")), CURVES):
        key = f"{measure}_{statistic}"
        values = [scale * tracks.errors[i][key] for i in indices] + [scale * now[key]]
        traces.append((name, steps, values, color))
    what = "error" if state.has_reference else "movement"
    return Figure(traces, f"{kind} {what}, {unit}", log)


def psnr_figure(training: Sequence[Tuple[int, Tensor]], run: Path, log: bool) -> Figure:
    """PSNR of training rays and of held-out pixels.

    Args:
        training: steps and mean squared errors that this process has seen; what came before is in the run's log.
        run: the run's folder.
        log: whether the axis is logarithmic.
    """
    records = read_pose_log(run)
    training = list(training)
    values = torch.stack([error for _, error in training]).tolist() if training else []  # one wait for the device
    errors = [(step, value) for (step, _), value in zip(training, values)]
    first = errors[0][0] if errors else math.inf
    errors = [(record["step"], record["train_loss"]) for record in records if record["step"] < first] + errors
    curves = {
        "training": [(step, -10 * math.log10(error)) for step, error in errors if error > 0],
        "held-out": [(record["step"], record["held_out_psnr"]) for record in records if "held_out_psnr" in record],
    }
    traces = []
    for (name, points), color in zip(curves.items(), CURVES):
        chosen = [points[i] for i in thinned(len(points))]
        traces.append((name, [step for step, _ in chosen], [value for _, value in chosen], color))
    return Figure(traces, "PSNR, dB", log)


def match_figure(medians: Mapping[int, float], supports: Optional["Supports"], step: int, log: bool) -> Figure:
    """Median distance of matches from their epipolar lines over the run, up to now.

    Args:
        medians: of earlier steps, in pixels.
        supports: how well the poses of now, and those that came in, explain matches; None where there are no matches.
        step: of now.
        log: whether the axis is logarithmic.
    """
    traces: List[Trace] = []
    if supports is not None:
        earlier = sorted(medians)
        chosen = [earlier[i] for i in thinned(len(earlier), MAX_POINTS - 1)]
        now = [medians[each] for each in chosen] + [supports.now.median]
        traces.append(("now", [*chosen, step], now, CURVES[0]))
        traces.append(("as given", [0, step], [supports.given.median] * 2, CURVES[1]))
        if supports.start is not None:
            traces.append(("start from matches", [0, step], [supports.start.median] * 2, CURVES[2]))
    return Figure(traces, "Median distance of matches from epipolar lines, pixels", log)


def level_figure(curriculum: Optional["Curriculum"], total_steps: int, step: int, log: bool) -> Figure:
    """The curriculum's weight of each level of the grid over the whole training, coarse to fine dark to bright."""
    traces: List[Trace] = []
    if curriculum is not None:
        steps = [round(i * total_steps / (LEVEL_POINTS - 1)) for i in range(LEVEL_POINTS)]
        weights = [curriculum.weights(at) for at in steps]
        for level, color in enumerate(sequential(curriculum.num_levels).tolist()):
            traces.append((f"level {level}", steps, [w[level] for w in weights], f"rgb({','.join(map(str, color))})"))
    traces.append(("now", [step, step], [1e-3 if log else 0.0, 1.0], CURVES[2]))
    return Figure(traces, "Weight of each level's learning rate", log)
