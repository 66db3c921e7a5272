"""README and docs: links resolve, commands parse, sentences are short; --help is made of complete sentences."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import sys
from pathlib import Path

import prose
import pytest
import tyro
import yaml

spec = importlib.util.spec_from_file_location("docs_settings", prose.DOCS / "settings.py")
reference = sys.modules["docs_settings"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

PAGES = [pytest.param(path, id=path.relative_to(prose.ROOT).as_posix()) for path in prose.PAGES]
GUIDE = sorted((prose.DOCS / "guide").glob("*.md"))


@pytest.fixture(scope="module")
def commands():
    """hashpose-* commands and the dataclasses of their flags."""
    return reference.commands()


@pytest.fixture(scope="module")
def methods():
    """Methods and their configurations."""
    return reference.methods()


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_resolve(page: Path):
    text, broken = prose.without_code(page.read_text(encoding="utf-8")), []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = Path(os.path.normpath(page.parent / path)) if path else page
        if found in prose.GENERATED:
            continue
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_a_shelf():
    # the site's build fails otherwise, which nobody may see for a while
    nav = (prose.ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = {prose.DOCS / path for path in re.findall(r": (\S+\.md)$", nav, flags=re.M)}
    assert listed == set(prose.DOCS.rglob("*.md")) | prose.GENERATED


# -- commands ----------------------------------------------------------------------------------------------------------


def parse(words: list[str], commands: dict, methods: dict) -> None:
    """Parses a command's flags as the command would; SystemExit or an assertion if it could not."""
    name, *rest = words
    if name == "ns-train" and rest[0] in methods:
        config = methods[rest[0]]
        tyro.cli(type(config), default=config, args=rest[1:], config=(tyro.conf.FlagConversionOff,))
    elif name in ("ns-train", "ns-eval", "ns-viewer", "ns-process-data", "ns-export", "ns-render"):
        return  # nerfstudio's own
    elif name == "python":
        assert (prose.ROOT / rest[0]).is_file(), rest[0]
    else:
        name = name if name in commands else f"{name} {rest.pop(0)}"
        tyro.cli(commands[name], args=rest, config=(tyro.conf.FlagConversionOff,))


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_and_their_flags_parse(page: Path, commands, methods):
    text, wrong = page.read_text(encoding="utf-8"), []
    for command in prose.commands(text):
        words = [word for word in shlex.split(command) if word != "..."]
        if "--help" in words:
            continue
        errors = io.StringIO()
        try:
            with contextlib.redirect_stdout(errors), contextlib.redirect_stderr(errors):
                parse(words, commands, methods)
        except (SystemExit, AssertionError, KeyError, IndexError):
            wrong.append(f"{command}: {errors.getvalue()[-400:]}")
    assert wrong == []


NERFSTUDIOS = {
    *(
        "--load-dir",
        "--max-num-iterations",
        "--vis",
        "--load-config",
        "--load-3D-points",
        "--data_dir",
        "--pose-source",
    ),
    *("--pipeline.model.eval-num-rays-per-chunk", "--downscale-factor", "--eval-mode", "--colmap-path", "--data"),
    *(
        "--pipeline.datamanager.images-on-gpu",
        "--output-path",
        "--images-path",
        "--viewer.websocket-host",
        "--viewer.make-share-url",
    ),
}
"""Flags of nerfstudio's that the pages mention."""


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_running_text_exist(page: Path, commands, methods):
    known = {"--help", *NERFSTUDIOS}
    for config in (*commands.values(), *methods.values()):
        known |= {setting.flag for setting in reference.settings(config)}
    for script in [*(prose.ROOT / "benchmarks").glob("*.py"), *(prose.ROOT / "examples").rglob("*.py")]:
        text = script.read_text(encoding="utf-8")
        known |= {"--" + field.replace("_", "-") for field in re.findall(r"^    (\w+): ", text, flags=re.M)}
        known |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', text))
    unknown = [
        flag
        for flag in prose.flags(page.read_text(encoding="utf-8"))
        if flag not in known and not any(other.startswith(flag.rstrip("*.") + ".") for other in known)
        if not (flag.endswith("*") and any(other.startswith(flag.rstrip("*")) for other in known))
    ]
    assert unknown == []


# -- sentences ---------------------------------------------------------------------------------------------------------


def check_lengths(pages: list[Path]) -> dict[str, float]:
    found = prose.measures(pages)
    assert found["mean"] <= 14 and found["90 %"] <= 25
    return found


@pytest.mark.parametrize("page", PAGES)
def test_sentences_of_every_page_are_short(page: Path):
    check_lengths([page])


def test_sentences_of_the_guide_are_short_and_hold_few_numbers():
    assert check_lengths(GUIDE)["numbers per 100"] <= 3


def test_the_readme_is_short():
    readme = prose.ROOT / "README.md"
    text = re.sub(r"\]\([^)]*\)", "]", prose.without_code(readme.read_text(encoding="utf-8")))
    assert 600 <= len(re.findall(r"[\w'`.-]*\w[\w'`.-]*", text)) <= 800
    assert max(len(paragraph.split()) for paragraph in prose.paragraphs(text)) <= 60


# -- help --------------------------------------------------------------------------------------------------------------


def test_settings_are_explained_in_complete_sentences(commands, methods):
    """tyro prints a docstring line by line, so a sentence that is broken over two lines leaves an orphan."""
    wrong = {}
    for config in (*commands.values(), *methods.values()):
        for setting in reference.settings(config):
            lines = setting.doc.splitlines()
            name = f"{setting.owner.__name__} {setting.flag}"
            if not lines or len(lines[0]) > 105 or not lines[0][:1].isupper() and not lines[0].startswith(("`", "3-D")):
                wrong[name] = "the first line is one short sentence"
            elif not all(re.search(r"[.:?]$", line) for line in lines):
                wrong[name] = "a sentence may not be broken over two lines"
            elif any(len(line) > 120 for line in lines):
                wrong[name] = "a line is too long"
    assert wrong == {}


def test_booleans_are_given_alike_in_all_commands(commands, in_process):
    from hashpose_ns.bench import cli as bench
    from hashpose_ns.export import cli as export
    from hashpose_ns.guard import cli as guard

    for module, words in ((bench, ["run"]), (export, ["colmap"]), (guard, [])):
        shown = in_process(module.entrypoint, *words, "--help").output
        assert not re.search(r"--no-\w", shown), module.__name__


def test_help_begins_with_the_command_and_what_it_does(in_process):
    from hashpose_ns import demo
    from hashpose_ns.bench import cli as bench
    from hashpose_ns.export import cli as export
    from hashpose_ns.guard import cli as guard
    from hashpose_ns.localize import cli as localize
    from hashpose_ns.sparse_command import cli as sparse

    for module in (demo, bench, export, guard, localize, sparse):
        usage, _, rest = in_process(module.entrypoint, "--help").output.partition("\n\n")
        assert usage.startswith("usage: command "), module.__name__  # without its folder
        assert re.match(r"[A-Z][^│╭]+\.\n\n", rest), module.__name__


# -- what contributors' files say twice --------------------------------------------------------------------------------


def test_pre_commit_has_the_pinned_linter():
    pinned = re.search(r"ruff==([\d.]+)", (prose.ROOT / "pyproject.toml").read_text())[1]
    hooks = yaml.safe_load((prose.ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {package for hook in hooks for package in hook.get("additional_dependencies", [])} == {f"ruff=={pinned}"}
