"""HashPoseTrainer: nerfstudio's Trainer, told how long training is, what device there is, and when to stop."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Sequence, Set, Tuple, Type

import torch
from torch import Tensor

from hashpose_ns.cameras.history import HISTORY_FILE, PoseHistory, is_recorded
from hashpose_ns.cameras.recovery import RecoveryConfig, recover_cameras
from hashpose_ns.errors import HashPoseError, exits_on_user_error, one_line
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.host import keep_freed_memory
from hashpose_ns.optim.schedules import ScheduleConfig, moments
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE

POSE_LOG = "pose_errors.jsonl"
"""File in a run's folder with the pose errors over training, a JSON object per line."""


@dataclass
class HashPoseTrainerConfig(TrainerConfig):
    """Configuration of the training loop. Trains for `max_num_iterations` steps in all, also when it is resumed."""

    _target: Type = field(default_factory=lambda: HashPoseTrainer)
    steps_per_pose_log: int = 500
    """Steps between pose errors, and the PSNR of some held-out pixels, on the console and in TensorBoard."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Judges without ground truth whether refinement helped."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """Puts lost cameras back during training."""

    def get_checkpoint_dir(self) -> Path:
        """The folder of checkpoints. Every command asks for it before it builds the pipeline, which learns here where
        its run is and so where the guard's verdict lies."""
        self.pipeline.run_folder = self.get_base_dir()
        return super().get_checkpoint_dir()


