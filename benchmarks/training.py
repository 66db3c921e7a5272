"""What the benchmarks of training share: a scene of any size, trainers of any method on it, and the parts of a step.

The package is imported in functions only: step.py chooses its version when its processes have begun."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import Trainer

RAYS = "pipeline.datamanager.train_num_rays_per_batch"

TOTAL_STEPS = 1_000_000
"""Length of training that schedules are told, so that no benchmark reaches its end."""
START_STEP = 600_000
"""Step to begin at: every level of the grid is open, poses move, and nerfacto trains its proposal networks as rarely
as in most of its training."""
SizeName = Literal["tiny", "small", "paper"]


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    method: str
    """This package's method."""
    rays: int
    """Rays a step."""
    samples: int
    """Samples a ray of this package's method, and as many importance samples where it comes with any."""
    views: int
    """Images of the scene."""
    resolution: int
    """Their height and width."""


SIZES: dict[str, Size] = {
    "tiny": Size("hashpose-small", rays=32, samples=8, views=10, resolution=16),
    "small": Size("hashpose-small", rays=512, samples=24, views=40, resolution=100),
    "paper": Size("hashpose-blender", rays=1024, samples=128, views=100, resolution=400),
}


def sample_settings(method: str, samples: int) -> dict[str, int]:
    """Settings of this package's method for a number of samples."""
    settings = {"pipeline.model.num_samples": samples}
    if method == "hashpose-small":
        settings["pipeline.model.num_importance_samples"] = samples
    return settings


def make_scene(folder: Path, views: int, resolution: int) -> Path:
    """The packaged chair on white, its pictures resized and repeated, as Blender's and as nerfstudio's format."""
    from PIL import Image

    from hashpose_ns.demo import DEMO_SCENE

    meta = json.loads((DEMO_SCENE / "transforms_train.json").read_text())
    (folder / "images").mkdir(parents=True)
    frames = []
    for index in range(views):
        frame = meta["frames"][index % len(meta["frames"])]
        path = folder / "images" / f"{index:05d}.png"
        if index < len(meta["frames"]):
            picture = Image.open(DEMO_SCENE / f"{frame['file_path']}.png").convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
            picture.resize((resolution, resolution)).save(path)
        else:
            path.symlink_to(f"{index % len(meta['frames']):05d}.png")
        frames.append({"file_path": f"images/{index:05d}.png", "transform_matrix": frame["transform_matrix"]})
    focal = 0.5 * resolution / math.tan(0.5 * meta["camera_angle_x"])
    lens = {"w": resolution, "h": resolution, "fl_x": focal, "fl_y": focal, "cx": resolution / 2, "cy": resolution / 2}
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", **lens, "frames": frames}))
    for split, some in (("train", frames), ("val", frames[:8]), ("test", frames[:8])):
        bare = [{**frame, "file_path": frame["file_path"].removesuffix(".png")} for frame in some]
        content = {"camera_angle_x": meta["camera_angle_x"], "frames": bare}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
    return folder


def make_trainer(method: str, scene: Path, output: Path, settings: dict[str, Any] | None = None) -> Trainer:
    """A trainer of a method as `ns-train METHOD` sets it up, its viewer off.

    Args:
        method: a method of this package, one of its peers, or nerfstudio's nerfacto. Poses move from the start on.
        scene: a folder of `make_scene`; Blender's format for methods with settings for objects, else nerfstudio's.
        output: folder for the run.
        settings: dotted path -> value.
    """
    from hashpose_ns.bench.configs import base_config

    warnings.filterwarnings("ignore")
    captures = method in ("hashpose-small", "barf", "nerfacto")
    if method == "nerfacto":
        config = _nerfacto()
    else:
        config = base_config(method.removesuffix("-blender"), "captures" if captures else "blender")
        for key, value in {"camera_optimizer.start": 0.0, "camera_optimizer.warmup": 0.0}.items():
            set_value(config, f"pipeline.model.{key}", value)
    for key, value in (settings or {}).items():
        set_value(config, key, value)
    config.output_dir, config.experiment_name, config.timestamp = output, method, "run"
    config.pipeline.datamanager.data = scene
    config.max_num_iterations, config.vis = TOTAL_STEPS, "tensorboard"
    config.logging.local_writer.enable = False
    config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
    # Checkpoints and held-out images are not part of a step.
    config.steps_per_save = config.steps_per_eval_all_images = TOTAL_STEPS
    config.steps_per_eval_batch = config.steps_per_eval_image = TOTAL_STEPS
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer._start_step = START_STEP
    for scheduler in trainer.optimizers.schedulers.values():  # learning rates of that step
        scheduler.last_epoch = START_STEP - 1
        scheduler.step()
    return trainer


