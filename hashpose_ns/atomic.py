"""Atomic writes: a file appears under its name complete, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional


@contextmanager
def whole_file(target: Path, beside: Optional[Path] = None) -> Iterator[Path]:
    """A temporary file that takes the target's name when the block ends without an exception.

    It has the target's own name in a hidden folder beside it, so that taking the name is a rename within one file
    system and writers that look at the ending work. On any exception, KeyboardInterrupt included, the target is as it
    was and nothing is left beside it.

    Args:
        target: the file; one that exists is replaced. Its folder must exist.
        beside: another folder for the hidden one, in the same file system, if the target's must hold nothing else.

    Yields:
        The path to write.

    Raises:
        OSError: the folder cannot be written.
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=beside or target.parent))
    try:
        yield staging / target.name
        os.replace(staging / target.name, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_whole(target: Path, content: str | bytes) -> None:
    """Writes text (as UTF-8) or bytes at once, see `whole_file`."""
    with whole_file(target) as path:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
