"""Poses of your own problem: PoseOptimizer corrects cameras by any loss that is differentiable in their poses.

python examples/api/own_field.py
"""

import torch

from hashpose_ns import PoseOptimizer, PoseOptimizerConfig, Similarity, pose_errors

torch.manual_seed(0)
true = torch.eye(4)[:3].repeat(6, 1, 1)
true[:, :, 3] = torch.randn(6, 3) + torch.tensor([0.0, 0.0, 5.0])  # cameras that look along -z
points = torch.randn(50, 3)


def pictures(poses: torch.Tensor) -> torch.Tensor:
    """Projections of the points; this is where a field of your own would render."""
    in_camera = torch.einsum("cij,cpi->cpj", poses[:, :, :3], points - poses[:, None, :, 3])
    return in_camera[..., :2] / -in_camera[..., 2:]


perturbed = true.clone()
perturbed[2:, :, 3] += 0.1 * torch.randn(4, 3)
config = PoseOptimizerConfig(mode="SE3", frozen_cameras=("0", "1"))  # these two fix the frame
names = [f"{index}.jpg" for index in range(6)]
poses = PoseOptimizer(config, 6, "cpu", initial_camera_to_worlds=perturbed, image_names=names)
groups: dict = {}
poses.get_param_groups(groups)
optimizer = torch.optim.Adam(groups["camera_opt"], lr=1e-2)
for _ in range(300):
    optimizer.zero_grad()
    (pictures(poses.refined_camera_to_worlds()) - pictures(true)).square().mean().backward()
    optimizer.step()

errors = pose_errors(poses.refined_camera_to_worlds(), true, Similarity.identity())
print(f"centres are {float(errors.center.mean()):.4f} from the truth")
