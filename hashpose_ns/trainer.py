"""HashPoseTrainer: nerfstudio's Trainer with schedules over the run length, CPU fallback, NaN check, exact resume, and
strategies that intervene in the refinement of poses."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Type

import torch
import tyro
from torch import Tensor

from hashpose_ns.atomic import whole_file
from hashpose_ns.cameras.centering import CenteringConfig
from hashpose_ns.cameras.recovery import RecoveryConfig
from hashpose_ns.coarse import BySize, CoarseFirst, CoarseFirstConfig, PictureSize, fit_to_pictures
from hashpose_ns.datamanager import leave_out_points
from hashpose_ns.errors import HashPoseError, background_errors_in_a_line, exits_on_user_error, one_line
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.fallback import FallBack
from hashpose_ns.host import keep_freed_memory
from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.matches.report import read_matches
from hashpose_ns.matches.strategy import StartFromMatches
from hashpose_ns.optim.schedules import ScheduleConfig
from hashpose_ns.photometry.centering import CentrePictures
from hashpose_ns.photometry.strategy import PoseStrategy, Recovery, Settle
from hashpose_ns.pipeline import HashPosePipeline, HashPosePipelineConfig
from hashpose_ns.runs.carry import carry_moments
from hashpose_ns.runs.checkpoint import check_training_state, older_offered, read_checkpoint
from hashpose_ns.runs.files import (
    CONFIG,
    HISTORY_FILE,
    append_pose_log,
    checkpoints,
    last_checkpoint,
    last_step,
    resume_pose_log,
)
from hashpose_ns.runs.folder import RunFolder, claimed
from hashpose_ns.runs.history import PoseHistory, is_recorded
from hashpose_ns.stopping import Stopped, StopSignals, exit_on_interrupt
from hashpose_ns.viewer.config import ViewerConfig
from nerfstudio.configs import base_config
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE

PACE_FROM, PACE_UNTIL = 5, 15
"""Steps between which a CPU's pace is measured: the first ones compile and fill caches."""


@dataclass
class HashPoseTrainerConfig(TrainerConfig):
    """Configuration of the training loop. Trains for `max_num_iterations` steps in all, also when it is resumed."""

    _target: Type = field(default_factory=lambda: HashPoseTrainer)
    steps_per_pose_log: int = 500
    """Steps between pose errors, and the PSNR of some held-out pixels, on the console and in TensorBoard."""
    pipeline: HashPosePipelineConfig = field(default_factory=HashPosePipelineConfig)
    """Images, field and poses."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Judges without ground truth whether refinement helped."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """Puts lost cameras back during training."""
    centering: CenteringConfig = field(default_factory=CenteringConfig)
    """Shifts cameras before training, where their pictures of an object lie beside each other."""
    matches: MatchConfig = field(default_factory=MatchConfig)
    """Matches between the training images."""
    viewer: ViewerConfig = field(default_factory=ViewerConfig)
    """The live viewer: who can reach it, and what it shows."""
    coarse_first: CoarseFirstConfig = field(default_factory=CoarseFirstConfig)
    """Trains on small copies of large pictures first, where no better start is at hand."""
    picture_size: PictureSize = "auto"
    """Size of the pictures that settings are made for.
    - auto: looks at them, and takes the settings for large ones where they are. Settings that you give stay.
    - small: keeps the method's settings.
    - large: keeps them as well, and lets `coarse-first` work. hashpose-object-fine has the settings for large ones."""
    cpu_method: tyro.conf.Suppress[Optional[str]] = None
    """The method that is made for CPUs in place of this one."""
    by_size: tyro.conf.Suppress[Optional[BySize]] = None
    """Settings that differ between small and large pictures; None where there are none."""

    def __post_init__(self) -> None:
        if self.data is not None:  # the configuration that ns-train has chosen, and not one of those it chooses from
            self._is_chosen()

    def set_timestamp(self) -> None:
        """As nerfstudio does, as the first thing with the configuration that it has chosen."""
        self._is_chosen()
        super().set_timestamp()

    def _is_chosen(self) -> None:
        if self.machine.num_devices * self.machine.num_machines == 1:  # of several processes nerfstudio takes care
            exit_on_interrupt()

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """Restores a configuration, and if it is that of a run (from its config.yml) tells the pipeline which."""
        self.__dict__.update(state)
        if type(self.viewer) is base_config.ViewerConfig:  # of a run from before hashpose had its own
            self.__dict__["viewer"] = ViewerConfig.of(self.viewer)
        if self.experiment_name is not None and self.method_name is not None:  # nerfstudio would make a name up
            self.pipeline.run_folder = self.get_base_dir()
            # nerfstudio's commands would take the step that the run was resumed from, or look for the newest among
            # whatever lies in the folder.
            self.load_step = last_step(self.pipeline.run_folder) or self.load_step

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a field. ns-viewer puts nerfstudio's own viewer settings into the configuration of a run, just before it
        starts the viewer with them: the one moment to open that viewer's port as training does."""
        if name == "viewer" and type(value) is base_config.ViewerConfig:
            value = _opened_for_ns_viewer(value) if "viewer" in self.__dict__ else ViewerConfig.of(value)
        super().__setattr__(name, value)

    @exits_on_user_error
    def save_config(self) -> None:
        """Claims the run's folder and writes the configuration into it.

        Raises:
            HashPoseError: another process trains in the folder.
        """
        if self.machine.num_devices * self.machine.num_machines < 1:
            raise HashPoseError("--machine.num-devices and --machine.num-machines must be at least 1.")
        leave_out_points(self.pipeline.datamanager.dataparser)
        fit_to_pictures(self)
        try:
            folder = claimed(self.get_base_dir())
            try:
                super().save_config()
            except BaseException:
                folder.take_back()
                raise
        except OSError as error:
            raise HashPoseError(
                f"The run's folder {self.get_base_dir()} cannot be written: {one_line(error)}."
            ) from error

    def setup(self, **kwargs) -> Any:
        """Makes a trainer, with settings for pictures of the size that they have."""
        fit_to_pictures(self)
        return super().setup(**kwargs)

    def strategies(self) -> List[PoseStrategy]:
        """What intervenes in the refinement of poses, in this order."""
        start = StartFromMatches(self.matches)
        fall_back = FallBack(self.guard, lambda: start.images)
        return [start, CoarseFirst(self), CentrePictures(self.centering), fall_back, Recovery(self.recovery), Settle()]


