"""Training with every backend ends where it ends with plain PyTorch: the same losses, the same poses."""

from __future__ import annotations

from typing import Tuple

import roma
import torch
from scenes import training_metadata
from torch import Tensor

from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.encoding.triton import interpreted
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from hashpose_ns.optim.schedules import AdamConfig, ScheduleConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.optimizers import Optimizers

STEPS, CAMERAS, RAYS = 8 if interpreted() else 20, 3, 48


def train(backend: str, device: torch.device, **encoding) -> Tuple[Tensor, Tensor]:
    """Losses of all steps and the poses' final corrections; the curriculum opens levels on the way."""
    torch.manual_seed(0)
    config = HashPoseModelConfig(
        field=HashPoseFieldConfig(
            encoding=HashEncodingConfig(
                num_levels=4,
                base_resolution=4,
                max_resolution=32,
                log2_hashmap_size=10,
                init_scale=1.0,
                backend=backend,  # type: ignore
                **encoding,
            ),
            decoder=DecoderConfig(width=16, precision="float32"),
        ),
        camera_optimizer=PoseOptimizerConfig(start=0.1, warmup=0.1),
        curriculum=CurriculumConfig(window=(0.1, 0.8)),
        scene="none",
        sampler="uniform",
        near_plane=1.0,
        far_plane=5.0,
        num_samples=8,
    )
    rotations = roma.random_rotmat(CAMERAS, generator=torch.Generator().manual_seed(1))
    poses = torch.cat([rotations, 3 * rotations[:, :, 2:]], dim=-1)
    model = config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-1.5] * 3, [1.5] * 3])),
        num_train_data=CAMERAS,
        metadata=training_metadata(poses),
    ).to(device)
    model.set_training_length(STEPS)
    cameras = Cameras(camera_to_worlds=poses, fx=20.0, fy=20.0, cx=8.0, cy=8.0, width=16, height=16)
    factors, groups = model.rate_factors(), model.get_param_groups()
    optimizers = Optimizers(
        {
            name: {
                "optimizer": AdamConfig(lr=1e-2),
                "scheduler": ScheduleConfig(total_steps=STEPS, factors=factors.get(name)),
            }
            for name in groups
        },
        groups,
    )
    losses = []
    for step in range(STEPS):
        model.update_to_step(step)
        torch.manual_seed(step)
        indices = torch.randint(CAMERAS, (RAYS, 1))
        rays = cameras.generate_rays(indices, coords=16 * torch.rand(RAYS, 2)).to(device)
        target = 0.5 + 0.5 * torch.sin(3 * rays.directions)
        optimizers.zero_grad_all()
        loss = model.get_loss_dict(model(rays), {"image": target})["rgb_loss"]
        loss.backward()
        optimizers.optimizer_step_all()
        for scheduler in optimizers.schedulers.values():
            scheduler.step()
        losses.append(loss.detach().cpu())
    return torch.stack(losses), model.camera_optimizer.pose_adjustment.detach().cpu()


def distances(one: Tuple[Tensor, Tensor], other: Tuple[Tensor, Tensor]) -> Tuple[float, float]:
    """Largest relative difference of losses, and difference of the corrections relative to their size."""
    losses = ((one[0] - other[0]).abs() / other[0]).max()
    return float(losses), float((one[1] - other[1]).norm() / other[1].norm())


def test_training_ends_at_the_same_losses_and_poses(backend):
    expected = train("reference", torch.device("cpu"))
    assert expected[0][-1] < 0.9 * expected[0][0] and expected[1].norm() > 0.05, "something was learned"
    found = distances(train(backend.name, backend.device), expected)
    assert max(found) < (1e-4 if backend.device.type == "cpu" else 5e-3), found
    # Another reading of the gradient is told from rounding.
    assert distances(train("eager", torch.device("cpu"), gradient="linear"), expected)[1] > 0.02
