"""The committed records, and what writes them, hold no path of any machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hashpose_ns.bench.environment import PACKAGE, portable

RESULTS = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json"))
ABSOLUTE = re.compile(r"""(?:^|[\s"'=:,(\[])(?:~|/(?=[\w.]+/[\w.]))[\w./-]*|[A-Z]:\\\\""")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_record_holds_no_absolute_path(path: Path):
    found = ABSOLUTE.findall(path.read_text(encoding="utf-8"))
    assert found == []


def test_the_pattern_finds_paths():
    for text in ('"/work/x/y"', "--data /home/me/chair --x", "a=/tmp/b/c", "~/data"):
        assert ABSOLUTE.search(text), text
    for text in ("$DATA/chair", "a/b/c", "1/2", "ms / step", "hash/axis/lr"):
        assert not ABSOLUTE.search(text), text


def test_what_is_published_becomes_portable():
    demo = PACKAGE / "data" / "demo_chair"
    content = {
        "command": f"hashpose-bench run --data /home/me/scenes/chair_400 --output-dir=/tmp/out --x {demo}",
        "rate [deg/step]": [1.5, None, "translation x100", "a/b", "~/runs"],
    }
    assert portable(content) == {
        "command": "hashpose-bench run --data .../chair_400 --output-dir=.../out --x hashpose_ns/data/demo_chair",
        "rate [deg/step]": [1.5, None, "translation x100", "a/b", ".../runs"],
    }
