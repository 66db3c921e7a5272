"""The runs of a suite as one pandas frame: a row per run, a column per metric."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from hashpose_ns.bench import files, suites
from hashpose_ns.bench.reporting.published import Protocol, PublishedRow, protocols
from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.files import read_pose_log

PAPER_SCALE = "paper"
"""The scale whose numbers stand beside published ones; any other has other sizes and lengths."""
UNCOMMITTED = "uncommitted"
"""In run.json's `commit` if the checkout had changes on top of it."""


@dataclass(frozen=True)
class Metric:
    """A number of a run, and how it is shown."""

    name: str
    """Its column's name, also in summary.json and the published tables."""
    title: str
    """Its column's heading."""
    keys: Tuple[str, ...]
    """Where it is in results.json; the first key that is there counts."""
    scale: float = 1.0
    """Factor of what is shown to what is stored."""
    digits: int = 3
    """Decimals shown."""
    with_spread: bool = True
    """Whether the spread over seeds is shown beside it."""
    better: Optional[Literal["lower", "higher"]] = None
    """Which end is the good one, if any."""
    over_seeds: Literal["mean", "max"] = "mean"
    """What stands for the seeds: their mean, or the largest of them."""
    needs: Optional[Literal["field", "sfm"]] = None
    """What a method must have for it: a trained field, or structure from motion instead of one."""

    @property
    def of_poses(self) -> bool:
        """Whether it compares poses after training with others: an error, or a movement where those were given."""
        return self.keys[0].startswith("pose_change_")

    def of(self, outcome: Dict[str, Any]) -> float:
        """The number of a run, as it is shown: NaN if it was not measured, infinite if what was measured is no finite
        number."""
        for values in (outcome.get("results", {}), outcome):
            for key in self.keys:
                if isinstance(values.get(key), (int, float)):
                    value = self.scale * float(values[key])
                    return value if math.isfinite(value) else math.inf
        return math.nan

    def show(self, value: float) -> str:
        """A value with the decimals that tell something."""
        if self.name.endswith("_seconds"):
            return duration(value)
        if self.name == "parameters" and value >= 1e5:
            return f"{value / 1e6:.2f} M"
        return f"{value:.{self.digits if abs(value) < 10 else min(self.digits, 2)}f}"


def _pose_keys(measure: str) -> Tuple[str, str]:
    """After an alignment by centres and orientations; by centres alone in records that say nothing else."""
    return f"pose_change_{measure}", f"pose_error_after_{measure}"


def _published_keys(measure: str, when: str = "after") -> Tuple[str, str]:
    """After an alignment by centres alone, as published tables have it. Earlier records know no other."""
    return f"pose_error_{when}_by_centers_{measure}", f"pose_error_{when}_{measure}"


ROTATION = Metric(
    "rotation_deg",
    "rotation [deg]",
    ("pose_change_rotation_deg_mean", "barf_rotation_deg_mean", "pose_error_after_rotation_deg_mean"),
    better="lower",
)
TRANSLATION = Metric(
    "translation_x100",
    "translation x100",
    ("pose_change_translation_mean", *_published_keys("translation_mean")),
    100.0,
    better="lower",
)
PSNR = Metric("psnr", "PSNR, TTO [dB]", ("psnr_tto",), digits=2, better="higher", needs="field")
NOT_PLACED = Metric(
    "not_placed", "not placed", ("sfm_not_placed",), digits=0, with_spread=False, over_seeds="max", needs="sfm"
)
"""Images that structure from motion leaves out, in the worst seed."""
HEADLINE = (
    Metric(
        "rotation_deg_before", "before [deg]", _published_keys("rotation_deg_mean", "before"), 1.0, 2, with_spread=False
    ),
    ROTATION,
    TRANSLATION,
    Metric("center_x100", "centres x100", _pose_keys("center_mean"), 100.0, better="lower"),
    NOT_PLACED,
    PSNR,
    Metric("ssim", "SSIM, TTO", ("ssim_tto",), better="higher", needs="field"),
    Metric("lpips", "LPIPS, TTO", ("lpips_tto",), better="lower", needs="field"),
)
"""The columns of the first table of a scene."""
_BEFORE = _published_keys("translation_mean", "before")
DETAILS = (
    Metric("translation_x100_before", "translation x100 before", _BEFORE, 100.0, 2, with_spread=False),
    Metric("rotation_deg_aligned", "rotation, aligned by both", _pose_keys("rotation_deg_mean"), better="lower"),
    Metric("rotation_deg_median", "median rotation", _pose_keys("rotation_deg_median"), better="lower"),
    Metric("rotation_deg_max", "worst camera", _pose_keys("rotation_deg_max"), better="lower", over_seeds="max"),
    Metric("rotation_deg_placed", "rotation, placed only", ("sfm_placed_barf_rotation_deg_mean",), needs="sfm"),
    Metric(
        "rotation_deg_aligned_placed", "aligned by both, placed only", ("sfm_placed_rotation_deg_mean",), needs="sfm"
    ),
    Metric(
        "rotation_deg_max_placed",
        "worst camera placed",
        ("sfm_placed_rotation_deg_max",),
        over_seeds="max",
        needs="sfm",
    ),
    Metric("psnr_aligned", "PSNR, aligned", ("psnr_aligned",), digits=2, better="higher", needs="field"),
    Metric("ssim_aligned", "SSIM, aligned", ("ssim_aligned",), better="higher", needs="field"),
    Metric("lpips_aligned", "LPIPS, aligned", ("lpips_aligned",), better="lower", needs="field"),
    Metric("steps", "steps", ("steps",), digits=0, with_spread=False, needs="field"),
    Metric("ms_per_step", "ms/step", ("ms_per_step",), digits=1, needs="field"),
    Metric("train_seconds", "training", ("train_seconds",), needs="field"),
    Metric("eval_seconds", "evaluation", ("eval_seconds",), with_spread=False, needs="field"),
    Metric("match_seconds", "matching, CPU", ("sfm_match_seconds",), needs="sfm"),
    Metric("sfm_seconds", "SfM, CPU", ("sfm_seconds",), needs="sfm"),
    Metric("cpu_seconds", "all, CPU", ("cpu_seconds",)),
    Metric("peak_memory_mb", "memory [MB]", ("peak_memory_mb",), digits=0, with_spread=False),
    Metric("parameters", "parameters", ("parameters",), digits=0, with_spread=False, needs="field"),
)
"""The columns of the second table of a scene."""
METRICS = {metric.name: metric for metric in HEADLINE + DETAILS}


