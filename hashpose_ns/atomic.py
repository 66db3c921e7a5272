"""Atomic writes: a file appears under its name complete, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Iterator, Optional

try:
    import fcntl
except ImportError:  # Windows: nobody can tell whether a staging folder is still in use, so none is cleared away
    fcntl = None  # type: ignore


@contextmanager
def whole_file(target: Path, beside: Optional[Path] = None) -> Iterator[Path]:
    """A temporary file that takes the target's name when the block ends without an exception.

    It has the target's own name in a hidden folder beside it, so that taking the name is a rename within one file
    system and writers that look at the ending work. On any exception, KeyboardInterrupt included, the target is as it
    was and nothing is left beside it. What a killed process left is cleared away by the next one.

    Args:
        target: the file; one that exists is replaced. Its folder must exist.
        beside: another folder for the hidden one, in the same file system, if the target's must hold nothing else.

    Yields:
        The path to write.

    Raises:
        OSError: the folder cannot be written.
    """
    for abandoned in abandoned_staging_folders(target, beside):
        if {path.name for path in abandoned.iterdir()} <= {target.name}:
            shutil.rmtree(abandoned, ignore_errors=True)
    with staging_folder(target, beside) as staging:
        try:
            yield staging / target.name
            os.replace(staging / target.name, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def write_whole(target: Path, content: str | bytes) -> None:
    """Writes text (as UTF-8) or bytes at once, see `whole_file`."""
    with whole_file(target) as path:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def staging_folder(target: Path, beside: Optional[Path] = None) -> Iterator[Path]:
    """A new hidden folder in which something is made ready to take a target's name.

    It is removed at the end if it is empty. As long as the block runs, the folder is locked, by which other processes
    know that it is in use; the lock goes with the process however that ends.

    Args:
        target: what is made; its folder must exist.
        beside: another folder to lie in than the target's.

    Raises:
        OSError: the folder cannot be made.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=beside or target.parent))
        with ExitStack() as stack:
            with suppress(FileNotFoundError):
                stack.enter_context(_locked(folder))
            if not folder.exists():  # somebody took it for abandoned before it was locked
                continue
            try:
                yield folder
            finally:
                with suppress(OSError):
                    folder.rmdir()
            return


def abandoned_staging_folders(target: Path, beside: Optional[Path] = None) -> Iterator[Path]:
    """The staging folders of a target that killed processes left, each locked while the caller has it."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}\.partial")
    parent = beside or target.parent
    try:
        names = sorted(os.listdir(parent)) if fcntl is not None else []
    except OSError:
        return
    for name in names:
        folder = parent / name
        if pattern.fullmatch(name) and folder.is_dir() and not folder.is_symlink():
            with suppress(OSError), _locked(folder, wait=False):
                yield folder


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Holds the lock on a folder.

    Raises:
        OSError: another process holds it and this one does not wait, or the file system knows no locks.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # without locks one can write, but not tell what is abandoned
            if not wait:
                raise
        yield
    finally:
        os.close(descriptor)
