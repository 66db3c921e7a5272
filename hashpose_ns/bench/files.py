"""The files of a run's folder that the bench adds to those of `hashpose_ns.runs.files`."""

from __future__ import annotations

from pathlib import Path

from hashpose_ns.runs.files import last_record, last_step, write_json

RECORD = "run.json"
"""What was asked."""
RESULTS = "results.json"
"""What came out; written last, so that a run with it is complete."""
FAILURE = "failure.json"
"""Why there are no results."""
LOG = "log.txt"
"""Everything printed."""
CAMERAS = "cameras.npz"
"""Poses and errors of the training cameras."""
RENDERS = "renders"
"""Held-out images: photograph left, render right."""


def write_failure(folder: Path, error: str) -> None:
    """Says why a run has no results."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    step = last_record(folder).get("step", last_step(folder))
    write_json(folder / FAILURE, {"error": error, "step": step, "log_tail": "\n".join(lines[-40:])})