def duration(seconds: float) -> str:
    """Seconds in the largest unit that fits: `48 s`, `12.5 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# -- reading -----------------------------------------------------------------------------------------------------------


def read_runs(folder: Path) -> Tuple[pd.DataFrame, List[str]]:
    """All runs below a folder, and sentences about those that cannot be read.

    Args:
        folder: a bench's output folder, with SUITE/SCENE/PRESET/seed_N below it.

    Returns:
        A row per run: `suite`, `scene`, `scenario`, `scale`, `preset`, `title`, `seed`, `state` (done, failed or
        unfinished), `error`, `last_step`, `moved` (its pose measures say how far cameras moved from the given poses,
        which nothing says are wrong), `label`, `folder`, the contents of its files (`asked`, `outcome`, `failure`,
        `log`), and a column per metric. NaN is what was not measured, infinity what is not finite.
    """
    rows, problems = [], []
    for path in sorted(folder.glob(f"*/*/*/seed_*/{files.RECORD}")):
        try:
            rows.append(_read_run(path.parent))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path.parent.relative_to(folder)} is left out: {type(error).__name__}, {error}.")
    return pd.DataFrame(rows), problems


def _read_run(folder: Path) -> Dict[str, Any]:
    def read(name: str) -> Dict[str, Any]:
        path = folder / name
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    asked, outcome, failure = read(files.RECORD), read(files.RESULTS), read(files.FAILURE)
    log = read_pose_log(folder)
    step = failure.get("step")
    lines = str(failure.get("error", "")).strip().splitlines()
    scene, preset, seed = str(asked["scene"]), str(asked["preset"]), int(asked["seed"])
    return {
        "suite": str(asked["suite"]),
        "scene": scene,
        "scenario": str(asked.get("scenario", "")),
        "scale": str(asked.get("scale", "")),
        "preset": preset,
        "title": str(asked.get("title") or preset),
        "seed": seed,
        "state": "done" if outcome else "failed" if failure else "unfinished",
        "error": lines[0] if lines else "no reason was recorded",
        "last_step": step if step is not None else int(log[-1]["step"]) if log else None,
        "moved": any(key.startswith("pose_change_") for key in outcome.get("results", {})),
        "label": f"{scene} / {preset} / seed {seed}",
        "folder": folder,
        "asked": asked,
        "outcome": outcome,
        "failure": failure,
        "log": log,
        **{metric.name: metric.of(outcome) for metric in METRICS.values()},
    }


def in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of one suite in its order of scenes and presets if it comes with the package, else as they were begun."""
    try:
        suite = suites.load_suite(str(runs.suite.iloc[0]))
        scenes, presets = list(suite.scenes), [preset.name for preset in suites.suite_presets(suite)]
    except HashPoseError:
        scenes, presets = [], []

    def place(row: pd.Series) -> Tuple[int, int, str, int]:
        places = [
            names.index(name) if name in names else len(names)
            for names, name in ((scenes, row.scene), (presets, row.preset))
        ]
        return places[0], places[1], str(row.asked.get("started", "")), row.seed

    return runs.iloc[sorted(range(len(runs)), key=lambda index: place(runs.iloc[index]))].reset_index(drop=True)


