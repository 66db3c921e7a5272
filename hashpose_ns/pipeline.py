"""HashPosePipeline: strict loading, pose errors, evaluation with aligned and then test-time-optimised cameras."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Tuple, Type

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, align_centers, pose_errors
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.data.fingerprint import KEYS, NAMES, difference, fingerprint
from hashpose_ns.datamanager import HashPoseDataManager, HashPoseDataManagerConfig
from hashpose_ns.errors import HashPoseError, exits_on_user_error
from hashpose_ns.export.frame import GivenPoses, input_frame
from hashpose_ns.guard.report import GuardReport, read_verdict
from hashpose_ns.matches.report import read_matches
from hashpose_ns.model import FORMAT, HashPoseModelConfig, PoseRefiningModel
from hashpose_ns.photometry.pixels import posed_cameras
from hashpose_ns.photometry.scene import PosedScene, TestTimeOptimization
from hashpose_ns.photometry.scores import HeldOutPixels
from hashpose_ns.runs.carry import Rows, carried, is_changed, rows_of_images
from hashpose_ns.runs.checkpoint import read_last_checkpoint
from hashpose_ns.runs.files import CHECKPOINTS
from hashpose_ns.viewer.panel import PosePanel
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE


@dataclass
class HashPosePipelineConfig(VanillaPipelineConfig):
    """Configuration of the pipeline."""

    _target: Type = field(default_factory=lambda: HashPosePipeline)
    datamanager: HashPoseDataManagerConfig = field(default_factory=HashPoseDataManagerConfig)
    """Images and initial poses."""
    model: ModelConfig = field(default_factory=HashPoseModelConfig)
    """Field and poses."""
    eval_num_images: int = -1
    """Number of held-out images that are evaluated, spread evenly over all; -1 takes all."""
    tto_steps: int = 100
    """Steps of test-time optimisation of each held-out camera; 0 leaves it out.
    The field is frozen meanwhile."""
    tto_rays: int = 1024
    """Rays per held-out image and step of test-time optimisation."""
    tto_images: int = 4
    """Held-out cameras optimised at once; the result is the same.
    More keep a GPU busy and take memory."""
    tto_lr: float = 1e-3
    """Adam's learning rate in test-time optimisation, constant.
    It is the poses' initial rate in BARF's protocol."""
    held_out_rays: int = 2048
    """Pixels of held-out images whose PSNR is followed during training; 0 leaves it out."""
    changed_images: Literal["refuse", "warn", "carry"] = "refuse"
    """What to do on resuming if images or intrinsics have changed.
    - refuse: stop.
    - warn: continue with them.
    - carry: continue with more, fewer or others; poses and appearance are carried over by image.
    Commands that do not train only warn."""
    run_folder: tyro.conf.Suppress[Optional[Path]] = None
    """Folder of the run, where the guard's report lies; the trainer and its configuration fill it in."""


