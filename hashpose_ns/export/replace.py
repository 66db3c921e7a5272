"""Writing a folder all at once, and replacing nothing but what was written so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from hashpose_ns.atomic import abandoned_staging_folders, staging_folder, whole_file
from hashpose_ns.errors import HashPoseError

MANIFEST = "export.json"
"""File in every export that says what was exported, and which files of what content the export consists of."""


# -- what a folder's manifest vouches for ------------------------------------------------------------------------------


def write_manifest(folder: Path, note: Mapping[str, Any], manifest: str = MANIFEST) -> None:
    """Writes a folder's manifest: a note, and under `files` the fingerprint of every file, its own included.

    Args:
        folder: what was written, complete.
        note: what to say about it; JSON-ready.
        manifest: name of the file.
    """
    files = {path: _fingerprint(folder / path) for path in sorted(_files(folder))}
    content = {**note, "files": files}
    content["files"][manifest] = _digest(json.dumps(content).encode("ascii"))
    (folder / manifest).write_text(json.dumps(content, indent=2), encoding="ascii")


def _vouched_files(folder: Path, manifest: str) -> Dict[str, Optional[str]]:
    """Fingerprint of each file as it was written, by its path in the folder. None for the manifest itself where it is
    no longer as it was written; it vouches for nothing then."""
    try:
        content = json.loads((folder / manifest).read_text(encoding="ascii"))
        digest = content["files"].pop(manifest)
        if digest == _digest(json.dumps(content).encode("ascii")):
            return {**content["files"], manifest: _fingerprint(folder / manifest)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return {manifest: None}


def _fingerprint(path: Path) -> Optional[str]:
    """Of a file what it holds, of a link where it points, None of anything else and what cannot be read."""
    try:
        if path.is_symlink():
            return f"link to {os.readlink(path)}"
        return _digest(path.read_bytes()) if path.is_file() else None
    except OSError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _files(folder: Path) -> Iterator[str]:
    """Paths in a folder of all that is no folder, with forward slashes. Links are not followed."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from ((Path(parent) / name).relative_to(folder).as_posix() for name in [*files, *links])


# -- what may be replaced ----------------------------------------------------------------------------------------------


def check_target(
    target: Path, overwrite: bool, needed: Sequence[Path] = (), manifest: str = MANIFEST, what: str = "an export"
) -> None:
    """Check that a folder may be written, before any work goes into its contents.

    Args:
        target: where the export is to lie.
        overwrite: whether an earlier export there may be replaced.
        needed: files and folders that are still needed; see `places`.
        manifest: name of the file by which an earlier export knows its files.
        what: what is written, in words.

    Raises:
        HashPoseError: if the target exists and may not be replaced: overwrite is off, it is no folder, something in it
            is still needed, or it holds a file that is not as an earlier export wrote it.
    """
    if not os.path.lexists(target):
        return
    other = "choose another --output-dir"
    if target.is_symlink():
        raise HashPoseError(f"{target} is a link, and links are not replaced; {other}.")
    if not target.is_dir():
        raise HashPoseError(f"{target} exists and is not a folder; {other}.")
    if not overwrite:
        raise HashPoseError(f"{target} exists; {other}, or replace it with --overwrite True.")
    for used in _lying_in(target, needed):
        itself = os.path.exists(used) and used.samefile(target)
        why = "this export reads it" if itself else f"{_shown(str(used))}, which this export reads, lies in it"
        raise HashPoseError(f"{target} cannot be replaced, as {why}; {other}.")
    vouched = _vouched_files(target, manifest)
    for path in sorted(_files(target), key=lambda path: (path != manifest, path)):
        if path not in vouched:
            raise HashPoseError(
                f"{target} is not overwritten because {_shown(path)} in it does not come from {what}; {other}."
            )
        if vouched[path] is None:
            raise HashPoseError(
                f"{target} is not overwritten because {path} in it was changed, or is from another version; delete the "
                f"folder if you do not need it, or {other}."
            )
        if vouched[path] != _fingerprint(target / path):
            raise HashPoseError(
                f"{target} is not overwritten because {_shown(path)} in it was changed since it was written; {other}."
            )
        if not os.access((target / path).parent, os.W_OK):
            raise HashPoseError(f"{target} is not overwritten because {_shown(path)} in it cannot be deleted; {other}.")


def _lying_in(folder: Path, paths: Sequence[Path]) -> Iterator[Path]:
    """Those paths that are a folder, or lie in it, or lead through it."""

    @lru_cache(maxsize=None)
    def holds(place: Path) -> bool:
        # by identity, as names differ where case does not matter
        return (os.path.exists(place) and place.samefile(folder)) or (place != place.parent and holds(place.parent))

    return (path for path in paths if any(holds(place) for place in places(path)))


def places(path: Path) -> Iterator[Path]:
    """Everywhere that a path leads on the way to its file: all links, each under its real folder, and the file."""
    absolute = path.absolute()
    place, rest, links = Path(absolute.anchor), list(reversed(absolute.parts[1:])), 0
    while rest:
        name = rest.pop()
        place = place.parent if name == ".." else place / name
        if os.path.islink(place) and links < 40:  # more are a loop
            yield place
            links += 1
            aim = Path(os.readlink(place))
            place = Path(aim.anchor) if aim.is_absolute() else place.parent
            rest += reversed(aim.parts[1:] if aim.is_absolute() else aim.parts)
    yield place


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def _real(target: Path) -> Path:
    """A path without links and dots in it, but for a link of the last name."""
    if target.name in ("", ".."):
        return target.resolve()
    try:
        return target.parent.resolve() / target.name
    except RuntimeError as error:  # of Python before 3.13
        raise HashPoseError(f"{target.parent} is a link to itself; choose another --output-dir.") from error


