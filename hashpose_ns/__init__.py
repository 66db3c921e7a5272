"""hashpose: camera poses and a hash-grid radiance field recovered together, as nerfstudio methods.

What is meant to be imported stands here, and is loaded when it is first asked for: `import hashpose_ns` stays light.
Type checkers read `__init__.pyi`.
"""

from __future__ import annotations

import importlib
from typing import Any, List

__version__ = "0.1.0"

__all__ = [
    "HashEncodingConfig",
    "HashPoseError",
    "PoseErrors",
    "PoseOptimizer",
    "PoseOptimizerConfig",
    "Similarity",
    "SmoothedHashEncoding",
    "align_poses",
    "load_run",
    "pose_errors",
    "refined_poses",
]

_HOMES = {
    "HashEncodingConfig": "encoding.hash_encoding",
    "HashPoseError": "errors",
    "PoseErrors": "cameras.alignment",
    "PoseOptimizer": "cameras.pose_optimizer",
    "PoseOptimizerConfig": "cameras.pose_optimizer",
    "Similarity": "cameras.alignment",
    "SmoothedHashEncoding": "encoding.hash_encoding",
    "align_poses": "cameras.alignment",
    "load_run": "api",
    "pose_errors": "cameras.alignment",
    "refined_poses": "api",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    """A public name, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
