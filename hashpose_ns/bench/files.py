"""The files of a run's folder, and what they say about how far it has come. Nothing heavy is imported here."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Optional

RECORD = "run.json"
"""What was asked."""
RESULTS = "results.json"
"""What came out; it is there when the run is complete, and whole."""
FAILURE = "failure.json"
"""Why there are no results."""
LOG = "log.txt"
"""Everything printed."""
CAMERAS = "cameras.npz"
"""Poses and errors of the training cameras."""
RENDERS = "renders"
"""Held-out images: photograph left, render right."""
POSE_LOG = "pose_errors.jsonl"
"""Written by the trainer."""
CHECKPOINTS = "nerfstudio_models"
"""Written by the trainer."""


def write_json(path: Path, content: Dict[str, Any]) -> None:
    """Writes a file that is whole or not there."""
    staging = path.with_name(f".{path.name}.part")
    staging.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(staging, path)


def read_json(path: Path) -> Optional[Dict[str, Any]]:
    """What a file holds; None where there is none, or it is cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def last_checkpoint(folder: Path) -> Optional[int]:
    """Step of a run's newest checkpoint; None where there is none."""
    steps = [re.fullmatch(r"step-(\d+)\.ckpt", path.name) for path in (folder / CHECKPOINTS).glob("step-*.ckpt")]
    return max((int(match[1]) for match in steps if match), default=None)


def last_record(folder: Path) -> Dict[str, Any]:
    """The newest whole record of a run's pose log; empty where there is none."""
    try:
        with open(folder / POSE_LOG, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            lines = log.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:  # cut off, or being written
            continue
    return {}


def log_tail(folder: Path, lines: int = 40) -> str:
    """The end of what a run printed."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def write_failure(folder: Path, error: str) -> None:
    """Says why a run has no results."""
    step = last_record(folder).get("step", last_checkpoint(folder))
    write_json(folder / FAILURE, {"error": error, "step": step, "log_tail": log_tail(folder)})
