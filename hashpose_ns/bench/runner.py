"""Does the runs of a suite: complete ones are left alone, those cut off resume, failures are reported."""

from __future__ import annotations

import fcntl
import re
import shlex
import shutil
import signal
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Deque, Dict, Iterator, List, Literal, Optional, Protocol, Sequence, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from hashpose_ns.bench import files
from hashpose_ns.bench.jobs import Job
from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.files import last_record, last_step, read_json, write_json

State = Literal["done", "resume", "new"]
POLL_SECONDS = 0.5
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
PATIENCE = 6.0
"""Seconds that runs get to end when they are stopped."""


@dataclass
class Task:
    """A run, where it goes, and how far it is."""

    record: Dict[str, Any]
    """What run.json says of it."""
    folder: Path
    """Its folder."""
    state: State = "new"
    """`done`: nothing to do; `resume`: there is a checkpoint to resume from; `new`: from the start."""
    seconds: float = 0.0
    """How long it took in this process."""
    failure: Optional[str] = None
    """Why it failed, once it has."""
    slot: int = -1
    job: Optional[Job] = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """How a person calls it."""
        return f"{self.record['scene']} / {self.record['preset']} / seed {self.record['seed']}"

    def step(self) -> int:
        """Steps it has taken, as far as its pose log says."""
        return int(last_record(self.folder).get("step", -1)) + 1


@runtime_checkable
class Starter(Protocol):
    """Starts runs, as `hashpose_ns.bench.jobs.Jobs` does."""

    def start(self, folder: Path, slot: int) -> Job:
        """Starts the run that a folder's run.json describes."""


# -- what is left to do ------------------------------------------------------------------------------------------------


def look_at(task: Task, overwrite: bool) -> None:
    """Finds out what is left to do of a run.

    Args:
        task: the run; its state is set.
        overwrite: whether to start over where the folder holds a run with other settings.

    Raises:
        HashPoseError: the folder holds a run with other settings, or something else.
    """
    task.state = "new"
    if not task.folder.exists() or not any(task.folder.iterdir()):
        return
    earlier = read_json(task.folder / files.RECORD)
    if earlier is None:
        raise HashPoseError(
            f"{task.folder} holds files but no {files.RECORD}; give another --output-dir, or remove it."
        )
    complete = read_json(task.folder / files.RESULTS) is not None
    change = difference(earlier, task.record)
    if change is not None:
        worth_keeping = complete or last_step(task.folder) is not None
        if worth_keeping and not overwrite and not (task.folder / files.FAILURE).exists():
            raise HashPoseError(
                f"{task.folder} holds a run with other settings ({change}); --overwrite True starts such runs over, "
                "another --output-dir keeps them."
            )
    elif complete:
        task.state = "done"
    elif last_step(task.folder) is not None:
        task.state = "resume"


def difference(earlier: Dict[str, Any], record: Dict[str, Any]) -> Optional[str]:
    """The first difference between two runs' settings in words; None if they are the same."""

    def asked(of: Dict[str, Any]) -> Dict[str, Any]:
        more = {
            "train": of.get("train", True),
            "evaluate": of.get("evaluate", True),
            "measures": of.get("measures", {}),
        }
        return {"base method": of.get("base_method"), **more, **of.get("settings", {})}

    def read(value: Any) -> Any:
        """`1e-3 True` as numbers and words, as it was before settings were flags."""
        if isinstance(value, list):
            return [read(each)[0] for each in value]
        words = shlex.split(value) if isinstance(value, str) else [str(value)]
        return [float(word) if NUMBER.fullmatch(word) else word for word in words]

    before, now = asked(earlier), asked(record)
    for key in [*now, *before]:
        if key not in before or key not in now or read(before[key]) != read(now[key]):
            return f"{key} was {before.get(key, 'not set')}, is {now.get(key, 'not set')}"
    return None


def prepare(task: Task) -> None:
    """Makes a run's folder ready: empty but for run.json if it starts over."""
    if task.state == "new" and task.folder.exists():
        shutil.rmtree(task.folder)
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / files.FAILURE).unlink(missing_ok=True)
    write_json(task.folder / files.RECORD, {**(read_json(task.folder / files.RECORD) or {}), **task.record})


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


# -- running -----------------------------------------------------------------------------------------------------------


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


