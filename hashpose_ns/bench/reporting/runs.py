"""Run folders of `hashpose-bench`, as they lie there: complete, failed, or still at work."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from typing_extensions import Literal

from hashpose_ns.bench import suites
from hashpose_ns.errors import HashPoseError

State = Literal["done", "failed", "unfinished"]


@dataclass(frozen=True, eq=False)
class BenchRun:
    """One training of one preset on one scene with one seed, and its evaluation."""

    folder: Path
    """Holds run.json and what followed."""
    asked: Dict[str, Any]
    """run.json: what was asked, written before training."""
    outcome: Dict[str, Any] = field(default_factory=dict)
    """results.json; empty where there is none."""
    failure: Dict[str, Any] = field(default_factory=dict)
    """failure.json; empty where there is none."""
    log: List[Dict[str, float]] = field(default_factory=list)
    """Records of pose_errors.jsonl, by step."""

    @property
    def state(self) -> State:
        """done: it has results. failed: it has none and says why. unfinished: it is running, or was stopped."""
        return "done" if self.outcome else "failed" if self.failure else "unfinished"

    @property
    def results(self) -> Dict[str, float]:
        """The flat metrics of a run that is done."""
        return self.outcome.get("results", {})

    @property
    def preset(self) -> str:
        """Name of the preset."""
        return str(self.asked["preset"])

    @property
    def seed(self) -> int:
        """Seed of training and of the perturbation."""
        return int(self.asked["seed"])

    @property
    def title(self) -> str:
        """The preset's name for readers."""
        return str(self.asked.get("title") or self.preset)

    @property
    def group(self) -> Tuple[str, str, str]:
        """Scene, scenario and scale: runs that agree in these are compared in one table."""
        return str(self.asked["scene"]), str(self.asked.get("scenario", "")), str(self.asked.get("scale", ""))

    @property
    def label(self) -> str:
        """A name for messages."""
        return f"{self.asked['scene']} / {self.preset} / seed {self.seed}"

    @property
    def error(self) -> str:
        """The one line that says why it failed."""
        lines = str(self.failure.get("error", "")).strip().splitlines()
        return lines[0] if lines else "no reason was recorded"

    @property
    def last_step(self) -> Optional[int]:
        """The last step that is known to have been made; None where none is."""
        step = self.failure.get("step")
        return step if step is not None else int(self.log[-1]["step"]) if self.log else None


def find_runs(folder: Path) -> Tuple[List[BenchRun], List[str]]:
    """All runs below a folder, and sentences about those that cannot be read.

    Args:
        folder: a bench's output folder, with SUITE/SCENE/PRESET/seed_N below it.
    """
    runs, problems = [], []
    for path in sorted(folder.glob("*/*/*/seed_*/run.json")):
        try:
            runs.append(read_run(path.parent))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path.parent.relative_to(folder)} is left out: {type(error).__name__}, {error}.")
    return runs, problems


def in_order(runs: Sequence[BenchRun]) -> List[BenchRun]:
    """Runs of one suite in its order of scenes and presets where it comes with the package, else as they were begun."""
    try:
        suite = suites.load_suite(str(runs[0].asked["suite"]))
        scenes, presets = list(suite.scenes), [preset.name for preset in suites.suite_presets(suite)]
    except HashPoseError:
        scenes, presets = [], []

    def place(run: BenchRun) -> Tuple[int, int, str]:
        places = [
            names.index(name) if name in names else len(names)
            for names, name in ((scenes, run.asked["scene"]), (presets, run.preset))
        ]
        return places[0], places[1], str(run.asked.get("started", ""))

    return sorted(runs, key=place)


def read_run(folder: Path) -> BenchRun:
    """Reads one run's folder.

    Raises:
        OSError, ValueError: a file cannot be read, or is not JSON.
        KeyError: run.json lacks what every run has.
    """
    run = BenchRun(
        folder=folder,
        asked=_read_json(folder / "run.json"),
        outcome=_read_json(folder / "results.json"),
        failure=_read_json(folder / "failure.json"),
        log=_read_log(folder / "pose_errors.jsonl"),
    )
    for key in ("suite", "scene", "preset", "seed"):
        run.asked[key]
    return run


def _read_json(path: Path) -> Dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no names with values")
    return content


def _read_log(path: Path) -> List[Dict[str, float]]:
    """Records by step, of those of the same step the last; a line that a running training has half written is left."""
    records = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record["step"]] = record
    return [records[step] for step in sorted(records)]
