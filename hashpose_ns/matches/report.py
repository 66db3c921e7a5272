"""What matches said of the poses, camera by camera: as JSON in the run's folder, as flat floats, as a table. Light, for
readers."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Literal, Optional

from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.files import MATCHES_FILE, write_json

if TYPE_CHECKING:
    from rich.table import Table

VERSION = 1
MOST_ROWS = 60
"""Cameras in a table at most."""


@dataclass(frozen=True)
class MatchedCamera:
    """What matches say of one camera."""

    name: str
    """The image's file name, as in `PoseOptimizer.image_names`."""
    placed: bool
    """Whether matches determine it, so that it is where they put it, or they confirm where it was."""
    matches: int
    """Verified matches with other images."""
    agreeing_given: Optional[float]
    """Fraction of them that agree with the given poses; None where there are none."""
    agreeing_found: Optional[float]
    """The same of the poses that structure from motion gave, believed or not; None where that gave nothing."""
    deviation_deg: Optional[float]
    """Standard deviation of the rotation that structure from motion gave; None where matches do not determine it."""


@dataclass(frozen=True)
class MatchesReport:
    """Where refinement starts, as far as matches can tell, and why."""

    verdict: Literal["given", "matches", "refused"]
    """`given`: the given poses agree with the matches already; `matches`: poses come from matches; `refused`: what
    matches gave is not believed, and the given poses stay."""
    sentence: str
    """Why, in words, without a full stop."""
    evidence: Dict[str, float]
    """What the verdict rests on."""
    cameras: List[MatchedCamera]
    """Every training camera."""
    seconds: float
    """How long it took, matching included."""
    version: int = VERSION
    """Of the file's format."""

    @property
    def left(self) -> List[str]:
        """Names of the cameras that matches do not determine."""
        return [camera.name for camera in self.cameras if not camera.placed]

    @property
    def outcome(self) -> str:
        """What is done and why, in one sentence without its full stop."""
        done = "poses from matches" if self.verdict == "matches" else "the poses as they are"
        left = len(self.left) if self.verdict == "matches" else 0
        rest = f"; {left} camera{'s keep theirs' if left > 1 else ' keeps its own'}" if left else ""
        return f"training starts at {done}: {self.sentence}{rest}"

    def metrics(self) -> Dict[str, float]:
        """Flat floats as in ns-eval's JSON; `matches_verdict` is 1 for matches, 0 for given, -1 for refused."""
        return {
            "matches_verdict": float({"matches": 1, "given": 0, "refused": -1}[self.verdict]),
            "matches_placed": float(sum(camera.placed for camera in self.cameras)),
            "matches_cameras": float(len(self.cameras)),
            "matches_seconds": float(self.seconds),
            **{f"matches_{name}": float(value) for name, value in self.evidence.items()},
        }

    def as_json(self) -> Dict[str, Any]:
        """What the file holds."""
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, content: Dict[str, Any]) -> MatchesReport:
        """The other way round.

        Raises:
            HashPoseError: it is no such report.
        """
        try:
            cameras = [MatchedCamera(**camera) for camera in content["cameras"]]
            report = cls(**{**content, "cameras": cameras})
            numbers = report.metrics().values()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise HashPoseError("This is not a complete report on matches.") from error
        if not all(math.isfinite(number) for number in numbers) or not isinstance(report.sentence, str):
            raise HashPoseError("This is not a valid report on matches: it holds NaN or infinite values.")
        return report

    def write(self, folder: Path) -> Path:
        """Writes matches.json atomically.

        Returns:
            The file.

        Raises:
            HashPoseError: the folder cannot be written.
        """
        path = folder / MATCHES_FILE
        try:
            write_json(path, self.as_json())
        except OSError as error:
            raise HashPoseError(f"The report on matches {path} cannot be written ({error.strerror}).") from error
        return path

    def table(self) -> Table:
        """The cameras as a table; of many those that are not placed and those that are determined worst."""
        from rich.markup import escape
        from rich.table import Table

        def percent(share: Optional[float]) -> str:
            return "-" if share is None else f"{100 * share:.0f} %"

        table = Table("camera", "by matches", "matches", "agree: given", "found", "deviation [deg]")
        for column in table.columns[2:]:
            column.justify = "right"
        shown, done = self.cameras, {"given": "confirmed", "matches": "placed", "refused": ""}[self.verdict]
        if len(shown) > MOST_ROWS:
            shown = sorted(shown, key=lambda camera: (camera.placed, -(camera.deviation_deg or math.inf)))[:MOST_ROWS]
            table.caption = f"{len(self.cameras) - MOST_ROWS} more, which matches determine better, are not shown"
        for camera in shown:
            table.add_row(
                escape(Path(camera.name).name),
                done if camera.placed else "as given",
                str(camera.matches),
                percent(camera.agreeing_given),
                percent(camera.agreeing_found),
                "-" if camera.deviation_deg is None else f"{camera.deviation_deg:.3f}",
            )
        return table


def read_matches(folder: Path) -> Optional[MatchesReport]:
    """The report in a run's folder; None if there is none, or none that can be read: it costs only its numbers."""
    try:
        content = json.loads((folder / MATCHES_FILE).read_text(encoding="utf-8"))
        return MatchesReport.of_json(content) if isinstance(content, dict) else None
    except (OSError, ValueError, RecursionError):  # a HashPoseError is a ValueError
        return None
