"""HashPoseTrainer: nerfstudio's Trainer, told how long training is, what device there is, and when to stop."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from dataclasses import dataclass, field
from typing import Type

import torch

from hashpose_ns.errors import HashPoseError, exits_on_user_error
from hashpose_ns.optim.schedules import ScheduleConfig
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE


POSE_LOG = "pose_errors.jsonl"
"""File in a run's folder with the pose errors over training, a JSON object per line."""


@dataclass
class HashPoseTrainerConfig(TrainerConfig):
    """Configuration of the training loop. Trains for `max_num_iterations` steps in all, also when it is resumed."""

    _target: Type = field(default_factory=lambda: HashPoseTrainer)
    steps_per_pose_log: int = 500
    """Steps between pose errors on the console and in TensorBoard."""


class HashPoseTrainer(Trainer):
    """nerfstudio's training loop. It adds: the CPU where there is no GPU, schedules over fractions of training, resuming
    to the same end, a stop with a reason when the loss is no number, and pose errors on the way."""

    config: HashPoseTrainerConfig

    def __init__(self, config: HashPoseTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        if config.machine.device_type == "cuda" and not torch.cuda.is_available():
            CONSOLE.print("No CUDA device found: training on the CPU.")
            config.machine.device_type = "cpu"
        self.fresh_output = not config.get_checkpoint_dir().exists()
        super().__init__(config, local_rank, world_size)
        self.total_steps = config.max_num_iterations
        self.train_seconds = 0.0

    @exits_on_user_error
    def setup(self, test_mode="val") -> None:
        """Builds everything; on failure removes the output folder that ns-train had just begun."""
        try:
            super().setup(test_mode)
            if self._start_step >= self.total_steps:
                raise HashPoseError(
                    f"The checkpoint is at step {self._start_step} and --max-num-iterations is {self.total_steps}: "
                    "nothing is left to train. Give a larger number to go on."
                )
        except (HashPoseError, SystemExit):
            self._remove_fresh_output()
            raise

    def _remove_fresh_output(self) -> None:
        """Takes back the folder with nothing but a config.yml in it, and its parents where they are empty."""
        if not (self.fresh_output and self.base_dir.exists()):
            return
        shutil.rmtree(self.base_dir)
        for parent in list(self.base_dir.parents)[:3]:
            if parent == self.config.output_dir.parent or any(parent.iterdir()):
                break
            parent.rmdir()

    def setup_optimizers(self) -> Optimizers:
        """Gives the schedules the length of training and the model's factors."""
        model = self.pipeline.model
        model.set_training_length(self.total_steps)
        factors = model.rate_factors()
        config = {}
        param_groups = self.pipeline.get_param_groups()
        for name, group in self.config.optimizers.items():
            if name not in param_groups:  # poses that are not refined have none
                continue
            config[name] = dict(group)
            if isinstance(group["scheduler"], ScheduleConfig):
                config[name]["scheduler"] = dataclasses.replace(
                    group["scheduler"], total_steps=self.total_steps, factors=factors.get(name)
                )
        return Optimizers(config, param_groups)

    @exits_on_user_error
    def train(self) -> None:
        """Trains to the total number of steps; nerfstudio counts them from where a run is resumed."""
        self.config.max_num_iterations = self.total_steps - self._start_step
        try:
            super().train()
        finally:
            self.config.max_num_iterations = self.total_steps

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step, with its learning rates per level and, now and then, the pose errors."""
        begin = time.perf_counter()
        output = super().train_iteration(step)
        self.train_seconds += time.perf_counter() - begin
        if step % self.config.logging.steps_per_log == 0:
            for level, group in enumerate(self.optimizers.optimizers["encoding"].param_groups):
                writer.put_scalar(name=f"learning_rate/encoding_level_{level:02d}", scalar=group["lr"], step=step)
        if step % self.config.steps_per_pose_log == 0 or step == self.total_steps - 1:
            self._log_poses(step, float(output[0]))
        return output

    def _log_poses(self, step: int, loss: float) -> None:
        if not torch.isfinite(self.pipeline.model.camera_optimizer.refined_camera_to_worlds()).all():
            raise self._not_finite(step)
        errors = self.pipeline.pose_metrics()
        writer.put_dict(name="Pose Errors", scalar_dict=errors, step=step)
        self.pipeline.print_pose_errors(step, errors)
        with open(self.base_dir / POSE_LOG, "a", encoding="utf-8") as log:
            record = {"step": step, "train_seconds": round(self.train_seconds, 3), "train_loss": loss, **errors}
            log.write(json.dumps(record) + "\n")

    def save_checkpoint(self, step: int) -> None:
        """Saves, unless the parameters are no numbers any more: the last good checkpoint is worth more."""
        if not all(bool(torch.isfinite(value).all()) for value in self.pipeline.model.parameters()):
            raise self._not_finite(step)
        super().save_checkpoint(step)

    @staticmethod
    def _not_finite(step: int) -> HashPoseError:
        return HashPoseError(
            f"Poses or field stopped being numbers before step {step}; the likely cause is a learning rate that is too "
            "high (--optimizers.decoder.optimizer.lr, --optimizers.camera-opt.optimizer.lr). The last checkpoint is kept."
        )
