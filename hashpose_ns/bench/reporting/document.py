"""The report as Markdown, from one template, and as one HTML file made of that."""

from __future__ import annotations

import base64
import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import jinja2
import pandas as pd

from hashpose_ns import __version__
from hashpose_ns.bench.reporting import tables, uncertainty
from hashpose_ns.bench.reporting.frame import Aggregate, Group, commit, differing_settings, machine

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Picture:
    """A figure of the report."""

    path: Path
    """Where it lies."""
    caption: str


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a report is made of."""

    suite: str
    runs: pd.DataFrame
    problems: List[str]
    """Sentences about runs that cannot be read."""
    groups: List[Group]
    aggregates: List[Aggregate]
    figures: Dict[str, List[Picture]]
    """Slug of a group or an aggregate -> its figures."""
    success_deg: float
    command: str
    """How to make the report again."""


def write_report(findings: Findings, folder: Path) -> None:
    """Writes report.md, whose pictures are linked, and report.html, which needs no other file."""
    text = _markdown(findings, folder)
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(_html(text, folder, f"hashpose-bench: {findings.suite}"), encoding="utf-8")


def _markdown(findings: Findings, folder: Path) -> str:
    runs = findings.runs
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(
        escape_md=tables.escape,
        table=tables.markdown,
        words_table=lambda table: tables.markdown(table, numbers=False),
        pre=lambda text: f"<pre>{html.escape(_lines(text), quote=False)}</pre>",
    )

    def pictures(slug: str) -> str:
        shown = []
        for picture in findings.figures.get(slug, []):
            link, caption = (
                picture.path.relative_to(folder).as_posix().replace(" ", "%20"),
                tables.escape(picture.caption),
            )
            shown.append(f"![{caption}]({link})\n\n{caption}\n")
        return "\n".join(shown)

    text = environment.from_string((DATA / "report.md.jinja").read_text(encoding="utf-8")).render(
        **vars(findings),
        states={state: int((runs.state == state).sum()) for state in ("done", "failed", "unfinished")},
        headline=lambda group: tables.headline(group, findings.success_deg),
        details=tables.details,
        over_scenes=tables.over_scenes,
        measures=tables.measures,
        uncertainties=_uncertainties,
        left_out=lambda group: [
            m.title for m in tables.HEADLINE if m.needs != "sfm" and m not in tables.shown_columns(group)
        ],
        differing=_differing,
        pictures=pictures,
        without_results=_without_results(runs),
        provenance=_provenance(runs),
        commands=list(dict.fromkeys(str(asked["command"]) for asked in runs.asked if asked.get("command"))),
        version=__version__,
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _lines(text: Any) -> str:
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)


def _uncertainties(group: Group) -> Iterator[Tuple[str, pd.DataFrame]]:
    for preset, title in group.presets.items():
        data = uncertainty.compare(group.of(preset, "done"))
        if data is not None:
            yield title, uncertainty.summary(data).map("{:.3g}".format)


def _differing(group: Group) -> pd.DataFrame:
    table = differing_settings(group).map(lambda value: "method's default" if value is None else tables.escape(value))
    return table.rename(columns=tables.escape, index=tables.escape).rename_axis("setting")


def _without_results(runs: pd.DataFrame) -> pd.DataFrame:
    some = runs[runs.state != "done"]
    steps = [f" of {asked['steps']}" if "steps" in asked else "" for asked in some.asked]
    return pd.DataFrame(
        {
            "state": list(some.state),
            "last step": ["none" if pd.isna(last) else f"{last:.0f}{of}" for last, of in zip(some.last_step, steps)],
            "reason": [tables.escape(e) if s == "failed" else "" for e, s in zip(some.error, some.state)],
        },
        pd.Index([tables.escape(label) for label in some.label], name="run"),
    )


def _provenance(runs: pd.DataFrame) -> pd.DataFrame:
    where = pd.DataFrame({"commit": runs.asked.map(commit), "machine": runs.asked.map(machine).map(tables.escape)})
    return where.groupby(["commit", "machine"], sort=False).size().rename("runs").reset_index().set_index("commit")


def _html(text: str, folder: Path, title: str) -> str:
    import markdown

    converter = markdown.Markdown(
        extensions=["tables", "md_in_html", "toc"], extension_configs={"toc": {"toc_depth": "2-2"}}
    )
    body = converter.convert(text.replace("> [!WARNING]\n", ""))
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    body = re.sub(r"<tr>(?=\s*<td[^>]*>[^\n]*\[published by )", '<tr class="published">', body)
    body = re.sub(r"<em>\[([^<]*)\]</em>", r"<em>\1</em>", body)

    def inline(match: re.Match) -> str:
        from PIL import Image

        alt, path = match[1], folder / match[2].replace("%20", " ")
        with Image.open(path) as image:
            width, height = image.size
        data = base64.b64encode(path.read_bytes()).decode()
        kind = "jpeg" if path.suffix == ".jpg" else "png"
        size = f'width="{width}" height="{height}"'
        return (
            f'<figure><div class="scroll" tabindex="0"><img src="data:image/{kind};base64,{data}" {size} alt="{alt}">'
            f"</div><figcaption>{alt}</figcaption></figure>"
        )

    body = re.sub(r'<p><img alt="([^"]*)" src="([^"]*)" ?/?></p>\s*<p>[^\n]*</p>', inline, body)
    template = jinja2.Template((DATA / "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(title=html.escape(title), toc=converter.toc, body=body)  # type: ignore[attr-defined]
