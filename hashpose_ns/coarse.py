"""Large pictures: settings that are made for them, and poses that come from small copies of them first.

From poses that are degrees off, a field finds its way on small pictures in a tenth of the time, and more surely; large
ones then take poses from tenths of a degree to hundredths. `python -m hashpose_ns.coarse` trains on the small copies in
a process of its own, as nerfstudio keeps loggers and timers in global variables.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Container, Dict, Literal, Optional, Tuple

import torch
import yaml

from hashpose_ns.data.picture_size import shorter_side
from hashpose_ns.errors import HashPoseError, exits_on_user_error
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.strategy import PoseStrategy, Say
from hashpose_ns.runs.config import read_config
from hashpose_ns.runs.files import CONFIG
from hashpose_ns.stopping import run_in_session
from nerfstudio.utils.rich_utils import CONSOLE

LARGE = 300
"""Pixels of the shorter side from which pictures are large."""

FOLDER = "coarse"
"""Folder in a run's for the training on small copies."""
POSES = "camera_to_worlds.pt"
"""File there with the poses it ends at."""

PictureSize = Literal["auto", "small", "large"]
BySize = Dict[str, Tuple[Any, Any]]
"""Setting, as a dotted path -> its value for small and for large pictures."""


@dataclass
class CoarseFirstConfig:
    """Trains on small copies of large pictures first, where no better start is at hand."""

    mode: Literal["off", "auto"] = "off"
    """Whether training starts at poses from small copies of the pictures.
    `auto` does so for large pictures whose poses do not come from matches."""
    pixels: int = 100
    """Shorter side of the copies."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if not 16 <= self.pixels < LARGE:
            raise HashPoseError(f"coarse-first.pixels must be from 16 to {LARGE - 1}, not {self.pixels}.")


def fit_to_pictures(config: Any) -> None:
    """Puts the settings for large pictures in place of those for small ones, where pictures are large.

    Settings that the command line names stay, and so do those with another value than the method's own. A second call
    changes nothing.
    """
    if config.by_size is None or config.picture_size != "auto":
        return
    side = pixels_of(config)
    if side is None:
        return
    config.picture_size = "large" if side >= LARGE else "small"
    if config.picture_size == "large":
        CONSOLE.print(
            f"Pictures are {side} pixels large: training takes the settings for large ones "
            "(--picture-size small keeps the quick ones).",
            soft_wrap=True,
        )
        named = {argument.partition("=")[0].replace("_", "-") for argument in sys.argv}
        take_large(config, {path for path in config.by_size if "--" + path.replace("_", "-") in named})


def take_large(config: Any, but_for: Container[str] = ()) -> None:
    """Puts the settings for large pictures in place of those for small ones."""
    for path, (small, large) in config.by_size.items():
        if get_setting(config, path) == small and path not in but_for:
            set_setting(config, path, large)


def pixels_of(config: Any) -> Optional[int]:
    """Shorter side of the pictures that training sees; None where they cannot be found."""
    datamanager = config.pipeline.datamanager
    data = config.data or datamanager.data or datamanager.dataparser.data
    side = shorter_side(Path(data))
    return None if side is None else round(side * datamanager.camera_res_scale_factor)


def side_to_reduce(config: Any) -> Optional[int]:
    """Shorter side of the pictures; None where they are no larger than their copies would be, or cannot be found."""
    side = pixels_of(config)
    return side if side is not None and side > config.coarse_first.pixels else None


def coarse_config(config: Any, side: int) -> Any:
    """The training on small copies.

    Args:
        config: of the training on the pictures themselves.
        side: the shorter side of those.
    """
    small = copy.deepcopy(config)
    assert small.by_size is not None
    share = min(config.max_num_iterations / small.by_size["max_num_iterations"][1], 1.0)
    for path, values in small.by_size.items():
        set_setting(small, path, values[0])
    small.max_num_iterations = max(round(share * small.max_num_iterations), 1)
    small.picture_size, small.coarse_first.mode = "small", "off"
    datamanager = small.pipeline.datamanager
    datamanager.camera_res_scale_factor *= small.coarse_first.pixels / side
    small.output_dir = config.get_base_dir() / FOLDER
    small.viewer.quit_on_train_completion = True
    small.steps_per_eval_image = small.steps_per_eval_batch = small.steps_per_eval_all_images = 10**9
    small.load_dir = small.load_checkpoint = small.load_config = None
    return small


class CoarseFirst(PoseStrategy):
    """Has training start at poses from small copies of the pictures.

    Args:
        config: of the training.
    """

    def __init__(self, config: Any) -> None:
        self.config = copy.deepcopy(config)  # setting things up leaves tensors in it, and an open viewer

    def validate(self) -> None:
        self.config.coarse_first.validate()

    def prepare(self, scene: PosedScene, resumed: bool, say: Say) -> None:
        poses, config = scene.poses, self.config
        if config.coarse_first.mode == "off" or config.picture_size != "large" or resumed:
            return
        if poses.config.mode == "off" or poses.is_trusted or config.machine.num_devices > 1:
            return
        side, pixels = side_to_reduce(config), config.coarse_first.pixels
        if side is None:
            return
        say(f"coarse first: training on pictures of {pixels} pixels (--coarse-first.mode off leaves that out)")
        found = _trained(coarse_config(config, side))
        if found is None or found.shape != poses.initial_camera_to_worlds.shape:
            say("coarse first: that failed, and training starts at the poses as they are")
            return
        poses.rebase(found, trusted=True)
        say(f"coarse first: training starts at the poses that pictures of {pixels} pixels gave")


def _trained(config: Any) -> Optional[torch.Tensor]:
    """Poses [N, 3, 4] at the end of a training in another process; None if it failed, which it has then said itself."""
    folder = config.get_base_dir()
    folder.mkdir(parents=True, exist_ok=True)  # a run can go into a folder that has one
    (folder / CONFIG).write_text(yaml.dump(config), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "hashpose_ns.coarse", str(folder)]
    return torch.load(folder / POSES, weights_only=True) if run_in_session(command) == 0 else None


def get_setting(config: Any, path: str) -> Any:
    """The value of a setting, by its dotted path."""
    return reduce(getattr, path.split("."), config)


def set_setting(config: Any, path: str, value: Any) -> None:
    """Sets a setting, by its dotted path."""
    *folders, name = path.split(".")
    setattr(reduce(getattr, folders, config), name, value)


@exits_on_user_error
def main(folder: Path) -> None:
    """Trains by the config.yml of a folder, and leaves the poses there."""
    config = read_config(folder / CONFIG)
    torch.manual_seed(config.machine.seed)  # as ns-train does
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    poses = trainer.pipeline.model.camera_optimizer.refined_camera_to_worlds().detach().cpu()
    torch.save(poses, folder / POSES)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