class HashPoseTrainer(Trainer):
    """nerfstudio's training loop. It adds: the CPU where there is no GPU, schedules over fractions of training,
    resuming to the same end, a stop with a reason when the loss is no number, and poses and their errors on the way."""

    config: HashPoseTrainerConfig

    def __init__(self, config: HashPoseTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        if config.machine.device_type == "cuda" and not torch.cuda.is_available():
            CONSOLE.print("No CUDA device found: training on the CPU.")
            config.machine.device_type = "cpu"
        if config.machine.device_type == "cpu":
            keep_freed_memory()
        super().__init__(config, local_rank, world_size)
        # ns-train has just written config.yml; whatever else is in the folder is not ours to remove.
        self.fresh_output = self.base_dir.is_dir() and set(os.listdir(self.base_dir)) <= {"config.yml"}
        self.total_steps = config.max_num_iterations
        self.train_seconds = 0.0
        self.unchecked_losses: List[Tuple[int, Tensor]] = []
        self.pose_history: Optional[PoseHistory] = None

    @exits_on_user_error
    def setup(self, test_mode="val") -> None:
        """Builds everything; on failure removes the output folder that ns-train had just begun."""
        try:
            self.config.guard.validate()
            self.config.recovery.validate()
            super().setup(test_mode)
        except (HashPoseError, SystemExit):
            self._remove_fresh_output()
            raise
        if self.config.guard.mode != "off":
            self.callbacks.append(
                TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], lambda step: self._run_guard())
            )

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

    # -- training ------------------------------------------------------------------------------------------------------

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
        if self.config.guard.mode != "off" and step in self._steps_at(self.config.guard.fallback_at):
            self._fall_back_unless_helped(step)
        if step in self._steps_at(self.config.recovery.at):
            self._recover_cameras(step)
        self.pipeline.model.is_logged = step_check(step, self.config.logging.steps_per_log, run_at_zero=True)
        output = super().train_iteration(step)
        self._look_whether_settled(step)
        self.train_seconds += time.perf_counter() - begin
        self.unchecked_losses.append((step, output[0].detach()))
        if self._is_looked_at(step):
            self._check_finite(step)
        if step_check(step, self.config.logging.steps_per_log, run_at_zero=True):
            encoding = self.optimizers.optimizers.get("encoding")
            for level, group in enumerate(encoding.param_groups if encoding else ()):
                writer.put_scalar(name=f"learning_rate/encoding_level_{level:02d}", scalar=group["lr"], step=step)
        if is_recorded(step, self.total_steps):
            self._record_poses(step)
        if step_check(step, self.config.steps_per_pose_log, run_at_zero=True) or step == self.total_steps - 1:
            self._log_poses(step, float(output[0]))
        return output

    def _steps_at(self, fractions: Sequence[float]) -> Set[int]:
        return {round(fraction * self.total_steps) for fraction in fractions}

    def _fall_back_unless_helped(self, step: int) -> None:
        """Puts cameras back where they started, where that is the better place. A guard that cannot judge puts nothing
        back."""
        if self.pipeline.model.camera_optimizer.config.mode == "off":
            return
        from hashpose_ns.guard.fallback import fall_back_unless_helped

        guard, adam = self.config.guard, self.optimizers.optimizers["camera_opt"]
        last = step == max(self._steps_at(guard.fallback_at))
        CONSOLE.print(f"step {step:6d}  guard: judging the refined poses by held-out pixels ...")
        try:
            said = fall_back_unless_helped(self.pipeline, adam, guard, last)
        except (HashPoseError, RuntimeError) as error:
            said = f"no verdict. {one_line(error)}"
        CONSOLE.print(f"step {step:6d}  guard: {said}", soft_wrap=True)

    def _recover_cameras(self, step: int) -> None:
        """Puts lost cameras back; Adam forgets where they were going."""
        poses = self.pipeline.model.camera_optimizer
        if poses.config.mode == "off" or poses.rate_scale == 0:
            return
        self.pipeline.eval()
        moved = recover_cameras(self.pipeline, self.config.recovery)
        self.pipeline.train()
        for moment in moments(self.optimizers.optimizers["camera_opt"], poses.pose_adjustment):
            moment[moved] = 0.0
        CONSOLE.print(f"step {step:6d}  lost cameras put elsewhere: {len(moved)} {moved or ''}")

    def _look_whether_settled(self, step: int) -> None:
        """Once a window, while poses move: lowers their rate where they tremble only, and says when they stop."""
        optimizer = self.pipeline.model.camera_optimizer
        settling, progress = optimizer.settling, step / self.total_steps
        if settling is None or not optimizer.active or progress < optimizer.free_from:
            return
        if step % max(round(settling.config.window * self.total_steps), 1) == 0:
            settling.look(optimizer.pose_adjustment, optimizer.trainable)
            if settling.factor == 0.0:
                CONSOLE.print(
                    f"step {step:6d}  poses have settled and stand still; the rest of training is the field's"
                )

    @check_main_thread
    def _run_guard(self) -> None:
        """The guard's verdict on the poses of the last checkpoint. A guard that cannot judge costs no trained run."""
        if self.pipeline.model.camera_optimizer.config.mode == "off":
            return
        from hashpose_ns.guard.compare import run_guard

        CONSOLE.print("Guard: judging the initial and the refined poses by held-out pixels ...")
        try:
            with self.train_lock:
                report = run_guard(self.pipeline, self.config.guard)
            report.write(self.base_dir)
            report.print()
            self.pipeline.model.pose_panel.show_verdict(report)
        except (HashPoseError, RuntimeError) as error:  # such as memory that is not there
            CONSOLE.print(f"Guard: no verdict. {one_line(error)}", soft_wrap=True)

    def _update_viewer_state(self, step: int) -> None:
        """As nerfstudio does. Whatever goes wrong there must not end training."""
        try:
            super()._update_viewer_state(step)
        except Exception as error:
            CONSOLE.log(f"The viewer failed and training goes on ({type(error).__name__}: {one_line(error)}).")

    @check_main_thread
    def _record_poses(self, step: int) -> None:
        if self.pose_history is None:
            self.pose_history = PoseHistory(self.base_dir / HISTORY_FILE)
        with torch.no_grad():
            self.pose_history.append(step, self.pipeline.model.camera_optimizer.refined_camera_to_worlds())

    @check_main_thread
    def _log_poses(self, step: int, loss: float) -> None:
        errors = self.pipeline.pose_metrics()
        writer.put_dict(name="Pose Errors", scalar_dict=errors, step=step)
        record = {"step": step, "train_seconds": round(self.train_seconds, 3), "train_loss": loss, **errors}
        psnr = self.pipeline.held_out_psnr()
        if psnr is not None:
            writer.put_scalar(name="Held-out PSNR", scalar=psnr, step=step)
            record["held_out_psnr"] = psnr
        self.pipeline.print_pose_errors(step, record)
        with open(self.base_dir / POSE_LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")

    # -- values that are no numbers ------------------------------------------------------------------------------------

    def _is_looked_at(self, step: int) -> bool:
        """Whether a step's values are looked at: always on the CPU; elsewhere a look waits for the device, and is taken
        only where nerfstudio is about to take one as well."""
        config = self.config
        intervals = (
            config.logging.steps_per_log,
            config.steps_per_pose_log,
            config.steps_per_eval_batch,
            config.steps_per_eval_image,
            config.steps_per_eval_all_images,
            config.steps_per_save,
        )
        looks = any(step_check(step, interval, run_at_zero=True) for interval in intervals)
        return looks or self.device == "cpu" or step == self.total_steps - 1

    def _check_finite(self, step: int) -> None:
        """Raises HashPoseError with the first step since the last look whose loss, or whose poses, are no numbers."""
        losses = torch.stack([loss for _, loss in self.unchecked_losses])
        bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
        if bad:
            raise self._not_finite(f"The loss of step {self.unchecked_losses[bad[0]][0]} is not a number")
        self.unchecked_losses.clear()
        if not all(bool(torch.isfinite(twists).all()) for twists in self.pipeline.model.camera_optimizer.parameters()):
            raise self._not_finite(f"The poses after step {step} are not numbers")

    def _not_finite(self, what: str) -> HashPoseError:
        saved = sorted(self.checkpoint_dir.glob("*.ckpt"))
        kept = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint had been saved"
        return HashPoseError(
            f"{what}; the likely cause is a learning rate that is too high (--optimizers.encoding.optimizer.lr, "
            f"--optimizers.decoder.optimizer.lr, --optimizers.camera-opt.optimizer.lr), and {kept}."
        )

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Saves, unless a parameter is no number any more: the last good checkpoint is worth more.

        The file appears under its name when it is whole: a run that is killed while it saves leaves nothing that
        resuming would take for the latest checkpoint.
        """
        if not all(bool(torch.isfinite(value).all()) for value in self.pipeline.model.parameters()):
            raise self._not_finite(f"Poses or field after step {step} are not numbers")
        final, staging = self.checkpoint_dir, self.base_dir / ".saving"
        shutil.rmtree(staging, ignore_errors=True)
        self.checkpoint_dir = staging
        try:
            super().save_checkpoint(step)
        finally:
            self.checkpoint_dir = final
        final.mkdir(parents=True, exist_ok=True)
        (saved,) = staging.glob("*.ckpt")
        saved.replace(final / saved.name)
        staging.rmdir()
        if self.config.save_only_latest_checkpoint:
            for other in final.glob("*.ckpt"):
                if other.name != saved.name:
                    other.unlink()

    def _load_checkpoint(self) -> None:
        """Resumes from `load_dir` or `load_checkpoint`, and goes on with the pose log of the run they belong to."""
        path = self._resumed_checkpoint()
        try:
            super()._load_checkpoint()
        except HashPoseError:
            raise
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise HashPoseError(f"The checkpoint {path} cannot be loaded: {one_line(error)}.") from error
        if self._start_step >= self.total_steps:
            raise HashPoseError(
                f"The checkpoint is at step {self._start_step - 1}, so {self._start_step} steps are done, and "
                f"--max-num-iterations is {self.total_steps}: nothing is left to train. Give a larger number to go on."
            )
        if path is not None:
            run = path.parent.parent
            self._resume_pose_log(run / POSE_LOG)
            self.pose_history = PoseHistory(
                self.base_dir / HISTORY_FILE, source=run / HISTORY_FILE, before_step=self._start_step
            )

    def _resumed_checkpoint(self) -> Optional[Path]:
        """The file that will be loaded; None where training starts from scratch.

        Raises:
            HashPoseError: there is no such checkpoint.
        """
        folder, path = self.config.load_dir, self.config.load_checkpoint
        if folder is not None:
            names = sorted(file.name for file in folder.glob("step-*.ckpt")) if folder.is_dir() else []
            if not names:
                raise HashPoseError(f"--load-dir {folder} holds no checkpoint; give a run's folder nerfstudio_models.")
            step = self.config.load_step
            path = folder / (names[-1] if step is None else f"step-{step:09d}.ckpt")
        if path is not None and not path.is_file():
            raise HashPoseError(f"There is no checkpoint {path}.")
        return path

    def _resume_pose_log(self, log: Path) -> None:
        """Takes over the records and the training time up to the checkpoint."""
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
        done = [line for line in lines if json.loads(line)["step"] < self._start_step]
        if done:
            self.train_seconds = json.loads(done[-1])["train_seconds"]
            (self.base_dir / POSE_LOG).write_text("".join(done), encoding="utf-8")
