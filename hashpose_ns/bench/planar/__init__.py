"""`hashpose-bench planar`: planar image alignment, pose recovery in two dimensions (Lin et al. 2021, BARF)."""

from hashpose_ns.bench.planar.settings import Planar

__all__ = ["Planar"]
