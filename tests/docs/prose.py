"""Markdown as prose and as commands: what a reader reads, and what a user types."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = {DOCS / "reference" / name for name in ("commands.md", "settings.md")}
"""Pages that `make docs` writes."""
COMMAND = re.compile(r"(?:ns|hashpose)-\w+\b.*|python (?:examples|docs|benchmarks)/.*")


def without_code(text: str) -> str:
    """Markdown without fenced and indented blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    return re.sub(r"^ {4}[^ *].*$", "", text, flags=re.M)


def paragraphs(text: str) -> list[str]:
    """What is read as sentences: no code, tables, headings, pictures; list items stand for themselves."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", without_code(text))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^(#|\||:::).*$", "", text, flags=re.M)
    text = re.sub(r"^\s*(?:[*-]|\d+\.) ", "\n\n", text, flags=re.M)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence; code counts as one word."""
    found = []
    for paragraph in paragraphs(re.sub(r"`[^`\n]+`", "code", text)):
        for sentence in re.split(r"(?<=[.!?:])[*)\"]*\s+", paragraph):
            words = re.findall(r"[\w'-]+", sentence)
            if words:
                found.append(words)
    return found


def commands(text: str) -> list[str]:
    """The ns-, hashpose- and python commands of a page's code blocks, continued lines joined, comments removed."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, flags=re.S | re.M)
    blocks += re.findall(r"^ {4}(\S.*)$", text, flags=re.M)
    lines = "\n".join(blocks).splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if COMMAND.match(line.strip())]


def flags(text: str) -> set[str]:
    """All flags in code spans, without values."""
    spans = " ".join(re.findall(r"`([^`\n]+)`", without_code(text)))
    return set(re.findall(r"(?<![\w-])--[\w.-]+[\w*]", spans))
