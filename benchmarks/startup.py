"""What does the plugin add to the start of nerfstudio's commands, and how long do its own commands take to start?

    PYTHONPATH=. python benchmarks/startup.py --output benchmarks/results/startup.json

Seconds of CPU time, of the process and those it starts: the wall clock would also count what else the machine does.
The least of several repeats in turns, every other one backwards. "Without the plugin" hides the entry points of all
plugins from nerfstudio.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import tyro
from record import Output, show, write_record

NO_PLUGINS = """
import importlib.metadata
find = importlib.metadata.entry_points
def no_plugins(**selection):
    hidden = selection.get("group", "").startswith("nerfstudio.")
    return importlib.metadata.EntryPoints() if hidden else find(**selection)
importlib.metadata.entry_points = no_plugins
"""
COMMAND = "import sys; sys.argv = ['command', '--help']; from {} import entrypoint; entrypoint()"
PROGRAMS = {
    "ns-train --help, without the plugin": NO_PLUGINS + COMMAND.format("nerfstudio.scripts.train"),
    "ns-train --help, with the plugin": COMMAND.format("nerfstudio.scripts.train"),
    **{f"hashpose-{room} --help": COMMAND.format(f"hashpose_ns.{room}.cli") for room in ("export", "bench", "guard")},
    "import torch": "import torch",
}


@dataclass
class Args(Output):
    """Settings."""

    repeats: int = 3
    """The best of so many is taken."""


def cpu_seconds(program: str) -> float:
    """CPU time of a Python program, user and system, which must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"This ended with exit code {process.returncode}:\n{program}")
    return usage.ru_utime + usage.ru_stime


def main(args: Args) -> None:
    """Measures, prints, writes."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for repeat in range(args.repeats):
        for name in reversed(PROGRAMS) if repeat % 2 else PROGRAMS:
            times[name].append(cpu_seconds(PROGRAMS[name]))
    results = {name: {"seconds": round(min(values), 2), "all": values} for name, values in times.items()}
    show("Start-up, seconds of CPU time", [{"command": name, **result} for name, result in results.items()], ["all"])
    write_record(args.output, repeats=args.repeats, results=results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
