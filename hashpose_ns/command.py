"""How a console script runs what its flags ask for. Light to import."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, Optional

import tyro

from hashpose_ns.errors import exits_on_user_error
from hashpose_ns.stopping import stops_cleanly


@stops_cleanly
@exits_on_user_error
def run_command(commands: Any, description: Optional[str] = None) -> Any:
    """Runs the command that the command line asks for. A user's error is a sentence and exit code 1, a signal the exit
    code that shells give.

    Args:
        commands: what tyro makes flags of: a dataclass with a method `main`, or a union of such.
        description: what `--help` says first; by default the docstring of a single command.
    Returns:
        What its `main` returns.
    """
    warnings.simplefilter("ignore", FutureWarning)  # of torch, about how nerfstudio uses it
    tyro.extras.set_accent_color("bright_yellow")
    return tyro.cli(commands, prog=Path(sys.argv[0]).name, description=description).main()
