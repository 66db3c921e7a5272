"""The report of what matches say: both ways through a file, in a run's folder, in guard.json and ns-eval's numbers."""

from __future__ import annotations

import dataclasses
import json

import pytest
from commands import FEW_RAYS, NO_EVAL, SMALL_FIELD
from synthetic import corner_cameras, turned, write_corner

from hashpose_ns.errors import HashPoseError
from hashpose_ns.guard.report import GuardReport, read_report
from hashpose_ns.matches.report import MatchedCamera, MatchesReport, read_matches
from hashpose_ns.runs.files import GUARD_FILE, MATCHES_FILE

pytest.importorskip("pycolmap", reason="matches need it")


def make_report(count: int = 3) -> MatchesReport:
    cameras = [
        MatchedCamera(f"images/{i}.png", i > 0, 40 * i, 0.1 * i or None, 0.9, 0.02 * i or None) for i in range(count)
    ]
    return MatchesReport("matches", "2 of 3 cameras", {"share": 0.9, "determined": 2}, cameras, 1.5)


def test_a_report_comes_back_from_its_file(tmp_path):
    report = make_report()
    assert report.write(tmp_path) == tmp_path / MATCHES_FILE
    assert read_matches(tmp_path) == report
    assert report.left == ["images/0.png"]
    assert report.outcome == "training starts at poses from matches: 2 of 3 cameras; 1 camera keeps its own"
    numbers = report.metrics()
    assert numbers["matches_verdict"] == 1.0 and numbers["matches_placed"] == 2.0 and numbers["matches_share"] == 0.9
    assert all(type(value) is float for value in numbers.values())


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"verdict": "matches"}', '{"cameras": [1]}', "[" * 100_000, "\0"],
    ids=lambda content: content[:20].replace("\0", "zero"),
)
def test_a_damaged_file_is_no_report(tmp_path, content):
    (tmp_path / MATCHES_FILE).write_text(content)
    assert read_matches(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [{"verdict": "maybe"}, {"seconds": None}, {"evidence": {"share": "much"}}, {"evidence": {"share": float("nan")}},
     {"sentence": 3}, {"more": 1}, {"cameras": None}],
    ids=str,
)  # fmt: skip
def test_what_is_no_number_or_verdict_is_no_report(tmp_path, change):
    content = {**make_report().as_json(), **change}
    (tmp_path / MATCHES_FILE).write_text(json.dumps(content))
    assert read_matches(tmp_path) is None
    with pytest.raises(HashPoseError, match="not a (complete|valid) report"):
        MatchesReport.of_json(content)


def test_tables_of_many_cameras_show_the_worst():
    from rich.console import Console

    cameras = [MatchedCamera(f"{i:03d}.png", i != 5, 50, 1.0, 1.0, 0.001 * i + 0.001) for i in range(200)]
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))
    console.print(dataclasses.replace(make_report(), cameras=cameras).table())
    text = console.export_text()
    assert "005.png" in text and "199.png" in text and "010.png" not in text and "140 more" in text


def test_guard_json_says_what_matches_said(tmp_path):
    guard = GuardReport("helped", "better", 9, 1.0, 2.0, 1.0, -0.1, 0.01, 0.9, [], [], {}, 1.0)
    guard.write(tmp_path)
    assert read_report(tmp_path / GUARD_FILE).matches is None
    make_report().write(tmp_path)
    guard.write(tmp_path)
    assert read_report(tmp_path / GUARD_FILE).matches == {"verdict": "matches", "sentence": "2 of 3 cameras"}
    old = json.loads((tmp_path / GUARD_FILE).read_text())
    del old["matches"]  # of an earlier version
    (tmp_path / GUARD_FILE).write_text(json.dumps(old))
    assert read_report(tmp_path / GUARD_FILE) == guard


def test_a_run_writes_it_and_ns_eval_tells_it(tmp_path, ns_train, ns_eval):
    cameras = corner_cameras(8)
    capture = write_corner(tmp_path / "capture", cameras, turned(cameras.camera_to_worlds.double().numpy(), 3.0))
    two_held_out = ("nerfstudio-data", "--train-split-fraction", 0.7)
    arguments = ("hashpose-small", "--data", capture, "--output-dir", tmp_path, "--experiment-name", "e")
    arguments += (*NO_EVAL, *FEW_RAYS, *SMALL_FIELD, "--guard.mode", "off", "--matches.start", "auto")
    arguments += ("--pipeline.tto-steps", 0, "--pipeline.eval-num-images", 1)
    outcome = ns_train(*arguments, "--timestamp", "run", "--max-num-iterations", 2, *two_held_out)
    assert outcome.code == 0, outcome.output
    run = tmp_path / "e/hashpose-small/run"
    report = read_matches(run)
    assert report.verdict == "matches" and all("images/" in camera.name for camera in report.cameras)

    def evaluated() -> dict:
        evaluation = ns_eval("--load-config", run / "config.yml", "--output-path", tmp_path / "results.json")
        assert evaluation.code == 0, evaluation.output
        return json.loads((tmp_path / "results.json").read_text())["results"]

    numbers = evaluated()
    assert numbers["matches_verdict"] == 1.0 and numbers["matches_share"] == report.evidence["share"]
    # resumed elsewhere it goes along
    arguments += ("--timestamp", "on", "--max-num-iterations", 3, "--load-dir", run / "nerfstudio_models")
    outcome = ns_train(*arguments, *two_held_out)
    assert outcome.code == 0, outcome.output
    assert read_matches(run.with_name("on")) == report
    # a damaged one costs its numbers
    (run / MATCHES_FILE).write_text("{")
    assert not [name for name in evaluated() if name.startswith("matches_")]
