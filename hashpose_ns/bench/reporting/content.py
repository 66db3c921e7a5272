"""What a report says, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from hashpose_ns import __version__
from hashpose_ns.bench.reporting.document import (
    Block,
    Cell,
    Code,
    Document,
    Figure,
    Folded,
    Section,
    Table,
    TableRow,
    Text,
    Warnings,
)
from hashpose_ns.bench.reporting.metrics import (
    DETAILS,
    HEADLINE,
    LPIPS,
    NOT_GIVEN,
    NOT_MEASURED,
    SSIM,
    Metric,
    best,
    number,
    words,
)
from hashpose_ns.bench.reporting.published import PublishedRow
from hashpose_ns.bench.reporting.runs import BenchRun
from hashpose_ns.bench.reporting.tables import (
    Aggregate,
    Group,
    Row,
    commit,
    differing_settings,
    machine,
)

NOT_COMPARABLE = "other scale: not comparable"


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a report is made of."""

    suite: str
    runs: Sequence[BenchRun]
    problems: Sequence[str]
    """Sentences about runs that cannot be read."""
    groups: Sequence[Group]
    aggregates: Sequence[Aggregate]
    figures: Dict[str, List[Figure]]
    """Slug of a group or an aggregate -> its figures."""
    success_deg: float
    command: str
    """How to make the report again."""


def compose(findings: Findings) -> Document:
    """The whole report."""
    sections = [
        Section(aggregate.title, aggregate_blocks(aggregate) + findings.figures.get(aggregate.slug, []))
        for aggregate in findings.aggregates
    ]
    sections += [Section(group.title, group_blocks(group, findings)) for group in findings.groups]
    failed = [run for run in findings.runs if run.state == "failed"]
    unfinished = [run for run in findings.runs if run.state == "unfinished"]
    if failed or unfinished or findings.problems:
        sections.append(Section("Runs without results", _without_results(failed, unfinished, findings.problems)))
    sections.append(Section("How the numbers were taken", _explanations(findings)))
    sections.append(Section("Repeating the runs", _provenance(findings)))
    return Document(f"hashpose-bench: {findings.suite}", _lead(findings, failed, unfinished), sections)


def _lead(findings: Findings, failed: Sequence[BenchRun], unfinished: Sequence[BenchRun]) -> List[Block]:
    presets, scenes = {run.preset for run in findings.runs}, {group.scene for group in findings.groups}
    done = len(findings.runs) - len(failed) - len(unfinished)
    lines = [
        f"{_count(len(findings.runs), 'run')} of {_count(len(presets), 'preset')} on {_count(len(scenes), 'scene')}: "
        f"{done} done, {len(failed)} failed, {len(unfinished)} unfinished (running, or stopped)."
    ]
    blocks: List[Block] = [Text(lines)]
    warned = [group.title for group in findings.groups if group.warnings]
    warnings = [f"{_count(len(failed), 'run')} failed; see below."] if failed else []
    warnings += [f"Read the remarks below the table before comparing its rows: {title}." for title in warned]
    warnings += findings.problems
    return blocks + ([Warnings(warnings)] if warnings else [])


# -- one scene ---------------------------------------------------------------------------------------------------------


def group_blocks(group: Group, findings: Findings) -> List[Block]:
    """Tables and figures of one scene."""
    headline = [metric for metric in HEADLINE if metric not in (SSIM, LPIPS) or _is_known(metric, group)]
    success_head = f"below {findings.success_deg:g} deg"
    rows = _measured_rows(group.rows, headline, [_success(row, findings.success_deg) for row in group.rows])
    rows += [_published_row(row, headline, 1, group.comparable) for row in group.published]
    blocks: List[Block] = [
        Table(["method", "seeds", *[metric.title for metric in headline], success_head], rows, _notes(group, headline))
    ]
    if group.warnings:
        blocks.append(Warnings(group.warnings))
    if group.published:
        blocks.append(_published_sources(group.published, group.protocol.protocol, group.protocol.corrections))  # type: ignore
    finished = [row for row in group.rows if row.done]
    if finished:
        details = [metric for metric in DETAILS if _is_known(metric, group)]
        blocks.append(Table(["method", *[metric.title for metric in details]], _measured_rows(finished, details)))
    blocks += findings.figures.get(group.slug, [])
    keys, values = differing_settings(group.rows)
    if keys:
        settings = [TableRow([Cell(key), *[_setting(value) for value in line]]) for key, line in zip(keys, values)]
        heads = ["setting", *[row.title for row in group.rows]]
        blocks.append(Folded("Settings in which the presets differ", [Table(heads, settings, words=True)]))
    return blocks


