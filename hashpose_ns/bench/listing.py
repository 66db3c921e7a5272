"""`hashpose-bench list`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator, Literal, Tuple

from hashpose_ns.bench import suites

if TYPE_CHECKING:
    from rich.text import Text

KINDS = ("suites", "presets", "scales", "scenarios")


@dataclass
class List:
    """Print the suites, presets, scales and scenarios that come with the package."""

    what: Literal["all", "suites", "presets", "scales", "scenarios"] = "all"
    """Which of them."""

    def main(self) -> None:
        """Prints names and what they stand for."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = Console()
        for kind in KINDS if self.what == "all" else (self.what,):
            table = Table(box=box.SIMPLE, show_header=False, title=kind, title_justify="left", title_style="bold")
            table.add_column(no_wrap=True, style="bold")
            table.add_column()
            for name, text in entries(kind):
                table.add_row(name, text)
            console.print(table)


def entries(kind: str) -> Iterator[Tuple[str, "Text"]]:
    """Name and text of all entries of a kind, one of `KINDS`."""
    if kind == "suites":
        for name in suites.suite_names():
            suite = suites.load_suite(name)
            presets = ", ".join(entry if isinstance(entry, str) else str(entry["name"]) for entry in suite.presets)
            seeds = suite.seeds if isinstance(suite.seeds, int) else len(suite.seeds)
            size = f"{seeds} seed{'s' * (seeds > 1)}, scenario {suite.scenario}, scale {suite.scale}"
            yield name, paragraph(suite.description, f"{', '.join(suite.scenes)}: {presets}; {size}")
    elif kind == "presets":
        for name, preset in suites.presets().items():
            title = preset.title + (f" ({preset.paper})" if preset.paper else "")
            deviations = f"Differs: {preset.deviations}" if preset.deviations else ""
            yield name, paragraph(f"{title}. {preset.description}", deviations)
    else:
        for name, entry in (suites.scales() if kind == "scales" else suites.scenarios()).items():
            yield name, paragraph(entry.description)


def paragraph(words: str, more: str = "") -> "Text":
    """Words, and more of them in a line of their own."""
    from rich.text import Text

    text = Text(words)
    return text.append(f"\n{more}", style="dim") if more else text
