"""HashPoseModel: rays to colours, losses and metrics."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Literal, Optional, Tuple, Type

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from hashpose_ns.cameras.alignment import centers_coincide
from hashpose_ns.cameras.local_to_global import make_pose_optimizer
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.cameras.start import TrainingCameras
from hashpose_ns.chunks import bytes_per_sample, rays_that_fit, render_in_chunks
from hashpose_ns.compiled import CompiledForTraining
from hashpose_ns.empty_space import OccupiedSpace
from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import FieldConfig, HashPoseField, HashPoseFieldConfig, SceneWarp
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig
from hashpose_ns.photometry.pixels import mask_of
from hashpose_ns.photometry.scene import ErrorObserver, evaluating
from hashpose_ns.rays import (
    ColorRenderer,
    InverseDepthSamples,
    PiecewiseSamples,
    SurfaceDistance,
    UniformSamples,
    ray_weights,
)
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.model_components.ray_samplers import PDFSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from nerfstudio.utils.math import intersect_aabb

SAMPLERS = {
    "uniform": UniformSamples,
    "inverse-depth": InverseDepthSamples,
    "piecewise": PiecewiseSamples,
}
LOSSES = {"mse": nn.MSELoss, "smooth-l1": nn.SmoothL1Loss}

FORMAT = 3
"""Version of a checkpoint's format: 1 has no version in it; 2 has `format` and `camera_optimizer.fallen_back`; 3 has
`camera_optimizer.base_camera_to_worlds` and `.trusted`. What brings earlier ones up to date is
`hashpose_ns.pipeline.migrate`."""


@dataclass
class HashPoseModelConfig(ModelConfig):
    """Configuration of the model."""

    _target: Type = dataclasses.field(default_factory=lambda: HashPoseModel)
    field: FieldConfig = dataclasses.field(default_factory=HashPoseFieldConfig)
    """Hash grid and decoder."""
    camera_optimizer: PoseOptimizerConfig = dataclasses.field(default_factory=PoseOptimizerConfig)
    """How poses are refined."""
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    """When the grid's levels are trained."""
    scene: SceneWarp = "contraction"
    """Extent of the scene.
    - none: it fits into the dataparser's scene box, and space outside is empty.
    - contraction: unbounded captures.
    - forward-facing: all cameras look down -z from near the origin (LLFF)."""
    scene_box_scale: float = 1.0
    """Factor on the dataparser's scene box, for `scene` = none."""
    sampler: Literal["uniform", "inverse-depth", "piecewise"] = "piecewise"
    """Spacing of samples along a ray.
    Uniform in depth, uniform in 1/depth, or uniform to 1 and in 1/depth behind."""
    num_samples: int = 128
    """Samples per ray; stratified in training."""
    num_importance_samples: int = 0
    """Samples per ray drawn where the field has its weights; 0 draws none.
    They begin at `importance_start`. `num_samples` are then asked for their density alone, without gradient."""
    importance_start: float = 0.0
    """Fraction of training from which `num_importance_samples` are drawn."""
    eval_num_samples: int = 0
    """Samples per ray outside training, in place of `num_samples`; 0 takes as many as training does."""
    eval_skips_empty_space: bool = False
    """Render a trained run only where it has any density: faster, and sharper, as all samples go there.
    For `scene` = none with a background of one colour. A field that is being trained is rendered as in training."""
    near_plane: float = 0.05
    """Nearest sample, in nerfstudio's scene units."""
    far_plane: float = 1000.0
    """Farthest sample."""
    clip_to_box: bool = False
    """Place a ray's samples only inside the scene box.
    For `scene` = none, where space outside is empty."""
    planes: Literal["fixed", "cameras"] = "fixed"
    """What sets near and far planes.
    - fixed: `near_plane` and `far_plane`.
    - cameras: a quarter and three quarters of the largest distance between two estimated cameras, at each step.
    The second is L2G-NeRF's, for objects seen from all around."""
    depth_measure: Literal["distance", "z"] = "distance"
    """What near and far planes are.
    Distances along the ray, or depths along the optical axis (BARF on LLFF)."""
    background_color: Literal["white", "black", "last_sample", "random"] = "last_sample"
    """What lies behind the field. For images with an alpha channel, the colour they are composited on."""
    loss: Literal["mse", "smooth-l1"] = "mse"
    """Photometric loss. Errors of colours are at most 1, where `smooth-l1` (BAA-NGP) is half of `mse`."""
    enable_collider: bool = False
    """Not used: near and far planes are set here."""
    compile: bool = False
    """Compile decoder and rendering of training batches with `torch.compile`.
    On an NVIDIA GPU as CUDA graphs; the first step then takes up to a minute.
    If compilation fails, a line says so and training continues without."""
    eval_num_rays_per_chunk: int = 0
    """Rays per chunk when rendering images. 0: as many as memory allows."""


