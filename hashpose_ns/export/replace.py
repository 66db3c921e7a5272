"""Writing a folder all at once: either the whole of it appears under its name, or nothing does."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple

from hashpose_ns.atomic import whole_file
from hashpose_ns.errors import HashPoseError

EXPORTED_FILES = frozenset(
    ["transforms.json"]
    + [f"sparse/0/{part}.{ext}" for part in ("cameras", "images", "points3D") for ext in ("bin", "txt")]
)
"""What exports consisted of before they listed their files, relative to their folder."""

MANIFEST = "export.json"
"""File in every export that lists the files of it, and says what was exported."""


def exported_files(target: Path) -> Callable[[str], bool]:
    """Whether a file of this path, relative to an earlier export's folder, came from that export. A folder with any
    other file in it is never replaced."""
    try:
        listed = set(json.loads((target / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        listed = set()
    return (EXPORTED_FILES | {MANIFEST} | listed).__contains__


def check_target(
    target: Path,
    overwrite: bool,
    is_own: Optional[Callable[[str], bool]] = None,
    what: str = "an export",
) -> None:
    """Check that a folder may be written, before any work goes into its contents.

    Args:
        target: where the export is to lie.
        overwrite: whether an earlier export there may be replaced.
        is_own: whether a file of this path, relative to the folder, can come from what is being written;
            ``exported_files`` of the target when None.
        what: what that is.

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
    is_own = is_own or exported_files(target)
    for path in sorted(target.rglob("*")):
        relative = path.relative_to(target).as_posix()
        if not is_own(relative) and not (path.is_dir() and not path.is_symlink()):
            raise HashPoseError(
                f"{target} is not overwritten because {relative} in it does not come from {what}; choose another "
                "--output-dir."
            )


@contextmanager
def replaced_folder(
    target: Path,
    overwrite: bool = False,
    is_own: Optional[Callable[[str], bool]] = None,
    what: str = "an export",
) -> Iterator[Path]:
    """A temporary folder that takes the target's name when the block ends without an exception.

    It lies beside the target, so that taking the name is a rename. With ``overwrite`` the earlier export is moved aside
    only once the new one is complete, and deleted last. On any exception, KeyboardInterrupt included, the target is as
    it was and nothing is left beside it.

    Args:
        target: where the export is to lie; missing parents are created.
        overwrite: whether an earlier export there may be replaced.
        is_own, what: as for ``check_target``.

    Yields:
        The folder to write into.

    Raises:
        HashPoseError: as ``check_target``, and if the parent folder cannot be written.
    """
    target = target.resolve()
    check_target(target, overwrite, is_own, what)
    temporary, new_parents = _staging_folder(target)
    earlier = temporary.with_suffix(".earlier")
    try:
        # mkdtemp's folder is closed to others; take the permissions any new folder here would get
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
        # what came to lie there meanwhile is as safe as what lay there before
        check_target(target, overwrite, is_own, what)
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


@contextmanager
def replaced_file(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary file beside the target that takes its name when the block ends without an exception.

    Args:
        target: where the file is to lie; missing parents are created.
        overwrite: whether a file there may be replaced.

    Yields:
        The file to write.

    Raises:
        HashPoseError: if the target exists and may not be replaced, or its folder cannot be written.
    """
    check_target_file(target, overwrite)
    new_parents = _made_parents(target)
    try:
        with ExitStack() as stack:
            try:
                path = stack.enter_context(whole_file(target))
            except OSError as error:
                raise HashPoseError(f"{target.parent} cannot be written ({error.strerror}).") from error
            yield path
            check_target_file(target, overwrite)
    except BaseException:
        _remove_empty(new_parents)
        raise


def check_target_file(target: Path, overwrite: bool) -> None:
    """Raises HashPoseError if something lies at the target that may not be replaced."""
    if target.is_dir():
        raise HashPoseError(f"{target} is a folder; give the name of a file to write.")
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise HashPoseError(f"{target} exists; choose another --output-path, or replace it with --overwrite True.")


def _made_parents(target: Path) -> List[Path]:
    """Creates a target's missing parents; those that were missing, innermost first."""
    missing = [parent for parent in target.absolute().parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise HashPoseError(f"{target.parent} cannot be written ({error.strerror}).") from error
    return missing


def _staging_folder(target: Path) -> Tuple[Path, List[Path]]:
    """A new hidden folder beside a target, and the target's parents that had to be made for it."""
    new_parents = _made_parents(target)
    try:
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)), new_parents
    except OSError as error:
        _remove_empty(new_parents)
        raise HashPoseError(f"{target.parent} cannot be written ({error.strerror}).") from error


def _remove_empty(folders: List[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
