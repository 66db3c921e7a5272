"""`hashpose-bench report`: tables and figures of a suite's runs. What does the work is imported when it is needed."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    from hashpose_ns.bench.reporting.document import Figure
    from hashpose_ns.bench.reporting.runs import BenchRun
    from hashpose_ns.bench.reporting.tables import Aggregate, Group

MADE_BY = "hashpose-bench report"
"""Value of `made_by` in summary.json: a folder with it is a report, which a newer one may replace."""
PICTURES = ("curves.png", "camera_errors.png", "cameras.png", "paths.png", "views.jpg", "scenes.png")
"""Endings of the figures' names."""


@dataclass
class Report:
    """Make tables and figures of the runs that lie in a folder: report.md, report.html and summary.json."""

    runs: Path = Path("bench_output")
    """Folder with the runs, as SUITE/SCENE/PRESET/seed_N. Runs that failed or are still at work are listed as such."""
    suite: Optional[str] = None
    """The suite to report on. Needed where the folder holds several."""
    output_dir: Optional[Path] = None
    """Folder to write; RUNS/SUITE/report where none is given. It appears whole or not at all."""
    overwrite: bool = False
    """Replace an output folder that holds files of a report but is not known as one. An earlier report is replaced
    without it, and a folder with anything else in it never is."""
    success_deg: float = 0.5
    """A run counts as a success when its mean rotation error ends below this, in degrees."""

    def main(self) -> None:
        """Read the runs and write the report."""
        from hashpose_ns.export.replace import check_target, replaced_folder

        found, problems = self._read()
        suite = str(found[0].asked["suite"])
        target = self.output_dir or self.runs / suite / "report"
        if target.is_dir() and not (self.overwrite or is_report(target)):
            raise HashPoseError(
                f"{target} exists and is no report; choose another --output-dir, or give --overwrite if it holds what "
                "is left of one."
            )
        check_target(target, True, is_report_file, "a report")

        from hashpose_ns.bench.reporting.content import Findings, compose
        from hashpose_ns.bench.reporting.document import write_html, write_markdown
        from hashpose_ns.bench.reporting.tables import make_aggregates, make_groups

        groups = make_groups(found)
        aggregates = make_aggregates(groups)
        with replaced_folder(target, True, is_report_file, "a report") as folder:
            (folder / "figures").mkdir()
            figures = {group.slug: draw(group, folder / "figures") for group in groups}
            figures.update({aggregate.slug: draw_all_scenes(aggregate, folder / "figures") for aggregate in aggregates})
            command = self._command(suite)
            document = compose(Findings(suite, found, problems, groups, aggregates, figures, self.success_deg, command))
            write_markdown(document, folder / "report.md")
            write_html(document, folder / "report.html")
            summary = self._summary(suite, found, groups, aggregates, command)
            (folder / "summary.json").write_text(
                json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
        self._print(found, groups, target)

    def _read(self) -> "tuple[List[BenchRun], List[str]]":
        """The suite's runs, and sentences about what cannot be read.

        Raises:
            HashPoseError: there are none, or it is not said of which suite.
        """
        from hashpose_ns.bench.reporting.runs import find_runs, in_order

        if not self.runs.is_dir():
            raise HashPoseError(f"There is no folder {self.runs}; give the one that runs were written to with --runs.")
        found, problems = find_runs(self.runs)
        suites = sorted({str(run.asked["suite"]) for run in found})
        if not found:
            why = f" ({problems[0].rstrip('.')})" if problems else ""
            raise HashPoseError(
                f"{self.runs} holds no runs{why}; make some with hashpose-bench, or give another folder with --runs."
            )
        if self.suite is not None and self.suite not in suites:
            raise HashPoseError(f"{self.runs} holds no runs of the suite '{self.suite}'; it holds {', '.join(suites)}.")
        if self.suite is None and len(suites) > 1:
            raise HashPoseError(
                f"{self.runs} holds runs of several suites; choose one with --suite: {', '.join(suites)}."
            )
        suite = self.suite or suites[0]
        return in_order([run for run in found if run.asked["suite"] == suite]), problems

    def _command(self, suite: str) -> str:
        words = ["hashpose-bench", "report", "--runs", str(self.runs), "--suite", suite]
        if self.output_dir is not None:
            words += ["--output-dir", str(self.output_dir)]
        if self.success_deg != 0.5:
            words += ["--success-deg", f"{self.success_deg:g}"]
        return shlex.join(words)

    def _summary(
        self,
        suite: str,
        found: Sequence["BenchRun"],
        groups: Sequence["Group"],
        aggregates: Sequence["Aggregate"],
        command: str,
    ) -> Dict[str, Any]:
        """What summary.json holds: all numbers of the tables, NaN as null."""
        from hashpose_ns import __version__
        from hashpose_ns.bench.reporting.tables import aggregate_as_json, group_as_json

        runs = [
            {
                "scene": run.asked["scene"],
                "preset": run.preset,
                "seed": run.seed,
                "state": run.state,
                "error": run.error if run.state == "failed" else None,
                **{key: run.asked.get(key) for key in ("commit", "environment", "command")},
            }
            for run in found
        ]
        return {
            "made_by": MADE_BY,
            "version": __version__,
            "command": command,
            "suite": suite,
            "success_deg": self.success_deg,
            "tables": [group_as_json(group, self.success_deg) for group in groups],
            "aggregates": [aggregate_as_json(aggregate) for aggregate in aggregates],
            "runs": runs,
        }

    def _print(self, found: Sequence["BenchRun"], groups: Sequence["Group"], target: Path) -> None:
        """The main numbers, and where the rest is."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from hashpose_ns.bench.reporting.metrics import PSNR, ROTATION, TRANSLATION, words

        console = Console()
        for group in groups:
            table = Table(title=escape(group.title), title_justify="left")
            for column in ("preset", "seeds", *[metric.title for metric in (ROTATION, TRANSLATION, PSNR)]):
                table.add_column(escape(column), justify="left" if column == "preset" else "right")
            for row in group.rows:
                numbers = [
                    words(metric, row.statistic(metric), len(row.done)) for metric in (ROTATION, TRANSLATION, PSNR)
                ]
                table.add_row(escape(row.title), row.seeds, *numbers)
            console.print(table)
        for run in found:
            if run.state == "failed":
                console.print(f"failed: {run.label}: {run.error}", style="red", markup=False, soft_wrap=True)
        console.print(f"Report: {target / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def is_report(folder: Path) -> bool:
    """Whether a folder holds a report that this command wrote."""
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("made_by") == MADE_BY
    except (OSError, ValueError, AttributeError):
        return False


def is_report_file(path: str) -> bool:
    """Whether a report can hold a file of this path, relative to its folder."""
    folder, _, name = path.rpartition("/")
    if not folder:
        return name in ("report.md", "report.html", "summary.json")
    return folder == "figures" and name.endswith(PICTURES)


def draw(group: "Group", folder: Path) -> List["Figure"]:
    """Draws what there is to draw of a group's runs.

    Args:
        group: runs of one scene.
        folder: where the pictures go.
    """
    from hashpose_ns.bench.reporting.cameras import draw_cameras, draw_paths, shown_runs
    from hashpose_ns.bench.reporting.curves import draw_camera_errors, draw_curves
    from hashpose_ns.bench.reporting.document import Figure
    from hashpose_ns.bench.reporting.views import draw_views

    curves, errors, cameras, paths, views = (folder / f"{group.slug}_{name}" for name in PICTURES[:5])
    figures = []
    if draw_curves(group, curves):
        caption = (
            "Pose errors and the PSNR of some held-out pixels over training. Thick: mean over seeds; thin: each seed; "
            "dotted: runs that are unfinished, or failed at the cross."
        )
        figures.append(Figure(curves, caption))
    if draw_camera_errors(group, errors):
        caption = "Errors of the training cameras, all seeds, before training and after it."
        figures.append(Figure(errors, caption))
    seeds = sorted({run.seed for _, run in shown_runs(group)})
    which = f"seed {seeds[0]}" if len(seeds) == 1 else "one seed each"
    if draw_cameras(group, cameras):
        caption = f"Cameras aligned to the reference ones, from above and from the side; {which}."
        figures.append(Figure(cameras, caption))
    if draw_paths(group, paths):
        caption = (
            "Paths of the camera centres over training, all taken to the reference frame by their last alignment; "
            f"{which}. The scene as a whole may drift on the way."
        )
        figures.append(Figure(paths, caption))
    how = draw_views(group, views)
    if how is not None:
        caption = f"Held-out photographs and renders ({how}), with the PSNR of the pictures shown."
        figures.append(Figure(views, caption))
    return figures


def draw_all_scenes(aggregate: "Aggregate", folder: Path) -> List["Figure"]:
    """Draws the numbers of all scenes.

    Args:
        aggregate: scenes.
        folder: where the picture goes.
    """
    from hashpose_ns.bench.reporting.curves import draw_scenes
    from hashpose_ns.bench.reporting.document import Figure

    path = folder / f"{aggregate.slug}_{PICTURES[5]}"
    caption = "Mean over seeds of every scene, and its standard deviation."
    return [Figure(path, caption)] if draw_scenes(aggregate, path) else []
