"""Poses in nerfstudio's live viewer."""
