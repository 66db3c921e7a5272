"""A pipeline on the packaged chair at 32x32 that takes seconds to train."""

from __future__ import annotations

import torch
from scenes import CHAIR

from hashpose_ns.data.pixel_sampler import EdgePixelSamplerConfig
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from hashpose_ns.pipeline import HashPosePipeline, HashPosePipelineConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig


def make_pipeline(**datamanager) -> HashPosePipeline:
    torch.manual_seed(0)
    encoding = HashEncodingConfig(num_levels=6, log2_hashmap_size=14, base_resolution=4, max_resolution=64)
    config = HashPosePipelineConfig(
        datamanager=HashPoseDataManagerConfig(
            dataparser=BlenderDataParserConfig(data=CHAIR),
            camera_res_scale_factor=0.32,
            train_num_rays_per_batch=256,
            eval_num_rays_per_batch=256,
            pixel_sampler=EdgePixelSamplerConfig(edge_fraction=0.5),
            **datamanager,
        ),
        model=HashPoseModelConfig(
            field=HashPoseFieldConfig(
                encoding=encoding, decoder=DecoderConfig(width=32, density_activation="exp", precision="float32")
            ),
            curriculum=CurriculumConfig(mode="none"),
            scene="none",
            sampler="uniform",
            near_plane=2.0,
            far_plane=6.0,
            clip_to_box=True,
            num_samples=32,
            background_color="white",
        ),
        tto_steps=2,
        tto_rays=64,
    )
    return config.setup(device="cpu", test_mode="test")


def trained_pipeline() -> HashPosePipeline:
    """The chair at 32x32, some hundred steps with poses that stand still."""
    pipeline = make_pipeline()
    model = pipeline.model
    tables = [table for group in model.get_param_groups()["encoding"] for table in group["params"]]
    adam = torch.optim.Adam([{"params": tables, "lr": 1e-2}, {"params": model.field.decoder_parameters(), "lr": 5e-3}])
    model.camera_optimizer.active = False
    for step in range(400):
        _, losses, _ = pipeline.get_train_loss_dict(step)
        adam.zero_grad()
        losses["rgb_loss"].backward()
        adam.step()
    return pipeline.eval()
