"""Exporting the poses of this moment from a run that may still be training."""

from __future__ import annotations

from pathlib import Path
from typing import ContextManager

from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.runs.files import CONFIG

COLMAP, TRANSFORMS = "COLMAP", "transforms.json"
FORMATS = (COLMAP, TRANSFORMS)


def export_now(scene: PosedScene, run: Path, step: int, format: str, lock: ContextManager) -> Path:
    """Writes `exports/step-XXXXXX/colmap` or `.../nerfstudio` into a run's folder; the folder appears whole or not at
    all, and an earlier export of the same step is replaced.

    Args:
        scene: the run; images and intrinsics are those it trains on.
        run: the run's folder.
        step: how many steps are done.
        format: one of `FORMATS`.
        lock: held while poses are read.
    Returns:
        The folder.

    Raises:
        HashPoseError: the dataset's poses cannot be exported, or the folder cannot be written.
    """
    from hashpose_ns.export.cli import ExportColmap, ExportNerfstudio
    from hashpose_ns.export.poses import exported_cameras
    from hashpose_ns.export.transforms import input_file_extras

    with lock:
        cameras = exported_cameras(scene)
    config, folder = run / CONFIG, run / "exports" / f"step-{step:06d}"
    if format == COLMAP:
        ExportColmap(folder / "colmap", overwrite=True, load_config=config).write(cameras)
        return folder / "colmap"
    extras = input_file_extras(scene.dataparser.config)
    ExportNerfstudio(folder / "nerfstudio", overwrite=True, load_config=config).write(cameras, **extras)
    return folder / "nerfstudio"
