"""The encoding in plain torch, written to be read beside the paper and to test the fast backends against.

Heo et al. 2023, "Robust Camera Pose Refinement for Multi-Resolution Hash Encoding". Autograd differentiates what is
written here, so the gradients below are a construction, not a formula derived from it. Any floating dtype.

Eq. 13 replaces the weight ``w_i`` of corner i by ``w_i + lambda * delta(w_i) - lambda * stopgrad(delta(w_i))`` with
``delta(w) = (1 - cos(pi w)) / 2`` (Eq. 12). Its value is ``w_i``, its derivative ``(1 + lambda * delta'(w_i)) w_i'``.
The paper derives it in one dimension, where all of the following but ``linear`` agree:

* ``linear``: no smoothing, the gradient of d-linear interpolation.
* ``product``: Eq. 13 to the letter, on the product of the axes' weights. The surrogate weights' derivatives do not sum
  to zero, so that a constant table pushes points around.
* ``product_norm``: as before, then normalised to sum to one inside the graph (the paper's appendix B.1.1), which
  repairs that.
* ``axis``: Eq. 13 on each axis' weight before the product.
"""

from __future__ import annotations

import itertools
import math
from typing import List, Optional, Sequence, Tuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hashpose_ns.encoding.backends import Backend
from hashpose_ns.encoding.grid import PRIMES, Grid


def delta(w: Tensor) -> Tensor:
    """Eq. 12: the cosine ramp from (0, 0) to (1, 1), flat at both ends."""
    return (1 - torch.cos(math.pi * w)) / 2


def straight_through(w: Tensor, smoothing: float) -> Tensor:
    """Eq. 13: the value is exactly ``w``, the derivative that of ``w + smoothing * delta(w)``."""
    smooth = delta(w)
    return w + smoothing * (smooth - smooth.detach())  # the bracket is exactly 0, so no rounding enters the value


def normalized(w: Tensor) -> Tensor:
    """``w_i / sum_j w_j`` for weights that sum to one: the value is exactly ``w``, the derivative the quotient's."""
    total = w.sum(dim=0)
    return w / (1 + (total - total.detach()))


def vertex_rows(vertex: Int[Tensor, "batch d"], grid: Grid, level: int) -> Int[Tensor, "batch"]:
    """The table row of a grid vertex: row-major if the level is dense, otherwise Instant-ngp's hash."""
    rows = torch.zeros_like(vertex[:, 0])
    if grid.is_dense(level):
        for axis in range(grid.num_dims):
            rows = rows * (grid.resolutions[level] + 1) + vertex[:, axis]
        return rows
    for axis in range(grid.num_dims):
        rows = rows ^ (vertex[:, axis] * PRIMES[axis])
    return rows & grid.hash_mask(level)  # int64 products keep the low 32 bits that the mask looks at


def encode_level(
    x: Float[Tensor, "batch d"], table: Float[Tensor, "entries F"], grid: Grid, level: int
) -> Float[Tensor, "batch F"]:
    """Interpolates one level. Points must lie in the unit box."""
    resolution = grid.resolutions[level]
    position = x * resolution
    cell = position.detach().to(torch.int64).clamp(0, resolution - 1)  # x = 1 belongs to the last cell
    fraction = position - cell

    if grid.gradient == "axis" and not grid.forward_smoothing:
        fraction = straight_through(fraction, grid.smoothing)

    corners = list(itertools.product((0, 1), repeat=grid.num_dims))
    weights, features = [], []
    for corner in corners:
        offset = torch.tensor(corner, device=x.device)
        weights.append(torch.where(offset == 1, fraction, 1 - fraction).prod(dim=-1))
        features.append(table[vertex_rows(cell + offset, grid, level)])
    w = torch.stack(weights)  # [2^d, batch]

    if grid.forward_smoothing:  # the ablation: smooth weights, normalised, in the forward pass as well
        w = delta(w) / delta(w).sum(dim=0)
    elif grid.gradient == "product":
        w = straight_through(w, grid.smoothing)
    elif grid.gradient == "product_norm":
        w = normalized(straight_through(w, grid.smoothing))

    return (w[..., None] * torch.stack(features)).sum(dim=0)


def encode(x: Float[Tensor, "batch d"], tables: Sequence[Tensor], grid: Grid) -> Float[Tensor, "batch out"]:
    """Features of all levels side by side, differentiable with respect to points and tables by autograd."""
    inside = (x >= 0) & (x <= 1)  # per axis, faces included: torch versions differ in clamp's gradient there
    x = torch.where(inside, x, x.detach().clamp(0, 1))
    return torch.cat([encode_level(x, table, grid, level) for level, table in enumerate(tables)], dim=-1)


class ReferenceBackend(Backend):
    """:func:`encode` behind the backends' interface; the backward pass runs it again under autograd."""

    name = "reference"

    def unsupported(self, device: torch.device, dtype: torch.dtype, grid: Grid) -> Optional[str]:
        return None

    def forward(self, x: Tensor, tables: Sequence[Tensor], grid: Grid) -> Tensor:
        return encode(x, tables, grid)

    def backward(
        self,
        grad_output: Tensor,
        x: Tensor,
        tables: Sequence[Tensor],
        grid: Grid,
        x_needs_grad: bool,
        table_needs_grad: Sequence[bool],
    ) -> Tuple[Optional[Tensor], List[Optional[Tensor]]]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(x_needs_grad)
            tables = [table.detach().requires_grad_(need) for table, need in zip(tables, table_needs_grad)]
            output = encode(x, tables, grid)
        wanted = [tensor for tensor in (x, *tables) if tensor.requires_grad]
        grads = iter(torch.autograd.grad(output, wanted, grad_output))
        x_grad = next(grads) if x_needs_grad else None
        return x_grad, [next(grads) if need else None for need in table_needs_grad]


BACKEND = ReferenceBackend()
