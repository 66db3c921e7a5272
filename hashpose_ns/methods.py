"""The registered methods: `hashpose`, `hashpose-blender`, `hashpose-llff`, `hashpose-small`, `hashpose-object`,
`hashpose-object-fine`."""

from __future__ import annotations

import copy
from typing import Any, Dict, Optional, Tuple

from hashpose_ns.cameras.centering import CenteringConfig
from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.cameras.recovery import RecoveryConfig
from hashpose_ns.cameras.settling import SettlingConfig
from hashpose_ns.cameras.trusted import TrustedStartConfig
from hashpose_ns.coarse import BySize, CoarseFirstConfig, take_large
from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig
from hashpose_ns.data.pixel_sampler import EdgePixelSamplerConfig
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from hashpose_ns.optim.schedules import AdamConfig, ScheduleConfig
from hashpose_ns.pipeline import HashPosePipelineConfig
from hashpose_ns.trainer import HashPoseTrainerConfig
from hashpose_ns.viewer.config import ViewerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.types import MethodSpecification


def _optimizers(
    *,
    encoding: Tuple[float, float],
    decoder: Tuple[float, float],
    poses: Tuple[float, float],
    warp: Tuple[float, float] = (1e-3, 1e-5),
) -> Dict[str, Any]:
    """Learning rates at the start and at the end of training."""
    groups = {"encoding": encoding, "decoder": decoder, "camera_opt": poses, "camera_warp": warp}
    return {
        name: {"optimizer": AdamConfig(lr=start), "scheduler": ScheduleConfig(lr_final=end)}
        for name, (start, end) in groups.items()
    }


def _trainer(method_name: str, steps: int, pipeline: HashPosePipelineConfig, optimizers: Dict[str, Any], **kwargs):
    return HashPoseTrainerConfig(
        method_name=method_name,
        max_num_iterations=steps,
        mixed_precision=False,
        pipeline=pipeline,
        optimizers=optimizers,
        viewer=ViewerConfig(default_composite_depth=False),
        vis="viewer+tensorboard",
        **kwargs,
    )


def _guard(keep_rebased: bool = False) -> GuardConfig:
    """For user captures: a verdict at the end, and a fallback for poses that do not get better."""
    return GuardConfig(mode="report", fallback_at=(0.3, 0.55), keep_rebased=keep_rebased)


def _matches() -> MatchConfig:
    """For user captures: a start from matches, if they can be believed."""
    return MatchConfig(start="auto")


hashpose = MethodSpecification(
    config=_trainer(
        "hashpose",
        30_000,
        HashPosePipelineConfig(
            datamanager=HashPoseDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=1024, eval_num_rays_per_batch=1024
            ),
            model=HashPoseModelConfig(scene="contraction", sampler="piecewise", num_samples=128),
        ),
        _optimizers(encoding=(1e-2, 1e-4), decoder=(1e-3, 1e-4), poses=(1e-3, 1e-5)),
        steps_per_save=2000,
        steps_per_eval_all_images=30_000,
        cpu_method="hashpose-small",
        guard=_guard(),
        matches=_matches(),
    ),
    description="Captures with imperfect poses: refines cameras and a hash-grid field together.",
)

blender = MethodSpecification(
    config=_trainer(
        "hashpose-blender",
        200_000,
        HashPosePipelineConfig(
            datamanager=HashPoseDataManagerConfig(
                dataparser=BlenderDataParserConfig(),
                train_num_rays_per_batch=1024,
                eval_num_rays_per_batch=1024,
                initial_poses="perturbed",
            ),
            model=HashPoseModelConfig(
                scene="none",
                sampler="uniform",
                num_samples=128,
                near_plane=2.0,
                far_plane=6.0,
                background_color="white",
            ),
        ),
        _optimizers(encoding=(5e-4, 1e-4), decoder=(5e-4, 1e-4), poses=(1e-3, 1e-5)),
        steps_per_save=5000,
        steps_per_eval_all_images=200_000,
        cpu_method="hashpose-object",
    ),
    description="NeRF-Synthetic by BARF's protocol: poses perturbed by 0.15, white background, 200K steps.",
)

llff = MethodSpecification(
    config=_trainer(
        "hashpose-llff",
        200_000,
        HashPosePipelineConfig(
            datamanager=HashPoseDataManagerConfig(
                dataparser=LLFFDataParserConfig(),
                train_num_rays_per_batch=2048,
                eval_num_rays_per_batch=2048,
                initial_poses="identity",
            ),
            model=HashPoseModelConfig(
                scene="forward-facing",
                sampler="inverse-depth",
                num_samples=128,
                near_plane=1.0,
                far_plane=1e4,
                depth_measure="z",
                background_color="black",
            ),
            tto_rays=2048,
            tto_lr=3e-3,
        ),
        _optimizers(encoding=(1e-3, 1e-4), decoder=(1e-3, 1e-4), poses=(3e-3, 1e-5)),
        steps_per_save=5000,
        steps_per_eval_all_images=200_000,
        cpu_method="hashpose-small",
    ),
    description="Forward-facing captures from unknown poses: all cameras start at the identity (LLFF).",
)


