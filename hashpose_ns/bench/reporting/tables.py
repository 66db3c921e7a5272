"""Runs in groups that may be compared, rows of presets in them, means over scenes, and warnings where care is due."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from hashpose_ns.bench.reporting.metrics import DETAILS, HEADLINE, Metric, Statistic, is_movement, over_seeds, success
from hashpose_ns.bench.reporting.published import Protocol, PublishedRow, protocols
from hashpose_ns.bench.reporting.runs import BenchRun, State

PAPER_SCALE = "paper"
"""The scale whose numbers stand beside published ones; any other has other sizes and lengths."""


UNCOMMITTED = "uncommitted"
"""In run.json's `commit` where the checkout had changes on top of it."""


@dataclass(frozen=True, eq=False)
class Row:
    """One preset on one scene."""

    preset: str
    title: str
    runs: Tuple[BenchRun, ...]
    """By seed."""

    def in_state(self, state: State) -> List[BenchRun]:
        """The runs of a state."""
        return [run for run in self.runs if run.state == state]

    @property
    def done(self) -> List[BenchRun]:
        """The runs with results."""
        return self.in_state("done")

    @property
    def moved(self) -> bool:
        """Whether pose measures are movements from the given poses, not errors."""
        return any(is_movement(run) for run in self.done)

    def statistic(self, metric: Metric) -> Statistic:
        """A metric over the seeds."""
        return over_seeds(metric, self.done)

    def success(self, below_deg: float) -> Optional[Tuple[int, int]]:
        """Runs with a mean rotation error below a bound, and how many ended."""
        return success(self.runs, below_deg)

    @property
    def seeds(self) -> str:
        """How many seeds are done, and what became of the others."""
        parts = [f"{len(self.done)}"]
        parts += [f"{len(runs)} {state}" for state in ("failed", "unfinished") if (runs := self.in_state(state))]
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one scene in one scenario at one scale."""

    scene: str
    scenario: str
    scale: str
    rows: Tuple[Row, ...]

    @property
    def title(self) -> str:
        """For headings."""
        return ", ".join(
            part for part in (self.scene, self.scenario, f"{self.scale} scale" if self.scale else "") if part
        )

    @property
    def slug(self) -> str:
        """For file names and anchors."""
        return "_".join(part for part in (self.scene, self.scenario, self.scale) if part).replace("/", "-")

    @property
    def comparable(self) -> bool:
        """Whether sizes and length are those of the published tables, as far as the runs tell."""
        return self.scale == PAPER_SCALE and not any("--set" in str(run.asked.get("command")) for run in self.runs)

    @property
    def protocol(self) -> Optional[Protocol]:
        """What was published for the scenario, if anything."""
        return protocols().get(self.scenario)

    @property
    def published(self) -> List[PublishedRow]:
        """What was published for the scene."""
        return self.protocol.rows(self.scene) if self.protocol else []

    @property
    def runs(self) -> List[BenchRun]:
        """All runs."""
        return [run for row in self.rows for run in row.runs]

    @property
    def warnings(self) -> List[str]:
        """What a reader must know before comparing the rows."""
        found = []
        for what, of in (("commits", commit), ("machines", machine)):
            kinds: Dict[str, List[BenchRun]] = {}
            for run in self.runs:
                kinds.setdefault(of(run), []).append(run)
            if len(kinds) > 1:
                parts = [f"{name} ({_which(runs)})" for name, runs in kinds.items()]
                found.append(f"The runs of this table come from {len(kinds)} {what}: {'; '.join(parts)}.")
        changed = [run for run in self.runs if UNCOMMITTED in str(run.asked.get("commit"))]
        if changed:
            found.append(f"Made with changes that are in no commit, so not repeatable: {_which(changed)}.")
        for row in self.rows:
            differing = sorted({key for run in row.runs[1:] for key in _differing(row.runs[0], run)})
            if differing:
                found.append(f"The seeds of {row.title} were trained with different settings: {', '.join(differing)}.")
        most = {run.seed for run in self.runs}
        for row in self.rows:
            missing = sorted(most - {run.seed for run in row.runs})
            if missing:
                found.append(f"{row.title} lacks {_seeds(missing)} of this table.")
        return found


@dataclass(frozen=True, eq=False)
class Aggregate:
    """All scenes of one scenario at one scale."""

    scenario: str
    scale: str
    groups: Tuple[Group, ...]

    @property
    def scenes(self) -> List[str]:
        """Names of the scenes."""
        return [group.scene for group in self.groups]

    @property
    def title(self) -> str:
        """For headings."""
        return f"Mean over {len(self.groups)} scenes, {self.scenario}" + (f", {self.scale} scale" if self.scale else "")

    @property
    def slug(self) -> str:
        """For file names."""
        return "_".join(part for part in ("all", self.scenario, self.scale) if part)

    @property
    def comparable(self) -> bool:
        """Whether all scenes are."""
        return all(group.comparable for group in self.groups)

    @property
    def presets(self) -> Dict[str, str]:
        """Preset -> title, of all scenes."""
        return {row.preset: row.title for group in self.groups for row in group.rows}

    def rows_of(self, preset: str) -> List[Row]:
        """The rows of a preset, one per scene that has results."""
        return [row for group in self.groups for row in group.rows if row.preset == preset and row.done]

    def mean(self, preset: str, metric: Metric) -> Tuple[Optional[float], int]:
        """Mean over scenes of the values over seeds, and of how many scenes; None where one is not finite."""
        statistics = [row.statistic(metric) for row in self.rows_of(preset)]
        measured = [statistic for statistic in statistics if statistic.values]
        values = [statistic.value for statistic in measured]
        if not values or any(value is None for value in values):
            return None, len(measured)
        return sum(values) / len(values), len(measured)  # type: ignore

    @property
    def published(self) -> List[PublishedRow]:
        """Published means over the same scenes."""
        protocol = protocols().get(self.scenario)
        return protocol.mean_rows(self.scenes) if protocol else []


def make_groups(runs: Sequence[BenchRun]) -> List[Group]:
    """Groups, presets and scenes in the order of the runs, seeds by number."""
    by_group: Dict[Tuple[str, str, str], Dict[str, List[BenchRun]]] = {}
    for run in runs:
        by_group.setdefault(run.group, {}).setdefault(run.preset, []).append(run)
    groups = []
    for (scene, scenario, scale), presets in by_group.items():
        rows = tuple(
            Row(preset, members[0].title, tuple(sorted(members, key=lambda run: run.seed)))
            for preset, members in presets.items()
        )
        groups.append(Group(scene, scenario, scale, rows))
    return sorted(groups, key=lambda group: (group.scenario, group.scale))


def make_aggregates(groups: Sequence[Group]) -> List[Aggregate]:
    """One for each scenario and scale with several scenes."""
    kinds: Dict[Tuple[str, str], List[Group]] = {}
    for group in groups:
        kinds.setdefault((group.scenario, group.scale), []).append(group)
    return [Aggregate(*kind, tuple(members)) for kind, members in kinds.items() if len(members) > 1]


def commit(run: BenchRun) -> str:
    """The commit a run was made from."""
    name, _, more = str(run.asked.get("commit") or "unknown").partition(" ")
    return f"{name[:12]} {more}".strip()


def machine(run: BenchRun) -> str:
    """The environment of a run, in one line."""
    known = run.asked.get("environment") or {}
    parts = [str(known[key]) for key in ("gpu", "processor") if known.get(key)]
    for key in ("core", "thread"):
        count = known.get(f"{key}s")
        parts += [f"{count} {key}{'' if count == 1 else 's'}"] if count is not None else []
    versions = [f"{key} {value}" for key, value in known.items() if key not in ("gpu", "processor", "cores", "threads")]
    return ", ".join(parts + versions) or "unknown"


def _differing(first: BenchRun, second: BenchRun) -> List[str]:
    """Settings, but for seeds, that two runs don't share."""
    one, other = (
        {**run.asked.get("settings", {}), "base_method": run.asked.get("base_method")} for run in (first, second)
    )
    keys = [key for key in one.keys() | other.keys() if not key.endswith("seed")]
    return [key for key in keys if one.get(key) != other.get(key)]


