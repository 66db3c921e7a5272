"""Cameras and points of a trained run in the frame of its input: what the writers of formats take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hashpose_ns.cameras.alignment import PoseErrors
from hashpose_ns.export.frame import InputFrame
from hashpose_ns.guard.report import GuardReport
from nerfstudio.cameras.cameras import Cameras

TRAINED = "training"
FROZEN = "nothing: frozen"
KEPT = "nothing: put back to where training started"
NOT_TRAINED = "nothing: the run refines no poses"
OPTIMIZED = "test-time optimisation"
ALIGNED = "nothing: aligned by the training cameras"
"""What moved a camera, in words."""


@dataclass(frozen=True, eq=False)
class ExportedPoints:
    """3-D points in the frame of exported cameras."""

    xyz: Float[np.ndarray, "num_points 3"]
    """Positions."""
    rgb: UInt8[np.ndarray, "num_points 3"]
    """Colours."""
    error: Float[np.ndarray, "num_points"]
    """Errors in pixels; -1 where unknown, as COLMAP has it."""
    seen_by: Optional[Int[np.ndarray, "num_observations 2"]] = None
    """Point and image, as indices, for every image that shows a point; None where that is not known."""
    pixels: Optional[Float[np.ndarray, "num_observations 2"]] = None
    """Where each of these images shows its point, in pixels; None: where the point projects to."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Where exported cameras come from, if that is no run."""

    note: Dict[str, Any]
    """What an export says of it; JSON-ready. `written_by` is the command."""
    lines: List[str]
    """The same for the console."""
    files: Dict[str, str]
    """Text files that go with the cameras, by their names."""


@dataclass(frozen=True, eq=False)
class ExportedCameras:
    """Refined cameras in the frame of the input dataset: everything a writer needs."""

    camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """Rigid poses, float64, OpenGL axes."""
    learned_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """The same poses in the frame of the trained field."""
    given_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """The poses that the dataset came with, float64, OpenGL axes."""
    start_camera_to_worlds: Optional[Float[Tensor, "num_cameras 3 4"]]
    """The poses that training started from; the given ones for evaluation images. None for an identity start."""
    cameras: Cameras
    """Intrinsics at the full resolution of the images. The poses in it are not the refined ones."""
    image_filenames: List[Path]
    """The original images, absolute."""
    image_folder: Path
    """The folder that names are relative to, absolute."""
    names: List[str]
    """Unique name of each image, relative to the folder, with forward slashes."""
    splits: List[str]
    """Of each image, ``train`` or ``eval``."""
    indices: List[int]
    """Index of each image within its split."""
    refined_by: List[str]
    """What moved each camera, in words."""
    frame: InputFrame
    """The frame of the poses."""
    movement: Optional[PoseErrors]
    """How far each camera is from where it started, in units of the input; None for an identity start."""
    num_left_out: int
    """Number of evaluation images that were left out."""
    sources: List[Path]
    """What the run reads of its dataset: files and folders, evaluation images included."""
    mask_filenames: Optional[List[Path]] = None
    """Mask of each image, if there are any, absolute."""
    depth_filenames: Optional[List[Path]] = None
    """Depth map of each image, if there are any, absolute."""
    points: Optional[ExportedPoints] = None
    """Points beside the cameras, if they were asked for."""
    verdict: Optional[GuardReport] = None
    """Whether refinement helped, if that was judged."""
    origin: Optional[Origin] = None
    """Where the cameras come from; None for those of a run."""

    @property
    def is_refined(self) -> List[bool]:
        """Whether each camera is where the field was trained with it, or was optimised against the field."""
        return [how not in (KEPT, ALIGNED) for how in self.refined_by]
