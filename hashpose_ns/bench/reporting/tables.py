"""The report's tables as frames of text in Markdown, and its numbers for summary.json."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from typing import Any, Dict, List, Optional, Sequence

import pandas as pd

from hashpose_ns.bench.reporting.frame import DETAILS, HEADLINE, METRICS, Aggregate, Group, Metric
from hashpose_ns.bench.reporting.published import PublishedRow

NOT_MEASURED, NOT_GIVEN = "not measured", "not given"
NO_FIELD, NO_SFM = "no field", "-"
NOT_COMPARABLE = "other scale: not comparable"
DAGGER = "†"


def escape(text: object) -> str:
    """Text that means nothing to Markdown or HTML, on one line."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def markdown(table: pd.DataFrame, numbers: bool = True) -> str:
    """A frame of Markdown text, its index first; GitHub's tables.

    Args:
        table: cells.
        numbers: whether columns are aligned to the right.
    """
    lines = ["| " + " | ".join([table.index.name or "", *map(str, table.columns)]) + " |"]
    lines.append("|" + "|".join(["---"] + ["---:" if numbers else "---"] * len(table.columns)) + "|")
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples()]
    return "\n".join(lines)


def cell(metric: Metric, number: Optional[pd.Series], expected: int) -> str:
    """`0.085 ± 0.012`, with `±` and a dash for one seed, and n where seeds are missing.

    Args:
        metric: what is shown.
        number: its statistics; None if it was not measured.
        expected: number of seeds that are done.
    """
    if number is None:
        return NOT_MEASURED
    if number.not_finite:
        return f"not finite in {number.not_finite:.0f} of {number.n:.0f}"
    text = metric.show(number.value)
    if metric.with_spread and metric.over_seeds == "mean":
        if math.isnan(number["std"]):
            text += " ± -"
        elif metric.name == "train_seconds":
            text += f" ± {100 * number['std'] / max(number.value, 1e-12):.0f} %"
        else:
            text += f" ± {number['std']:.{len(text.partition('.')[2])}f}"
    return text if number.n == expected else f"{text} (n {number.n:.0f})"


def meaningless(metric: Metric, group: Group, preset: str) -> Optional[str]:
    """What a preset's cell says where the metric means nothing for its method; None where it does."""
    if metric.needs is None or (metric.needs == "sfm") == group.without_field(preset):
        return None
    return NO_SFM if metric.needs == "sfm" else NO_FIELD


def cell_of(metric: Metric, group: Group, preset: str) -> str:
    """A preset's cell."""
    number = group.number(preset, metric)
    return meaningless(metric, group, preset) or cell(metric, number, len(group.of(preset, "done")))


def is_known(metric: Metric, group: Group) -> bool:
    """Whether a metric was measured or published for a group."""
    return metric.name in group.numbers.index.get_level_values("metric") or any(
        metric.name in row.values for row in group.published
    )


def shown_columns(group: Group) -> List[Metric]:
    """The first table's: SSIM, LPIPS and images not placed only if a run has them."""
    optional = ("ssim", "lpips", "not_placed")
    return [metric for metric in HEADLINE if metric.name not in optional or is_known(metric, group)]


def measured(group: Group, presets: Sequence[str], metrics: Sequence[Metric]) -> pd.DataFrame:
    """A row per preset, a column per metric; the best mean is bold, movements from given poses carry a dagger."""
    table = pd.DataFrame(index=pd.Index([escape(group.presets[preset]) for preset in presets], name="method"))
    for metric in metrics:
        numbers = {preset: group.number(preset, metric) for preset in presets}
        errors = {
            preset: number.value
            for preset, number in numbers.items()
            if number is not None and not math.isnan(number.value) and not (metric.of_poses and group.moved(preset))
        }
        best = (min if metric.better == "lower" else max)(errors.values(), default=None) if metric.better else None
        texts = []
        for preset, number in numbers.items():
            moved = group.moved(preset)
            text = cell_of(metric, group, preset)
            text = "-" if moved and metric.name.endswith("_before") else text
            text += f" {DAGGER}" if moved and metric.of_poses and number is not None else ""
            strong = best is not None and len(set(errors.values())) > 1 and errors.get(preset) == best
            texts.append(f"**{text}**" if strong else text)
        table[metric.title] = texts
    return table


def published(rows: Sequence[PublishedRow], metrics: Sequence[Metric], comparable: bool) -> pd.DataFrame:
    """A row per published method, marked as such."""
    tag = "" if comparable else f" *[{NOT_COMPARABLE}]*"
    names = [f"{escape(row.title)} *[published by {escape(row.by)}]*{tag}" for row in rows]
    cells = [
        [metric.show(row.values[metric.name]) if metric.name in row.values else NOT_GIVEN for metric in metrics]
        for row in rows
    ]
    return pd.DataFrame(cells, pd.Index(names, name="method"), [metric.title for metric in metrics])


def headline(group: Group, success_deg: float) -> pd.DataFrame:
    """A scene's first table: presets, then what was published."""
    columns, presets = shown_columns(group), list(group.presets)
    table = measured(group, presets, columns)
    states = [{state: len(group.of(preset, state)) for state in ("done", "failed", "unfinished")} for preset in presets]
    seeds = [", ".join(f"{n} {s}".removesuffix(" done") for s, n in of.items() if n or s == "done") for of in states]
    table.insert(0, "seeds", seeds)
    ended = [group.success(preset, success_deg) for preset in presets]
    table[f"below {success_deg:g} deg"] = ["-" if found is None else f"{found[0]} of {found[1]}" for found in ended]
    return pd.concat([table, published(group.published, columns, group.comparable)]).fillna("").rename_axis("method")


