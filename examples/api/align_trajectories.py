"""Compares two trajectories that differ by a similarity: align, then take errors.

python examples/api/align_trajectories.py
"""

import math

import torch

from hashpose_ns import align_poses, pose_errors

generator = torch.Generator().manual_seed(0)
angles = torch.linspace(0, 2 * math.pi, 25, dtype=torch.float64)[:-1]
true = torch.zeros(24, 3, 4, dtype=torch.float64)
true[:, 0, 0] = true[:, 2, 2] = angles.cos()
true[:, 0, 2], true[:, 2, 0], true[:, 1, 1] = angles.sin(), -angles.sin(), 1.0
true[:, :, 3] = 4 * true[:, :, 2]  # on a circle, looking at its middle

estimated = true.clone()  # the same cameras in a frame of half the size, with noise
estimated[:, :, 3] = 0.5 * estimated[:, :, 3] + 0.01 * torch.randn(24, 3, generator=generator, dtype=torch.float64)

similarity = align_poses(estimated, true)
errors = pose_errors(estimated, true, similarity)
print(f"scale {float(similarity.scale):.3f}")
print(f"rotation {float(errors.rotation_deg.mean()):.3f} degrees, centres {float(errors.center.mean()):.4f}")