class PoseRefiningModel(Model):
    """What trainer and pipeline ask of a model beyond nerfstudio's Model: a camera optimizer, to know how far training
    is, and to render rays for operations on poses (`hashpose_ns.photometry.scene.ImageRenderer`). `kwargs["metadata"]`
    brings what the datamanager knows, as `TrainingCameras`."""

    camera_optimizer: PoseOptimizer
    progress: Tensor
    total_steps: int = 1
    """Length of training; 1 until it is known."""
    current_step: int = 0
    """`progress[0]` as a number, which no GPU has to be waited for."""
    format: Tensor
    """Version of the checkpoint's format, see `FORMAT`."""

    def populate_poses(self) -> None:
        """Builds the camera optimizer and the record of training; to be called where modules are built."""
        cameras = TrainingCameras.of(self.kwargs.get("metadata", {}))
        known = {}
        if cameras is not None:
            known = {
                "initial_camera_to_worlds": cameras.initial_camera_to_worlds,
                "reference_camera_to_worlds": cameras.reference_camera_to_worlds,
                "image_names": cameras.image_names,
                "half_extent": cameras.half_extent,
            }
        self.camera_optimizer = make_pose_optimizer(
            self.config.camera_optimizer, num_cameras=self.num_train_data, device="cpu", **known
        )
        self.register_buffer("format", torch.tensor(FORMAT))
        # The trainer tells the length of training; without one (evaluation) it comes from the buffer that training left
        # in the checkpoint.
        self.register_buffer("progress", torch.zeros(2, dtype=torch.long))
        self.error_observers: List[ErrorObserver] = []
        self.is_at_rest = False
        """Whether the model was loaded for viewing or export, not for training."""
        self.is_logged = True
        """Whether this training step's metrics are written down; the trainer says so."""

    def per_image(self) -> Dict[str, int]:
        """Entries of the state that have a row for each training image, and which dimension the rows are."""
        optimizer, before = self.camera_optimizer, "camera_optimizer."
        own = ((name, value) for name, value in optimizer.state_dict().items() if "." not in name and value.ndim)
        found = {before + name: 0 for name, value in own if len(value) == optimizer.num_cameras}
        if optimizer.settling is not None:
            found[before + "settling.corrections"] = 1
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding) and module.num_embeddings == self.num_train_data:
                found[f"{name}.weight"] = 0
        return found

    def set_training_length(self, total_steps: int) -> None:
        """Tells the schedules how many steps training takes."""
        self.progress[1] = total_steps
        self.total_steps = total_steps

    def update_to_step(self, step: int) -> None:
        """Sets everything that depends on the step of training."""
        self.progress[0] = step
        self.current_step = step
        self.camera_optimizer.set_progress(step / self.total_steps)

    def restore_progress(self) -> None:
        """After a checkpoint was loaded: the step and length of training it was made at."""
        step, total = self.progress.tolist()
        self.total_steps = max(total, 1)
        self.update_to_step(step)

    def rate_factors(self) -> Dict[str, Callable[[int], List[float]]]:
        """Per group of the optimizers: at a step, the factor on the learning rate of each of its torch groups."""

        def factor(step: int) -> List[float]:
            return [self.camera_optimizer.rate_factor(step / self.total_steps)]

        return {"camera_opt": factor, "camera_warp": factor}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        """Keeps the model's step in line with the trainer's."""
        return super().get_training_callbacks(training_callback_attributes) + [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.update_to_step),
        ]

    def observe_errors(self, observer: ErrorObserver) -> None:
        """Has an observer called with every training step's errors, on the training thread."""
        self.error_observers.append(observer)

    # -- photometry.scene.RayRenderer ----------------------------------------------------------------------------------

    def render_rays(
        self, rays: RayBundle, own_appearance: bool, smoothed: bool, surfaces: bool = False
    ) -> Dict[str, Tensor]:
        """Renders rays where they are; the model is in evaluation mode.

        Args:
            rays: on the model's device.
            own_appearance, smoothed: as in `RayRenderer.colors`.
            surfaces: whether `depth` is that of surfaces, see `RayRenderer.surfaces`.
        Returns:
            As `get_outputs`.
        """
        raise NotImplementedError

    def colors(
        self, rays: RayBundle, *, own_appearance: bool = False, smoothed: bool = False
    ) -> Float[Tensor, "rays 3"]:
        """As `RayRenderer.colors`."""
        with evaluating(self):
            return self.render_rays(rays, own_appearance, smoothed)["rgb"].clamp(0.0, 1.0)

    def photometric_loss(
        self,
        rays: RayBundle,
        photograph: Float[Tensor, "rays channels"],
        *,
        own_appearance: bool = False,
        smoothed: bool = False,
    ) -> Float[Tensor, ""]:
        """As `RayRenderer.photometric_loss`."""
        with evaluating(self):
            outputs = self.render_rays(rays, own_appearance, smoothed)
            return self.get_loss_dict(outputs, {"image": photograph})["rgb_loss"]

    def composite(self, photograph: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch 3"]:
        """As `RayRenderer.composite`."""
        return self.renderer_rgb.blend_background(photograph.to(self.device))

    @torch.no_grad()
    def surfaces(self, rays: RayBundle) -> Dict[str, Tensor]:
        """As `RayRenderer.surfaces`."""
        with evaluating(self):
            return self.render_rays(rays, own_appearance=False, smoothed=False, surfaces=True)

    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """Renders a camera where it is, in evaluation mode."""
        with evaluating(self):
            return super().get_outputs_for_camera(camera, obb_box)

    def rays_per_chunk(self) -> int:
        """Rays to render at once, without gradients."""
        return self.config.eval_num_rays_per_chunk

    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Any]) -> Dict[str, Tensor]:
        """PSNR of the batch's rays; skipped in training steps that are not logged."""
        if self.training and not self.is_logged:
            return {}
        target = self.composite(batch["image"])
        return {"psnr": -10.0 * torch.log10((outputs["rgb"].detach() - target).square().mean())}

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """psnr, ssim (and lpips if AlexNet's weights are at hand) of a render outside of the mask, and pictures."""
        from hashpose_ns.photometry.image_metrics import image_metrics

        target = self.composite(batch["image"]).to(outputs["rgb"].device)
        rgb = outputs["rgb"].clamp(0.0, 1.0)
        images = {
            "img": torch.cat([target, rgb], dim=1),
            "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
            "depth": colormaps.apply_depth_colormap(outputs["depth"], accumulation=outputs["accumulation"]),
        }
        return image_metrics(rgb, target, mask_of(batch)), images


