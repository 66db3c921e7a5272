"""Held-out photographs beside every preset's render of them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from hashpose_ns.bench.reporting.curves import STYLE, save
from hashpose_ns.bench.reporting.runs import BenchRun
from hashpose_ns.bench.reporting.tables import Group, Row

IMAGES = 3
"""Held-out images shown, at most."""
PRESETS = 5
"""Presets side by side; more go below."""

Picture = Float[np.ndarray, "height width 3"]


def draw_views(group: Group, path: Path) -> Optional[str]:
    """Draws photographs and renders of some held-out images that all presets rendered, one seed of each.

    Returns:
        Which cameras the renders were made with, in words; None where there was nothing to draw.
    """
    for variant, words in (("tto", "after test-time optimisation"), ("aligned", "aligned, not optimised")):
        chosen: List[Tuple[Row, Dict[str, Path]]] = []
        for row in group.rows:
            rendered = [files for run in row.done if (files := _renders(run, variant))]
            if rendered:
                chosen.append((row, rendered[0]))
        names = sorted(set.intersection(*[set(files) for _, files in chosen])) if chosen else []
        if names:
            break
    else:
        return None
    names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(IMAGES, len(names))).round().astype(int))]
    _draw(chosen, names, path)
    return words


def _draw(chosen: List[Tuple[Row, Dict[str, Path]]], names: List[str], path: Path) -> None:
    photograph, _ = read_pair(chosen[0][1][names[0]])
    aspect = photograph.shape[0] / photograph.shape[1]
    columns = 1 + min(PRESETS, len(chosen))
    blocks = -(-len(chosen) // PRESETS)
    width = min(3.2, 12.6 / columns)
    with rc_context({**STYLE, "axes.grid": False}):
        height = blocks * (len(names) * (width * aspect + 0.34) + 0.35)
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0.0, wspace=0.0)  # type: ignore
        grid = figure.subplots(blocks * len(names), columns, squeeze=False)
        for axis in grid.flat:
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color("#d5dade")
        for index, name in enumerate(names):
            for block in range(blocks):
                axes = grid[block * len(names) + index]
                pairs = [
                    (row, *read_pair(files[name])) for row, files in chosen[block * PRESETS : (block + 1) * PRESETS]
                ]
                axes[0].imshow(pairs[0][1], interpolation="bicubic")
                axes[0].set_xlabel(f"held-out image {int(name)}", fontsize=9)
                if index == 0:
                    axes[0].set_title("photograph")
                for axis in axes[1 + len(pairs) :]:
                    axis.set_axis_off()
                for axis, (row, photograph, render) in zip(axes[1:], pairs):
                    axis.imshow(render, interpolation="bicubic")
                    axis.set_xlabel(f"{psnr(photograph, render):.2f} dB", fontsize=9)
                    if index == 0:
                        axis.set_title("\n".join(textwrap.wrap(row.title, int(8 * width))))
        save(figure, path)


def _renders(run: BenchRun, variant: str) -> Dict[str, Path]:
    """Number of an image -> picture with the photograph on the left and the render on the right."""
    return {path.stem.rpartition("_")[2]: path for path in (run.folder / "renders").glob(f"eval_{variant}_img_*.png")}


def read_pair(path: Path) -> Tuple[Picture, Picture]:
    """Photograph and render out of one picture, values in [0, 1]."""
    with Image.open(path) as image:
        both = np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    half = both.shape[1] // 2
    return both[:, :half], both[:, half : 2 * half]


def psnr(photograph: Picture, render: Picture) -> float:
    """PSNR of pictures of 8 bits, in dB."""
    return float(-10.0 * np.log10(np.mean((photograph - render) ** 2) + 1e-12))
