"""`hashpose-bench report`: tables and figures of a suite's runs. What does the work is imported when it is needed."""

from __future__ import annotations

import importlib.util
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Sequence, Union

from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    import pandas as pd

    from hashpose_ns.bench.reporting.document import Findings, Picture
    from hashpose_ns.bench.reporting.frame import Aggregate, Group

MADE_BY = "hashpose-bench report"
"""Value of `made_by` in a report's files."""
MANIFEST = "files.json"
"""File in every report by which a newer one knows what it may replace."""
PICTURES = ("curves.png", "camera_errors.png", "cameras.png", "paths.png", "views.jpg", "scenes.png", "uncertainty.png")
"""Endings of the figures' names."""


@dataclass
class Report:
    """Make tables and figures of the runs that lie in a folder: report.md, report.html and summary.json."""

    runs: Path = Path("bench_output")
    """Folder with the runs, as SUITE/SCENE/PRESET/seed_N.
    Runs that failed or are still at work are listed as such."""
    suite: Optional[str] = None
    """The suite to report on. Needed where the folder holds several."""
    output_dir: Optional[Path] = None
    """Folder to write, atomically; default RUNS/SUITE/report.
    An earlier report there is replaced, and never a folder with anything else in it."""
    success_deg: float = 0.5
    """A run counts as a success when its mean rotation error ends below this, in degrees."""

    def main(self) -> None:
        """Read the runs and write the report."""
        from hashpose_ns.export.replace import check_target, replaced_folder

        check_packages()
        runs, problems = self._read()
        suite = runs.suite.iloc[0]
        target = self.output_dir or self.runs / suite / "report"
        check_target(target, True, manifest=MANIFEST, what="a report")
        from hashpose_ns.bench.reporting import frame
        from hashpose_ns.bench.reporting.document import Findings, write_report

        groups = frame.make_groups(runs)
        aggregates = frame.make_aggregates(groups)
        with replaced_folder(target, True, {"made_by": MADE_BY}, manifest=MANIFEST, what="a report") as folder:
            (folder / "figures").mkdir()
            drawn: List[Union[Group, Aggregate]] = [*groups, *aggregates]
            figures = {each.slug: draw(each, folder / "figures") for each in drawn}
            command = self._command(suite)
            findings = Findings(suite, runs, problems, groups, aggregates, figures, self.success_deg, command)
            write_report(findings, folder)
            (folder / "summary.json").write_text(self._summary(findings), encoding="utf-8")
        self._print(runs, groups, target)

    def _read(self) -> "tuple[pd.DataFrame, List[str]]":
        """The suite's runs, and sentences about what cannot be read.

        Raises:
            HashPoseError: there are none, or it is not said of which suite.
        """
        from hashpose_ns.bench.reporting.frame import in_order, read_runs

        if not self.runs.is_dir():
            raise HashPoseError(f"There is no folder {self.runs}; give the one that runs were written to with --runs.")
        found, problems = read_runs(self.runs)
        if found.empty:
            why = f" ({problems[0].rstrip('.')})" if problems else ""
            raise HashPoseError(
                f"{self.runs} holds no runs{why}; make some with hashpose-bench, or give another folder with --runs."
            )
        suites = sorted(set(found.suite))
        if self.suite is not None and self.suite not in suites:
            raise HashPoseError(f"{self.runs} holds no runs of the suite '{self.suite}'; it holds {', '.join(suites)}.")
        if self.suite is None and len(suites) > 1:
            raise HashPoseError(
                f"{self.runs} holds runs of several suites; choose one with --suite: {', '.join(suites)}."
            )
        return in_order(found[found.suite == (self.suite or suites[0])]), problems

    def _command(self, suite: str) -> str:
        words = ["hashpose-bench", "report", "--runs", str(self.runs), "--suite", suite]
        if self.output_dir is not None:
            words += ["--output-dir", str(self.output_dir)]
        if self.success_deg != 0.5:
            words += ["--success-deg", f"{self.success_deg:g}"]
        return shlex.join(words)

    def _summary(self, findings: Findings) -> str:
        """What summary.json holds: all numbers of the tables and all runs, NaN as null, a line for each run. No path of
        this machine is in it, so that it can be published as a record."""
        from hashpose_ns import __version__
        from hashpose_ns.bench.environment import portable
        from hashpose_ns.bench.reporting.tables import aggregate_as_json, group_as_json, runs_as_json

        content = {
            "made_by": MADE_BY,
            "version": __version__,
            "command": findings.command,
            "suite": findings.suite,
            "success_deg": self.success_deg,
            "tables": [group_as_json(group, self.success_deg) for group in findings.groups],
            "aggregates": [aggregate_as_json(aggregate) for aggregate in findings.aggregates],
        }
        text = json.dumps(portable(content), indent=1, allow_nan=False)
        lines = [json.dumps(portable(run), allow_nan=False) for run in runs_as_json(findings.runs)]
        return text[:-2] + ',\n "runs": [\n' + ",\n".join(lines) + "\n ]\n}\n"

    def _print(self, runs: pd.DataFrame, groups: Sequence[Group], target: Path) -> None:
        """The main numbers, and where the rest is."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from hashpose_ns.bench.reporting.frame import PSNR, ROTATION, TRANSLATION
        from hashpose_ns.bench.reporting.tables import cell_of

        console, metrics = Console(), (ROTATION, TRANSLATION, PSNR)
        for group in groups:
            table = Table(title=escape(group.title), title_justify="left")
            for column in ("preset", "seeds", *[metric.title for metric in metrics]):
                table.add_column(escape(column), justify="left" if column == "preset" else "right")
            for preset, title in group.presets.items():
                done = len(group.of(preset, "done"))
                numbers = [cell_of(metric, group, preset) for metric in metrics]
                table.add_row(escape(title), f"{done} of {len(group.of(preset))}", *numbers)
            console.print(table)
        for run in runs[runs.state == "failed"].itertuples():
            console.print(f"failed: {run.label}: {run.error}", style="red", markup=False, soft_wrap=True)
        console.print(f"Report: {target / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def check_packages() -> None:
    """Raises HashPoseError if a package is missing that reports need."""
    for package in ("pandas", "seaborn", "markdown"):
        if importlib.util.find_spec(package) is None:
            raise HashPoseError(f"Reports need {package}, which is not installed: pip install 'hashpose[bench]'.")


def draw(of: Union[Group, Aggregate], folder: Path) -> List[Picture]:
    """Draws what there is to draw of one scene's runs, or of all scenes.

    Args:
        of: runs.
        folder: where the pictures go.
    """
    from hashpose_ns.bench.reporting import cameras, figures, uncertainty
    from hashpose_ns.bench.reporting.document import Picture
    from hashpose_ns.bench.reporting.frame import Aggregate

    paths = {name: folder / f"{of.slug}_{name}" for name in PICTURES}
    drawn: List[Picture] = []
    if isinstance(of, Aggregate):
        if figures.draw_scenes(of, paths["scenes.png"]):
            caption = "Mean over seeds of every scene, and its standard deviation."
            drawn.append(Picture(paths["scenes.png"], caption))
        return drawn
    if figures.draw_curves(of, paths["curves.png"]):
        caption = (
            "Pose errors and the PSNR of some held-out pixels over training: mean and standard deviation over seeds; "
            " dotted: runs that are unfinished, or failed at the cross."
        )
        drawn.append(Picture(paths["curves.png"], caption))
    if figures.draw_camera_errors(of, paths["camera_errors.png"]):
        caption = "Errors of the training cameras, all seeds, before training and after it."
        drawn.append(Picture(paths["camera_errors.png"], caption))
    seeds = sorted({run.seed for _, run in cameras.shown_runs(of)})
    which = f"seed {seeds[0]}" if len(seeds) == 1 else "one seed each"
    if cameras.draw_cameras(of, paths["cameras.png"]):
        caption = f"Cameras aligned to the reference ones, from above and from the side; {which}."
        drawn.append(Picture(paths["cameras.png"], caption))
    if cameras.draw_paths(of, paths["paths.png"]):
        caption = (
            "Paths of the camera centres over training, all taken to the reference frame by their last alignment; "
            f"{which}. The scene as a whole may drift on the way."
        )
        drawn.append(Picture(paths["paths.png"], caption))
    how = cameras.draw_views(of, paths["views.jpg"])
    if how is not None:
        caption = f"Held-out photographs and renders ({how}), with the PSNR of the pictures shown."
        drawn.append(Picture(paths["views.jpg"], caption))
    for preset, title in of.presets.items():
        data = uncertainty.compare(of.of(preset, "done"))
        if data is not None:
            path = folder / f"{of.slug}_{preset}_uncertainty.png"
            figures.draw_uncertainty(data, path)
            drawn.append(Picture(path, f"{title}: what the runs predict of their poses, camera by camera."))
    return drawn
