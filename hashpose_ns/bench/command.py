"""`hashpose-bench run`."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Tuple

import tyro
from typing_extensions import Annotated

from hashpose_ns.bench import files, suites
from hashpose_ns.bench.jobs import Cluster
from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    from rich.console import Console

    from hashpose_ns.bench.runner import Task


@dataclass
class Run:
    """Train and evaluate the scenes, presets and seeds of a suite. Complete runs are left alone and interrupted ones
    resume, so the same command again finishes an interrupted suite."""

    suite: str
    """Name of a suite that comes with the package (see hashpose-bench list), or your YAML file."""
    scale: str = ""
    """Run length and model size, such as smoke or paper; by default the suite's."""
    scenes: Tuple[str, ...] = ()
    """Some of the suite's scenes."""
    presets: Tuple[str, ...] = ()
    """Some of the suite's presets, or others that come with the package."""
    seeds: Tuple[str, ...] = ()
    """Seeds of noise and training: their number (3), a list (0 1 5) or a range (4-4)."""
    data: Optional[Path] = None
    """Folder of the scenes, {data} in the suite."""
    output_dir: Path = Path("bench_output")
    """Folder for the runs: OUTPUT_DIR/suite/scene/preset/seed_n."""
    settings: Annotated[Tuple[str, ...], tyro.conf.arg(name="set", metavar="PATH=VALUE")] = ()
    """Settings that win over all others, such as max_num_iterations=500."""
    jobs: Optional[int] = None
    """Runs at a time; by default one per GPU, or per core without a GPU."""
    cluster: Cluster = field(default_factory=Cluster)
    """Where runs take place."""
    overwrite: bool = False
    """Start over where the output folder holds a run with other settings."""
    dry_run: bool = False
    """Check everything and list the runs; train nothing."""
    report: bool = True
    """Write the report when the runs are over."""

    def main(self) -> None:
        """Checks everything, then does the runs."""
        from rich.console import Console
        from rich.text import Text

        console = Console()

        def say(line: str, style: str = "") -> None:
            console.print(Text(line, style), soft_wrap=True)

        warnings.simplefilter("ignore", FutureWarning)  # of torch, about how nerfstudio uses it
        if self.jobs is not None and self.jobs < 1:
            raise HashPoseError("--jobs must be at least 1.")
        suite = suites.load_suite(self.suite)
        runs = suites.expand(
            suite,
            scale=self.scale,
            scenes=self.scenes,
            preset_names=self.presets,
            seeds=suites.parse_seeds(self.seeds),
            data=self.data,
            overrides=suites.parse_overrides(self.settings),
        )
        output_dir = self.output_dir.absolute()
        tasks = self._tasks(runs, output_dir)
        if self.dry_run:
            return show(console, tasks)
        from hashpose_ns.bench.jobs import Jobs
        from hashpose_ns.bench.report import Report, check_packages
        from hashpose_ns.bench.runner import Stopped, alone_in, counts, look_at, run_tasks

        if self.report:
            check_packages()
        jobs = self._jobs(len(tasks))
        starter = Jobs(self.cluster, output_dir, jobs)
        with alone_in(output_dir / suite.name):
            for task in tasks:  # again: another runner may just have ended
                look_at(task, self.overwrite)
            say(f"{counts(tasks)}; {jobs} at a time, in {output_dir / suite.name}")
            try:
                failed = run_tasks(tasks, starter, jobs, console)
            except Stopped as stop:
                say(f"Stopped by {stop}: {counts(tasks)}. The same command resumes.")
                sys.exit(130)
        say(f"{counts(tasks)}.", "bold")
        for task in failed:
            say(f"Failed: {task.label}: {task.failure} (log: {task.folder / files.LOG})", "red")
        if self.report and any(task.state == "done" for task in tasks):
            Report(runs=self.output_dir, suite=suite.name).main()
        if failed:
            sys.exit(1)

    def _jobs(self, num_runs: int) -> int:
        """How many runs at a time."""
        import torch

        here = num_runs if self.cluster.kind == "slurm" else torch.cuda.device_count() or os.cpu_count() or 1
        return self.jobs or min(here, num_runs)

    def _tasks(self, runs: List[suites.Run], output_dir: Path) -> List[Task]:
        """All runs with their settings checked, and what is left to do of them."""
        from hashpose_ns.bench.configs import Checks, record_of
        from hashpose_ns.bench.runner import Task, look_at

        said = ["--suite", self.suite, "--output-dir", str(self.output_dir)]
        said += ["--data", str(self.data)] if self.data is not None else []
        said += ["--set", *self.settings] if self.settings else []
        checks = Checks()
        tasks = [Task(record_of(run, checks, said), run.folder(output_dir)) for run in runs]
        for task in tasks:
            look_at(task, self.overwrite)
        return tasks


def show(console: Console, tasks: List[Task]) -> None:
    """A table of runs and what is left to do of each."""
    from rich.table import Table

    words = {"done": "complete", "resume": "resumes", "new": "to do"}
    table = Table("scene", "preset", "seed", "method", "steps", "")
    for task in tasks:
        row = (task.record[key] for key in ("scene", "preset", "seed", "base_method", "steps"))
        table.add_row(*map(str, row), words[task.state])
    console.print(table)
