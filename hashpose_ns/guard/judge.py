"""Fields that judge poses: trained at fixed poses on some pixels, scored on others."""

from __future__ import annotations

import copy
import dataclasses
from typing import List

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.pixels import PIXELS_PER_BLOCK, split_pixels
from hashpose_ns.guard.verdict import HeldOutErrors
from hashpose_ns.model import HashPoseModel, HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from hashpose_ns.photometry.pixels import Pixels, pixel_rays, posed_cameras
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.scores import squared_errors
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.base_model import ModelConfig

LEARNING_RATE, LEARNING_RATE_FINAL = 1e-2, 1e-3
"""Adam's rate for a judging field: while it sees both sets of poses, and at the end on one."""


def judge_config(config: ModelConfig) -> HashPoseModelConfig:
    """The judging field's model: the run's scene, samples and grid with a small decoder; all levels at once, plain
    interpolation, colours that do not depend on the direction, no poses to learn.

    Args:
        config: the run's model. One of another kind is judged as `hashpose` sees an unbounded scene.
    """
    encoding, appearance = HashEncodingConfig(num_levels=8, log2_hashmap_size=16, max_resolution=256), 0
    if isinstance(config, HashPoseModelConfig):
        judge = config
        if isinstance(config.field, HashPoseFieldConfig):
            encoding, appearance = config.field.encoding, config.field.decoder.appearance_dim
    else:
        judge = HashPoseModelConfig(
            near_plane=getattr(config, "near_plane", 0.05),
            far_plane=getattr(config, "far_plane", 1000.0),
            background_color=getattr(config, "background_color", "last_sample"),
        )
    decoder = DecoderConfig(
        density_layers=1,
        color_layers=1,
        width=32,
        density_activation="exp",
        direction_frequencies=-1,
        appearance_dim=appearance,
    )
    return dataclasses.replace(
        judge,
        field=HashPoseFieldConfig(encoding=dataclasses.replace(encoding, gradient="linear"), decoder=decoder),
        camera_optimizer=PoseOptimizerConfig(mode="off"),
        curriculum=CurriculumConfig(mode="none"),
        # Seconds of training do not pay for a compilation. Two backward passes into one gradient, as below, would also
        # read what a CUDA graph has overwritten.
        compile=False,
    )


def compare_errors(
    scene: PosedScene,
    first: Float[Tensor, "num_cameras 3 4"],
    second: Float[Tensor, "num_cameras 3 4"],
    steps: int,
    config: GuardConfig,
) -> HeldOutErrors:
    """Scores two sets of poses by held-out pixels of the training images.

    One field is trained on both sets, half of each batch seen from either; two copies of it are then trained on one set
    each, by the same pixels, and scored on blocks that none of them saw. Independently trained fields differ by more
    than small pose changes do; branching from a shared field removes that variance. Identical sets score identically,
    if the device computes deterministically.

    Args:
        scene: whose images, intrinsics and model settings are used; its own field is not touched, nor are the global
            random generators.
        first: poses of the training cameras, in the frame of the scene box.
        second: the same cameras' other poses, aligned to the first ones.
        steps: steps on both sets; half as many follow on each.
        config: rays, blocks, seed.
    """
    dataset, device = scene.train, scene.device
    branch_steps = max(steps // 2, 1)
    pixels = split_pixels(dataset, (steps + branch_steps) * config.rays, config)
    pair = [posed_cameras(dataset, poses, device) for poses in (first, second)]
    devices = [device] if device.type == "cuda" else []
    scores: List[Tensor] = []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(config.seed)
        model: HashPoseModel = judge_config(scene.model_config).setup(
            scene_box=dataset.scene_box, num_train_data=len(dataset), metadata=dataset.metadata, grad_scaler=None
        )
        model.to(device).train()
        adam = torch.optim.Adam(model.field.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), eps=1e-15, fused=True)
        for step in range(steps):
            begin = step * config.rays
            middle, end = begin + config.rays // 2, begin + config.rays
            adam.zero_grad()
            for cameras, part in zip(pair, (slice(begin, middle), slice(middle, end))):
                (0.5 * _loss(model, cameras, pixels.train[part])).backward()
            adam.step()
        shared = copy.deepcopy((model.state_dict(), adam.state_dict()))
        for cameras in pair:
            model.load_state_dict(shared[0])
            adam.load_state_dict(copy.deepcopy(shared[1]))  # torch would train the copy's own moments
            torch.manual_seed(config.seed + 1)
            model.train()
            for step in range(branch_steps):
                decay = (LEARNING_RATE_FINAL / LEARNING_RATE) ** (step / branch_steps)
                for group in adam.param_groups:
                    group["lr"] = LEARNING_RATE * decay
                begin = (steps + step) * config.rays
                adam.zero_grad()
                _loss(model, cameras, pixels.train[begin : begin + config.rays]).backward()
                adam.step()
            scores.append(_per_block(squared_errors(model, cameras, pixels.held_out, own_appearance=True)))
        photographs, shrunk = (model.composite(part.colors) for part in (pixels.held_out, pixels.coarse))
    coarse = _per_block((shrunk - photographs).square().mean(dim=-1))
    return HeldOutErrors(scores[0], scores[1], coarse, pixels.block_cameras)


def _loss(model: HashPoseModel, cameras: Cameras, pixels: Pixels) -> Tensor:
    pixels = pixels.to(model.device)
    outputs = model(pixel_rays(cameras, pixels))
    return model.get_loss_dict(outputs, {"image": pixels.colors})["rgb_loss"]


def _per_block(errors: Float[Tensor, "num_pixels"]) -> Float[Tensor, "num_blocks"]:
    return errors.double().view(-1, PIXELS_PER_BLOCK).mean(dim=-1).cpu()
