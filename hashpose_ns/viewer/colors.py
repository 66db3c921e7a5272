"""Colours of cameras by a number, on a logarithmic scale that keeps still."""

from __future__ import annotations

import base64
import functools
import io
import math

import numpy as np
from jaxtyping import Float, UInt8

# Okabe and Ito's colours, which colour-blind readers can tell apart.
START, REFERENCE, MOVED, SELECTED = (153, 153, 153), (0, 158, 115), (0, 114, 178), (86, 180, 233)
MATCHED = (204, 121, 167)
NEAR, OFF, FAR_OFF = (0, 158, 115), (240, 228, 66), (213, 94, 0)
CURVES = ("#0072B2", "#E69F00", "#D55E00")

DECADES = 2.5
"""Orders of magnitude that the colours span."""


@functools.lru_cache
def sequential(count: int = 256) -> UInt8[np.ndarray, "count 3"]:
    """The plasma map, which rises evenly in lightness, is safe for colour-blind readers and has no green in it."""
    import matplotlib

    table = np.array(matplotlib.colormaps["plasma"].colors)
    return (255 * table[np.linspace(0, len(table) - 1, count).round().astype(int)]).astype(np.uint8)


class ColorScale:
    """Maps numbers to colours. The upper end is a round number (1, 2 or 5 times a power of ten) that only grows, so
    that colours can be compared over time."""

    def __init__(self) -> None:
        self.top = 0.0

    def colors(self, values: Float[np.ndarray, "n"]) -> UInt8[np.ndarray, "n 3"]:
        """Colours of non-negative numbers; grey for NaN."""
        finite = np.isfinite(values)
        largest = float(values[finite].max()) if finite.any() else 0.0
        if largest > self.top:
            self.top = _round_up(largest)
        if self.top == 0.0:
            return np.broadcast_to(sequential()[0], (len(values), 3)).copy()
        bottom = self.top * 10**-DECADES
        clipped = np.clip(np.where(finite, values, bottom), bottom, self.top)
        position = np.log10(clipped / bottom) / DECADES
        colors = sequential()[np.round(255 * position).astype(int)]
        colors[~finite] = START
        return colors

    def legend(self, name: str, unit: str) -> str:
        """The scale as markdown."""
        if self.top == 0.0:
            return f"{name}: 0 everywhere"
        bottom = self.top * 10**-DECADES
        return f"![scale]({_bar()})\n\n{name}, from {bottom:.2g} (dark) to {self.top:g} {unit} (bright), logarithmic"


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


@functools.lru_cache
def _bar() -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.broadcast_to(sequential(240)[None], (10, 240, 3)).copy()).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
