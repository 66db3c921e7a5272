"""hashpose: camera poses and a hash-grid radiance field recovered together, as nerfstudio methods."""

__version__ = "0.1.0"