def details(group: Group) -> pd.DataFrame:
    """A scene's second table: presets with results."""
    presets = [preset for preset in group.presets if len(group.of(preset, "done"))]
    return measured(group, presets, [metric for metric in DETAILS if is_known(metric, group)])


def over_scenes(aggregate: Aggregate) -> pd.DataFrame:
    """Means over scenes, then what was published for the same scenes."""
    known = [metric for metric in HEADLINE if any(aggregate.mean(preset, metric)[1] for preset in aggregate.presets)]
    rows = []
    for preset in aggregate.presets:
        groups = aggregate.of(preset)
        row = {"scenes": f"{len(groups)} of {len(aggregate.groups)}"}
        for metric in known:
            value, count = aggregate.mean(preset, metric)
            if value is None:
                absent = next((meaningless(metric, group, preset) for group in groups), None) or NOT_MEASURED
                row[metric.title] = "not finite" if count else absent
                continue
            dagger = f" {DAGGER}" if metric.of_poses and any(group.moved(preset) for group in groups) else ""
            row[metric.title] = metric.show(value) + dagger + ("" if count == len(groups) else f" (of {count})")
        rows.append(row)
    index = pd.Index([escape(title) for title in aggregate.presets.values()], name="method")
    table = pd.DataFrame(rows, index)
    return (
        pd.concat([table, published(aggregate.published, known, aggregate.comparable)]).fillna("").rename_axis("method")
    )


def measures(group: Group) -> pd.DataFrame:
    """What the suite's named measures found, over seeds: means of numbers, counts of words; lists are left out."""
    long = pd.DataFrame(
        [
            (preset, f"{name}: {key}", value)
            for preset, outcome in zip(group.runs.preset, group.runs.outcome)
            for name, found in outcome.get("measures", {}).items()
            for key, value in found.items()
            if isinstance(value, (int, float, str))
        ],
        columns=["preset", "measure", "value"],
    )

    def shown(values: pd.Series) -> str:
        if any(isinstance(value, str) for value in values):
            return ", ".join(f"{word}: {count}" for word, count in Counter(map(str, values)).items())
        numbers = values.astype(float)
        return f"{numbers.mean():.4g}" + (f" ± {numbers.std():.2g}" if len(numbers) > 1 else "")

    if long.empty:
        return long
    table = long.groupby(["preset", "measure"], sort=False).value.agg(shown).unstack(fill_value=NOT_MEASURED)
    table = table.loc[[preset for preset in group.presets if preset in table.index]]
    return table.rename(index={preset: escape(title) for preset, title in group.presets.items()}).rename_axis("method")


# -- for programs ------------------------------------------------------------------------------------------------------


def _finite(value: float) -> Optional[float]:
    return float(value) if math.isfinite(value) else None


def statistic_as_json(metric: Metric, number: Optional[pd.Series], runs: pd.DataFrame) -> Dict[str, Any]:
    """A metric over seeds; null stands for what is not finite."""
    values = runs.set_index("seed")[metric.name].dropna()
    found: Dict[str, Any] = {metric.over_seeds: None if number is None else _finite(number.value)}
    if metric.over_seeds == "mean":
        found["standard_deviation"] = None if number is None else _finite(number["std"])
    return {**found, "n": len(values), "seeds": {str(seed): _finite(value) for seed, value in values.items()}}


def group_as_json(group: Group, below_deg: float) -> Dict[str, Any]:
    """Every number of a group's tables."""
    rows = []
    for preset, title in group.presets.items():
        ended, done = group.success(preset, below_deg), group.of(preset, "done")
        states = ("done", "failed", "unfinished")
        rows.append(
            {
                "preset": preset,
                "title": title,
                "seeds": {state: [int(seed) for seed in group.of(preset, state).seed] for state in states},
                "poses_moved_from_given": group.moved(preset),
                "success": None if ended is None else {"runs": ended[0], "of": ended[1]},
                "metrics": {
                    name: statistic_as_json(metric, group.number(preset, metric), done)
                    for name, metric in METRICS.items()
                },
            }
        )
    return {
        "scene": group.scene,
        "scenario": group.scenario,
        "scale": group.scale,
        "rows": rows,
        "published": [published_as_json(row) for row in group.published],
        "published_comparable": group.comparable,
        "warnings": group.warnings,
    }


def aggregate_as_json(aggregate: Aggregate) -> Dict[str, Any]:
    """Every number of an aggregate's table."""

    def numbers(preset: str) -> Dict[str, Any]:
        means = {name: aggregate.mean(preset, metric) for name, metric in METRICS.items()}
        return {name: {"mean": value, "scenes": scenes} for name, (value, scenes) in means.items()}

    return {
        "scenario": aggregate.scenario,
        "scale": aggregate.scale,
        "scenes": [group.scene for group in aggregate.groups],
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


def runs_as_json(runs: pd.DataFrame) -> List[Dict[str, Any]]:
    """Every run: what was asked, where, what came out, and its pose log in columns."""
    found = []
    for run in runs.itertuples():
        log = pd.DataFrame(run.log)
        curve = log[[name for name in log if name == "step" or re.search(r"seconds|psnr|_mean$|_max$", name)]]
        found.append(
            {
                **{key: getattr(run, key) for key in ("scene", "preset", "seed", "state")},
                "error": run.error if run.state == "failed" else None,
                **{key: run.asked.get(key) for key in ("commit", "environment", "command", "settings")},
                **run.outcome,
                "curve": {name: [_finite(float(f"{value:.5g}")) for value in curve[name]] for name in curve},
            }
        )
    return found