def _is_known(metric: Metric, group: Group) -> bool:
    measured = any(row.statistic(metric).values for row in group.rows)
    return measured or any(metric.name in row.values for row in group.published)


def _measured_rows(
    rows: Sequence[Row], metrics: Sequence[Metric], successes: Optional[Sequence[Cell]] = None
) -> List[TableRow]:
    """A row per preset; with `successes` it has the number of seeds in front and these at the end."""
    columns = []
    for metric in metrics:
        statistics = [row.statistic(metric) for row in rows]
        errors = [None if metric.of_poses and row.moved else value for row, value in zip(rows, statistics)]
        strong = best(metric, errors)
        columns.append(list(zip(statistics, strong)))
    lines = []
    for i, row in enumerate(rows):
        cells = [Cell(row.title)]
        if successes is not None:
            cells.append(Cell(row.seeds))
        for metric, column in zip(metrics, columns):
            statistic, strong = column[i]
            moved = row.moved and metric.of_poses and bool(statistic.values)
            text = words(metric, statistic, len(row.done)) + (" †" if moved else "")
            if row.moved and metric.name.endswith("_before"):
                text = "-"
            cells.append(Cell(text, strong=strong, muted=not statistic.values))
        lines.append(TableRow(cells + ([successes[i]] if successes is not None else [])))
    return lines


def _success(row: Row, below_deg: float) -> Cell:
    ended = row.success(below_deg)
    return Cell("-", muted=True) if ended is None else Cell(f"{ended[0]} of {ended[1]}")


def _published_row(row: PublishedRow, metrics: Sequence[Metric], blank: int, comparable: bool) -> TableRow:
    """A published row, with blank cells after its name and one at its end."""
    tags = (f"published by {row.by}",) + (() if comparable else (NOT_COMPARABLE,))
    cells = [Cell(row.title, tags=tags)] + [Cell("")] * blank
    for metric in metrics:
        value = row.values.get(metric.name)
        cells.append(Cell(NOT_GIVEN, muted=True) if value is None else Cell(number(metric, value)))
    return TableRow(cells + [Cell("")], published=True)


def _published_sources(rows: Sequence[PublishedRow], protocol: str, corrections: Sequence[str]) -> Folded:
    lines = [
        f"{row.title}: {row.source}." + (f" {row.note[0].upper()}{row.note[1:]}." if row.note else "") for row in rows
    ]
    blocks: List[Block] = [Text([f"The protocol they follow: {protocol}"]), Text(lines, bullets=True)]
    if corrections:
        blocks += [Text(["Corrections:"]), Text(corrections, bullets=True)]
    return Folded("Where the published rows come from", blocks)


def _notes(group: Group, headline: Sequence[Metric]) -> List[str]:
    notes = ["Mean ± sample standard deviation over seeds; bold: best mean of the presets here."]
    if group.published:
        notes[0] += " Rows without a remark were run here, whatever method they are named after."
    if any(row.moved for row in group.rows):
        notes.append(
            "† How far cameras moved from the poses that training was given. Nothing says that those were wrong: "
            "this is not an error."
        )
    if group.published and not group.comparable:
        notes.append(
            "The published rows were made at the paper's image sizes and training lengths, these runs were not: the "
            "two cannot be compared."
        )
    left_out = [metric.title for metric in (SSIM, LPIPS) if metric not in headline]
    if left_out:
        notes.append(f"{' and '.join(left_out)}: {NOT_MEASURED}.")
    return notes


def _setting(value: Any) -> Cell:
    return Cell("method's default", muted=True) if value is None else Cell(f"{value}")


# -- all scenes --------------------------------------------------------------------------------------------------------


