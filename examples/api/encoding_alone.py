"""The hash encoding in a network of your own: fits a picture, then asks for the gradient of positions.

python examples/api/encoding_alone.py
"""

import torch
from torch import nn

from hashpose_ns import HashEncodingConfig

torch.manual_seed(0)
config = HashEncodingConfig(num_levels=6, base_resolution=4, max_resolution=64, log2_hashmap_size=14, gradient="axis")
encoding = config.setup(num_dims=2)
network = nn.Sequential(encoding, nn.Linear(encoding.out_dim, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

for _ in range(200):
    points = torch.rand(1024, 2)
    rings = (20 * (points - 0.5).norm(dim=-1, keepdim=True)).sin()
    loss = nn.functional.mse_loss(network(points), rings)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

points = torch.rand(5, 2, requires_grad=True)
network(points).sum().backward()
print(f"loss {float(loss):.4f}; gradient of five positions:\n{points.grad}")
