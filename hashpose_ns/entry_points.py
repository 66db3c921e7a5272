"""What nerfstudio's entry points name. Nothing in here raises.

nerfstudio loads every plugin's entry points at the start of every ns-* command and catches nothing, so that one plugin
that cannot be imported (a dependency removed, a half-finished upgrade) would take all commands with it. Here such a
failure becomes an object that nerfstudio reports and leaves out.
"""

from __future__ import annotations

import importlib
from typing import Any

TARGETS = {
    "hashpose": ("hashpose_ns.methods", "hashpose"),
    "hashpose_blender": ("hashpose_ns.methods", "blender"),
    "hashpose_llff": ("hashpose_ns.methods", "llff"),
    "hashpose_small": ("hashpose_ns.methods", "small"),
    "hashpose_object": ("hashpose_ns.methods", "object_"),
    "hashpose_object_fine": ("hashpose_ns.methods", "object_fine"),
    "llff_data": ("hashpose_ns.data.llff_dataparser", "LLFFDataParserSpecification"),
}


def __getattr__(name: str) -> Any:
    """The specification an entry point stands for, or a sentence on why there is none."""
    if name not in TARGETS:
        raise AttributeError(name)
    module, attribute = TARGETS[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever it is, the other commands must go on
        return f"{name.replace('_', '-')} ({type(error).__name__}: {error})"