# -- folders -----------------------------------------------------------------------------------------------------------


@contextmanager
def replaced_folder(
    target: Path,
    overwrite: bool = False,
    note: Optional[Mapping[str, Any]] = None,
    needed: Sequence[Path] = (),
    manifest: str = MANIFEST,
    what: str = "an export",
) -> Iterator[Path]:
    """A temporary folder that takes the target's name, with a manifest in it, when the block ends without an exception.

    It lies in a hidden folder beside the target, so that taking the name is a rename. With ``overwrite`` the earlier
    export is moved aside only once the new one is complete. Then its files are deleted; whatever else was in it, as
    empty folders, moves into the new one. On any exception, KeyboardInterrupt included, the target is as it was and
    nothing is left beside it. What a killed process left is cleared away by the next one.

    Args:
        target: where the export is to lie; missing parents are created.
        overwrite: whether an earlier export there may be replaced.
        note: what the manifest says beside the files.
        needed, manifest, what: as for ``check_target``.

    Yields:
        The folder to write into.

    Raises:
        HashPoseError: as ``check_target``, and if the parent folder cannot be written.
    """
    target = _real(target)
    clear_abandoned(target, manifest)
    check_target(target, overwrite, needed, manifest, what)
    new_parents = _made_parents(target)
    try:
        with ExitStack() as stack:
            try:
                staging = stack.enter_context(staging_folder(target))
            except OSError as error:
                raise HashPoseError(f"{target.parent} cannot be written ({error.strerror}).") from error
            new = staging / "new"
            try:
                new.mkdir()
                yield new
                write_manifest(new, note or {}, manifest)
                # what came to lie there meanwhile is as safe as what lay there before
                check_target(target, overwrite, needed, manifest, what)
                _check_folders_fit(target, new)
                _exchange(new, target, staging / "earlier", manifest)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except BaseException:
        _remove_empty(new_parents)
        raise


def clear_abandoned(target: Path, manifest: str = MANIFEST) -> None:
    """Clears away what killed processes left beside a target. An earlier export that one of them moved aside gets its
    name back where no new one has taken it."""
    target = _real(target)
    for staging in abandoned_staging_folders(target):
        new, earlier = staging / "new", staging / "earlier"
        with suppress(OSError):
            if not {path.name for path in staging.iterdir()} <= {new.name, earlier.name}:
                continue
            if earlier.is_dir():
                if not os.path.lexists(target):
                    os.rename(earlier, target)
                elif _vouched_files(target, manifest)[manifest] is not None:
                    _dissolve(earlier, target, manifest)
                else:
                    continue  # something else took the name
            shutil.rmtree(new, ignore_errors=True)
            staging.rmdir()


def _check_folders_fit(target: Path, new: Path) -> None:
    """Raises HashPoseError for a folder in the target that would have to make room for a file."""
    for path in _files(new):
        if (target / path).is_dir() and not (target / path).is_symlink():
            raise HashPoseError(f"{target} is not overwritten because {_shown(path)} in it is a folder; remove that.")


def _exchange(new: Path, target: Path, earlier: Path, manifest: str) -> None:
    """Puts a complete folder in the place of the target."""
    if not target.exists():
        os.rename(new, target)
        return
    shutil.copymode(target, new)
    try:
        os.rename(target, earlier)
        os.rename(new, target)
    except BaseException:
        if earlier.exists() and not os.path.lexists(target):
            os.rename(earlier, target)
        raise
    try:
        _dissolve(earlier, target, manifest)
    except BaseException:
        with suppress(OSError):
            _dissolve(earlier, target, manifest)
        raise


def _dissolve(earlier: Path, target: Path, manifest: str) -> None:
    """Deletes the files of an earlier export that its manifest vouches for, and moves the rest to where it lay."""
    vouched = _vouched_files(earlier, manifest)
    own = [path for path in _files(earlier) if vouched.get(path) == (_fingerprint(earlier / path) or "")]
    # the manifest goes last, so that whoever finds this half done can go on
    for path in sorted(own, key=lambda path: path == manifest):
        (earlier / path).unlink()
        _remove_empty([parent for parent in (earlier / path).parents if earlier in parent.parents])
    _move_into(target, earlier)


def _move_into(target: Path, folder: Path) -> None:
    """Moves what a folder holds into another one, beside what is there, and removes what is empty then."""
    for path in list(folder.iterdir()):
        place = target / path.name
        if not os.path.lexists(place):
            os.rename(path, place)
        elif path.is_dir() and not path.is_symlink() and place.is_dir() and not place.is_symlink():
            _move_into(place, path)
    _remove_empty([folder])


# -- files -------------------------------------------------------------------------------------------------------------


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
    if target.is_symlink():
        raise HashPoseError(f"{target} is a link, and links are not replaced; choose another --output-path.")
    if target.exists() and not overwrite:
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


def _remove_empty(folders: List[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
