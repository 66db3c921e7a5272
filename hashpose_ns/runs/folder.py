"""Locks a run's folder while a process trains in it; a run that fails before its first step leaves nothing."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Dict, Optional

from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.files import CONFIG

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""File in a run's folder that the process which trains there holds a lock on."""


class RunFolder:
    """The folder, claimed for this process."""

    def __init__(self, path: Path) -> None:
        """Makes the folder where there is none, and takes its lock. The lock ends with the process, however that ends;
        on file systems without locks there is none.

        Raises:
            HashPoseError: another process trains there.
            OSError: the folder cannot be made or written.
        """
        self.path = path
        self.made = [folder for folder in [path, *path.parents] if not folder.exists()]
        """Folders that are there because of this run, innermost first."""
        try:
            self._lock: Optional[int] = self._locked()
        except BaseException:
            self._remove_made()
            raise
        self.before = set(os.listdir(path)) - {LOCK}
        config = path / CONFIG
        self._config = config.read_bytes() if CONFIG in self.before else None

    def _locked(self) -> Optional[int]:
        """A descriptor that holds the lock; None if there are no locks here."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # a run that came to nothing has just removed the folder
                continue
            if fcntl is None:
                os.close(descriptor)
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "unknown"
                os.close(descriptor)
                raise HashPoseError(
                    f"Another process ({holder}) trains in {self.path}; give this run another --timestamp or "
                    "--output-dir."
                ) from None
            except OSError:  # no locks on this file system
                os.close(descriptor)
                return None
            if self._is_current(descriptor):
                try:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode())
                except OSError:  # a full disk; whoever writes more than a name will say so
                    pass
                return descriptor
            os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        """Whether a descriptor is of the lock's file that has the name now: its last holder removes it."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path / LOCK))
        except OSError:
            return False

    def release(self) -> None:
        """Lets other processes train here."""
        _claimed.pop(self.path, None)
        (self.path / LOCK).unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def take_back(self) -> None:
        """Leaves the folder, and those around it, as they were before the run; nothing that was there is removed. What
        cannot be removed stays."""
        for path in self.path.glob("*"):
            if path.name in self.before | {LOCK}:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self._config is not None:
            (self.path / CONFIG).write_bytes(self._config)
        self.release()
        self._remove_made()

    def _remove_made(self) -> None:
        for folder in self.made:
            try:
                folder.rmdir()
            except OSError:
                return


_claimed: Dict[Path, RunFolder] = {}


def claimed(path: Path) -> RunFolder:
    """The folder of this process' run, claimed at the first call. Raises as `RunFolder` does."""
    path = path.absolute()
    if path not in _claimed:
        _claimed[path] = RunFolder(path)
    return _claimed[path]