def _small_trainer(
    method_name: str,
    steps: int,
    dataparser: DataParserConfig,
    decoder: DecoderConfig,
    optimizers: Dict[str, Any],
    recovery: RecoveryConfig,
    guard: GuardConfig,
    centering: CenteringConfig,
    by_size: Optional[BySize] = None,
    **model: Any,
) -> HashPoseTrainerConfig:
    """What a CPU trains in minutes: few rays and samples, a small grid."""
    return _trainer(
        method_name,
        steps,
        HashPosePipelineConfig(
            datamanager=HashPoseDataManagerConfig(
                dataparser=dataparser,
                train_num_rays_per_batch=512,
                eval_num_rays_per_batch=512,
                pixel_sampler=EdgePixelSamplerConfig(edge_fraction=0.5),
            ),
            model=HashPoseModelConfig(
                field=HashPoseFieldConfig(
                    encoding=HashEncodingConfig(
                        num_levels=8, log2_hashmap_size=16, base_resolution=8, max_resolution=256
                    ),
                    decoder=decoder,
                ),
                num_samples=24,
                num_importance_samples=24,
                **model,
            ),
            tto_steps=50,
            tto_rays=512,
            tto_lr=3e-3,
        ),
        optimizers,
        steps_per_save=1000,
        steps_per_eval_batch=1000,
        steps_per_eval_image=1000,
        steps_per_eval_all_images=100_000,
        recovery=recovery,
        guard=guard,
        centering=centering,
        matches=_matches(),
        by_size=by_size,
        coarse_first=CoarseFirstConfig(mode="auto" if by_size is not None else "off"),
    )


small = MethodSpecification(
    config=_small_trainer(
        "hashpose-small",
        4_000,
        NerfstudioDataParserConfig(),
        DecoderConfig(width=64, density_activation="exp"),
        _optimizers(encoding=(1e-2, 1e-3), decoder=(1e-2, 1e-3), poses=(3e-3, 1e-4)),
        RecoveryConfig(),
        _guard(),
        CenteringConfig(),
        camera_optimizer=PoseOptimizerConfig(trusted=TrustedStartConfig(rate=0.03)),
        curriculum=CurriculumConfig(mode="none"),
        scene="contraction",
        sampler="piecewise",
    ),
    description="A laptop or CI: 12K samples a step, 8 levels, a 64-wide decoder; minutes on two CPU cores.",
)


def _cooled(lr: float, lr_final: float) -> Dict[str, Any]:
    return {"optimizer": AdamConfig(lr=lr), "scheduler": ScheduleConfig(lr_final=lr_final, cooldown=0.25)}


OBJECT_BY_SIZE: BySize = {
    "max_num_iterations": (2_500, 12_000),
    "steps_per_save": (1000, 2000),
    "pipeline.datamanager.train_num_rays_per_batch": (512, 1024),
    "pipeline.model.num_samples": (24, 96),
    "pipeline.model.num_importance_samples": (24, 32),
    "pipeline.model.eval_num_samples": (0, 64),
    "pipeline.model.eval_skips_empty_space": (False, True),
    "pipeline.model.field.encoding.num_levels": (8, 10),
    "pipeline.model.field.encoding.log2_hashmap_size": (16, 18),
    "pipeline.model.field.encoding.max_resolution": (256, 1024),
}
"""Settings of objects, for small and for large pictures: more steps and rays, a finer grid, and samples that are closer
together (docs/benchmark.md)."""


object_ = MethodSpecification(
    config=_small_trainer(
        "hashpose-object",
        2_500,
        BlenderDataParserConfig(),
        DecoderConfig(width=64, density_activation="exp", direction_start=0.6),
        {
            "encoding": _cooled(4e-2, 4e-3),
            "decoder": _cooled(5e-3, 1e-3),
            "camera_opt": _cooled(8e-3, 1.2e-3),
            "camera_warp": _cooled(1e-3, 1e-5),
        },
        RecoveryConfig(at=(0.3, 0.45, 0.6), late_at=(0.5, 0.65, 0.8)),
        _guard(keep_rebased=True),
        CenteringConfig("auto"),
        by_size=OBJECT_BY_SIZE,
        camera_optimizer=PoseOptimizerConfig(
            side="orbit",
            start=0.03,
            warmup=0.0,
            settling=SettlingConfig(decay=0.7),
            trusted=TrustedStartConfig(rate=0.01),
        ),
        curriculum=CurriculumConfig(window=(0.04, 0.5)),
        scene="none",
        scene_box_scale=0.8,
        clip_to_box=True,
        sampler="uniform",
        # The box alone bounds the samples: the viewer looks at it from further away than any camera.
        near_plane=0.05,
        far_plane=20.0,
        background_color="white",
    ),
    description="An object on white, seen from all around, with poses off by up to 20 degrees; minutes on a CPU.",
)


def _fine(config: Any) -> HashPoseTrainerConfig:
    """The settings for large pictures, and the time that their last hundredths of a degree take."""
    config = copy.deepcopy(config)
    config.method_name, config.picture_size = "hashpose-object-fine", "large"
    take_large(config)
    config.max_num_iterations = 30_000
    return config


object_fine = MethodSpecification(
    config=_fine(object_.config),
    description="As hashpose-object on pictures of 300 pixels and more, but longer: 30K steps.",
)
