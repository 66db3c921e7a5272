"""What the datamanager tells the model of the training cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Tuple

from jaxtyping import Float
from torch import Tensor

METADATA_KEY = "training_cameras"
"""Where nerfstudio carries it from the dataset to the model: `dataset.metadata`, the only way there."""


@dataclass(frozen=True, eq=False)
class TrainingCameras:
    """The training cameras before training. Poses are camera-to-world, OpenGL axes, in nerfstudio's frame."""

    initial_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """Where training starts."""
    reference_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """What errors are measured against: the dataparser's poses."""
    image_names: Tuple[str, ...]
    """File names of the images, with folders."""
    half_extent: Tuple[float, float]
    """Tangents of the largest half field of view in x and y."""

    def into(self, metadata: Dict[str, Any]) -> None:
        """Puts it into a dataset's metadata."""
        metadata[METADATA_KEY] = self

    @staticmethod
    def of(metadata: Dict[str, Any]) -> TrainingCameras | None:
        """What a dataset's metadata holds; None if no hashpose datamanager made it."""
        return metadata.get(METADATA_KEY)
