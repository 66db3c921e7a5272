"""Where the benchmarks' records are written: JSON with command, commit, machine and how busy it was."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY))  # the package itself need not be installed
LOAD_BEFORE = os.getloadavg()[0]
"""Load average when the benchmark began."""


def write_record(output: Path, **content: Any) -> None:
    """Writes a record, without any path of this machine.

    Args:
        output: the JSON file; its folder is made.
        content: what was measured.
    """
    from hashpose_ns.bench.environment import command_line, environment, portable

    where = {**environment(), "load_average": [LOAD_BEFORE, os.getloadavg()[0]]}
    where["commit"] = where["commit"] or os.environ.get("HASHPOSE_COMMIT")  # a copy without .git is told
    record = {"benchmark": output.stem, "command": command_line(), **where, **content}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(portable(record), indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {output}")
