"""Names that `bench/` and `benchmarks/` still import from here; they moved to `hashpose_ns.plotting`."""

from pathlib import Path
from typing import Dict, List

import numpy as np

from hashpose_ns.plotting.cameras import FRUSTUM_EDGES, frustum_points
from hashpose_ns.plotting.figures import AFTER, BEFORE, COLORS, GAP, TRUE, plot_pose_errors
from hashpose_ns.runs import files

__all__ = ["AFTER", "BEFORE", "COLORS", "GAP", "TRUE", "frustum_lines", "plot_pose_errors", "read_pose_log"]


def frustum_lines(camera_to_world: np.ndarray, size: float) -> np.ndarray:
    """Line segments [8, 2, 3] of a viewing pyramid."""
    return frustum_points(camera_to_world, size)[FRUSTUM_EDGES]


def read_pose_log(path: Path) -> List[Dict[str, float]]:
    """The records of a pose log."""
    return files.read_pose_log(path.parent)
