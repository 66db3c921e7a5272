"""The multi-resolution hash encoding with smoothed gradients, and its settings."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Optional, Sequence, Tuple, Type

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hashpose_ns.encoding.backends import Backend, choose_backend
from hashpose_ns.encoding.grid import READINGS, GradientReading, Grid, level_resolutions
from hashpose_ns.errors import HashPoseError
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.field_components.encodings import Encoding


@dataclass
class HashEncodingConfig(InstantiateConfig):
    """Settings of :class:`SmoothedHashEncoding`; ``setup(num_dims=3)`` makes one."""

    _target: Type = field(default_factory=lambda: SmoothedHashEncoding)
    """Class to instantiate."""
    num_levels: int = 16
    """Number of grids, from coarse to fine."""
    features_per_level: int = 2
    """Features stored at every vertex of a grid."""
    log2_hashmap_size: int = 19
    """A level's table has at most 2^this rows; levels with more vertices than that share rows by hashing."""
    base_resolution: int = 16
    """Cells per axis of the coarsest level."""
    max_resolution: int = 2048
    """Cells per axis of the finest level; those between grow geometrically."""
    gradient: GradientReading = "axis"
    """How the interpolation passes gradients to positions; features never change.
    - linear: plain d-linear interpolation.
    - product: each corner's weight is smoothed (the paper's Eq. 11-13 to the letter).
    - product_norm: as product, with normalised weights.
    - axis: the weight along each axis is smoothed."""
    smoothing: float = 1.0
    """Strength lambda of the smoothing; 0 makes every reading linear."""
    forward_smoothing: bool = False
    """Ablation: interpolate with the normalised smooth weights, features included.
    Replaces gradient and smoothing."""
    init_scale: float = 1e-4
    """Tables start uniformly distributed between 0 and this."""
    backend: Literal["auto", "reference", "eager", "cpp", "triton"] = "auto"
    """Implementation of the encoding.
    - auto: the fastest that works on the device.
    - reference: plain PyTorch, slow.
    - eager: tuned PyTorch.
    - cpp: compiled on first use, for CPUs.
    - triton: for NVIDIA GPUs."""