class HashPosePipeline(VanillaPipeline):
    """nerfstudio's pipeline with the protocol of pose-refining fields.

    Held-out cameras live in the frame of the given poses; the refined training cameras define the learned frame. The
    sim(3) between the two, from the training cameras' centres, takes the held-out cameras to where the field is.
    """

    config: HashPosePipelineConfig
    datamanager: HashPoseDataManager

    @exits_on_user_error
    def __init__(self, *args, **kwargs) -> None:
        # nerfstudio 1.1.5 under current torch says this for every batch of rays.
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence for multidimensional indexing")
        super().__init__(*args, **kwargs)
        self.model.is_at_rest = self.test_mode != "val"
        outputs = self.datamanager.train_dataparser_outputs
        for name, value in fingerprint(outputs.image_filenames, outputs.cameras).items():
            self.register_buffer(name, value)  # part of every checkpoint
        if self.test_mode != "val" and self.config.run_folder is not None:
            read_last_checkpoint(self.config.run_folder / CHECKPOINTS)  # nerfstudio is about to load it unseen
        if self.config.tto_images < 1:
            raise HashPoseError(f"pipeline.tto-images must be at least 1, not {self.config.tto_images}.")
        self.eval_image_count = 0
        self._held_out_pixels: Optional[HeldOutPixels] = None
        self.carried_rows: Optional[Rows] = None
        """Where the images are among those of the checkpoint that was loaded, if they are others."""
        self.pose_panel = PosePanel()  # nerfstudio's viewer looks for controls among a pipeline's attributes

    @property
    def model(self) -> PoseRefiningModel:
        """The model, also where it is wrapped for several GPUs."""
        return super().model  # type: ignore

    @property
    def scene(self) -> PosedScene:
        """What operations on poses need of this pipeline, as it is now."""
        config, manager = self.config, self.datamanager
        return PosedScene(
            renderer=self.model,
            model_config=config.model,
            poses=self.model.camera_optimizer,
            train=manager.train_dataset,
            held_out=manager.eval_dataset,
            dataparser=manager.dataparser,
            curriculum=getattr(self.model, "curriculum", None),
            test_time=TestTimeOptimization(config.tto_steps, config.tto_rays, config.tto_images, config.tto_lr),
            total_steps=self.model.total_steps,
        )

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        """nerfstudio's, and those of the viewer's panel."""
        return super().get_training_callbacks(training_callback_attributes) + self.pose_panel.training_callbacks(
            training_callback_attributes
        )

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @exits_on_user_error
    def load_pipeline(self, loaded_state: Dict[str, Any], step: int) -> None:
        """Loads a checkpoint strictly: nerfstudio would leave what doesn't match at random values without a word.

        Raises:
            HashPoseError: the checkpoint's modules, or its number of images, are not this run's.
        """
        state = {key.removeprefix("module."): value for key, value in loaded_state.items()}
        state = {key.removeprefix("_model.").removeprefix("module."): v for key, v in state.items() if "_model." in key}
        expected = self.model.state_dict()
        migrate(state)
        key = "camera_optimizer.initial_camera_to_worlds"
        if key in state and self.config.changed_images == "carry":
            self._carry_over(state, loaded_state)
        if key in state and len(state[key]) != len(expected[key]):
            raise HashPoseError(
                f"The checkpoint was trained on {len(state[key])} images and there are {len(expected[key])} now; give "
                "the same images and the same split, retrain, or give --pipeline.changed-images carry to continue with "
                "these."
            )
        wrong = sorted(set(state) ^ set(expected)) + [
            key
            for key in sorted(set(state) & set(expected))
            if (state[key].shape, state[key].dtype) != (expected[key].shape, expected[key].dtype)
        ]
        if wrong:
            raise HashPoseError(
                f"The checkpoint doesn't fit this configuration: {len(wrong)} entries differ, the first is {wrong[0]}; "
                "load it with the config.yml it was trained with."
            )
        key = "camera_optimizer.reference_camera_to_worlds"
        if not torch.allclose(state[key].to(expected[key]), expected[key], atol=1e-3):
            if self.carried_rows is not None:
                raise HashPoseError(
                    "The images that stay have other input poses now, as where dataparsers centre and scale all poses "
                    "together; leave the data as they were and add images by hashpose-localize --add True, or by "
                    "--pipeline.datamanager.added-images."
                )
            raise HashPoseError(
                "The checkpoint was trained on other cameras than the data has now: the number of images is the same, "
                "their input poses are not; give the same images, split and dataparser settings, or retrain."
            )
        self._check_images(loaded_state)
        length = int(self.model.progress[1])
        self.model.load_state_dict(state, strict=True)
        if length:  # training goes on, by its own length
            planned = int(self.model.progress[1])
            if planned != length:
                CONSOLE.print(
                    f"The checkpoint's training was planned for {planned} steps and this one for {length}: learning "
                    "rates and the curriculum continue as fractions of the new length."
                )
            self.model.progress[1] = length
        self.model.restore_progress()
        self.datamanager.set_initial_poses(self.model.camera_optimizer.initial_camera_to_worlds)
        if self.test_mode != "val":  # not to be trained on
            self.config.datamanager.trained = self.scene
            self.datamanager.show_trained(self.scene)

    def _carry_over(self, state: Dict[str, Tensor], loaded_state: Dict[str, Any]) -> None:
        """Gives what a checkpoint says of its images to the images now, in place. New ones start at their own poses.

        Args:
            state: the model's state in the checkpoint.
            loaded_state: all that the checkpoint has of a pipeline.
        """
        now = {key: getattr(self, key) for key in (*KEYS, NAMES)}
        initial = "camera_optimizer.initial_camera_to_worlds"
        count = len(state[initial])
        rows = rows_of_images(loaded_state, now)
        if not is_changed(rows, count):
            return
        expected = self.model.state_dict()
        fresh = {name: expected[name].detach().cpu() for name in self.model.per_image()}
        is_new = torch.tensor([row is None for row in rows])
        if is_new.any():
            similarity = self._frame_of(state).inverse()
            started = fresh["camera_optimizer.reference_camera_to_worlds"].double()
            learned = similarity.apply_to_poses(started).float()
            given = ("initial_camera_to_worlds", "reference_camera_to_worlds")
            for name in fresh:  # where refinement starts, and what a model remembers of where cameras are
                if name.endswith("camera_to_worlds") and not name.endswith(given):
                    fresh[name] = learned
        for name, dimension in self.model.per_image().items():
            if name not in state:
                continue
            new = fresh[name]
            if name.endswith("weight"):  # an embedding: what images that were not trained on get
                new = state[name].mean(dim=0).expand_as(new)
            elif name.endswith(("pose_adjustment", "corrections")):
                new = torch.zeros_like(new)
            state[name] = carried(state[name], rows, new, dimension)
        if is_new.any() and "camera_optimizer.settling.looks" in state:  # they have not
            state["camera_optimizer.settling.looks"] = torch.zeros_like(state["camera_optimizer.settling.looks"])
        self.carried_rows = rows
        kept = len(rows) - int(is_new.sum())
        CONSOLE.print(
            f"The checkpoint was trained on {count} images: {kept} of them are among the {len(rows)} now, and "
            f"{int(is_new.sum())} are new.",
            soft_wrap=True,
        )

    def _frame_of(self, state: Dict[str, Tensor]) -> Similarity:
        """From the learned frame of a checkpoint to the frame that training started in.

        Args:
            state: the model's state in the checkpoint.
        """
        before = "camera_optimizer."
        own = {name.removeprefix(before): value for name, value in state.items() if name.startswith(before)}
        initial = own["initial_camera_to_worlds"]
        handed_over = own.get("handed_over")
        if handed_over is not None and not bool(handed_over):
            raise HashPoseError(
                "One network still moves all cameras of the checkpoint (local-to-global), so no camera can join; train "
                "beyond camera-optimizer.warp.until first."
            )
        config = replace(self.config.model.camera_optimizer, frozen_cameras=())  # type: ignore[attr-defined]
        poses = PoseOptimizer(config, len(initial), "cpu", initial, own["reference_camera_to_worlds"])
        poses.load_state_dict(own, strict=False)
        if not bool(self.model.camera_optimizer.trainable.all()):  # some are frozen, which hold the frame
            poses.trainable[0] = False
        return input_frame(poses, GivenPoses.of(self.scene)).similarity

    def _check_images(self, loaded_state: Dict[str, Any]) -> None:
        """Refuses to train, or warns, if the images are not those that a checkpoint was trained on."""
        if self.carried_rows is not None:
            return
        filenames = self.datamanager.train_dataparser_outputs.image_filenames
        now = {key: getattr(self, key) for key in KEYS}
        changed = difference(loaded_state, now, filenames, any_size=self.test_mode == "inference")
        if changed is None:
            return
        changed = f"The checkpoint was trained on other images than the data has now: {changed}"
        if self.test_mode == "val" and self.config.changed_images == "refuse":
            raise HashPoseError(
                f"{changed}; give the same images, or --pipeline.changed-images warn to continue with these."
            )
        CONSOLE.print(f"{changed}.", markup=False, soft_wrap=True)

    # -- poses ---------------------------------------------------------------------------------------------------------

    def pose_metrics(self) -> Dict[str, float]:
        """Errors of the training poses against the dataparser's poses, before and after refinement, as flat floats.

        `pose_error_before_*` and `pose_error_after_*`: rotation in degrees; translation, BARF's metric (w2c
        translations after alignment, scene units); centre distances (scene units). Where training started from the
        given poses there is nothing to compare with, and the same measures are called `pose_change_*`. Names with
        `by_centers_` are after an alignment by centres alone, which is what published tables hold.
        """
        optimizer = self.model.camera_optimizer
        reference, refined = optimizer.reference_camera_to_worlds, optimizer.refined_camera_to_worlds().detach()
        if self.config.datamanager.initial_poses == "given":
            return _errors(refined, reference, "pose_change_")
        before = _errors(optimizer.initial_camera_to_worlds, reference, "pose_error_before_")
        return {**before, **_errors(refined, reference, "pose_error_after_")}

    def guard_report(self) -> Optional[GuardReport]:
        """What the guard says about these poses; None if it has not judged them."""
        report = read_verdict(self.config.run_folder) if self.config.run_folder is not None else None
        return report if report is not None and report.step == self.model.current_step else None

    def print_pose_errors(self, step: int, metrics: Dict[str, float]) -> None:
        """One line of pose errors, and of the held-out PSNR where it is among the metrics, on the console."""
        given = self.config.datamanager.initial_poses == "given"
        prefix, what = ("pose_change_", "moved") if given else ("pose_error_after_", "error")
        CONSOLE.print(
            f"step {step:6d}  pose {what}: rotation {metrics[prefix + 'rotation_deg_mean']:.3f} deg (median "
            f"{metrics[prefix + 'rotation_deg_median']:.3f}, worst {metrics[prefix + 'rotation_deg_max']:.3f}), "
            f"translation x100 {100 * metrics[prefix + 'translation_mean']:.2f}, "
            f"centres x100 {100 * metrics[prefix + 'center_mean']:.2f}"
            + (f", held-out PSNR {metrics['held_out_psnr']:.2f} dB" if "held_out_psnr" in metrics else "")
        )

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def get_eval_loss_dict(self, step: int) -> Tuple[Any, Dict[str, Any], Dict[str, Any]]:
        """Loss of random rays of the held-out cameras, aligned."""
        cameras = self.datamanager.eval_ray_generator.cameras
        cameras.camera_to_worlds = self.scene.aligned_held_out_poses().to(cameras.camera_to_worlds.device)
        with torch.no_grad():
            return super().get_eval_loss_dict(step)

    def get_eval_image_metrics_and_images(self, step: int) -> Tuple[Dict[str, Any], Dict[str, Tensor]]:
        """Quality of one held-out image, its camera aligned."""
        self.eval()
        scene = self.scene
        index = self.eval_image_count % len(scene.held_out)
        self.eval_image_count += 1
        pose = scene.aligned_held_out_poses()[index : index + 1]
        camera = posed_cameras(scene.held_out, pose, self.device, [index])
        outputs = self.model.get_outputs_for_camera(camera)
        metrics, images = self.model.get_image_metrics_and_images(outputs, scene.held_out[index])
        metrics["num_rays"] = int(camera.height * camera.width)
        self.train()
        return metrics, images

    def held_out_psnr(self) -> Optional[float]:
        """PSNR of some pixels of held-out images outside of masks, the same ones at every call, with their cameras
        aligned and not optimised; None if there are no such images or none are asked for."""
        scene = self.scene
        if self.config.held_out_rays <= 0 or not len(scene.held_out):
            return None
        if self._held_out_pixels is None:
            self._held_out_pixels = HeldOutPixels(scene.held_out, self.config.held_out_rays)
        return self._held_out_pixels.psnr(self.model, scene.aligned_held_out_poses())

    @exits_on_user_error
    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, float]:
        """Image quality over the held-out images and pose errors over the training cameras.

        `psnr_aligned`, `ssim_aligned`: held-out cameras aligned by the training cameras; `psnr_tto`, `ssim_tto`: after
        test-time photometric optimisation on top, which is what the field's tables report.
        """
        from hashpose_ns.photometry.evaluate import evaluate_images

        self.eval()
        metrics = evaluate_images(self.scene, self.config.eval_num_images, output_path, get_std)
        metrics.update(self.pose_metrics())
        verdict = self.guard_report()
        metrics.update(verdict.metrics() if verdict is not None else {})  # guard_*
        matches = read_matches(self.config.run_folder) if self.config.run_folder is not None else None
        metrics.update(matches.metrics() if matches is not None else {})  # matches_*
        self.train()
        return metrics


