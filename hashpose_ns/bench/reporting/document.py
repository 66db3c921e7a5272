"""A report as blocks, written as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Sequence, Tuple, Union

TEMPLATE = Path(__file__).parent.parent / "data" / "report.html.jinja"


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    strong: bool = False
    """The best of its column."""
    muted: bool = False
    """Nothing was measured, or given."""
    tags: Tuple[str, ...] = ()
    """Short remarks that go with the text, such as `published`."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table."""

    cells: Sequence[Cell]
    published: bool = False
    """Someone else's numbers."""


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows."""

    heads: Sequence[str]
    rows: Sequence[TableRow]
    notes: Sequence[str] = ()
    """Sentences below it."""
    words: bool = False
    """Whether its columns hold words, not numbers."""
    kind = "table"


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list of them."""

    lines: Sequence[str]
    bullets: bool = False
    kind = "text"


@dataclass(frozen=True)
class Warnings:
    """Sentences that must not be missed."""

    lines: Sequence[str]
    kind = "warnings"


@dataclass(frozen=True)
class Figure:
    """A picture."""

    path: Path
    """Where it lies."""
    caption: str
    kind = "figure"

    @property
    def data(self) -> str:
        """The picture as a data URL."""
        format = "jpeg" if self.path.suffix == ".jpg" else "png"
        return f"data:image/{format};base64," + base64.b64encode(self.path.read_bytes()).decode()

    @property
    def size(self) -> Tuple[int, int]:
        """Width and height in pixels."""
        from PIL import Image

        with Image.open(self.path) as image:
            return image.size


@dataclass(frozen=True)
class Folded:
    """Blocks that are unfolded on demand."""

    title: str
    blocks: Sequence["Block"]
    kind = "folded"


@dataclass(frozen=True)
class Code:
    """Lines as they are typed or were printed."""

    lines: Sequence[str]
    kind = "code"


Block = Union[Table, Text, Warnings, Figure, Folded, Code]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """For links."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    lead: Sequence[Block]
    sections: List[Section] = field(default_factory=list)


def write_html(document: Document, path: Path) -> None:
    """Writes one file that needs no other: pictures are in it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    path.write_text(template.render(document=document), encoding="utf-8")


def write_markdown(document: Document, path: Path) -> None:
    """Writes Markdown as GitHub shows it; pictures are linked, relative to the file."""
    lines = [f"# {_escape(document.title)}", ""]
    for block in document.lead:
        lines += _markdown(block, path.parent)
    for section in document.sections:
        lines += [f"## {_escape(section.title)}", ""]
        for block in section.blocks:
            lines += _markdown(block, path.parent)
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _markdown(block: Block, folder: Path) -> List[str]:
    if isinstance(block, Table):
        lines = ["| " + " | ".join(map(_escape, block.heads)) + " |"]
        rule = "---" if block.words else "---:"
        lines.append("|" + "|".join(["---"] + [rule] * (len(block.heads) - 1)) + "|")
        lines += ["| " + " | ".join(map(_markdown_cell, row.cells)) + " |" for row in block.rows]
        return lines + [""] + [line for note in block.notes for line in (_escape(note), "")]
    if isinstance(block, Text):
        if block.bullets:
            return [f"* {_escape(line)}" for line in block.lines] + [""]
        return [line for paragraph in block.lines for line in (_escape(paragraph), "")]
    if isinstance(block, Warnings):
        return ["> [!WARNING]"] + [f"> * {_escape(line)}" for line in block.lines] + [""]
    if isinstance(block, Figure):
        link = block.path.relative_to(folder).as_posix()
        return [f"![{_escape(block.caption)}]({link.replace(' ', '%20')})", "", _escape(block.caption), ""]
    if isinstance(block, Code):
        return ["```", *block.lines, "```", ""]
    inner = [line for inside in block.blocks for line in _markdown(inside, folder)]
    return ["<details>", f"<summary>{_escape(block.title)}</summary>", "", *inner, "</details>", ""]


def _markdown_cell(cell: Cell) -> str:
    text = _escape(cell.text)
    text = f"**{text}**" if cell.strong else text
    return " ".join([text] + [f"*[{_escape(tag)}]*" for tag in cell.tags])


def _escape(text: str) -> str:
    """Text that means nothing to Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
