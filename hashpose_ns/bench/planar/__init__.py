"""`hashpose-bench planar`: planar image alignment, the two-dimensional case of pose recovery (Lin et al. 2021, BARF)."""

from hashpose_ns.bench.planar.settings import Planar

__all__ = ["Planar"]
