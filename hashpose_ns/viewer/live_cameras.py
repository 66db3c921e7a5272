"""Keeps the training cameras of nerfstudio's viewer where the refined poses are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import Trainer


class LiveCameras:
    """Callback that moves the viewer's frustums as training goes on.

    nerfstudio moves them itself when it has rendered an image for somebody, which on a CPU happens once or never.

    Args:
        trainer: the trainer, whose viewer may not be there.
        interval: seconds between updates, so that many cameras cost little.
    """

    def __init__(self, trainer: Optional["Trainer"], interval: float = 0.5) -> None:
        self.trainer = trainer
        self.interval = interval
        self.last_update = 0.0

    def __call__(self, step: int) -> None:
        """Updates the frustums if it is time; who joins later gets what was sent last."""
        viewer = getattr(self.trainer, "viewer_state", None)
        # The handles are made when the scene is, which is after the callbacks; the legacy viewer has none.
        if viewer is None or not getattr(viewer, "camera_handles", None):
            return
        if time.monotonic() - self.last_update < self.interval:
            return
        self.last_update = time.monotonic()
        viewer.update_camera_poses()