def differing_settings(rows: Sequence[Row]) -> Tuple[List[str], List[List[Any]]]:
    """Settings in which presets differ: their dotted keys, and for each key the value of every preset.

    The first run of a preset speaks for it. None stands for a setting that the preset leaves at its method's default.
    """
    settings = [
        {"method": row.runs[0].asked.get("base_method"), **row.runs[0].asked.get("settings", {})} for row in rows
    ]
    keys = list(dict.fromkeys(key for one in settings for key in one if not key.endswith("seed")))
    keys = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    return keys, [[one.get(key) for one in settings] for key in keys]


def _which(runs: Sequence[BenchRun]) -> str:
    """Which runs, in few words."""
    labels = [f"{run.preset} seed {run.seed}" for run in runs]
    return ", ".join(labels) if len(labels) <= 3 else f"{', '.join(labels[:2])} and {len(labels) - 2} more"


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


# -- for programs ------------------------------------------------------------------------------------------------------


def group_as_json(group: Group, below_deg: float) -> Dict[str, Any]:
    """Every number of a group's tables."""
    measured = []
    for row in group.rows:
        ended = row.success(below_deg)
        measured.append(
            {
                "preset": row.preset,
                "title": row.title,
                "seeds": {
                    state: [run.seed for run in row.in_state(state)] for state in ("done", "failed", "unfinished")
                },
                "poses_moved_from_given": row.moved,
                "success": None if ended is None else {"runs": ended[0], "of": ended[1]},
                "metrics": {metric.name: row.statistic(metric).as_json() for metric in HEADLINE + DETAILS},
            }
        )
    return {
        "scene": group.scene,
        "scenario": group.scenario,
        "scale": group.scale,
        "rows": measured,
        "published": [published_as_json(row) for row in group.published],
        "published_comparable": group.comparable,
        "warnings": group.warnings,
    }


def aggregate_as_json(aggregate: Aggregate) -> Dict[str, Any]:
    """Every number of an aggregate's table."""

    def numbers(preset: str) -> Dict[str, Any]:
        means = {metric.name: aggregate.mean(preset, metric) for metric in HEADLINE + DETAILS}
        return {name: {"mean": value, "scenes": scenes} for name, (value, scenes) in means.items()}

    return {
        "scenario": aggregate.scenario,
        "scale": aggregate.scale,
        "scenes": aggregate.scenes,
        "rows": [
            {"preset": preset, "title": title, "metrics": numbers(preset)}
            for preset, title in aggregate.presets.items()
        ],
        "published": [published_as_json(row) for row in aggregate.published],
        "published_comparable": aggregate.comparable,
    }


def published_as_json(row: PublishedRow) -> Dict[str, Any]:
    """A published row, with where it is from."""
    return {"title": row.title, "by": row.by, "source": row.source, "note": row.note, "metrics": row.values}
