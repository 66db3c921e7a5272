"""Numbers that others published, from `data/published.yaml`, by scenario and scene."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

PUBLISHED_FILE = Path(__file__).parent.parent / "data" / "published.yaml"


@dataclass(frozen=True)
class PublishedRow:
    """One method's numbers on one scene, or their means over scenes."""

    title: str
    """Name of the method."""
    by: str
    """Who printed the numbers."""
    source: str
    """Where they were printed."""
    note: str
    """What differs from the protocol; often nothing."""
    values: Dict[str, float]
    """Metric -> value, of those that were given. Metrics are named as in the report's tables."""


@dataclass(frozen=True)
class Protocol:
    """The published tables of one protocol."""

    title: str
    """What it is."""
    protocol: str
    """Sizes, in words."""
    corrections: Tuple[str, ...]
    """What was printed wrong, and what stands here instead."""
    columns: Tuple[str, ...]
    sources: Dict[str, Dict[str, Any]]
    scenes: Dict[str, Dict[str, List[Optional[float]]]]
    means: Dict[str, List[Optional[float]]]
    all_scenes: Tuple[str, ...]

    def rows(self, scene: str) -> List[PublishedRow]:
        """What was published for a scene."""
        return [self._row(source, values) for source, values in self.scenes.get(scene, {}).items()]

    def mean_rows(self, scenes: Sequence[str]) -> List[PublishedRow]:
        """Means over scenes: the printed ones where these are all of the protocol's, else of the given scenes.

        A method that lacks one of the scenes is left out.
        """
        if set(scenes) == set(self.all_scenes):
            return [self._row(source, values) for source, values in self.means.items()]
        rows = []
        for source in self.sources:
            tables = [self.scenes.get(scene, {}).get(source) for scene in scenes]
            if not tables or any(values is None for values in tables):
                continue
            columns = zip(*[values + [None] * (len(self.columns) - len(values)) for values in tables])  # type: ignore
            rows.append(self._row(source, [None if None in c else sum(c) / len(c) for c in columns], f"{len(scenes)}"))
        return rows

    def _row(self, source: str, values: Sequence[Optional[float]], mean_of: str = "") -> PublishedRow:
        entry = self.sources[source]
        numbers = {name: value for name, value in zip(self.columns, values) if value is not None}
        notes = [entry["note"]] if "note" in entry else []
        if mean_of:
            notes.append(f"mean over the same {mean_of} scenes, taken here")
        if "ms_per_step" in entry:
            numbers["ms_per_step"] = float(entry["ms_per_step"])
            notes.append(f"{entry['ms_per_step']} ms per step ({entry['ms_per_step_by']})")
        return PublishedRow(entry["title"], entry["by"], entry["source"], "; ".join(notes), numbers)


@functools.lru_cache(maxsize=None)
def protocols() -> Dict[str, Protocol]:
    """Scenario -> what was published for it."""
    found = {}
    for entry in yaml.safe_load(PUBLISHED_FILE.read_text(encoding="utf-8")):
        protocol = Protocol(
            title=entry["title"],
            protocol=entry["protocol"],
            corrections=tuple(entry.get("corrections", ())),
            columns=tuple(entry["columns"]),
            sources=entry["sources"],
            scenes=entry["scenes"],
            means=entry["means"],
            all_scenes=tuple(entry.get("all_scenes", entry["scenes"])),
        )
        found.update({scenario: protocol for scenario in entry["scenarios"]})
    return found
