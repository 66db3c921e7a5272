"""Poses of a handful of photographs of one object, by a small network after SparsePose (Sinha et al., CVPR 2023)."""
