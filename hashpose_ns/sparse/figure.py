"""The curves of training. matplotlib is imported when drawn."""

from __future__ import annotations

import json
from pathlib import Path

from hashpose_ns.atomic import whole_file

FIGURE = "curves.png"


def plot_log(folder: Path, log: str = "log.jsonl") -> None:
    """Draws a run's log: pairs of held-out views within 30 degrees and the median angle over pictures seen, of the
    coarse estimate and after the last step of refinement, with chance.

    Args:
        folder: of the run; the figure is written into it. Nothing is drawn without a log.
        log: name of the log.
    """
    path = folder / log
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    seen = [row["pictures"] / 1000 for row in rows]
    for axes, key, title, factor in zip(
        figure.subplots(1, 2),
        ("within_30_deg", "median_deg"),
        ("pairs within 30 degrees, %", "median angle of pairs, degrees"),
        (100, 1),
    ):
        for family, color in (("articulated", "#0072B2"), ("blobs", "#D55E00")):
            for stage, style, label in ((0, "--", "coarse"), (-1, "-", "refined")):
                values = [factor * row[family][stage][key] for row in rows]
                axes.plot(seen, values, style, color=color, label=f"{family}, {label}", linewidth=1.4)
        axes.plot(seen, [factor * row["chance"][key] for row in rows], ":", color="#999999", label="chance")
        axes.set_xlabel("pictures seen, thousands")
        axes.set_title(title, fontsize=11)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    with whole_file(folder / FIGURE) as staged:
        figure.savefig(staged, dpi=110)
