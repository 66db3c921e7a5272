"""Where runs take place: jobs of submitit, which are processes on this machine or jobs of a Slurm cluster.

submitit does processes, output, time limits and requeueing. What it lacks on one machine is done here: a log in the
run's folder, a share of the cores or a GPU of its own, and an end when the runner is no more.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, Literal, Optional, Protocol, runtime_checkable

from hashpose_ns.bench.files import LOG
from hashpose_ns.errors import HashPoseError

WATCH_SECONDS = 1.0


@runtime_checkable
class Job(Protocol):
    """A run that was started: what is used of submitit's jobs."""

    def done(self) -> bool:
        """Whether it has ended, well or badly."""

    def cancel(self) -> None:
        """Asks it to end."""


@dataclass
class Cluster:
    """Where runs take place."""

    kind: Literal["local", "slurm"] = "local"
    """Processes on this machine, or jobs of a Slurm cluster."""
    partition: Optional[str] = None
    """Slurm partition."""
    gpus: int = 1
    """GPUs per Slurm job: 1, or 0 for none."""
    cpus: int = 4
    """Processor cores per Slurm job."""
    memory_gb: Optional[int] = None
    """Memory per Slurm job in GB; None leaves it to the cluster."""
    timeout_min: int = 24 * 60
    """Longest time of a run in minutes.
    A run that takes longer is requeued and resumes from its last checkpoint."""
    folder: Optional[Path] = None
    """Folder for submitit's files; None is `.submitit` in the output folder. All machines must see it."""


@dataclass
class DoRun:
    """What a job does. Requeued, it resumes from the newest checkpoint."""

    environment: Dict[str, str] = field(default_factory=dict)
    """Variables that must be set before torch is imported."""
    runner: Optional[int] = None
    """Process to end with; None on a cluster."""

    def __call__(self, folder: str) -> int:
        """Does the run in a folder; returns the exit code."""
        os.environ.update(self.environment)
        with open(Path(folder) / LOG, "ab") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # being stopped is no failure; files are written whole
        if self.runner is not None:
            threading.Thread(target=end_with, args=(self.runner,), daemon=True).start()
        from hashpose_ns.bench import worker

        return worker.main(Path(folder))

    def checkpoint(self, folder: str) -> Any:
        """What submitit submits in place of a job that ran out of time or was pre-empted."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, folder)


def end_with(runner: int) -> None:
    """Ends this process when another one is no more, however that ended."""
    while is_alive(runner):
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and whose parent has not noticed does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # a system without /proc
        return True


class Jobs:
    """Starts runs.

    Args:
        cluster: where.
        output_dir: the runs' folder.
        jobs: runs at a time.

    Raises:
        HashPoseError: submitit is not installed, or there is no such cluster.
    """

    def __init__(self, cluster: Cluster, output_dir: Path, jobs: int) -> None:
        try:
            import submitit
        except ImportError as error:
            raise HashPoseError(
                "hashpose-bench run needs submitit, which is not installed: pip install 'hashpose[bench]'."
            ) from error
        self.cluster, self.jobs = cluster, jobs
        try:
            self.executor = submitit.AutoExecutor(cluster.folder or output_dir / ".submitit", cluster=cluster.kind)
        except RuntimeError as error:
            raise HashPoseError(f"There is no {cluster.kind} cluster here: {error}.") from error
        self.executor.update_parameters(name="hashpose-bench", timeout_min=cluster.timeout_min)
        if cluster.kind == "slurm":
            self.executor.update_parameters(gpus_per_node=cluster.gpus, cpus_per_task=cluster.cpus)
            if cluster.memory_gb is not None:
                self.executor.update_parameters(mem_gb=cluster.memory_gb)
            if cluster.partition is not None:
                self.executor.update_parameters(slurm_partition=cluster.partition)

    def start(self, folder: Path, slot: int) -> Job:
        """Starts the run that a folder's run.json describes.

        Args:
            folder: the run's folder.
            slot: a number below that of runs at a time, which no other run has now.
        """
        if self.cluster.kind == "slurm":
            return self.executor.submit(DoRun({"OMP_NUM_THREADS": str(self.cluster.cpus)}), str(folder))
        with self._errors_to_file():
            return self.executor.submit(DoRun(self._share(slot), os.getpid()), str(folder))

    @contextmanager
    def _errors_to_file(self) -> Iterator[None]:
        """Errors of processes started here go to a file: submitit's print a traceback when they are cancelled."""
        kept = os.dup(2)
        with open(Path(self.executor.folder) / "errors.txt", "ab") as file:
            os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

    def _share(self, slot: int) -> Dict[str, str]:
        """A GPU in turn where there are several, and a share of the cores."""
        import torch

        gpus, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        # More threads than cores wait for each other: on a busy machine that is many times slower.
        threads = 1 if self.jobs > 1 and not gpus else max(1, (os.cpu_count() or 1) // self.jobs)
        share = {"CUDA_VISIBLE_DEVICES": names[slot % len(names)] if gpus > 1 else visible or ("0" if gpus else "")}
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), "PYTHONWARNINGS": "ignore", **share}