def set_value(config: Any, path: str, value: Any) -> None:
    """Sets an entry of nested dataclasses and dictionaries by its dotted path. Only that it exists is checked, so that
    it works with any version of the package."""
    *owners, name = path.split(".")
    for owner in owners:
        config = config[owner] if isinstance(config, dict) else getattr(config, owner)
    if isinstance(config, dict):
        config[name] = value
    else:
        getattr(config, name)
        setattr(config, name, tuple(value) if isinstance(value, list) else value)


def read_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings from dotted.path=value, the values as in YAML."""
    import yaml

    return {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def _nerfacto():
    """nerfstudio's own, but that its rays are made in this process, as everyone's here, and not in another one."""
    import torchmetrics.image.lpip

    from nerfstudio.configs.method_configs import method_configs
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig

    # Its model would download a network that only evaluation uses.
    torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: torch.nn.Identity()
    config = copy.deepcopy(method_configs["nerfacto"])
    config.pipeline.datamanager = VanillaDataManagerConfig(dataparser=config.pipeline.datamanager.dataparser)
    return config


def advance(trainer: Trainer, steps: Iterable[int]) -> None:
    """Does these steps, each nerfstudio's iteration with the callbacks around it."""
    from nerfstudio.engine.callbacks import TrainingCallbackLocation as Place

    for step in steps:
        trainer.pipeline.train()
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, location=Place.BEFORE_TRAIN_ITERATION)
        trainer.train_iteration(step)
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, location=Place.AFTER_TRAIN_ITERATION)


def stepper(trainer: Trainer) -> Callable[[int], None]:
    """A function that does some further steps."""
    numbers = itertools.count(START_STEP)
    return lambda steps: advance(trainer, itertools.islice(numbers, steps))


class Parts:
    """A stack of the parts of a step that run, kept by functions that say when they begin and end."""

    def __init__(self) -> None:
        self.stack = ["rest of the loop"]

    def enter(self, name: str) -> Any:
        """A part begins. What this returns is given to `leave`."""
        self.stack.append(name)

    def leave(self, token: Any = None) -> None:
        """The part that began last ends."""
        self.stack.pop()

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Makes a function a part of its own."""
        function: Callable = getattr(owner, attribute)

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            token = self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave(token)

        setattr(owner, attribute, wrapped)

    def around_all(self, trainer: Any, *more: tuple[Any, str, str]) -> None:
        """Makes the functions of a trainer's step that all benchmarks look at parts, and more of them."""
        from nerfstudio.utils import writer

        pipeline, optimizers = trainer.pipeline, trainer.optimizers
        for owner, attribute, name in (
            (pipeline.datamanager, "next_train", "data: pixels"),
            (pipeline.model.camera_optimizer, "apply_to_raybundle", "poses"),
            *((optimizers, f, "optimisers") for f in ("zero_grad_some", "optimizer_scaler_step_some")),
            (optimizers, "scheduler_step_all", "schedules"),
            *((writer, f, "logging") for f in ("write_out_storage", "put_scalar", "put_dict", "put_time")),
            *more,
        ):
            self.around(owner, attribute, name)
