"""Fields that judge poses: trained at fixed poses on some pixels, scored on others."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, List, Tuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.pixels import PIXELS_PER_BLOCK, Pixels, SplitPixels, split_pixels
from hashpose_ns.model import HashPoseModel, HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.base_model import ModelConfig

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline

LEARNING_RATE, LEARNING_RATE_FINAL = 1e-2, 1e-3
"""Adam's rate for a judging field: while it sees both sets of poses, and at the end on one."""


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutErrors:
    """How well two sets of poses explain the same held-out pixels."""

    first: Float[Tensor, "num_blocks"]
    """Mean squared error of each held-out block at the first poses, float64."""
    second: Float[Tensor, "num_blocks"]
    """The same at the second poses."""
    block_cameras: Int[Tensor, "num_blocks"]
    """Index of each block's image."""


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
    )


def compare_errors(
    pipeline: "HashPosePipeline",
    first: Float[Tensor, "num_cameras 3 4"],
    second: Float[Tensor, "num_cameras 3 4"],
    steps: int,
    config: GuardConfig,
) -> HeldOutErrors:
    """Scores two sets of poses by held-out pixels of the training images.

    One field is trained on both sets, half of each batch seen from either; two copies of it are then trained on one set
    each, by the same pixels, and scored on blocks that none of them saw. Fields that are trained apart from the start
    end up better or worse by luck, by far more than small changes of poses do; what the two copies share, they share
    fairly. Identical sets score identically, where the device computes repeatably.

    Args:
        pipeline: whose images, intrinsics and model settings are used; its own model is not touched, nor are the global
            random generators.
        first: poses of the training cameras, in the frame of the scene box.
        second: the same cameras' other poses, aligned to the first ones.
        steps: steps on both sets; half as many follow on each.
        config: rays, blocks, seed.
    """
    dataset = pipeline.datamanager.train_dataset
    branch_steps = max(steps // 2, 1)
    pixels = split_pixels(dataset, (steps + branch_steps) * config.rays, config)
    pair = [posed_cameras(pipeline, poses) for poses in (first, second)]
    devices = [pipeline.device] if torch.device(pipeline.device).type == "cuda" else []
    scores: List[Tensor] = []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(config.seed)
        model: HashPoseModel = judge_config(pipeline.config.model).setup(
            scene_box=dataset.scene_box, num_train_data=len(dataset), metadata=dataset.metadata, grad_scaler=None
        )
        model.to(pipeline.device).train()
        adam = torch.optim.Adam(model.field.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), eps=1e-15, fused=True)
        for step in range(steps):
            begin = step * config.rays
            middle, end = begin + config.rays // 2, begin + config.rays
            adam.zero_grad()
            for cameras, part in zip(pair, (slice(begin, middle), slice(middle, end))):
                (0.5 * _loss(model, cameras, pixels.train, part)).backward()
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
                _loss(model, cameras, pixels.train, slice(begin, begin + config.rays)).backward()
                adam.step()
            scores.append(_block_errors(model, cameras, pixels))
    return HeldOutErrors(scores[0], scores[1], pixels.block_cameras)


def posed_cameras(pipeline: "HashPosePipeline", camera_to_worlds: Float[Tensor, "num_cameras 3 4"]) -> Cameras:
    """The training cameras at other poses, on the pipeline's device."""
    cameras = copy.deepcopy(pipeline.datamanager.train_dataset.cameras).to(pipeline.device)
    cameras.camera_to_worlds = camera_to_worlds.to(pipeline.device).float()
    return cameras


def _predict(model: HashPoseModel, cameras: Cameras, pixels: Pixels, part: slice) -> Tuple[dict, Tensor]:
    """Renders some pixels; what came out, and their photographed colours."""
    device = model.device
    bundle = cameras.generate_rays(
        camera_indices=pixels.cameras[part, None].to(device), coords=pixels.coordinates[part].to(device)
    )
    return model(bundle), pixels.colors[part].to(device)


def _loss(model: HashPoseModel, cameras: Cameras, pixels: Pixels, part: slice) -> Tensor:
    outputs, colors = _predict(model, cameras, pixels, part)
    return model.get_loss_dict(outputs, {"image": colors})["rgb_loss"]


@torch.no_grad()
def _block_errors(model: HashPoseModel, cameras: Cameras, pixels: SplitPixels) -> Float[Tensor, "num_blocks"]:
    model.eval()
    model.field.train()  # each image's own appearance embedding, where there are embeddings; nothing else
    errors = []
    chunk = model.rays_per_chunk()
    for begin in range(0, len(pixels.held_out.cameras), chunk):
        outputs, colors = _predict(model, cameras, pixels.held_out, slice(begin, begin + chunk))
        target = model.renderer_rgb.blend_background(colors)
        errors.append((outputs["rgb"].clamp(0.0, 1.0) - target).square().mean(dim=-1))
    return torch.cat(errors).double().view(-1, PIXELS_PER_BLOCK).mean(dim=-1).cpu()
