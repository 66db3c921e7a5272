"""Peers small enough to train in seconds, and their training in this process."""

from __future__ import annotations

from pathlib import Path

import torch
from scenes import CHAIR

from hashpose_ns.peers.methods import peer_config
from hashpose_ns.trainer import HashPoseTrainer, HashPoseTrainerConfig


def small_config(name: str, protocol: str = "blender") -> HashPoseTrainerConfig:
    """A peer's settings with a field, rays and samples that take milliseconds a step."""
    config = peer_config(name, protocol)
    model = config.pipeline.model
    if name in ("barf", "l2g"):
        model.field.layers, model.field.width, model.field.skip, model.field.color_width = 4, 32, 2, 16
    elif name == "garf":
        model.field.layers, model.field.width, model.field.skip = 2, 32, 1
    elif name == "nerfacto-poses":
        model.num_levels, model.max_res, model.log2_hashmap_size, model.hidden_dim = 4, 64, 12, 16
        model.proposal_net_args_list = [{"hidden_dim": 16, "log2_hashmap_size": 11, "num_levels": 3, "max_res": 32}]
        model.num_proposal_samples_per_ray, model.num_nerf_samples_per_ray = (32, 16), 12
        model.hidden_dim_color, model.appearance_embed_dim = 16, 4
    else:
        encoding, decoder = model.field.encoding, model.field.decoder
        encoding.num_levels, encoding.log2_hashmap_size = 4, 12
        encoding.base_resolution, encoding.max_resolution = 4, 32
        decoder.width, decoder.precision = 16, "float32"
    if name == "l2g":
        model.camera_optimizer.warp.width, model.camera_optimizer.warp.embedding = 16, 8
    if name != "nerfacto-poses":
        model.num_samples = 16
    datamanager = config.pipeline.datamanager
    datamanager.train_num_rays_per_batch = datamanager.eval_num_rays_per_batch = 128
    return config


def build_trainer(config: HashPoseTrainerConfig, folder: Path, steps: int, **settings) -> HashPoseTrainer:
    """The trainer as ns-train builds it, for the packaged chair at 32x32."""
    datamanager = config.pipeline.datamanager
    datamanager.dataparser.data = CHAIR
    datamanager.camera_res_scale_factor = 0.32
    config.max_num_iterations = steps
    config.output_dir, config.timestamp, config.vis = folder, "run", "tensorboard"
    config.experiment_name = "chair"
    config.machine.device_type = "cpu"
    config.steps_per_pose_log = config.steps_per_save = steps
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.pipeline.eval_num_images, config.pipeline.tto_steps, config.pipeline.tto_rays = 1, 2, 64
    for name, value in settings.items():
        setattr(config, name, value)
    config.save_config()
    torch.manual_seed(0)
    trainer = config.setup()
    trainer.setup()
    return trainer
