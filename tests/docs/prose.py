"""Markdown as prose and as commands: what a reader reads, and what a user types."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

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
    """The ns-, hashpose- and python commands of a page's code blocks, continued lines joined; without comments and
    what is put into the environment."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, flags=re.S | re.M)
    blocks += re.findall(r"^ {4}(\S.*)$", text, flags=re.M)
    lines = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", "\n".join(blocks), flags=re.M).splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if COMMAND.match(line.strip())]


def flags(text: str) -> set[str]:
    """All flags in code spans, without values."""
    spans = " ".join(re.findall(r"`([^`\n]+)`", without_code(text)))
    return set(re.findall(r"(?<![\w-])--[\w.-]+[\w*]", spans))


def numbers(words: list[str]) -> float:
    """Words that hold a digit, per 100."""
    return 100 * sum(bool(re.search(r"\d", word)) for word in words) / max(len(words), 1)


def measures(pages: list[Path]) -> dict[str, float]:
    """Length of sentences in words, and numbers per 100 words, of some pages taken together."""
    found = [words for page in pages for words in sentences(page.read_text(encoding="utf-8"))]
    lengths = [len(words) for words in found]
    return {
        "sentences": len(lengths),
        "mean": float(np.mean(lengths)),
        "90 %": float(np.percentile(lengths, 90)),
        "longest": max(lengths),
        "numbers per 100": numbers([word for words in found for word in words]),
    }


def main() -> None:
    """Prints the measures of each page, of the guide and of all: python tests/docs/prose.py."""
    guide = sorted((DOCS / "guide").glob("*.md"))
    rows = {page.relative_to(ROOT).as_posix(): measures([page]) for page in PAGES}
    rows |= {"the guide": measures(guide), "all pages": measures(PAGES)}
    print(f"{'words of a sentence':28}" + "".join(f"{name:>16}" for name in rows["the guide"]))
    for name, row in rows.items():
        print(f"{name:28}" + "".join(f"{value:16.4g}" for value in row.values()))


if __name__ == "__main__":
    main()
