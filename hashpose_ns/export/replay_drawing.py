"""A replay's frames, drawn by matplotlib."""

from __future__ import annotations

from typing import List, Tuple

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from hashpose_ns.cameras.alignment import centers_coincide
from hashpose_ns.export.replay import Curve, Replay
from hashpose_ns.plotting.cameras import (
    View,
    Views,
    frustum_collection,
    frustum_points,
    frustum_segments,
    frustum_size,
    show_limits,
)
from hashpose_ns.plotting.figures import AFTER, BEFORE, TRUE

INK, FAINT, START = "#333333", "#dddddd", "#c4c4c4"

PANEL = 204
"""Width of the curves and the margin beside them, in points."""

Frame = UInt8[np.ndarray, "height width 3"]


class ReplayDrawing:
    """Draws the frames of a replay. What does not change is drawn once.

    Args:
        replay: what to show.
        size: width and height in pixels.
        title: printed at the top.
        orbit_degrees: angle by which the view turns from the first frame to the last.
    """

    def __init__(self, replay: Replay, size: Tuple[int, int], title: str = "", orbit_degrees: float = 0.0) -> None:
        self.replay, self.orbit = replay, np.radians(orbit_degrees)
        target = replay.start if replay.reference is None else replay.reference
        if centers_coincide(torch.from_numpy(target).float()):
            target = replay.cameras[-1]
        depth = frustum_size(target)
        self.moving = frustum_points(replay.cameras, depth)
        self.start = frustum_points(replay.start, depth)
        self.reference = None if replay.reference is None else frustum_points(replay.reference, depth)
        shown = [self.start, *self.moving[:: len(self.moving) // 8 + 1]]
        shown += [] if self.reference is None else [self.reference]
        self.views = Views(target, np.concatenate(shown).reshape(-1, 3))

        # The figure is at least 640 x 360 points, whatever they are in pixels
        point = min(size[0] / 640, size[1] / 360)
        self.width, self.height = size[0] / point, size[1] / point
        dpi, (width, height) = 72 * point, np.array(size) + 0.1  # so that nothing is rounded down
        self.figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
        self.canvas = FigureCanvasAgg(self.figure)
        self._changing: List[Artist] = []
        self._add_cameras()
        self._text(12, 20, title, 15)
        self._step = self._text(self.width - 14, 20, "", 15, ha="right")
        self._changing.append(self._step)
        height = (self.height - 64) / len(replay.curves)
        boxes = [(34 + (k + 0.26) * height, 34 + (k + 0.9) * height) for k in range(len(replay.curves))]
        self._curves = [self._add_curve(curve, *box) for curve, box in zip(replay.curves, boxes)]
        bottom = boxes[-1][1] + 14
        self._text(self.width - PANEL, bottom, "0", 10)
        self._text(self.width - 14, bottom, f"{replay.steps[-1]:,.0f} steps", 10, ha="right")
        for artist in self._changing:
            artist.set_animated(True)
        self.canvas.draw()
        self._background = self.canvas.copy_from_bbox(self.figure.bbox)

    def frame(self, record: float, turn: float) -> Frame:
        """One frame.

        Args:
            record: which record of the history, between two of them by straight lines.
            turn: fraction of the orbit, 0 to 1.
        """
        before = min(int(record), len(self.moving) - 2)
        weight = record - before
        now = (1 - weight) * self.moving[before] + weight * self.moving[before + 1]
        view = self._view(turn)
        for points, collection in (*self._still, (now, self._now)):
            collection.set_segments(frustum_segments(view, points))
        self._gaps.set_segments(list(view.project(np.stack([self.start[:, 0], now[:, 0]], axis=1))))
        step = float(np.interp(record, np.arange(len(self.replay.steps)), self.replay.steps))
        self._step.set_text(f"step {step:,.0f}")
        for curve, (line, text) in zip(self.replay.curves, self._curves):
            value, past = curve.at(step), curve.steps <= step
            line.set_data(curve.steps[past], curve.values[past])
            line.set_visible(value is not None)
            text.set_text("" if value is None else f"{value:.2f}{curve.unit}" if curve.unit else f"{value:.3f}")
        self.canvas.restore_region(self._background)
        for artist in self._changing:
            self.figure.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _view(self, turn: float) -> View:
        return self.views.oblique(self.orbit * (turn - 0.5))

    def _box(self, left: float, top: float, right: float, bottom: float) -> Tuple[float, float, float, float]:
        """matplotlib's rectangle of a box in points from the upper left corner."""
        return left / self.width, 1 - bottom / self.height, (right - left) / self.width, (bottom - top) / self.height

    def _text(self, x: float, y: float, text: str, size: float, color: str = INK, ha: str = "left") -> Text:
        x, y = x / self.width, 1 - y / self.height
        return self.figure.text(x, y, text, size=size, color=color, ha=ha, parse_math=False)

    def _add_cameras(self) -> None:
        """The scene's axes, with everything in it, and its legend."""
        self.scene = self.figure.add_axes(self._box(12, 34, self.width - PANEL - 18, self.height - 30))
        show_limits(self.scene, self.views.limits(*map(self._view, np.linspace(0, 1, 9))), margin=0.0)
        view, names = self._view(0.0), {"start": BEFORE, "now": AFTER}
        self._still = [(self.start, frustum_collection(view, self.start, START, 0.6))]
        if self.reference is not None:
            self._still.append((self.reference, frustum_collection(view, self.reference, TRUE, 0.8)))
            names["reference"] = TRUE
        self._gaps = LineCollection([], colors=BEFORE, linewidths=0.8)
        self._now = frustum_collection(view, self.moving[0], AFTER, 1.0)
        still = [collection for _, collection in self._still]
        for collection in (*still, self._gaps, self._now):
            self.scene.add_collection(collection, autolim=False)
        self._changing += [*(still if self.orbit else []), self._gaps, self._now]
        self.figure.legend(
            handles=[Line2D([], [], color=color, linewidth=3, label=name) for name, color in names.items()],
            loc="lower left", bbox_to_anchor=(6 / self.width, 0), ncols=3, frameon=False, fontsize=11,
            labelcolor=INK, handlelength=1.3, handletextpad=0.5, columnspacing=1.2, borderaxespad=0.2,
        )  # fmt: skip

    def _add_curve(self, curve: Curve, top: float, bottom: float) -> Tuple[Line2D, Text]:
        """Axes with a whole curve in the background; what has passed of it, and its value, change."""
        left, right = self.width - PANEL, self.width - 14
        axes = self.figure.add_axes(self._box(left, top, right, bottom))
        low, high = 0.0 if curve.from_zero else float(curve.values.min()), float(curve.values.max())
        axes.set(xlim=(0, max(self.replay.steps[-1], 1.0)), ylim=(low, max(high, low + 1e-12)), xticks=[], yticks=[])
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(BEFORE)
        axes.plot(curve.steps, curve.values, color=FAINT, linewidth=1.5)
        (line,) = axes.plot([], [], "o-", color=AFTER, linewidth=2, markersize=6, markevery=[-1], clip_on=False)
        self._text(left, top - 7, curve.label, 10)
        text = self._text(right, top - 7, "", 13, AFTER, ha="right")
        self._changing += [line, text]
        return line, text
