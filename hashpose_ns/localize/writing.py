"""What hashpose-localize writes: found poses in every format, and pictures to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from hashpose_ns.data.names import check_names, printable
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.colmap import colmap_model_or_note
from hashpose_ns.export.frame import flip_axes
from hashpose_ns.export.trajectories import timestamps, write_trajectory
from hashpose_ns.export.transforms import input_file_extras, write_transforms
from hashpose_ns.localize.api import LocalizedImage, Search
from hashpose_ns.localize.photographs import Photographs

PHOTOGRAPH_SHARE = 0.7
"""Of the photograph in an overlay; the rest is the render."""


def write_results(
    folder: Path,
    target: Path,
    search: Search,
    photographs: Photographs,
    results: Sequence[LocalizedImage],
    note: str,
    overlay_size: int,
) -> List[str]:
    """Writes the photographs that were found: poses.json, transforms.json, sparse/0 (COLMAP), tum.txt with images.txt
    and, in overlays/, each photograph with the field's render over it.

    Args:
        folder: an existing folder.
        target: where it will lie in the end.
        search: what found them.
        photographs: what was looked for.
        results: of each photograph.
        note: what made the files.
        overlay_size: longest side of the overlays in pixels; 0 makes none.
    Returns:
        Notes on what a format could not hold.
    """
    rows = [row for row, result in enumerate(results) if result.found]
    found = [results[row] for row in rows]
    poses = torch.stack([result.camera_to_world for result in found])
    cameras = photographs.full_cameras(rows)
    names, filenames = [result.name for result in found], [result.filename for result in found]
    content = {
        "note": note,
        "frame": search.frame.description,
        "axes": "camera-to-world, OpenGL axes: right, up, backwards",
        "images": [result.as_dict() for result in found],
    }
    (folder / "poses.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    extras = input_file_extras(search.scene.dataparser.config)
    frames = [{"residual": result.residual, "agreement": result.agreement} for result in found]
    write_transforms(
        folder,
        poses,
        cameras,
        filenames,
        note,
        relative_to=target,
        applied_transform=extras["applied_transform"],
        applied_scale=extras.get("applied_scale"),
        frame_notes=frames,
        settings=extras.get("settings"),
    )
    times = timestamps(names, "index")
    write_trajectory(folder / "tum.txt", flip_axes(poses), times, "tum")
    notes: List[str] = []
    try:
        check_names(names)
        listed = [name for _, name in sorted(zip(times, names))]
        (folder / "images.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    except HashPoseError as error:
        notes.append(f"images.txt is left out: {error}")
    notes += colmap_model_or_note(folder, poses, cameras, names)
    if overlay_size > 0:
        write_overlays(folder / "overlays", search, photographs, results, rows, overlay_size)
    return notes


def write_overlays(
    folder: Path,
    search: Search,
    photographs: Photographs,
    results: Sequence[LocalizedImage],
    rows: Sequence[int],
    size: int,
) -> None:
    """Writes NAME.jpg of some photographs: `PHOTOGRAPH_SHARE` of it, and the field's render from the found pose.

    Args:
        folder: made if it is not there.
        search, photographs, results: as in `write_results`.
        rows: which photographs.
        size: longest side in pixels.
    """
    from PIL import Image

    from nerfstudio.utils.rich_utils import get_progress

    with get_progress("Rendering overlays", suffix="images") as progress:
        for row in progress.track(list(rows)):
            path = folder / f"{results[row].name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(overlay_picture(search, photographs, results[row], row, size)).save(path, quality=90)


@torch.no_grad()
def overlay_picture(
    search: Search, photographs: Photographs, result: LocalizedImage, row: int, size: int
) -> UInt8[np.ndarray, "height width 3"]:
    """`PHOTOGRAPH_SHARE` of a photograph, and the field's render from where it was found.

    Args:
        search, photographs: as in `write_results`.
        result: of the photograph.
        row: which one it is.
        size: longest side in pixels.
    """
    camera = photographs.cameras[torch.tensor([row])]
    camera.camera_to_worlds = result.learned_camera_to_world[None].float()
    camera = camera.to(search.scene.device)
    camera.rescale_output_resolution(min(size / max(int(camera.width), int(camera.height)), 1.0))
    render = search.scene.renderer.get_outputs_for_camera(camera)["rgb"].clamp(0.0, 1.0).cpu()
    photograph = search.scene.renderer.composite(photographs[row]["image"]).cpu()
    photograph = torch.nn.functional.interpolate(photograph.movedim(-1, 0)[None], size=render.shape[:2], mode="area")
    mixed = PHOTOGRAPH_SHARE * photograph[0].movedim(0, -1) + (1.0 - PHOTOGRAPH_SHARE) * render
    return (255.0 * mixed).round().byte().numpy()


def results_table(results: Sequence[LocalizedImage]) -> Any:
    """A rich table, a photograph a row."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Where the photographs were taken")
    has_start = any(result.start is not None for result in results)
    columns: Dict[str, str] = {
        "photograph": "left",
        "": "left",
        "unexplained": "right",
        "PSNR, dB": "right",
        "agreement": "right",
        "matches": "right",
        "± degrees": "right",
        "± units": "right",
    }
    if has_start:
        columns["moved, degrees"] = columns["moved, units"] = "right"
    for name, justify in columns.items():
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for result in results:
        cells = [
            escape(printable(result.name)),
            "[green]found" if result.found else "[red]not found",
            f"{result.residual:.3f} of {result.limit:.3f}",
            f"{result.psnr:.1f}",
            f"{result.agreement:.0%}",
            str(result.matches),
            f"{result.rotation_std_deg:.2g}" if result.found else "",
            f"{result.translation_std:.2g}" if result.found else "",
        ]
        if has_start:
            if result.moved is None or not result.found:
                cells += ["", ""]
            elif result.kept_start:
                cells += ["kept", "kept"]
            else:
                cells += [f"{result.moved[0]:.2g}", f"{result.moved[1]:.2g}"]
        table.add_row(*cells)
    return table
