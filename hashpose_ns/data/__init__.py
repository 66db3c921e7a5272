"""Dataparsers that nerfstudio lacks."""
