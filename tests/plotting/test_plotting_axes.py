"""The logarithmic axis of all figures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from hashpose_ns.plotting.axes import log_axis, log_ticks
from hashpose_ns.plotting.figures import plot_pose_errors


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (9.0, 40.0, [10, 20]),
        (0.25, 40.0, [0.5, 1, 2, 5, 10, 20]),
        (1e-4, 10.0, [1e-4, 1e-3, 1e-2, 0.1, 1, 10]),
        (2.1, 4.9, [3, 4]),
        (11.0, 29.0, [20]),
        (1e-9, 1e-9, [1e-9]),
    ],
)
def test_ticks_are_round_numbers_in_the_range(low, high, ticks):
    assert log_ticks(low, high) == ticks


@pytest.mark.parametrize("which", ["x", "y"])
def test_an_axis_is_logarithmic_with_plain_numbers(which):
    axes = Figure().subplots()
    values = [np.nan, 0.0, 0.3, 30.0]
    axes.plot(*([values, range(4)] if which == "x" else [range(4), values]))
    log_axis(axes, which)
    axis, other = (axes.xaxis, axes.yaxis) if which == "x" else (axes.yaxis, axes.xaxis)
    assert (axis.get_scale(), other.get_scale()) == ("log", "linear")
    assert [label.get_text() for label in axis.get_ticklabels()] == ["0.5", "1", "2", "5", "10", "20"]
    assert len(axis.get_minorticklocs()) == 0
    low, high = getattr(axes, f"get_{which}lim")()
    assert low < 0.3 and high > 30


def test_rounding_does_not_stretch_an_axis_and_nothing_leaves_it_linear():
    left, right = Figure().subplots(1, 2, sharey=True)
    left.plot([0, 1], [1e-12, 1.0])
    right.plot([0, 1], [100.0, 1.0])
    log_axis(left)
    low, high = right.get_ylim()
    assert high > 100 and 1e-3 < low < 1e-1, "shared axes hold the data of both"
    axes = Figure().subplots()
    axes.plot([0, 1], [0.0, np.nan])
    log_axis(axes)
    assert axes.get_yscale() == "linear"


@pytest.mark.parametrize("prefix", ["pose_error_after_", "pose_change_"])
def test_the_figure_of_errors_is_drawn(tmp_path, prefix):
    names = [
        f"{measure}_{statistic}"
        for measure in ("rotation_deg", "translation")
        for statistic in ("mean", "median", "max")
    ]
    records = [{"step": step, **{prefix + name: 0.9**step for name in names}} for step in range(20)]
    plot_pose_errors({"one": [records]}, tmp_path / "one.png")
    plot_pose_errors({"one": [records, records], "two": [records]}, tmp_path / "two.png", "a title")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()
