"""nerfacto with its own camera optimizer, under this package's initial poses, alignment and evaluation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Dict, Literal, Type

import roma
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.model import PoseRefiningModel
from hashpose_ns.rays import SurfaceDistance
from nerfstudio.cameras.lie_groups import exp_map_SO3xR3
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.density_fields import HashMLPDensityField
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.model_components.losses import distortion_loss
from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler, UniformSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, NormalsRenderer, RGBRenderer
from nerfstudio.model_components.scene_colliders import NearFarCollider
from nerfstudio.model_components.shaders import NormalsShader
from nerfstudio.models.base_model import Model
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.utils.external import TCNN_EXISTS


@dataclass
class NerfactoPoseOptimizerConfig(PoseOptimizerConfig):
    """Configuration of nerfacto's pose refinement."""

    _target: Type = dataclasses.field(default_factory=lambda: NerfactoPoseOptimizer)
    mode: Literal["off", "SO3xR3"] = "SO3xR3"
    """`SO3xR3` refines the poses, `off` keeps them as they are."""
    side: Literal["world", "camera"] = "camera"
    """Where test-time corrections of held-out cameras act, which nerfacto has none of. Learned corrections turn a
    camera about its own centre, in world axes."""
    start: float = 0.0
    """Poses are frozen until this fraction of training."""
    warmup: float = 0.0
    """Fraction of training, from `start` on, during which the poses' learning rate rises linearly from 0."""
    trans_l2_penalty: float = 1e-2
    """Weight of the penalty on the length of each correction's translation."""
    rot_l2_penalty: float = 1e-3
    """Weight of the penalty on the angle (radians) of each correction's rotation."""


class NerfactoPoseOptimizer(PoseOptimizer):
    """nerfstudio's SO3xR3 corrections of the initial poses: in world axes, rotation about the camera's centre and
    translation apart. Penalised by the mean of their norms, which are not squared."""

    config: NerfactoPoseOptimizerConfig

    def _corrections_of_base(self, by_terms: bool) -> Float[Tensor, "num_cameras 3 4"]:
        """Rigid motions D of the world with refined = D * base, of the learned corrections alone."""
        corrections = exp_map_SO3xR3(self._moving_twists(by_terms))
        rotations, translations = corrections[..., :3], corrections[..., 3]
        centers = self.base_camera_to_worlds[..., 3]
        # Summed by hand: mixed precision would round a matrix product.
        moved = centers + translations - (rotations * centers[..., None, :]).sum(-1)
        return torch.cat([rotations, moved[..., None]], dim=-1)

    def _twist_to(self, index: int, camera_to_world: Float[Tensor, "3 4"]) -> Float[Tensor, "6"]:
        """The turn and the step that take a camera from its base to a pose, float64."""
        base, target = self.base_camera_to_worlds[index].double(), camera_to_world.double()
        rotation = roma.rotmat_to_rotvec(roma.special_procrustes(target[:, :3] @ base[:, :3].T))
        return torch.cat([target[:, 3] - base[:, 3], rotation])

    def get_loss_dict(self, loss_dict: dict) -> None:
        """Adds nerfstudio's penalty, and the other terms."""
        if self.config.mode != "off":
            self._add_terms(loss_dict)
            translations, rotations = self._moving_twists().split(3, dim=-1)
            loss_dict["camera_opt_regularizer"] = (
                self.config.trans_l2_penalty * translations.norm(dim=-1).mean()
                + self.config.rot_l2_penalty * rotations.norm(dim=-1).mean()
            )


@dataclass
class NerfactoPosesModelConfig(NerfactoModelConfig):
    """Configuration of nerfacto with refined poses."""

    _target: Type = dataclasses.field(default_factory=lambda: NerfactoPosesModel)
    camera_optimizer: NerfactoPoseOptimizerConfig = dataclasses.field(default_factory=NerfactoPoseOptimizerConfig)
    """How poses are refined."""


