"""`hashpose-bench run`."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, List, Literal, Optional, Tuple

import tyro
from typing_extensions import Annotated

from hashpose_ns.bench import files, suites
from hashpose_ns.bench.engines import Cluster, Engine, LocalEngine, SubmititEngine
from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    from rich.console import Console

    from hashpose_ns.bench.runner import Task


@dataclass
class Run:
    """Train and evaluate the scenes, presets and seeds of a suite. What is complete is left alone and what was cut off
    goes on, so the same command again finishes an interrupted suite."""

    suite: str
    """Name of a suite that comes with the package (see hashpose-bench list), or a YAML file written like those."""
    scale: str = ""
    """How long and how large, such as smoke, small, medium or paper; the suite's own where none is given."""
    scenes: Tuple[str, ...] = ()
    """Some of the suite's scenes."""
    presets: Tuple[str, ...] = ()
    """Some of the suite's presets, or others that come with the package."""
    seeds: Tuple[str, ...] = ()
    """Seeds of the noise and of training: their number (3), a list (0 1 5) or a range (4-4)."""
    data: Optional[Path] = None
    """Folder of the scenes, {data} in the suite."""
    output_dir: Path = Path("bench_output")
    """Folder for the runs: OUTPUT_DIR/suite/scene/preset/seed_n."""
    settings: Annotated[Tuple[str, ...], tyro.conf.arg(name="set", metavar="PATH=VALUE")] = ()
    """Settings that win over all others, such as max_num_iterations=500."""
    jobs: Optional[int] = None
    """Runs at a time; by default one per GPU, or per core where there is no GPU."""
    engine: Literal["local", "submitit"] = "local"
    """Where runs take place: on this machine, or as jobs of a cluster by submitit (pip install 'hashpose[cluster]')."""
    cluster: Cluster = field(default_factory=Cluster)
    """For the engine submitit."""
    overwrite: bool = False
    """Begin anew where the output folder holds a run with other settings."""
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
        engine, jobs = self._engine(output_dir, len(runs))
        from hashpose_ns.bench.progress import Display
        from hashpose_ns.bench.runner import Stopped, alone_in, look_at, run_tasks

        with alone_in(output_dir / suite.name), Display(console, tasks, jobs) as display:
            for task in tasks:  # again: another runner may just have ended
                look_at(task, self.overwrite)
            say(f"{display.counts()}; {jobs} at a time, in {output_dir / suite.name}")
            try:
                failed = run_tasks(tasks, engine, jobs, display)
            except Stopped as stop:
                say(f"Stopped by {stop}: {display.counts()}. The same command goes on.")
                sys.exit(130)
        say(f"{display.counts()}.", "bold")
        for task in failed:
            say(f"Failed: {task.label}: {task.failure} (log: {task.folder / files.LOG})", "red")
        if self.report and any(task.state == "done" for task in tasks):
            from hashpose_ns.bench.report import Report

            Report(runs=self.output_dir, suite=suite.name).main()
        if failed:
            sys.exit(1)

    def _engine(self, output_dir: Path, num_runs: int) -> Tuple[Engine, int]:
        """Where runs take place, and how many at a time."""
        import torch

        gpus = torch.cuda.device_count()
        here = gpus or os.cpu_count() or 1
        if self.engine == "local":
            jobs = self.jobs or min(here, num_runs)
            return LocalEngine(jobs, gpus), jobs
        engine = SubmititEngine(self.cluster, output_dir)
        return engine, self.jobs or (num_runs if engine.cluster == "slurm" else here)

    def _tasks(self, runs: List[suites.Run], output_dir: Path) -> List["Task"]:
        """All runs with their settings checked, and what is left to do of them."""
        from hashpose_ns.bench.configs import ImageHeights, record_of
        from hashpose_ns.bench.runner import Task, look_at

        said = ["--suite", self.suite, "--output-dir", str(self.output_dir)]
        said += ["--data", str(self.data)] if self.data is not None else []
        said += ["--set", *self.settings] if self.settings else []
        heights = ImageHeights()
        tasks = [Task(record_of(run, heights, said), run.folder(output_dir)) for run in runs]
        for task in tasks:
            look_at(task, self.overwrite)
        return tasks


def show(console: "Console", tasks: List["Task"]) -> None:
    """A table of runs and what is left to do of each."""
    from rich.table import Table

    words = {"done": "complete", "resume": "goes on", "new": "to do"}
    table = Table()
    for column in ("scene", "preset", "seed", "method", "steps", ""):
        table.add_column(column)
    for task in tasks:
        record = task.record
        row = (record["scene"], record["preset"], record["seed"], record["base_method"], record["steps"])
        table.add_row(*map(str, row), words[task.state])
    console.print(table)
