"""Trained runs from Python: load one, take its refined poses."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Union

from jaxtyping import Float
from torch import Tensor

from hashpose_ns.export.poses import exported_cameras
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.runs.load import load_trained_pipeline


def load_run(load_config: Union[str, Path]) -> PosedScene:
    """Loads a trained run: its poses, its images, and a renderer of its field.

    The configuration and the checkpoint are read as data and cannot run code. The dataset must still be there.

    Args:
        load_config: path to the run's config.yml.

    Returns:
        The run. `poses` is its `PoseOptimizer`, `renderer` renders rays and whole cameras, `train` and `held_out` are
        its images. Poses in it are in the learned frame; `refined_poses` gives them in the frame of the input.

    Raises:
        HashPoseError: if a file is missing or damaged, or the method refines no poses.
    """
    return load_trained_pipeline(Path(load_config)).scene


def refined_poses(run: Union[str, Path, PosedScene]) -> Dict[str, Float[Tensor, "3 4"]]:
    """The refined poses of a run's training images, in the frame and scale of its input.

    They are those that `hashpose-export json` writes. The guard's verdict is not asked: it is in the run's guard.json.

    Args:
        run: path to the run's config.yml, or what `load_run` returned.

    Returns:
        Image name, relative to the image folder -> camera-to-world pose, float64, OpenGL axes (x right, y up, camera
        looks along -z), in the units of the input.

    Raises:
        HashPoseError: if the run cannot be loaded, a pose is broken, or the frame of the input cannot be restored.
    """
    cameras = exported_cameras(run if isinstance(run, PosedScene) else load_run(run))
    return dict(zip(cameras.names, cameras.camera_to_worlds))
