"""`hashpose-match` as a console script: torch's warnings are silenced before it is imported."""

from __future__ import annotations

import warnings


def entrypoint() -> None:
    """Entrypoint for use with pyproject scripts."""
    warnings.simplefilter("ignore", FutureWarning)  # of torch, about how nerfstudio uses it
    from hashpose_ns.match import entrypoint as run

    run()