def aggregate_blocks(aggregate: Aggregate) -> List[Block]:
    """The table of means over scenes."""
    known = [metric for metric in HEADLINE if any(aggregate.mean(preset, metric)[1] for preset in aggregate.presets)]
    rows = []
    for preset, title in aggregate.presets.items():
        scenes = len(aggregate.rows_of(preset))
        cells = [Cell(title), Cell(f"{scenes} of {len(aggregate.groups)}")]
        moved = any(row.moved for row in aggregate.rows_of(preset))
        for metric in known:
            value, measured = aggregate.mean(preset, metric)
            dagger = " †" if moved and metric.of_poses else ""
            if not measured:
                cells.append(Cell(NOT_MEASURED, muted=True))
            elif value is None:
                cells.append(Cell("not finite"))
            else:
                cells.append(Cell(number(metric, value) + dagger + ("" if measured == scenes else f" (of {measured})")))
        rows.append(TableRow(cells))
    rows += [
        TableRow(_published_row(row, known, 1, aggregate.comparable).cells[:-1], published=True)
        for row in aggregate.published
    ]
    notes = [
        "Means over scenes of each scene's mean over seeds. A preset that lacks scenes is a mean over other scenes."
    ]
    if any(row.moved for group in aggregate.groups for row in group.rows):
        notes.append("† Movement from the given poses, not an error.")
    return [Table(["method", "scenes", *[metric.title for metric in known]], rows, notes)]


# -- what is left ------------------------------------------------------------------------------------------------------


def _without_results(
    failed: Sequence[BenchRun], unfinished: Sequence[BenchRun], problems: Sequence[str]
) -> List[Block]:
    blocks: List[Block] = []
    if failed or unfinished:
        rows = [
            TableRow([Cell(run.label), Cell(run.state), Cell(_step(run)), Cell(run.error if run in failed else "")])
            for run in (*failed, *unfinished)
        ]
        blocks.append(Table(["run", "state", "last step", "reason"], rows, words=True))
    for run in failed:
        tail = run.failure.get("log_tail") or []
        lines = tail.splitlines() if isinstance(tail, str) else [str(line) for line in tail]
        if lines:
            blocks.append(Folded(f"The last lines of {run.label}", [Code(lines)]))
    return blocks + ([Text(problems, bullets=True)] if problems else [])


def _step(run: BenchRun) -> str:
    steps = f" of {run.asked['steps']}" if "steps" in run.asked else ""
    return "none" if run.last_step is None else f"{run.last_step}{steps}"


def _explanations(findings: Findings) -> List[Block]:
    lines = [
        "Poses are aligned to the reference ones by a similarity on the training cameras' centres, with the ratio of "
        "RMS spreads as scale.",
        "rotation: mean angle over cameras, in degrees, by BARF's float32 arccos, which reads 0.028 for a perfect "
        "pose; median and worst camera are angles in float64. The worst camera is that of all seeds.",
        "translation x100: mean norm of the difference of world-to-camera translations, which is what published tables "
        "hold. It depends on where the world's origin lies. centres x100: distance of camera centres.",
        "PSNR, SSIM and LPIPS (AlexNet) are means over held-out images. TTO: their cameras are aligned and then "
        "optimised photometrically with the field frozen, as in published tables; aligned: without the latter.",
        "The PSNR over training is that of some pixels of held-out images, with aligned cameras: not the table's.",
        f"below {findings.success_deg:g} deg: runs whose mean rotation error ended below that, of those that ended; a "
        "failed run counts as none.",
        f"Where nothing was measured it says so ({NOT_MEASURED}); for what a paper leaves out, {NOT_GIVEN}.",
    ]
    return [Text(lines, bullets=True)]


def _provenance(findings: Findings) -> List[Block]:
    kinds: Dict[Tuple[str, str], int] = {}
    for run in findings.runs:
        kinds[commit(run), machine(run)] = kinds.get((commit(run), machine(run)), 0) + 1
    rows = [TableRow([Cell(name), Cell(str(count)), Cell(where)]) for (name, where), count in kinds.items()]
    commands = [str(run.asked["command"]) for run in findings.runs if run.asked.get("command")]
    return [
        Table(["commit", "runs", "machine"], rows, words=True),
        Text(["This report:"]),
        Code([findings.command]),
        Folded(f"Commands of the {_count(len(commands), 'run')}", [Code(list(dict.fromkeys(commands)))]),
        Text([f"Written by hashpose {__version__}."]),
    ]


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
