"""Many coloured lines as one object of the scene: viser 0.2.7 has no other object with a colour per line."""

from __future__ import annotations

import json
import struct
from typing import Union

import numpy as np
from jaxtyping import Float, UInt8

SIDES = 3
"""Sides of a tube, as viser's own frustums have."""

FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT = 5126, 5121, 5123
"""glTF 2.0's component types."""


def tubes_glb(
    lines: Float[np.ndarray, "num_lines 2 3"],
    colors: UInt8[np.ndarray, "num_lines 3"],
    radius: Union[float, Float[np.ndarray, "num_lines"]],
) -> bytes:
    """Straight tubes as a binary glTF 2.0 file with a colour per tube, drawn without light or shade.

    Lines proper would be smaller, but viser's client frees only meshes when an object is replaced.

    Args:
        lines: the ends of at least one and at most 10922 lines, which have 65532 corners.
        colors: sRGB.
        radius: of the tubes, of all or of each, in the unit of the lines.
    """
    along = lines[:, 1] - lines[:, 0]
    along = along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-12)
    # any direction that is not the line's: the axis it is furthest from
    other = np.eye(3, dtype=lines.dtype)[np.abs(along).argmin(axis=-1)]
    first = np.cross(along, other)
    first /= np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-12)
    second = np.cross(along, first)
    angles = 2 * np.pi * np.arange(SIDES) / SIDES
    ring = np.cos(angles)[:, None] * first[:, None] + np.sin(angles)[:, None] * second[:, None]
    positions = (lines[:, :, None] + np.reshape(radius, (-1, 1, 1, 1)) * ring[:, None]).astype("<f4").reshape(-1, 3)

    here, there = np.arange(SIDES), (np.arange(SIDES) + 1) % SIDES
    sides = np.stack([here, there, here + SIDES, there, there + SIDES, here + SIDES], axis=-1).reshape(-1)
    indices = (2 * SIDES * np.arange(len(lines))[:, None] + sides).astype("<u2").reshape(-1)

    linear = (colors / 255.0) ** 2.2  # glTF's vertex colours are linear
    rgba = np.concatenate([np.round(255 * linear), np.full((len(lines), 1), 255)], axis=-1).astype(np.uint8)
    rgba = np.repeat(rgba, 2 * SIDES, axis=0)
    return _glb(positions, rgba, indices)


def _glb(positions: np.ndarray, rgba: np.ndarray, indices: np.ndarray) -> bytes:
    parts = [positions.tobytes(), rgba.tobytes(), indices.tobytes()]  # each a multiple of four bytes
    starts = np.cumsum([0] + [len(part) for part in parts])[:-1].tolist()
    low, high = positions.min(axis=0).tolist(), positions.max(axis=0).tolist()
    content = {
        "asset": {"version": "2.0"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}]}],
        "materials": [{"extensions": {"KHR_materials_unlit": {}}, "doubleSided": True}],
        "buffers": [{"byteLength": sum(map(len, parts))}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": len(part)} for start, part in zip(starts, parts)
        ],
        "accessors": [
            {"bufferView": 0, "componentType": FLOAT, "count": len(positions), "type": "VEC3", "min": low, "max": high},
            {
                "bufferView": 1,
                "componentType": UNSIGNED_BYTE,
                "normalized": True,
                "count": len(rgba),
                "type": "VEC4",
            },
            {"bufferView": 2, "componentType": UNSIGNED_SHORT, "count": len(indices), "type": "SCALAR"},
        ],
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    binary = b"".join(parts)
    size = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, size),
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(binary), b"BIN\0"),
            binary,
        ]
    )
