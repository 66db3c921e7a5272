"""One logarithmic axis for all figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, List, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICKS = 9
"""Most labels of an axis."""

MAX_DECADES = 4
"""Most decades of an axis of `log_axis`; what lies lower differs by rounding only."""


def log_ticks(low: float, high: float) -> List[float]:
    """Ticks of a logarithmic axis from `low` to `high`: 1, 2 and 5 times powers of ten, or these alone.

    Where only one or none of these lies in the range, they are 1, 2, 3, 4, 5, 6 and 8 times powers of ten.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def inside(digits: tuple[int, ...]) -> List[float]:
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        return [tick for tick in ticks if low <= tick <= high]

    ticks = inside((1, 2, 5))
    if len(ticks) > MAX_TICKS:
        return inside((1,))
    return ticks if len(ticks) > 1 else inside((1, 2, 3, 4, 5, 6, 8))


def tick_label(tick: float) -> str:
    """A tick as a plain number."""
    return f"{tick:g}"


def log_axis(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Makes an axis of matplotlib logarithmic, with plain numbers at `log_ticks`. To be called when all is plotted.

    Without positive data the axis stays linear. Values that are not positive are not drawn.

    Args:
        axes: of matplotlib.
        which: the axis.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    column = "xy".index(which)
    sharing = getattr(axes, f"get_shared_{which}_axes")().get_siblings(axes)
    smallest = min(each.dataLim.minpos[column] for each in sharing)
    largest = max(each.dataLim.max[column] for each in sharing)
    if not (np.isfinite(largest) and 0 < smallest <= largest):
        return
    low, high = max(smallest, largest / 10**MAX_DECADES) / 1.15, largest * 1.15
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: tick_label(tick)))
    axis.set_minor_locator(NullLocator())
