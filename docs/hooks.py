"""What mkdocs asks for while it builds the pages: the generated reference, and files that lie outside docs/."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s#]+)")
"""A Markdown link that may lead out of docs/."""


def _outside(page: str, target: str) -> str:
    """The file a page's link leads to, from the root of the repository; empty if it lies in docs/ or is not there."""
    path = Path(os.path.normpath(DOCS / Path(page).parent / target))
    inside = path.is_relative_to(DOCS) or not path.is_relative_to(ROOT)
    return "" if inside or not path.is_file() else path.relative_to(ROOT).as_posix()


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages, and copies of the records, pictures and scripts that pages link to."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(DOCS))
    import settings

    pages = {"reference/commands.md": settings.commands_page(), "reference/settings.md": settings.settings_page()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for page in [file for file in files if file.src_uri.endswith(".md") and file.abs_src_path]:
        for _, target in LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            found = _outside(page.src_uri, target)
            if found and not files.get_file_from_path(f"repository/{found}"):
                files.append(File.generated(config, f"repository/{found}", abs_src_path=str(ROOT / found)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Leads links that leave docs/ to the copies."""
    here = Path(page.file.src_uri).parent

    def moved(match: re.Match) -> str:
        found = _outside(page.file.src_uri, match[2])
        return match[1] + (os.path.relpath(f"repository/{found}", here) if found else match[2])

    return LINK.sub(moved, markdown)