def migrate(state: Dict[str, Tensor]) -> None:
    """Brings a model's state from an earlier version of the format up to `hashpose_ns.model.FORMAT`, in place.

    Raises:
        HashPoseError: it was written by a newer hashpose.
    """
    if "camera_optimizer.initial_camera_to_worlds" not in state:  # of another method, which loading refuses
        return
    version = int(state.get("format", 1))
    if version > FORMAT:
        raise HashPoseError("The checkpoint was written by a newer version of hashpose; update with pip.")
    if version < 2:
        state.setdefault("camera_optimizer.fallen_back", torch.ones(()))
    if version < 3:
        initial = state["camera_optimizer.initial_camera_to_worlds"]
        state.setdefault("camera_optimizer.base_camera_to_worlds", initial.clone())
        state.setdefault("camera_optimizer.trusted", torch.tensor(False))
    state["format"] = torch.tensor(FORMAT)


def _errors(
    poses: Float[Tensor, "num_cameras 3 4"], reference: Float[Tensor, "num_cameras 3 4"], prefix: str
) -> Dict[str, float]:
    """Summaries after both alignments."""
    by_centers = pose_errors(poses, reference, align_centers(poses, reference))
    return {**pose_errors(poses, reference).summary(prefix), **by_centers.summary(f"{prefix}by_centers_")}