@exits_on_user_error
def _opened_for_ns_viewer(config: base_config.ViewerConfig) -> base_config.ViewerConfig:
    from hashpose_ns.viewer.port import opened

    own = ViewerConfig.of(config)
    if any(argument.startswith(("--viewer.websocket-host", "--viewer.websocket_host")) for argument in sys.argv):
        own.websocket_host = config.websocket_host  # somebody did choose nerfstudio's default
    return opened(own)


def time_ahead(seconds_per_step: float, steps: int) -> Optional[str]:
    """How long training will take, without a full stop; None below an hour."""
    hours = seconds_per_step * steps / 3600
    if hours < 1:
        return None
    return f"At {seconds_per_step:.2g} s a step, {steps} steps take {hours:.0f} hour{'s' if round(hours) > 1 else ''}"


class HashPoseTrainer(Trainer):
    """nerfstudio's training loop. It adds: the CPU if there is no GPU, schedules over fractions of training,
    strategies, resuming to the same end, an abort with an explanation when the loss becomes NaN, and poses and their
    errors over training."""

    config: HashPoseTrainerConfig
    pipeline: HashPosePipeline

    def __init__(self, config: HashPoseTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        if config.machine.device_type == "cuda" and not torch.cuda.is_available():
            CONSOLE.print("No CUDA device found: training on the CPU.")
            config.machine.device_type = "cpu"
        if config.machine.device_type == "cpu":
            keep_freed_memory()
        super().__init__(config, local_rank, world_size)
        # With several GPUs the process that started this one holds the claim.
        self.folder: Optional[RunFolder] = claimed(self.base_dir) if world_size == 1 else None
        self.stop_signals = StopSignals()
        self.total_steps = config.max_num_iterations
        self.train_seconds = 0.0
        self.unchecked_losses: List[Tuple[int, Tensor]] = []
        self.pose_history: Optional[PoseHistory] = None
        self.strategies = config.strategies()
        self.timed_from: Optional[Tuple[int, float]] = None
        """A step, and `train_seconds` at it, from which a CPU's pace is measured."""
        self.trained_step: Optional[int] = None
        """The last step that is done."""
        self.saved_step: Optional[int] = None
        """The step of the last checkpoint."""
        self.only_viewed = False
        """Whether training is complete and only the viewer is still open."""

    @exits_on_user_error
    def setup(self, test_mode="val") -> None:
        """Builds everything; on failure leaves the output folder as it was before ns-train."""
        with self._well_ended():
            for strategy in self.strategies:
                strategy.validate()
            self.config.pipeline.run_folder = self.base_dir
            self._setup_with_open_port(test_mode)
            self.scene = self.pipeline.scene
            self._show_matches()
        if self.config.guard.mode != "off":
            self.callbacks.append(
                TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], lambda step: self._run_guard())
            )
        self.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self._step_is_done))

    def _setup_with_open_port(self, test_mode) -> None:
        """nerfstudio's setup, with a viewer that listens only where the settings say."""
        settings = self.config.viewer
        if self.config.is_viewer_legacy_enabled():
            raise HashPoseError("The legacy viewer is a page of another site and may not connect; give --vis viewer.")
        if self.config.is_viewer_enabled() and self.local_rank == 0:
            from hashpose_ns.viewer.port import opened

            self.config.viewer = opened(settings)  # type: ignore[assignment]
        try:
            super().setup(test_mode)
        finally:
            self.config.viewer = settings

    # -- how it ends ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _well_ended(self) -> Iterator[None]:
        """Around setup and training: a signal ends it with a checkpoint and the exit code that shells give, a failure
        before the first step is done takes the run's folder back."""
        try:
            with self.stop_signals, background_errors_in_a_line():
                try:
                    yield
                except Stopped as stopped:
                    self._stop(stopped)
        except BaseException:
            if self.folder is not None:
                if self.trained_step is None:
                    self.folder.take_back()
                else:
                    self.folder.release()
            raise

    def _step_is_done(self, step: int) -> None:
        self.trained_step = step
        self.stop_signals.let_go()

    def _stop(self, stopped: Stopped) -> None:
        """Saves what has been trained, says how to continue, and ends the process."""
        if self.only_viewed:
            CONSOLE.print("The viewer is closed; training was complete.")
            return
        if self.trained_step is None:
            CONSOLE.print(f"Stopped by {stopped.name} before the first step; nothing is kept of this run.")
            raise SystemExit(stopped.exit_code)
        if self.saved_step != self.trained_step:
            self.save_checkpoint(self.trained_step)
        writer.write_out_storage()
        done = self.trained_step + 1
        if done < self.total_steps:
            how = f"To continue, give the same command with --load-dir {self.checkpoint_dir} after the method's name."
            if self.config.pipeline.datamanager.added_images is not None:  # nobody has typed such a command
                how = f"To continue: ns-train {self.config.method_name} --load-config {self.base_dir / CONFIG}"
        else:
            how = "Training is complete; evaluation and the guard may not be."
        CONSOLE.print(
            f"Stopped by {stopped.name} after {done} of {self.total_steps} steps, all of them saved. {how}",
            soft_wrap=True, markup=False,
        )  # fmt: skip
        raise SystemExit(stopped.exit_code)

    def _train_complete_viewer(self) -> None:
        """As nerfstudio does: shows the scene until Ctrl-C."""
        self.only_viewed = True
        super()._train_complete_viewer()

    def setup_optimizers(self) -> Optimizers:
        """Gives the schedules the length of training and the model's factors, which depend on where poses start."""
        model = self.pipeline.model
        model.set_training_length(self.total_steps)
        resumed = self.config.load_dir is not None or self.config.load_checkpoint is not None
        for strategy in self.strategies:
            strategy.prepare(self.pipeline.scene, resumed, lambda said: CONSOLE.print(said, soft_wrap=True))
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
        if missing := set(param_groups) - set(config):
            raise HashPoseError(
                f"The method {self.config.method_name} has no learning rates for {', '.join(sorted(missing))}; "
                "local-to-global is a model of hashpose's own methods and of the peer l2g."
            )
        return Optimizers(config, param_groups)

    # -- training ------------------------------------------------------------------------------------------------------

    @exits_on_user_error
    def train(self) -> None:
        """Trains to the total number of steps; nerfstudio counts them from where a run is resumed."""
        self.config.max_num_iterations = self.total_steps - self._start_step
        try:
            with self._well_ended():
                super().train()
        except OSError as error:
            raise HashPoseError(f"Training cannot continue: {one_line(error)}; {self._kept()}.") from error
        finally:
            self.config.max_num_iterations = self.total_steps
        if self.folder is not None:
            self.folder.release()

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step between the strategies' hooks, logged, and checked for NaN."""
        self.stop_signals.hold()  # until `_step_is_done`
        begin = time.perf_counter()
        logged = step_check(step, self.config.logging.steps_per_log, run_at_zero=True)
        self._intervene("before_step", step)
        self.pipeline.model.is_logged = logged
        output = super().train_iteration(step)
        self._intervene("after_step", step)
        checked = self._is_checked(step)
        if checked and self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)  # what a GPU has yet to do is part of training as well
        self.train_seconds += time.perf_counter() - begin
        if self.config.cpu_method is not None and self.device == "cpu":
            self._say_how_long(step)
        self.unchecked_losses.append((step, output[0].detach()))
        if checked:
            self._check_finite(step)
        if logged:
            encoding = self.optimizers.optimizers.get("encoding")
            for level, group in enumerate(encoding.param_groups if encoding else ()):
                writer.put_scalar(name=f"learning_rate/encoding_level_{level:02d}", scalar=group["lr"], step=step)
        if is_recorded(step, self.total_steps):
            self._record_poses(step)
        if step_check(step, self.config.steps_per_pose_log, run_at_zero=True) or step == self.total_steps - 1:
            self._log_poses(step, output[0].item())
        return output

    def _say_how_long(self, step: int) -> None:
        """One line about hours that lie ahead on a CPU, as soon as its pace is known."""
        since_start = step - self._start_step
        if since_start == PACE_FROM:
            self.timed_from = step, self.train_seconds
        elif since_start == PACE_UNTIL and self.timed_from is not None:
            first, before = self.timed_from
            said = time_ahead((self.train_seconds - before) / (step - first), self.total_steps - step)
            if said is not None:
                CONSOLE.print(f"{said}; {self.config.cpu_method} is made for CPUs and takes minutes.", soft_wrap=True)

    def _intervene(self, hook: str, step: int) -> None:
        """Calls a hook of all strategies, in runs that refine poses."""
        adam = self.optimizers.optimizers.get("camera_opt")
        if adam is None:
            return
        for strategy in self.strategies:
            getattr(strategy, hook)(
                self.scene, adam, step, lambda said: CONSOLE.print(f"step {step:6d}  {said}", soft_wrap=True)
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
                start = self._matched_start
                report = run_guard(self.scene, self.config.guard, start.images if start is not None else None)
            report.write(self.base_dir)
            report.print()
            self.pipeline.pose_panel.show_verdict(report)
        except (HashPoseError, RuntimeError) as error:  # such as memory that is not there
            CONSOLE.print(f"Guard: no verdict. {one_line(error)}", soft_wrap=True)

    @property
    def _matched_start(self) -> Optional[StartFromMatches]:
        """What looks at matches, and has them where there are any."""
        return next((each for each in self.strategies if isinstance(each, StartFromMatches)), None)

    def _show_matches(self) -> None:
        """Hands matches, and what came of them, to the viewer's panel and to the run's folder."""
        matched = self._matched_start
        if matched is not None and matched.report is not None:
            matched.report.write(self.base_dir)
        if matched is not None and matched.images is not None:
            report = matched.report or read_matches(self.base_dir)  # the file where training is resumed
            self.pipeline.pose_panel.show_matches(matched.images, report.outcome if report is not None else "")

    def _update_viewer_state(self, step: int) -> None:
        """As nerfstudio does. Whatever goes wrong there must not end training."""
        try:
            super()._update_viewer_state(step)
        except Exception as error:
            CONSOLE.log(f"The viewer failed; training continues ({type(error).__name__}: {one_line(error)}).")

    @check_main_thread
    def _record_poses(self, step: int) -> None:
        if self.pose_history is None:
            self.pose_history = PoseHistory(self.base_dir / HISTORY_FILE)
        poses = self.pipeline.model.camera_optimizer.refined_camera_to_worlds()
        self.pose_history.append(step, poses.detach().cpu().numpy())

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
        append_pose_log(self.base_dir, record)

    # -- NaN -----------------------------------------------------------------------------------------------------------

    def _is_checked(self, step: int) -> bool:
        """Whether to check the losses so far for NaN: always on the CPU. On a GPU the check synchronises, so only on
        steps at which nerfstudio is about to do so as well."""
        config = self.config
        intervals = (
            config.logging.steps_per_log,
            config.steps_per_pose_log,
            config.steps_per_eval_batch,
            config.steps_per_eval_image,
            config.steps_per_eval_all_images,
            config.steps_per_save,
        )
        synchronises = any(step_check(step, interval, run_at_zero=True) for interval in intervals)
        return synchronises or self.device == "cpu" or step == self.total_steps - 1

    def _check_finite(self, step: int) -> None:
        """Raises HashPoseError with the first step since the last check whose loss is NaN, or if poses are."""
        losses = torch.stack([loss for _, loss in self.unchecked_losses])
        bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
        if bad:
            raise self._not_finite(f"The loss of step {self.unchecked_losses[bad[0]][0]} is NaN or infinite")
        self.unchecked_losses.clear()
        if not all(bool(torch.isfinite(twists).all()) for twists in self.pipeline.model.camera_optimizer.parameters()):
            raise self._not_finite(f"Poses are NaN or infinite after step {step}")

    def _not_finite(self, what: str) -> HashPoseError:
        return HashPoseError(
            f"{what}; the likely cause is a learning rate that is too high (--optimizers.encoding.optimizer.lr, "
            f"--optimizers.decoder.optimizer.lr, --optimizers.camera-opt.optimizer.lr), and {self._kept()}."
        )

    def _kept(self) -> str:
        saved = last_checkpoint(self.config.get_checkpoint_dir())
        return f"the last good checkpoint is {saved}" if saved else "no checkpoint had been saved"

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Saves atomically, unless a parameter is NaN: the last good checkpoint is worth more."""
        if not all(bool(torch.isfinite(value).all()) for value in self.pipeline.model.parameters()):
            raise self._not_finite(f"Poses or field are NaN or infinite after step {step}")
        with self.stop_signals.held():
            self._write_checkpoint(step)
            self.saved_step = step

    def _write_checkpoint(self, step: int) -> None:
        for left_by_a_kill in self.base_dir.glob(".step-*.partial"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        final = self.checkpoint_dir
        try:
            final.mkdir(parents=True, exist_ok=True)
            # nerfstudio reads a step from the name of whatever lies beside the checkpoints
            with whole_file(final / f"step-{step:09d}.ckpt", beside=self.base_dir) as path:
                self.checkpoint_dir = path.parent
                super().save_checkpoint(step)
        except Exception as error:  # torch has its own types for a full disk
            raise HashPoseError(
                f"The checkpoint of step {step} cannot be written to {final}: {one_line(error)}; {self._kept()}."
            ) from error
        finally:
            self.checkpoint_dir = final
        if self.config.save_only_latest_checkpoint:
            for other, path in checkpoints(final).items():
                if other != step:
                    path.unlink()

    def _load_checkpoint(self) -> None:
        """Resumes from `load_dir` or `load_checkpoint`, and continues the pose log of the run they belong to."""
        path = self._resumed_checkpoint()
        if path is None:
            super()._load_checkpoint()  # says that there is none
            return
        how = "give it by --load-checkpoint {older} in place of --load-dir"
        with older_offered(path, how):
            state = read_checkpoint(path)
        self._start_step = state["step"] + 1
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        rows = self.pipeline.carried_rows
        if rows is not None:
            named = dict(self.pipeline.model.named_parameters())
            owners = {named[name]: at for name, at in self.pipeline.model.per_image().items() if name in named}
            carry_moments(state["optimizers"], self.optimizers.optimizers, owners, rows)
        schedulers = self.optimizers.schedulers if self.config.load_scheduler else {}
        with older_offered(path, how):
            check_training_state(path, state, self.optimizers.optimizers, schedulers)
        self.optimizers.load_optimizers(state["optimizers"])
        if schedulers:
            self.optimizers.load_schedulers(state["schedulers"])
        try:
            self.grad_scaler.load_state_dict(state["scalers"])
        except (RuntimeError, KeyError) as error:  # made without mixed precision
            raise HashPoseError(f"The checkpoint {path} cannot be loaded: {one_line(error)}.") from error
        CONSOLE.print(f"Loaded the checkpoint {path}", markup=False, soft_wrap=True)
        if self._start_step >= self.total_steps:
            raise HashPoseError(
                f"The checkpoint is at step {self._start_step - 1}, so {self._start_step} steps are done, and "
                f"--max-num-iterations is {self.total_steps}: nothing is left to train; give a larger number."
            )
        run = path.parent.parent
        self.train_seconds = resume_pose_log(run, self.base_dir, self._start_step)
        matches = read_matches(run)
        if matches is not None and rows is None:
            matches.write(self.base_dir)
        self.pose_history = PoseHistory(
            *(self.base_dir / HISTORY_FILE, run / HISTORY_FILE, self._start_step),
            num_cameras=self.pipeline.model.camera_optimizer.num_cameras,
        )

    def _resumed_checkpoint(self) -> Optional[Path]:
        """The file that will be loaded; None where training starts from scratch.

        Raises:
            HashPoseError: there is no such checkpoint.
        """
        folder, path = self.config.load_dir, self.config.load_checkpoint
        if folder is not None:
            saved = checkpoints(folder)
            if not saved:
                raise HashPoseError(f"--load-dir {folder} holds no checkpoint; give a run's folder nerfstudio_models.")
            step = max(saved) if self.config.load_step is None else self.config.load_step
            path = saved.get(step, folder / f"step-{step:09d}.ckpt")
        if path is not None and not path.is_file():
            raise HashPoseError(f"There is no checkpoint {path}.")
        return path