class NerfactoPosesModel(PoseRefiningModel, NerfactoModel):
    """nerfacto's rendering and losses. Built here and not by nerfstudio, whose model downloads LPIPS' network."""

    config: NerfactoPosesModelConfig

    def populate_modules(self) -> None:
        """Builds camera optimizer, field, proposal networks, sampler and renderers."""
        Model.populate_modules(self)
        self.populate_poses()
        config = self.config
        shared = {
            "aabb": self.scene_box.aabb,
            "spatial_distortion": None if config.disable_scene_contraction else SceneContraction(order=float("inf")),
            "average_init_density": config.average_init_density,
            "implementation": config.implementation if TCNN_EXISTS else "torch",
        }
        self.field = NerfactoField(
            num_images=self.num_train_data,
            hidden_dim=config.hidden_dim,
            num_levels=config.num_levels,
            max_res=config.max_res,
            base_res=config.base_res,
            features_per_level=config.features_per_level,
            log2_hashmap_size=config.log2_hashmap_size,
            hidden_dim_color=config.hidden_dim_color,
            hidden_dim_transient=config.hidden_dim_transient,
            use_pred_normals=config.predict_normals,
            use_average_appearance_embedding=config.use_average_appearance_embedding,
            appearance_embedding_dim=config.appearance_embed_dim if config.use_appearance_embedding else 0,
            **shared,
        )
        iterations, settings = config.num_proposal_iterations, config.proposal_net_args_list
        self.proposal_networks = nn.ModuleList(
            HashMLPDensityField(**settings[min(index, len(settings) - 1)], **shared)
            for index in range(1 if config.use_same_proposal_network else iterations)
        )
        networks = [self.proposal_networks[min(index, len(self.proposal_networks) - 1)] for index in range(iterations)]
        self.density_fns = [network.density_fn for network in networks]
        initial_sampler = None  # piecewise
        if config.proposal_initial_sampler == "uniform":
            initial_sampler = UniformSampler(single_jitter=config.use_single_jitter)
        self.proposal_sampler = ProposalNetworkSampler(
            num_nerf_samples_per_ray=config.num_nerf_samples_per_ray,
            num_proposal_samples_per_ray=config.num_proposal_samples_per_ray,
            num_proposal_network_iterations=iterations,
            single_jitter=config.use_single_jitter,
            update_sched=self._steps_between_proposal_updates,
            initial_sampler=initial_sampler,
        )
        # The near plane of training in evaluation as well, so that test-time optimisation sees what training saw.
        self.collider = NearFarCollider(config.near_plane, config.far_plane, reset_near_plane=False)
        self.renderer_rgb = RGBRenderer(background_color=config.background_color)
        self.renderer_accumulation = AccumulationRenderer()
        self.renderer_depth = SurfaceDistance()
        self.renderer_expected_depth = DepthRenderer(method="expected")
        self.renderer_normals = NormalsRenderer()
        self.normals_shader = NormalsShader()
        self.rgb_loss = nn.MSELoss()
        self.step = 0

    def _steps_between_proposal_updates(self, step: int) -> float:
        """Rises from 1 to `proposal_update_every` over the first `proposal_warmup` steps."""
        every = self.config.proposal_update_every
        return min(max(every * step / max(self.config.proposal_warmup, 1), 1.0), float(every))

    def render_rays(
        self, rays: RayBundle, own_appearance: bool, smoothed: bool, surfaces: bool = False
    ) -> Dict[str, Tensor]:
        """Renders rays where they are. nerfacto's encoding has no smoothed gradient, and its depth is that of
        surfaces."""
        self.field.train(own_appearance)  # the only way that nerfstudio's field uses an image's own embedding
        try:
            return self(rays)
        finally:
            self.field.eval()

    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """PSNR of the batch's rays and, in training, the distortion that get_loss_dict weighs."""
        metrics = super().get_metrics_dict(outputs, batch)
        if self.training:
            metrics["distortion"] = distortion_loss(outputs["weights_list"], outputs["ray_samples_list"])
        return metrics