class HashPoseModel(PoseRefiningModel):
    """Joint field and poses."""

    config: HashPoseModelConfig

    def populate_modules(self) -> None:
        """Builds camera optimizer, field, sampler and renderers."""
        super().populate_modules()
        config = self.config
        if not 0 < config.near_plane < config.far_plane:
            raise HashPoseError("The near plane must lie between 0 and the far plane.")
        optional = (config.num_importance_samples, config.eval_num_samples)
        if config.num_samples < 2 or any(number < 0 or number == 1 for number in optional):
            raise HashPoseError(
                "A ray needs at least 2 samples; set --pipeline.model.num-samples, and "
                "--pipeline.model.num-importance-samples and .eval-num-samples to 0 or at least 2."
            )
        self.populate_poses()
        known = TrainingCameras.of(self.kwargs.get("metadata", {}))
        if config.planes == "cameras" and known is not None and centers_coincide(known.initial_camera_to_worlds):
            raise HashPoseError(
                "--pipeline.model.planes cameras needs cameras that start apart from each other; give fixed planes."
            )
        self.curriculum = Curriculum(config.curriculum, config.field.num_levels, total_steps=1)
        self.field = config.field.setup(
            warp=config.scene,
            aabb=self._grid_box(known),
            num_images=self.num_train_data,
            curriculum=self.curriculum,
        )
        self._follow_start()
        self.sampler = SAMPLERS[config.sampler](num_samples=config.num_samples)
        self._occupied: Optional[Tuple[Tuple[int, ...], OccupiedSpace]] = None
        # Every ray keeps a share of samples everywhere: a wrong pose is corrected by what lies beside the surface.
        self.importance_sampler = PDFSampler(config.num_importance_samples, include_original=False)
        self.renderer_rgb = ColorRenderer(background_color=config.background_color)
        self.renderer_accumulation = AccumulationRenderer()
        self.renderer_depth = DepthRenderer(method="expected")
        self.renderer_surface = SurfaceDistance()
        self.rgb_loss = LOSSES[config.loss]()
        self.compiled_shading: Optional[CompiledForTraining] = None
        if config.compile:
            if not isinstance(self.field, HashPoseField) or config.field.decoder.implementation != "torch":
                raise HashPoseError(
                    "--pipeline.model.compile True needs hashpose's own field, with its decoder in torch."
                )
            self.compiled_shading = CompiledForTraining(self._shade, lambda: list(self.field.decoder_parameters()))

    def _grid_box(self, cameras: Optional[TrainingCameras]) -> Tensor:
        """[2, 3] corners of the grid's box in the coordinates of the scene's warp."""
        if self.config.scene == "contraction":
            return torch.tensor([[-2.0] * 3, [2.0] * 3])
        if self.config.scene == "forward-facing":
            # A quarter more than the cameras see: refined cameras turn and move.
            half_x, half_y = (1.25 * extent for extent in (cameras.half_extent if cameras else (1.0, 1.0)))
            nearest = 1.0 / (0.8 * self.config.near_plane)
            return torch.tensor([[-half_x, -half_y, -0.01 * nearest], [half_x, half_y, nearest]])
        return self.scene_box.aabb * self.config.scene_box_scale

    def set_training_length(self, total_steps: int) -> None:
        """Tells the schedules how many steps training takes."""
        super().set_training_length(total_steps)
        self.curriculum.total_steps = total_steps

    def _follow_start(self) -> None:
        """Has curriculum and decoder follow the start, which is trusted or not."""
        config, trusted = self.config.curriculum, self.config.camera_optimizer.trusted
        self.follows_trusted = self.camera_optimizer.is_trusted
        if self.follows_trusted:
            config = dataclasses.replace(config, window=trusted.window)
        config.validate()
        self.curriculum.config = config
        if isinstance(self.field, HashPoseField):
            start = self.field.config.decoder.direction_start
            self.field.direction_start = min(start, trusted.direction_start) if self.follows_trusted else start

    def update_to_step(self, step: int) -> None:
        """Sets everything that depends on the step of training."""
        if self.camera_optimizer.is_trusted != self.follows_trusted:
            self._follow_start()
        super().update_to_step(step)
        self.curriculum.total_steps = self.total_steps
        self.field.step = step

    def rate_factors(self) -> Dict[str, Callable[[int], List[float]]]:
        """As for poses, and the curriculum's factors for the grid's levels."""
        return {**super().rate_factors(), "encoding": self.curriculum.learning_rate_weights}

    def get_param_groups(self) -> Dict[str, List]:
        """The field's groups and `camera_opt`."""
        groups = self.field.get_param_groups()
        self.camera_optimizer.get_param_groups(groups)
        return groups

    def _set_planes(self, ray_bundle: RayBundle) -> None:
        near = torch.full_like(ray_bundle.origins[..., :1], self.config.near_plane)
        far = torch.full_like(near, self.config.far_plane)
        if self.config.planes == "cameras":
            centers = self.camera_optimizer.estimated_centers()
            span = torch.cdist(centers, centers).max()
            near, far = (fraction * span.expand_as(near) for fraction in (0.25, 0.75))
        if self.config.depth_measure == "z" and "directions_norm" in ray_bundle.metadata:
            # |K^-1 pixel|: distance along the unit direction per unit of depth.
            near, far = (plane * ray_bundle.metadata["directions_norm"] for plane in (near, far))
        if self.config.clip_to_box and self.config.scene == "none":
            with torch.no_grad():  # sample distances carry no gradient
                entry, leave = intersect_aabb(ray_bundle.origins, ray_bundle.directions, self.field.aabb.flatten())
            entry, leave = (torch.clamp(bound[..., None], near, far) for bound in (entry, leave))
            # A ray that misses the box gets samples of no length, and so the background.
            near, far = entry, torch.where(leave > entry, leave, entry)
        ray_bundle.nears, ray_bundle.fars = near, far

    def _sample_rays(self, ray_bundle: RayBundle) -> RaySamples:
        """Samples by the sampler's spacing or, later in training, where the field has its weights. Planes are set."""
        config = self.config
        samples = self.sampler(ray_bundle, None if self.training else config.eval_num_samples or None)
        if config.num_importance_samples == 0 or self.field.step < config.importance_start * self.total_steps:
            return samples
        with torch.no_grad():
            weights = ray_weights(samples.deltas, self.field.get_density(samples)[0])
            # The larger of neighbours: a surface between two samples may have been seen by one of them only.
            around = functional.max_pool1d(weights.transpose(-1, -2), 3, stride=1, padding=1).transpose(-1, -2)
        return self.importance_sampler(ray_bundle, samples, around)

    def get_outputs(self, ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """Renders rays.

        Args:
            ray_bundle: rays; in training those of the initial poses, which are moved to the refined ones here.
        Returns:
            rgb [*, 3], accumulation [*, 1] and, outside training, the expected depth [*, 1].
        """
        if not self.training:
            return self.render_rays(ray_bundle, own_appearance=False, smoothed=True)
        self.camera_optimizer.apply_to_raybundle(ray_bundle)
        self._set_planes(ray_bundle)
        samples = self._sample_rays(ray_bundle)
        if self.compiled_shading is not None:
            rgb, accumulation = self._compiled(samples)
            return {"rgb": rgb, "accumulation": accumulation}
        return self._render(samples, own_appearance=True, smoothed=True, surfaces=False)

    def render_rays(
        self, rays: RayBundle, own_appearance: bool, smoothed: bool, surfaces: bool = False
    ) -> Dict[str, Tensor]:
        """Renders rays where they are."""
        self._set_planes(rays)
        occupied = self._occupied_space()
        if occupied is None:
            return self._render(self._sample_rays(rays), own_appearance, smoothed, surfaces)
        some, rays.nears, rays.fars = occupied.spans(rays, self.field.to_grid)
        if not bool(some.any()):
            some[0] = True  # so that there is a gradient, though it is zero
        outputs = self._render(self._sample_rays(rays[some]), own_appearance, smoothed, surfaces)
        background = self.renderer_rgb.get_background_color(self.config.background_color, (3,), some.device)
        nothing = {"rgb": background.expand(len(rays), 3), "accumulation": torch.zeros_like(rays.nears)}
        nothing["depth"] = rays.nears
        return {name: nothing[name].masked_scatter(some[:, None], value) for name, value in outputs.items()}

    def _occupied_space(self) -> Optional[OccupiedSpace]:
        """Where the field is not empty, if that is of use and training is over."""
        config, field = self.config, self.field
        one_color = config.background_color in ("white", "black")
        if not (config.eval_skips_empty_space and self.is_at_rest and config.scene == "none" and one_color):
            return None
        if not isinstance(field, HashPoseField):
            return None
        now = (field.step, *(parameter._version for parameter in field.parameters()))
        if self._occupied is None or self._occupied[0] != now:
            with evaluating(self), torch.no_grad():
                self._occupied = now, OccupiedSpace(field.density_at, self.device)
        return self._occupied[1]

    def _render(self, samples: RaySamples, own_appearance: bool, smoothed: bool, surfaces: bool) -> Dict[str, Tensor]:
        field_outputs = self.field(samples, own_appearance=own_appearance, smoothed=smoothed)
        weights = ray_weights(samples.deltas, field_outputs[FieldHeadNames.DENSITY])
        outputs = {
            "rgb": self.renderer_rgb(rgb=field_outputs[FieldHeadNames.RGB], weights=weights),
            "accumulation": self.renderer_accumulation(weights=weights),
        }
        if not self.training:
            depth = self.renderer_surface if surfaces else self.renderer_depth
            outputs["depth"] = depth(weights=weights, ray_samples=samples)
        return outputs

    def rays_per_chunk(self) -> int:
        """Rays to render at once, without gradients; by the memory that is there, unless a number was set."""
        config = self.config
        if config.eval_num_rays_per_chunk > 0:
            return config.eval_num_rays_per_chunk
        uses_bfloat16 = isinstance(self.field, HashPoseField) and self.field.uses_bfloat16(self.device)
        samples = max(config.eval_num_samples or config.num_samples, config.num_importance_samples)
        return rays_that_fit(samples * bytes_per_sample(self.field, uses_bfloat16), self.device)

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """Renders a camera's rays [height, width] chunk by chunk; results as in `get_outputs`."""
        return render_in_chunks(self, camera_ray_bundle, self.rays_per_chunk(), self.device)

    def _compiled(self, samples: RaySamples) -> Tuple[Tensor, ...]:
        """Colours and accumulations of a training batch, by the compiled shading."""
        assert self.compiled_shading is not None
        field, kind = self.field, self.config.background_color
        features, inside = field.encode(samples)
        background = None
        if kind not in ("last_sample", "random"):
            background = self.renderer_rgb.get_background_color(kind, (3,), features.device)
        return self.compiled_shading(
            features,
            inside,
            samples.frustums.directions[..., :1, :],
            samples.deltas,
            field.appearance_of(samples),
            background,
            see_directions=field.sees_directions,
            bfloat16=field.uses_bfloat16(features.device),
        )

    def _shade(
        self,
        features: Float[Tensor, "rays samples features"],
        inside: Bool[Tensor, "rays samples"],
        directions: Float[Tensor, "rays 1 3"],
        deltas: Float[Tensor, "rays samples 1"],
        appearance: Optional[Float[Tensor, "rays 1 appearance"]],
        background: Optional[Float[Tensor, "3"]],
        see_directions: bool,
        bfloat16: bool,
    ) -> Tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 1"]]:
        """What the field's decoder and the renderers do in training, as one function of tensors: colours and
        accumulations of rays from the features of their samples. `background` is None where it is random, and then
        left out, or the last sample's colour."""
        density, geometry = self.field.decode_density(features, inside, bfloat16)
        colors = self.field.decode_color(geometry, directions, appearance, see_directions, bfloat16)
        weights = ray_weights(deltas, density)
        rgb, accumulation = (weights * colors).sum(-2), weights.sum(-2)
        if self.config.background_color == "last_sample":
            background = colors[..., -1, :]
        return rgb if background is None else rgb + background * (1.0 - accumulation), accumulation

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any], metrics_dict: Optional[Dict] = None
    ) -> Dict[str, Tensor]:
        """Photometric loss (Eq. 4), and the pose penalties where they are switched on."""
        image = batch["image"].to(self.device)
        prediction, target = self.renderer_rgb.blend_background_for_loss_computation(
            pred_image=outputs["rgb"], pred_accumulation=outputs["accumulation"], gt_image=image
        )
        losses = {"rgb_loss": self.rgb_loss(prediction, target)}
        if self.training:
            self.camera_optimizer.get_loss_dict(losses)
            for observe in self.error_observers:
                observe(batch["indices"][:, 0], prediction - target)
        return losses
