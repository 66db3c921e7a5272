"""Where runs take place: processes on this machine, or jobs of a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Protocol

from hashpose_ns.bench import files
from hashpose_ns.errors import HashPoseError

PATIENCE = 10.0
"""Seconds a process gets to end by itself."""


class Handle(Protocol):
    """A run that was started."""

    def is_over(self) -> bool:
        """Whether it has ended, well or badly."""

    def ending(self) -> str:
        """How it ended, where it left no word about that itself."""

    def stop(self) -> None:
        """Ends it, and returns when it has ended."""


class Engine(Protocol):
    """Starts runs."""

    def start(self, folder: Path, slot: int) -> Handle:
        """Starts the run that a folder's run.json describes.

        Args:
            folder: the run's folder.
            slot: a number below that of runs at a time, of which no other run is using it now.
        """


def worker_command(folder: Path) -> List[str]:
    """The command that does a run, and ends when this process does."""
    return [sys.executable, "-m", "hashpose_ns.bench.worker", str(folder), str(os.getpid())]


class LocalProcess:
    """A run in a process of its own, in a session of its own: Ctrl-C reaches the runner alone, which stops it."""

    def __init__(self, folder: Path, environment: Dict[str, str]) -> None:
        with open(folder / files.LOG, "ab") as log:
            self.process = subprocess.Popen(
                worker_command(folder),
                env={**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_over(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.process.poll() is not None

    def ending(self) -> str:
        """How it ended, where it left no word about that itself."""
        code = self.process.returncode
        if code is not None and code < 0:
            hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
            return f"The process was ended by the signal {signal.Signals(-code).name}{hint}."
        return f"The process ended with exit code {code}."

    def stop(self) -> None:
        """Ends it, and returns when it has ended."""
        try:
            for how in (signal.SIGTERM, signal.SIGKILL):
                os.killpg(self.process.pid, how)
                try:
                    self.process.wait(PATIENCE)
                    return
                except subprocess.TimeoutExpired:
                    continue
        except ProcessLookupError:
            self.process.wait()


class LocalEngine:
    """Processes on this machine: each with its share of the cores, and a GPU in turn where there are several.

    Args:
        jobs: runs at a time.
        gpus: number of GPUs.
    """

    def __init__(self, jobs: int, gpus: int) -> None:
        self.gpus = gpus
        # More threads than cores wait for each other: on a busy machine that is many times slower.
        threads = 1 if jobs > 1 and not gpus else max(1, (os.cpu_count() or 1) // jobs)
        self.threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}

    def start(self, folder: Path, slot: int) -> Handle:
        """Starts the run that a folder's run.json describes."""
        device = {"CUDA_VISIBLE_DEVICES": self._device(slot)} if self.gpus > 1 else {}
        return LocalProcess(folder, {**self.threads, **device})

    def _device(self, slot: int) -> str:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(self.gpus)]
        return names[slot % len(names)]


@dataclass
class Cluster:
    """Settings of `--engine submitit`."""

    kind: Literal["auto", "slurm", "local"] = "auto"
    """`auto` takes Slurm where it is; `local` tries the same on this machine."""
    partition: Optional[str] = None
    """Slurm partition."""
    gpus: int = 1
    """GPUs per run: 1, or 0 for none."""
    cpus: int = 4
    """Processor cores per run."""
    memory_gb: Optional[int] = None
    """Memory per run in GB; None leaves it to the cluster."""
    timeout_min: int = 24 * 60
    """Longest time of a run in minutes. A run that takes longer is put back and goes on from its last checkpoint."""
    folder: Optional[Path] = None
    """Folder for what submitit writes; None is `.submitit` in the output folder. All machines must see it."""


@dataclass
class DoRun:
    """What a cluster's job does. Called again after it was put back, it goes on from the newest checkpoint."""

    threads: int
    """Threads of torch."""

    def __call__(self, folder: str) -> int:
        """Does a run; returns the exit code."""
        process = LocalProcess(Path(folder), {"OMP_NUM_THREADS": str(self.threads)})
        try:
            return process.process.wait()
        finally:
            if not process.is_over():
                process.stop()

    def checkpoint(self, folder: str) -> Any:
        """What submitit submits in place of a job that ran out of time or was pre-empted."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, folder)


class SubmititJob:
    """A run that was handed to submitit.

    Args:
        job: submitit's job.
    """

    def __init__(self, job: Any) -> None:
        self.job = job

    def is_over(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.job.done()

    def ending(self) -> str:
        """How it ended, where it left no word about that itself."""
        return f"The job {self.job.job_id} ended in the state {self.job.state}; its output is {self.job.paths.stderr}."

    def stop(self) -> None:
        """Cancels it."""
        self.job.cancel()


class SubmititEngine:
    """Jobs of a cluster, by submitit.

    Args:
        cluster: settings.
        output_dir: the runs' folder.

    Raises:
        HashPoseError: submitit is not installed, or no such cluster is here.
    """

    def __init__(self, cluster: Cluster, output_dir: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise HashPoseError(
                "--engine submitit needs submitit, which is not installed: pip install 'hashpose[cluster]'."
            ) from error
        self.threads = cluster.cpus
        folder = cluster.folder or output_dir / ".submitit"
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=None if cluster.kind == "auto" else cluster.kind)
        except RuntimeError as error:
            raise HashPoseError(f"submitit cannot use {cluster.kind} here: {error}.") from error
        self.cluster = str(self.executor.cluster)
        self.executor.update_parameters(
            name="hashpose-bench",
            timeout_min=cluster.timeout_min,
            gpus_per_node=cluster.gpus,
            cpus_per_task=cluster.cpus,
        )
        if cluster.memory_gb is not None:
            self.executor.update_parameters(mem_gb=cluster.memory_gb)
        if cluster.partition is not None:
            self.executor.update_parameters(slurm_partition=cluster.partition)

    def start(self, folder: Path, slot: int) -> Handle:
        """Starts the run that a folder's run.json describes."""
        return SubmititJob(self.executor.submit(DoRun(self.threads), str(folder)))
