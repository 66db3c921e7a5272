"""What to call images."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence


def image_names(filenames: Sequence[Path]) -> List[str]:
    """File names as a person would call the images, unique among them: with as many folders as it takes."""
    names = [Path(name).name for name in filenames]
    return names if len(set(names)) == len(names) else [Path(name).as_posix() for name in filenames]
