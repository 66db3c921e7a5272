"""What the benchmarks of speed share: turns, tables, records, parts of a step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_functions_take_turns_and_warm_up_is_not_counted():
    from record import summary, take_turns

    called = []
    now = iter([0, 9, 0, 2, 2, 3, 0, 4, 4, 7]).__next__  # seconds
    functions = {name: lambda name=name: called.append(name) for name in "ab"}
    ms = take_turns(functions, rounds=2, warm_up=1, now=now)
    assert "".join(called) == "ababab"
    assert ms == {"a": [2000, 4000], "b": [1000, 3000]}
    assert summary(ms["a"]) == {"ms": 3000, "ms_least": 2000}


def test_a_table_has_a_column_for_every_key(capsys):
    from record import show

    show(
        "Title",
        [{"name [deg]": "a", "ms": 1.23456}, {"name": "b", "more": {"x": 2.0}, "secret": 1}],
        leave_out=["secret"],
    )
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("Title", "name [deg]", "more", "1.235", "x 2"))
    assert "secret" not in printed


def test_a_record_says_where_it_was_made(tmp_path: Path, monkeypatch):
    from record import write_record

    monkeypatch.setattr("sys.argv", ["benchmarks/step.py", "--output", str(tmp_path / "made" / "step.json")])
    write_record(tmp_path / "made" / "step.json", results={"ms": 1.0})
    record = json.loads((tmp_path / "made" / "step.json").read_text())
    assert record["benchmark"] == "step" and record["results"] == {"ms": 1.0}
    assert {"command", "commit", "environment", "load_average"} <= record.keys()
    assert str(tmp_path) not in json.dumps(record)
    write_record(None, results={})  # nothing was asked for


def test_parts_are_left_when_a_function_fails():
    from training import Parts

    parts, seen = Parts(), []
    owner = SimpleNamespace(
        outer=lambda: (seen.append(list(parts.stack)), owner.inner()),
        inner=lambda: seen.append(list(parts.stack)) or 1 / 0,
    )
    parts.around(owner, "outer", "rendering")
    parts.around(owner, "inner", "decoder")
    with pytest.raises(ZeroDivisionError):
        owner.outer()
    assert seen == [["rest of the loop", "rendering"], ["rest of the loop", "rendering", "decoder"]]
    assert parts.stack == ["rest of the loop"]
