"""Where a run takes place: what a reader of its numbers has to know."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Optional, TypeVar

import torch

import hashpose_ns

PACKAGE = Path(hashpose_ns.__file__).parent
ContentT = TypeVar("ContentT")


def environment() -> Dict[str, Any]:
    """`commit` of this package, and `environment`: versions, processor, cores, GPU (None without), threads."""
    return {
        "commit": commit(),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "nerfstudio": importlib.metadata.version("nerfstudio"),
            "hashpose": hashpose_ns.__version__,
            "processor": processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
        },
    }


def commit() -> Optional[str]:
    """The commit of the checkout this package runs from, and whether there are changes on top; None outside of one."""
    if not (PACKAGE.parent / ".git").exists():  # the package may be installed in somebody else's repository
        return None
    head = _git("rev-parse", "HEAD")
    return f"{head} with uncommitted changes" if head and _git("status", "--porcelain", "--", PACKAGE.name) else head


def _git(*arguments: str) -> Optional[str]:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE.parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


# -- records -----------------------------------------------------------------------------------------------------------

_PATH = re.compile(r"(?<![\w.$*})])~?/(?:[^\s/'\":;,]+/)*[^\s/'\":;,]+")


def portable(content: ContentT) -> ContentT:
    """Content for a record that is published: no string in it holds an absolute path of this machine.

    Files of this checkout become relative to it, and of other paths the last two parts are left, behind `...`.

    Args:
        content: strings, numbers, lists and dictionaries of these.
    """
    if isinstance(content, dict):
        return {portable(key): portable(value) for key, value in content.items()}  # type: ignore[return-value]
    if isinstance(content, (list, tuple)):
        return [portable(value) for value in content]  # type: ignore[return-value]
    if not isinstance(content, str):
        return content

    def shorter(match: re.Match) -> str:
        path = Path(match[0])
        if path.is_relative_to(PACKAGE.parent):
            return str(path.relative_to(PACKAGE.parent))
        return ".../" + "/".join(path.parts[-2:] if len(path.parts) > 3 else path.parts[-1:])

    return _PATH.sub(shorter, content)  # type: ignore[return-value]


def command_line() -> str:
    """The command that runs, as it can be published."""
    program, *words = sys.argv
    name = f"python {portable(str(Path(program).absolute()))}" if program.endswith(".py") else Path(program).name
    return f"{name} {portable(shlex.join(words))}".strip()
