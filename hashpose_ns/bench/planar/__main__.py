"""`python -m hashpose_ns.bench.planar`, the same as `hashpose-bench planar`."""

from __future__ import annotations

import tyro

from hashpose_ns.bench.planar.settings import Planar
from hashpose_ns.errors import exits_on_user_error


@exits_on_user_error
def entrypoint() -> None:
    """Runs the experiment with settings from the command line."""
    tyro.cli(Planar).main()


if __name__ == "__main__":
    entrypoint()