class SmoothedHashEncoding(Encoding):
    """Multi-resolution hash encoding whose features are d-linear in x and whose x-gradient is smoothed.

    Level l has ``N_l`` cells and ``N_l + 1`` vertices per axis; a point of the unit box lies at ``p = N_l x``. With the
    fraction ``f`` of p in its cell, corner features ``H_i`` and ``u_j = f_j`` or ``1 - f_j``, the features are
    ``h = sum_i w_i H_i``, ``w_i = prod_j u_j``. The gradient of h with respect to the tables is ``w_i``, always. The
    one with respect to ``x_k`` is ``N_l`` times, with ``s_k = 1`` or ``-1`` and ``delta'(w) = (pi / 2) sin(pi w)``:

    ============  ==========================================================================
    linear        ``sum_i H_i s_k prod_{j != k} u_j``
    product       ``sum_i H_i (1 + lambda delta'(w_i)) s_k prod_{j != k} u_j``
    product_norm  ``sum_i (H_i - h) (1 + lambda delta'(w_i)) s_k prod_{j != k} u_j``
    axis          ``(1 + lambda delta'(f_k)) sum_i H_i s_k prod_{j != k} u_j``
    ============  ==========================================================================

    Args:
        config: Settings.
        num_dims: Dimensions of a point, 2 or 3.

    Attributes:
        tables: One parameter per level, [entries_l, F], ``entries_l = min((N_l + 1)^d, 2^T)``. Levels that fit are
            stored row-major, so that they view as [N_l + 1, ..., N_l + 1, F].
        resolutions: ``N_l`` per level.
        num_levels: L.
        out_dim: L * F.

    Raises:
        HashPoseError: If a setting is out of range.
    """

    def __init__(self, config: HashEncodingConfig, num_dims: int = 3) -> None:
        _check(config, num_dims)
        super().__init__(in_dim=num_dims)
        self.config = config
        self.num_dims = num_dims
        self.num_levels = config.num_levels
        self.out_dim: int = config.num_levels * config.features_per_level
        self.resolutions: List[int] = level_resolutions(
            config.num_levels, config.base_resolution, config.max_resolution
        )
        grid = self.grid
        self.tables = nn.ParameterList(
            nn.Parameter(torch.rand(grid.num_entries(level), config.features_per_level) * config.init_scale)
            for level in range(config.num_levels)
        )
        self._backends: Dict[Tuple[Any, ...], Backend] = {}

    @property
    def grid(self) -> Grid:
        """What backends need to know; follows the config, so that a reading can be changed on a trained encoding."""
        return Grid(
            num_dims=self.num_dims,
            features_per_level=self.config.features_per_level,
            resolutions=tuple(self.resolutions),
            log2_hashmap_size=self.config.log2_hashmap_size,
            gradient=self.config.gradient,
            smoothing=self.config.smoothing,
            forward_smoothing=self.config.forward_smoothing,
        )

    def get_out_dim(self) -> int:
        """L * F."""
        return self.out_dim

    def forward(
        self,
        x: Float[Tensor, "*batch d"],
        train_levels: Optional[Sequence[bool]] = None,
        gradient: Optional[GradientReading] = None,
    ) -> Float[Tensor, "*batch out_dim"]:
        """Encodes points.

        Computes in float32, or in float64 if the tables are, whatever autocast says.

        Args:
            x: Points of the unit box. Others are moved to its surface and get no gradient along the axes they were
                moved along.
            train_levels: Per level, whether its table takes part in training. Where False, the table gets no gradient
                at all (``grad`` stays None); features and x-gradients are those of the full encoding. Default: all.
            gradient: The reading of the x-gradient in this call, if other than the settings'.

        Returns:
            Features, level-major: column ``l * F + f``.

        Raises:
            HashPoseError: If shapes, devices or the number of levels do not match, or a forced backend cannot do this.
        """
        if x.shape[-1] != self.num_dims:
            raise HashPoseError(f"Expected points of {self.num_dims} dimensions, got shape {tuple(x.shape)}.")
        if train_levels is not None and len(train_levels) != self.num_levels:
            raise HashPoseError(f"train_levels has {len(train_levels)} entries for {self.num_levels} levels.")

        if x.device != self.tables[0].device:  # a kernel that is handed addresses could not notice
            raise HashPoseError(f"The points are on {x.device} and the hash tables on {self.tables[0].device}.")

        dtype = torch.float64 if self.tables[0].dtype == torch.float64 else torch.float32
        tables = [
            (table if train_levels is None or train_levels[level] else table.detach()).to(dtype)
            for level, table in enumerate(self.tables)
        ]
        points = x.reshape(-1, self.num_dims).to(dtype)
        grid = self.grid if gradient is None else dataclasses.replace(self.grid, gradient=gradient)
        features = _Encode.apply(self._backend(points, grid), grid, points, *tables)
        return features.view(*x.shape[:-1], self.out_dim)

    def _backend(self, points: Tensor, grid: Grid) -> Backend:
        # Not the whole grid: a smoothing that changes every step must not add an entry every step.
        key = (self.config.backend, points.device, points.dtype, grid.gradient, grid.forward_smoothing)
        if key not in self._backends:
            self._backends[key] = choose_backend(self.config.backend, points.device, points.dtype, grid)
        return self._backends[key]


class _Encode(torch.autograd.Function):
    """Hands forward and backward to a backend. Saves its inputs only: backends recompute the weights."""

    @staticmethod
    def forward(ctx: Any, backend: Backend, grid: Grid, x: Tensor, *tables: Tensor) -> Tensor:
        ctx.backend, ctx.grid = backend, grid
        ctx.save_for_backward(x, *tables)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return backend.forward(x.contiguous(), tables, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, *tables = ctx.saved_tensors
        _, _, x_needs_grad, *table_needs_grad = ctx.needs_input_grad
        with torch.autocast(device_type=x.device.type, enabled=False):
            x_grad, table_grads = ctx.backend.backward(
                grad_output.to(x.dtype).contiguous(), x.contiguous(), tables, ctx.grid, x_needs_grad, table_needs_grad
            )
        return (None, None, x_grad, *table_grads)


def _check(config: HashEncodingConfig, num_dims: int) -> None:
    """Raises a HashPoseError that names the setting which is out of range."""
    if num_dims not in (2, 3):
        raise HashPoseError(f"The hash encoding takes points of 2 or 3 dimensions, not {num_dims}.")
    if config.num_levels < 1 or config.features_per_level < 1:
        raise HashPoseError("num_levels and features_per_level must be at least 1.")
    if not 1 <= config.base_resolution <= config.max_resolution <= 2**20:
        raise HashPoseError(
            "Resolutions must satisfy 1 <= base_resolution <= max_resolution <= 2^20, "
            f"not {config.base_resolution} and {config.max_resolution}."
        )
    if not 1 <= config.log2_hashmap_size <= 30:
        raise HashPoseError(f"log2_hashmap_size must be between 1 and 30, not {config.log2_hashmap_size}.")
    if config.gradient not in READINGS:
        raise HashPoseError(f"gradient must be one of {', '.join(READINGS)}, not '{config.gradient}'.")
    if not (math.isfinite(config.smoothing) and config.smoothing >= 0):
        raise HashPoseError(f"smoothing must be a finite number that is not negative, not {config.smoothing}.")
