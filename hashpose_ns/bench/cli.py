"""hashpose-bench: compares methods on scenes, as the literature does, with commands that repeat every number.

Only light modules are imported up here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Union

import tyro
from typing_extensions import Annotated

from hashpose_ns.bench.command import Run
from hashpose_ns.bench.listing import List
from hashpose_ns.bench.report import Report
from hashpose_ns.errors import exits_on_user_error

Commands = Union[
    Annotated[Run, tyro.conf.subcommand(name="run")],
    Annotated[Report, tyro.conf.subcommand(name="report")],
    Annotated[List, tyro.conf.subcommand(name="list")],
]


@exits_on_user_error
def entrypoint() -> None:
    """Entrypoint for use with pyproject scripts."""
    tyro.extras.set_accent_color("bright_yellow")
    description = "Compare methods on scenes, as the literature does, with commands that repeat every number."
    name, config = Path(sys.argv[0]).name, (tyro.conf.FlagConversionOff,)
    tyro.cli(Commands, prog=name, description=description, config=config).main()


if __name__ == "__main__":
    entrypoint()
