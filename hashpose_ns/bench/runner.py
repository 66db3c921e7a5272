"""Does the runs of a suite: what is done already is left alone, what was cut off goes on, what fails is reported."""

from __future__ import annotations

import fcntl
import shutil
import signal
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Deque, Dict, Iterator, List, Literal, Optional, Sequence

from hashpose_ns.bench import files
from hashpose_ns.bench.engines import Engine, Handle
from hashpose_ns.bench.progress import Display
from hashpose_ns.errors import HashPoseError

State = Literal["done", "resume", "new"]
POLL_SECONDS = 0.5


@dataclass
class Task:
    """A run, where it goes, and how far it is."""

    record: Dict[str, Any]
    """What run.json says of it."""
    folder: Path
    """Its folder."""
    state: State = "new"
    """`done`: nothing to do; `resume`: there is a checkpoint to go on from; `new`: from the start."""
    begun: Optional[float] = None
    """When it was started in this process, by time.monotonic()."""
    begun_at: int = 0
    """The step it was started from."""
    seconds: Optional[float] = None
    """How long it took in this process, once it is over."""
    failure: Optional[str] = None
    """Why it failed, once it has."""
    slot: int = -1
    handle: Optional[Handle] = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """How a person calls it."""
        return f"{self.record['scene']} / {self.record['preset']} / seed {self.record['seed']}"

    @property
    def steps(self) -> int:
        """Length of its training."""
        return self.record["steps"]

    def step(self) -> int:
        """Steps it has taken, as far as its pose log says."""
        return int(files.last_record(self.folder).get("step", -1)) + 1


def look_at(task: Task, overwrite: bool) -> None:
    """Finds out what is left to do of a run.

    Args:
        task: the run; its state is set.
        overwrite: whether to begin anew where the folder holds a run with other settings.

    Raises:
        HashPoseError: the folder holds a run with other settings, or something else.
    """
    task.state = "new"
    if not task.folder.exists() or not any(task.folder.iterdir()):
        return
    earlier = files.read_json(task.folder / files.RECORD)
    if earlier is None:
        raise HashPoseError(
            f"{task.folder} holds files but no {files.RECORD}; give another --output-dir, or remove it."
        )
    complete = files.read_json(task.folder / files.RESULTS) is not None
    change = difference(earlier, task.record)
    if change is not None:
        worth_keeping = complete or files.last_checkpoint(task.folder) is not None
        if worth_keeping and not overwrite and not (task.folder / files.FAILURE).exists():
            raise HashPoseError(
                f"{task.folder} holds a run with other settings ({change}); --overwrite begins such runs anew, another "
                "--output-dir keeps them."
            )
    elif complete:
        task.state = "done"
    elif files.last_checkpoint(task.folder) is not None:
        task.state = "resume"


def difference(earlier: Dict[str, Any], record: Dict[str, Any]) -> Optional[str]:
    """The first difference between two runs' settings in words; None where they are the same."""
    before = {"base method": earlier.get("base_method"), **earlier.get("settings", {})}
    now = {"base method": record["base_method"], **record["settings"]}
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key, 'not set')}, is {now.get(key, 'not set')}"
    return None


def prepare(task: Task) -> None:
    """Makes a run's folder ready: empty but for run.json where it begins anew."""
    if task.state == "new" and task.folder.exists():
        shutil.rmtree(task.folder)
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / files.FAILURE).unlink(missing_ok=True)
    if task.state == "new":
        files.write_json(task.folder / files.RECORD, task.record)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps another runner from the same folder meanwhile; the system lifts the lock when this process ends.

    Raises:
        HashPoseError: another one is at work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HashPoseError(
                f"Another hashpose-bench is at work in {folder}; wait for it, or give another --output-dir."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


class Stopped(BaseException):
    """The runner was told to stop."""


@contextmanager
def stops_on_signals() -> Iterator[None]:
    """Raises `Stopped` in here when the process is told to end, by Ctrl-C, kill, or a terminal that closes. What is
    ignored, as under nohup, stays ignored."""

    def stop(number, frame) -> None:
        raise Stopped(signal.Signals(number).name)

    heard = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    earlier = {
        number: signal.signal(number, stop) for number in heard if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def run_tasks(tasks: Sequence[Task], engine: Engine, jobs: int, display: Display) -> List[Task]:
    """Does all that is not done. A run that fails doesn't stop the others.

    Args:
        tasks: runs, looked at.
        engine: where they take place.
        jobs: runs at a time.
        display: where progress is shown.

    Returns:
        Those that failed.

    Raises:
        Stopped: the process was told to end; what was running has been ended.
    """
    waiting: Deque[Task] = deque(task for task in tasks if task.state != "done")
    running: List[Task] = []
    with stops_on_signals():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    task = waiting.popleft()
                    task.slot = min(set(range(jobs)) - {other.slot for other in running})
                    prepare(task)
                    task.begun, task.begun_at = time.monotonic(), (files.last_checkpoint(task.folder) or -1) + 1
                    running.append(task)
                    task.handle = engine.start(task.folder, task.slot)
                time.sleep(POLL_SECONDS)
                for task in [task for task in running if task.handle is not None and task.handle.is_over()]:
                    running.remove(task)
                    finish(task)
                    display.finished(task)
                display.update(running, list(waiting))
        finally:
            stop_all(running)
    return [task for task in tasks if task.failure is not None]


def finish(task: Task) -> None:
    """Finds out how a run ended."""
    assert task.handle is not None and task.begun is not None
    task.seconds = time.monotonic() - task.begun
    if files.read_json(task.folder / files.RESULTS) is not None:
        task.state = "done"
        return
    failure = files.read_json(task.folder / files.FAILURE)
    if failure is None:
        files.write_failure(task.folder, task.handle.ending())
        failure = files.read_json(task.folder / files.FAILURE) or {}
    task.failure = str(failure.get("error"))


def stop_all(running: Sequence[Task]) -> None:
    """Ends runs; a second signal doesn't leave some of them behind."""
    while True:
        try:
            for task in running:
                if task.handle is not None:
                    task.handle.stop()
            return
        except (Stopped, KeyboardInterrupt):
            continue
