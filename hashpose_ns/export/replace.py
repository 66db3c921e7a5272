"""Writing a folder all at once: either the whole of it appears under its name, or nothing does."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from hashpose_ns.errors import HashPoseError

EXPORTED_FILES = frozenset(
    ["transforms.json"]
    + [f"sparse/0/{part}.{ext}" for part in ("cameras", "images", "points3D") for ext in ("bin", "txt")]
)
"""Every file an export can consist of, relative to its folder. A folder with any other file in it is never replaced."""


def check_target(target: Path, overwrite: bool) -> None:
    """Check that a folder may be written, before any work goes into its contents.

    Args:
        target: where the export is to lie.
        overwrite: whether an earlier export there may be replaced.

    Raises:
        HashPoseError: if the target exists and may not be replaced: overwrite is off, it is not a folder, or it holds
            files no export wrote (an export into the folder of the images must not cost the images).
    """
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise HashPoseError(f"{target} exists and is not a folder; choose another --output-dir.")
    if not overwrite:
        raise HashPoseError(f"{target} exists; choose another --output-dir, or replace it with --overwrite True.")
    for path in sorted(target.rglob("*")):
        relative = path.relative_to(target).as_posix()
        if relative not in EXPORTED_FILES and not (path.is_dir() and not path.is_symlink()):
            raise HashPoseError(
                f"{target} is not overwritten because {relative} in it does not come from an export; choose another "
                "--output-dir."
            )


@contextmanager
def replaced_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that takes the target's name when the block ends without an exception.

    It lies beside the target, so that taking the name is a rename. With ``overwrite`` the earlier export is moved aside
    only once the new one is complete, and deleted last. On any exception, KeyboardInterrupt included, the target is as
    it was and nothing is left beside it.

    Args:
        target: where the export is to lie; missing parents are created.
        overwrite: whether an earlier export there may be replaced.

    Yields:
        The folder to write into.

    Raises:
        HashPoseError: as ``check_target``, and if the parent folder cannot be written.
    """
    target = target.resolve()
    check_target(target, overwrite)
    new_parents = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        _remove_empty(new_parents)
        raise HashPoseError(f"{target.parent} cannot be written ({error.strerror}).") from error
    earlier = temporary.with_suffix(".earlier")
    try:
        # mkdtemp's folder is closed to others; take the permissions any new folder here would get
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
        # what came to lie there meanwhile is as safe as what lay there before
        check_target(target, overwrite)
        if target.exists():
            os.rename(target, earlier)
        os.rename(temporary, target)
    except BaseException:
        if earlier.exists() and not target.exists():
            os.rename(earlier, target)
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(new_parents)
        raise
    finally:
        if target.exists():
            shutil.rmtree(earlier, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
