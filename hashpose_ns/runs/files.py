"""Names and readers of the files in a run's folder. Nothing heavy is imported here."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from hashpose_ns.atomic import write_whole

CONFIG = "config.yml"
"""The run's configuration, by nerfstudio."""
CHECKPOINTS = "nerfstudio_models"
"""Folder of checkpoints."""
POSE_LOG = "pose_errors.jsonl"
"""Pose errors over training, a JSON object per line."""
HISTORY_FILE = "pose_history.npys"
"""Poses over training, see `hashpose_ns.runs.history`."""
GUARD_FILE = "guard.json"
"""The guard's report."""
MATCHES_FILE = "matches.json"
"""What matches said of where training started."""


# -- JSON --------------------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Dict[str, Any]) -> None:
    """Writes a JSON file atomically.

    Raises:
        OSError: its folder cannot be written.
    """
    write_whole(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Optional[Dict[str, Any]]:
    """The content of a JSON file; None if it does not exist or is cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> Dict[int, Path]:
    """Step -> file of the checkpoints in a folder, by step; empty if there is no such folder.

    Args:
        folder: the folder of checkpoints, which is `CHECKPOINTS` in a run's folder.
    """
    found = {}
    for path in folder.glob("step-*.ckpt"):  # nerfstudio's names; whatever else lies there is none of a run's
        match = re.fullmatch(r"step-([0-9]{9,})\.ckpt", path.name)
        if match and path.is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def last_checkpoint(folder: Path) -> Optional[Path]:
    """The newest checkpoint in a folder; None if there is none."""
    return next(reversed(checkpoints(folder).values()), None)


def last_step(run_folder: Path) -> Optional[int]:
    """Step of a run's newest checkpoint; None if there is none."""
    return max(checkpoints(run_folder / CHECKPOINTS), default=None)


# -- the pose log ------------------------------------------------------------------------------------------------------


def append_pose_log(run_folder: Path, record: Dict[str, Any]) -> None:
    """Adds a record to a run's pose log; it has a `step` and `train_seconds`."""
    with open(run_folder / POSE_LOG, "a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def _pose_record(line: str) -> Optional[Dict[str, float]]:
    """A line of the pose log; None if it is not one that `append_pose_log` has written whole."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(type(value) in (int, float) for value in record.values()):
        return None
    whole = type(record.get("step")) is int and record["step"] >= 0 and math.isfinite(record.get("train_seconds", 0.0))
    return record if whole else None


def read_pose_log(run_folder: Path) -> List[Dict[str, float]]:
    """The records of a run's pose log by step; of records of one step the last. Lines that are cut off or hold
    something else are left out.

    Args:
        run_folder: the run's folder. Without a log in it there are no records.
    """
    try:
        lines = (run_folder / POSE_LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    records = {int(record["step"]): record for record in map(_pose_record, lines) if record is not None}
    return [records[step] for step in sorted(records)]


def last_record(run_folder: Path) -> Dict[str, Any]:
    """The newest whole record of a run's pose log, read from its end; empty if there is none."""
    try:
        with open(run_folder / POSE_LOG, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            lines = log.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return next((record for record in map(_pose_record, reversed(lines)) if record is not None), {})


def resume_pose_log(source: Path, target: Path, before_step: int) -> float:
    """Copies a run's pose log up to a step into the folder of the run that resumes it.

    Args:
        source: folder of the run that is resumed.
        target: folder of the new run, which may be the same.
        before_step: records of this step and later ones are left out.
    Returns:
        Seconds of training by the last of the records; 0 if there are none.
    """
    records = [record for record in read_pose_log(source) if record["step"] < before_step]
    if records or (target / POSE_LOG).exists():  # a line that is cut off would swallow the next one
        write_whole(target / POSE_LOG, "".join(json.dumps(record) + "\n" for record in records))
    return records[-1].get("train_seconds", 0.0) if records else 0.0
