"""What all benchmarks of speed share: the clock, turns, tables, and JSON records with command, commit and machine."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY))  # the package itself need not be installed
LOAD_BEFORE = os.getloadavg()[0]
"""Load average when the benchmark began."""
CLOCK = "wall" if torch.cuda.is_available() else "CPU time"
"""What `clock` tells."""


@dataclass
class Output:
    """The setting of every benchmark."""

    output: Path | None = None
    """JSON file to write."""


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock() -> float:
    """Seconds: of the wall clock where there is a GPU to wait for, else of this process's CPU time, which with one
    thread is what it would take on a machine of its own."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def take_turns(
    functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 0, now: Callable[[], float] = clock
) -> dict[str, list[float]]:
    """Milliseconds of each call. Functions take turns, so that a busy machine is busy for all of them.

    Args:
        functions: what to compare, by name.
        rounds: calls of each that count.
        warm_up: calls of each before these.
        now: a clock, in seconds.
    """
    ms: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + rounds):
        for name, function in functions.items():
            synchronize()
            begin = now()
            function()
            synchronize()
            if turn >= warm_up:
                ms[name].append(1000 * (now() - begin))
    return ms


def summary(ms: Sequence[float]) -> dict[str, float]:
    """Median and least of some times."""
    return {"ms": round(statistics.median(ms), 4), "ms_least": round(min(ms), 4)}


def cuda_ms(step: Callable[[], Any], repeats: int, steps: int, ahead: torch.Tensor | None = None) -> float:
    """Median milliseconds of a step between CUDA events around several; queued behind products of `ahead`, if given."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        if ahead is not None:
            for _ in range(3):
                torch.mm(ahead, ahead)
        begin.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / steps)
    return statistics.median(times[1:])  # the first one warms up


def memory_mb() -> dict[str, float]:
    """Peak memory of this process so far, and what tensors took on the GPU."""
    record = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        record["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    return record


def show(title: str, rows: Sequence[Mapping[str, Any]], leave_out: Sequence[str] = ()) -> None:
    """Prints rows as a table; their keys are its columns."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(each)}" for key, each in value.items())
        if isinstance(value, (list, tuple)):
            return " to ".join(map(text, value))
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in leave_out]
    table = Table(*map(escape, columns), title=escape(title))
    for row in rows:
        table.add_row(*(escape(text(row.get(column))) for column in columns))
    Console().print(table)


def write_record(output: Path | None, **content: Any) -> None:
    """Writes a record, without any path of this machine.

    Args:
        output: the JSON file, whose folder is made; nothing is written if there is none.
        content: what was measured.
    """
    from hashpose_ns.bench.environment import command_line, environment, portable

    if output is None:
        return
    where = {**environment(), "load_average": [LOAD_BEFORE, os.getloadavg()[0]]}
    where["commit"] = where["commit"] or os.environ.get("HASHPOSE_COMMIT")  # a copy without .git is told
    record = {"benchmark": output.stem, "command": command_line(), **where, **content}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(portable(record), indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {output}")