# -- groups ------------------------------------------------------------------------------------------------------------


def statistics(done: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Every metric over the seeds of runs that are done, indexed by `by` and `metric`.

    Returns:
        `value`: the mean (or largest), NaN if one is not finite; `std`: sample standard deviation, NaN with fewer than
        two; `n`: how many measured it; `not_finite`: how many of these are not finite.
    """
    long = done.melt([*by, "seed"], list(METRICS), "metric", "value").dropna(subset="value")
    found = long.groupby([*by, "metric"], sort=False).value.agg(
        mean="mean", max="max", std="std", n="size", not_finite=lambda values: (values == math.inf).sum()
    )
    names = found.index.get_level_values("metric")
    largest = np.array([METRICS[name].over_seeds == "max" for name in names], dtype=bool)
    found["value"] = found["max"].where(largest, found["mean"]).where(found.not_finite == 0)
    found["std"] = found["std"].where((found.not_finite == 0) & ~largest)
    return found[["value", "std", "n", "not_finite"]]


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one scene in one scenario at one scale, which may be compared."""

    scene: str
    scenario: str
    scale: str
    runs: pd.DataFrame

    @property
    def title(self) -> str:
        """For headings."""
        return ", ".join(filter(None, (self.scene, self.scenario, f"{self.scale} scale" if self.scale else "")))

    @property
    def slug(self) -> str:
        """For file names."""
        return "_".join(filter(None, (self.scene, self.scenario, self.scale))).replace("/", "-")

    @cached_property
    def presets(self) -> Dict[str, str]:
        """Preset -> title, in order."""
        return dict(zip(self.runs.preset, self.runs.title))

    def of(self, preset: str, state: Optional[str] = None) -> pd.DataFrame:
        """A preset's runs, by seed; those in a state, if given."""
        runs = self.runs[self.runs.preset == preset].sort_values("seed")
        return runs if state is None else runs[runs.state == state]

    @cached_property
    def numbers(self) -> pd.DataFrame:
        """Statistics of all metrics, by preset and metric."""
        return statistics(self.runs[self.runs.state == "done"], ["preset"])

    def number(self, preset: str, metric: Metric) -> Optional[pd.Series]:
        """One of them; None if it was not measured."""
        return self.numbers.loc[(preset, metric.name)] if (preset, metric.name) in self.numbers.index else None

    def without_field(self, preset: str) -> bool:
        """Whether a preset is structure from motion alone."""
        return self.of(preset).asked.iloc[0].get("base_method") in suites.SFM_METHODS

    def moved(self, preset: str) -> bool:
        """Whether pose measures are movements from the given poses, not errors."""
        return bool(self.of(preset, "done").moved.any())

    @property
    def any_moved(self) -> bool:
        """Whether that is so of any preset."""
        return any(map(self.moved, self.presets))

    def success(self, preset: str, below_deg: float) -> Optional[Tuple[int, int]]:
        """How many runs ended with a mean rotation error below a bound, and of how many: a run that failed did not.

        None if nothing has ended, and if poses have no error: training started from poses that count as true.
        """
        ended = self.of(preset)
        ended = ended[(ended.state == "failed") | ((ended.state == "done") & ~ended.moved)]
        done = ended[ended.state == "done"]
        if ended.empty or (len(done) and done[ROTATION.name].isna().all()):
            return None
        return int((done[ROTATION.name] < below_deg).sum()), len(ended)

    @property
    def comparable(self) -> bool:
        """Whether sizes and length are those of the published tables, as far as the runs tell."""
        return self.scale == PAPER_SCALE and not any("--set" in str(asked.get("command")) for asked in self.runs.asked)

    @property
    def protocol(self) -> Optional[Protocol]:
        """What was published for the scenario, if anything."""
        return protocols().get(self.scenario)

    @property
    def published(self) -> List[PublishedRow]:
        """What was published for the scene."""
        return self.protocol.rows(self.scene) if self.protocol else []

    @property
    def warnings(self) -> List[str]:
        """What a reader must know before comparing the rows."""
        found = []
        for what, of in (("commits", commit), ("machines", machine)):
            kinds = self.runs.groupby(self.runs.asked.map(of), sort=False)
            if len(kinds) > 1:
                parts = [f"{name} ({_which(runs)})" for name, runs in kinds]
                found.append(f"The runs of this table come from {len(kinds)} {what}: {'; '.join(parts)}.")
        changed = self.runs[self.runs.asked.map(lambda asked: UNCOMMITTED in str(asked.get("commit")))]
        if len(changed):
            found.append(f"Made with changes that are in no commit, so not repeatable: {_which(changed)}.")
        for preset, title in self.presets.items():
            first, *others = map(settings_of, self.of(preset).asked)
            differing = sorted({key for other in others for key in first | other if first.get(key) != other.get(key)})
            if differing:
                found.append(f"The seeds of {title} were trained with different settings: {', '.join(differing)}.")
        for preset, title in self.presets.items():
            missing = sorted(set(self.runs.seed) - set(self.of(preset).seed))
            if missing:
                seeds = ("seed " if len(missing) == 1 else "seeds ") + ", ".join(map(str, missing))
                found.append(f"{title} lacks {seeds} of this table.")
        return found


@dataclass(frozen=True, eq=False)
class Aggregate:
    """All scenes of one scenario at one scale."""

    scenario: str
    scale: str
    groups: Tuple[Group, ...]

    @property
    def title(self) -> str:
        """For headings."""
        return f"Mean over {len(self.groups)} scenes, {self.scenario}" + (f", {self.scale} scale" if self.scale else "")

    @property
    def slug(self) -> str:
        """For file names."""
        return "_".join(filter(None, ("all", self.scenario, self.scale)))

    @property
    def comparable(self) -> bool:
        """Whether all scenes are."""
        return all(group.comparable for group in self.groups)

    @property
    def presets(self) -> Dict[str, str]:
        """Preset -> title, of all scenes."""
        return {preset: title for group in self.groups for preset, title in group.presets.items()}

    def of(self, preset: str) -> List[Group]:
        """The scenes where a preset has results."""
        return [group for group in self.groups if len(group.of(preset, "done"))]

    def mean(self, preset: str, metric: Metric) -> Tuple[Optional[float], int]:
        """Mean over scenes of the values over seeds, and of how many scenes; None if one is not finite."""
        found = [number for group in self.of(preset) if (number := group.number(preset, metric)) is not None]
        values = [number.value for number in found]
        return (None if not values or any(map(math.isnan, values)) else sum(values) / len(values)), len(values)

    @property
    def published(self) -> List[PublishedRow]:
        """Published means over the same scenes."""
        protocol = protocols().get(self.scenario)
        return protocol.mean_rows([group.scene for group in self.groups]) if protocol else []


def make_groups(runs: pd.DataFrame) -> List[Group]:
    """Groups and presets in the order of the runs."""
    found = runs.groupby(["scene", "scenario", "scale"], sort=False)
    groups = [Group(scene, scenario, scale, members) for (scene, scenario, scale), members in found]
    return sorted(groups, key=lambda group: (group.scenario, group.scale))


def make_aggregates(groups: Sequence[Group]) -> List[Aggregate]:
    """One for each scenario and scale with several scenes."""
    kinds: Dict[Tuple[str, str], List[Group]] = {}
    for group in groups:
        kinds.setdefault((group.scenario, group.scale), []).append(group)
    return [Aggregate(*kind, tuple(members)) for kind, members in kinds.items() if len(members) > 1]


# -- what was asked ----------------------------------------------------------------------------------------------------


def settings_of(asked: Dict[str, Any]) -> Dict[str, Any]:
    """A run's settings and its method, seeds left out."""
    settings = {"method": asked.get("base_method"), **asked.get("settings", {})}
    return {key: value for key, value in settings.items() if not key.endswith("seed")}


def differing_settings(group: Group) -> pd.DataFrame:
    """Settings in which presets differ, a column per preset's title; None is the method's default. The first run of a
    preset speaks for it."""
    table = pd.DataFrame(
        {title: settings_of(group.of(preset).asked.iloc[0]) for preset, title in group.presets.items()}
    )
    table = table.astype(object).where(table.notna(), None)
    return table[table.apply(lambda row: len(set(map(str, row))) > 1, axis=1)] if len(table) else table


def commit(asked: Dict[str, Any]) -> str:
    """The commit a run was made from."""
    name, _, more = str(asked.get("commit") or "unknown").partition(" ")
    return f"{name[:12]} {more}".strip()


def machine(asked: Dict[str, Any]) -> str:
    """The environment of a run, in one line."""
    known = asked.get("environment") or {}
    parts = [str(known[key]) for key in ("gpu", "processor") if known.get(key)]
    for key in ("core", "thread"):
        count = known.get(f"{key}s")
        parts += [f"{count} {key}{'' if count == 1 else 's'}"] if count is not None else []
    versions = [f"{key} {value}" for key, value in known.items() if key not in ("gpu", "processor", "cores", "threads")]
    return ", ".join(parts + versions) or "unknown"


def _which(runs: pd.DataFrame) -> str:
    """Which runs, in few words."""
    labels = [f"{preset} seed {seed}" for preset, seed in zip(runs.preset, runs.seed)]
    return ", ".join(labels) if len(labels) <= 3 else f"{', '.join(labels[:2])} and {len(labels) - 2} more"
