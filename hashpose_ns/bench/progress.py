"""What the runner shows: a live table on a terminal, a line for each finished run elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hashpose_ns.bench import files

if TYPE_CHECKING:
    from hashpose_ns.bench.runner import Task

SHOW_SECONDS = 2.0


class Display:
    """Runs done, runs going on with their steps, and the time that is left.

    Args:
        console: where to.
        tasks: all runs, looked at.
        jobs: runs at a time.
    """

    def __init__(self, console: Console, tasks: Sequence["Task"], jobs: int) -> None:
        self.console = console
        self.tasks = tasks
        self.jobs = jobs
        self.shown = 0.0
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live is not None:
            self.live.stop()

    def counts(self) -> str:
        """How many runs are done, and how many failed."""
        done = sum(task.state == "done" for task in self.tasks)
        failed = sum(task.failure is not None for task in self.tasks)
        return f"{done} of {len(self.tasks)} runs are complete" + (f", {failed} failed" if failed else "")

    def finished(self, task: "Task") -> None:
        """Says how a run ended."""
        over = sum(other.state == "done" or other.failure is not None for other in self.tasks)
        line = Text(f"[{over}/{len(self.tasks)}] {task.label}: ")
        if task.failure is not None:
            line.append(f"failed: {task.failure}", style="red")
        else:
            line.append(summary(files.read_json(task.folder / files.RESULTS) or {}))
        line.append(f"  ({duration(task.seconds or 0.0)})", style="dim")
        self.console.print(line, soft_wrap=True)

    def update(self, running: List["Task"], waiting: List["Task"]) -> None:
        """Shows how far things are, now and then."""
        if self.live is None or time.monotonic() < self.shown + SHOW_SECONDS:
            return
        self.shown = time.monotonic()
        steps = {id(task): task.step() for task in running}
        table = Table(box=None, padding=(0, 2))
        for column in ("running", "", "step", "error, deg", "held-out PSNR", "time"):
            table.add_column(column, justify="left" if column in ("running", "") else "right")
        for task in running:
            record, step = files.last_record(task.folder), steps[id(task)]
            table.add_row(
                task.label,
                ProgressBar(total=task.steps, completed=step, width=20),
                f"{step}/{task.steps}",
                number(record.get("pose_error_after_rotation_deg_mean", record.get("pose_change_rotation_deg_mean"))),
                number(record.get("held_out_psnr")),
                duration(time.monotonic() - (task.begun or 0.0)),
            )
        left = self.seconds_left(running, waiting, steps)
        about = f", about {duration(left)} left" if left is not None else ""
        self.live.update(Group(Text(self.counts() + about, style="bold"), table), refresh=True)

    def seconds_left(self, running: List["Task"], waiting: List["Task"], steps: Dict[int, int]) -> Optional[float]:
        """An estimate from the runs of this process: of the same preset where there are any, else of all; None before
        one is far enough.

        Args:
            running: runs that are going on.
            waiting: runs that are not begun.
            steps: step of each running one, by its `id`.
        """
        seconds_per_step: Dict[str, List[float]] = {}
        for task in self.tasks:
            taken = task.seconds
            done = task.steps - task.begun_at
            if taken is None and task.begun is not None:
                taken, done = time.monotonic() - task.begun, steps.get(id(task), 0) - task.begun_at
                if done < 0.1 * task.steps:  # start-up is all there is to see yet
                    continue
            if taken is not None and done > 0 and task.failure is None:
                seconds_per_step.setdefault(task.record["preset"], []).append(taken / done)
        if not seconds_per_step:
            return None
        known = {preset: sum(values) / len(values) for preset, values in seconds_per_step.items()}
        mean = sum(known.values()) / len(known)
        left = sum(
            (task.steps - steps.get(id(task), 0)) * known.get(task.record["preset"], mean)
            for task in [*running, *waiting]
        )
        return left / max(1, min(self.jobs, len(running) + len(waiting)))


def summary(content: Dict) -> str:
    """A complete run in a few numbers.

    Args:
        content: of results.json.
    """
    results, parts = content.get("results", {}), []
    if "pose_error_after_rotation_deg_mean" in results:
        before, after = (results[f"pose_error_{when}_rotation_deg_mean"] for when in ("before", "after"))
        translation = 100 * results["pose_error_after_translation_mean"]
        parts.append(f"{number(before)} -> {number(after)} deg, translation x100 {number(translation)}")
    elif "pose_change_rotation_deg_mean" in results:
        parts.append(f"moved by {number(results['pose_change_rotation_deg_mean'])} deg")
    psnr = results.get("psnr_tto", results.get("psnr_aligned"))
    if psnr is not None:
        parts.append(f"{psnr:.2f} dB")
    return ", ".join(parts)


def number(value: Optional[float]) -> str:
    """Three digits or so."""
    return "" if value is None else f"{value:.3g}" if abs(value) < 10 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the larger two of them."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