def run_tasks(tasks: Sequence[Task], starter: Starter, jobs: int, console: Console) -> List[Task]:
    """Does all that is not done. A run that fails does not stop the others.

    Args:
        tasks: runs, looked at.
        starter: starts them.
        jobs: runs at a time.
        console: where progress is shown.

    Returns:
        Those that failed.

    Raises:
        Stopped: the process was told to end; what was running has been ended.
    """
    waiting: Deque[Task] = deque(task for task in tasks if task.state != "done")
    running: List[Task] = []
    begun: Dict[int, float] = {}
    with Display(console, tasks) as display, stops_on_signals():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    task = waiting.popleft()
                    task.slot = min(set(range(jobs)) - {other.slot for other in running})
                    prepare(task)
                    begun[id(task)] = time.monotonic()
                    running.append(task)
                    task.job = starter.start(task.folder, task.slot)
                time.sleep(POLL_SECONDS)
                for task in [task for task in running if task.job is not None and task.job.done()]:
                    running.remove(task)
                    task.seconds = time.monotonic() - begun[id(task)]
                    finish(task)
                    display.finished(task)
                display.update(running)
        finally:
            stop_all(running)
    return [task for task in tasks if task.failure is not None]


def finish(task: Task) -> None:
    """Finds out how a run ended."""
    if read_json(task.folder / files.RESULTS) is not None:
        task.state = "done"
        return
    if read_json(task.folder / files.FAILURE) is None:
        files.write_failure(task.folder, "The process was ended from outside, perhaps for want of memory.")
    task.failure = str((read_json(task.folder / files.FAILURE) or {}).get("error"))


def stop_all(running: Sequence[Task]) -> None:
    """Ends runs and waits for that; a second signal does not leave some of them behind."""
    end = time.monotonic() + PATIENCE
    for attempt in range(2):
        try:
            jobs = [task.job for task in running if task.job is not None]
            for job in jobs:
                job.cancel()
            while not all(job.done() for job in jobs) and time.monotonic() < end:
                time.sleep(0.1)
            return
        except (Stopped, KeyboardInterrupt):
            continue


# -- what is shown -----------------------------------------------------------------------------------------------------


class Display:
    """Progress bars of all runs and of those under way, and a line for each run that ends.

    Args:
        console: where; bars are shown on a terminal only.
        tasks: all runs, looked at.
    """

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.bars: Dict[int, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[now]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.console = console
        self.total = self.progress.add_task("all runs, steps", total=sum(t.record["steps"] for t in tasks), now="")

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def update(self, running: Sequence[Task]) -> None:
        """Shows how far things are."""
        for task in running:
            if id(task) not in self.bars:
                self.bars[id(task)] = self.progress.add_task(task.label, total=task.record["steps"], now="")
            self.progress.update(self.bars[id(task)], completed=task.step(), now=summary(last_record(task.folder)))
        done = sum(task.record["steps"] for task in self.tasks if task.state == "done" or task.failure)
        self.progress.update(self.total, completed=done + sum(task.step() for task in running), now=counts(self.tasks))

    def finished(self, task: Task) -> None:
        """Says how a run ended."""
        if id(task) in self.bars:
            self.progress.remove_task(self.bars.pop(id(task)))
        over = sum(other.state == "done" or other.failure is not None for other in self.tasks)
        line = Text(f"[{over}/{len(self.tasks)}] {task.label}: ")
        if task.failure is not None:
            line.append(f"failed: {task.failure}", style="red")
        else:
            line.append(summary((read_json(task.folder / files.RESULTS) or {}).get("results", {})))
        self.console.print(line.append(f"  ({task.seconds:.0f} s)", style="dim"), soft_wrap=True)


def counts(tasks: Sequence[Task]) -> str:
    """How many runs are done, and how many failed."""
    done, failed = (sum(map(test, tasks)) for test in (lambda t: t.state == "done", lambda t: t.failure is not None))
    return f"{done} of {len(tasks)} runs are complete" + (f", {failed} failed" if failed else "")


def summary(values: Dict[str, Any]) -> str:
    """A run in a few numbers, of results.json or of a record of its pose log."""
    parts = []
    if "pose_error_after_rotation_deg_mean" in values:
        before, after = (values[f"pose_error_{when}_rotation_deg_mean"] for when in ("before", "after"))
        parts.append(
            f"{before:.3g} -> {after:.3g} deg, translation x100 {100 * values['pose_error_after_translation_mean']:.3g}"
        )
    elif "pose_change_rotation_deg_mean" in values:
        parts.append(f"moved by {values['pose_change_rotation_deg_mean']:.3g} deg")
    psnr = next((values[key] for key in ("psnr_tto", "psnr_aligned", "held_out_psnr") if values.get(key)), None)
    return ", ".join(parts + ([f"{psnr:.2f} dB"] if psnr is not None else []))
