"""The geometry of a multi-resolution grid: how fine each level is and in which table row a vertex is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Literal, Tuple

GradientReading = Literal["linear", "product", "product_norm", "axis"]

READINGS: Tuple[str, ...] = ("linear", "product", "product_norm", "axis")
"""Every :data:`GradientReading`; the position in this tuple is the number the compiled kernels know it by."""

PRIMES: Tuple[int, int, int] = (1, 2654435761, 805459861)
"""Instant-ngp's hash: the vertex' coordinates times these, modulo 2^32, xor-ed, masked to the table's size."""


def level_resolutions(num_levels: int, base_resolution: int, max_resolution: int) -> List[int]:
    """Cells per axis of every level, coarsest first: a geometric series from ``base_resolution`` to ``max_resolution``.

    ``N_l = floor(N_min * (N_max / N_min)^(l / (L - 1)))``. The last level has exactly ``max_resolution`` cells (in
    floating point ``floor(16 * b**15)`` would be 2047 for 2048). A single level has ``base_resolution`` cells.
    """
    if num_levels == 1:
        return [base_resolution]
    growth = max_resolution / base_resolution
    # The tolerance keeps levels that are whole numbers on paper (e.g. 16, 32, 64, ...) from falling one short.
    inner = [int(base_resolution * growth ** (level / (num_levels - 1)) + 1e-6) for level in range(num_levels - 1)]
    return inner + [max_resolution]


@dataclass(frozen=True)
class Grid:
    """All that a backend has to know beside the points and the tables. Immutable."""

    num_dims: int
    """Dimensions of a point, 2 or 3."""
    features_per_level: int
    """F, the columns of every table."""
    resolutions: Tuple[int, ...]
    """N_l, cells per axis of every level."""
    log2_hashmap_size: int
    """T: no table has more than 2^T rows."""
    gradient: str
    """The reading of the paper's Eq. 11-13, one of :data:`READINGS`."""
    smoothing: float
    """lambda of Eq. 13."""
    forward_smoothing: bool
    """True if the forward itself interpolates with ``delta(w_i) / sum_j delta(w_j)``."""

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.resolutions)

    def is_dense(self, level: int) -> bool:
        """True if every vertex of the level has a row of its own."""
        return (self.resolutions[level] + 1) ** self.num_dims <= 2**self.log2_hashmap_size

    def num_entries(self, level: int) -> int:
        """Rows of the level's table. A dense table is row-major: it views as [N+1, ..., N+1, F], indexed by vertex."""
        return min((self.resolutions[level] + 1) ** self.num_dims, 2**self.log2_hashmap_size)

    def hash_mask(self, level: int) -> int:
        """The mask to apply to the hash of a vertex, or 0 for a dense level."""
        return 0 if self.is_dense(level) else 2**self.log2_hashmap_size - 1
