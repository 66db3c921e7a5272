"""How far runs are, read from their files, and what is shown of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from hashpose_ns.bench import files
from hashpose_ns.bench.progress import Display, duration, summary
from hashpose_ns.bench.runner import Task


def task(folder: Path, preset: str = "a", seed: int = 0, steps: int = 100, **changes) -> Task:
    record = {"scene": "s", "preset": preset, "seed": seed, "steps": steps}
    result = Task(record, folder / preset / f"seed_{seed}")
    for name, value in changes.items():
        setattr(result, name, value)
    return result


def write_log(task: Task, text: str) -> None:
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / files.POSE_LOG).write_text(text)


def test_the_step_is_the_last_whole_record_of_the_pose_log(tmp_path: Path):
    run = task(tmp_path)
    assert run.step() == 0
    write_log(run, "")
    assert run.step() == 0
    records = "".join(json.dumps({"step": step, "filler": "x" * 3000}) + "\n" for step in range(0, 50, 10))
    write_log(run, records)
    assert run.step() == 41
    write_log(run, records + '{"step": 50, "held')
    assert run.step() == 41


def test_the_newest_checkpoint_counts_and_nothing_else_does(tmp_path: Path):
    assert files.last_checkpoint(tmp_path) is None
    (tmp_path / files.CHECKPOINTS).mkdir()
    for name in ("step-000000009.ckpt", "step-000000100.ckpt", "step-000000200.ckpt.part", "best.ckpt"):
        (tmp_path / files.CHECKPOINTS / name).touch()
    assert files.last_checkpoint(tmp_path) == 100


def test_the_time_left_is_that_of_runs_like_those_that_are_left(tmp_path: Path):
    quick = task(tmp_path, "quick", state="done", begun=0.0, seconds=10.0)  # 0.1 s a step
    slow = task(tmp_path, "slow", state="done", begun=0.0, seconds=40.0)  # 0.4 s a step
    failed = task(tmp_path, "slow", 1, begun=0.0, seconds=1.0, failure="it broke")
    going = task(tmp_path, "slow", 2)
    waiting = [task(tmp_path, "quick", 1, steps=300), task(tmp_path, "new", 0)]
    display = Display(Console(file=io.StringIO()), [quick, slow, failed, going, *waiting], jobs=2)
    # (25 steps of slow + 300 of quick + 100 at the mean, 0.25 s) / 2
    assert display.seconds_left([going], waiting, {id(going): 75}) == pytest.approx((10 + 30 + 25) / 2)
    fresh = Display(Console(file=io.StringIO()), [going, *waiting], jobs=2)
    assert fresh.seconds_left([going], waiting, {id(going): 0}) is None


def test_a_terminal_shows_runs_that_go_on_and_a_file_only_those_that_ended(tmp_path: Path):
    going, done = task(tmp_path, begun=0.0), task(tmp_path, "b", state="done", seconds=65.0)
    write_log(
        going, json.dumps({"step": 49, "pose_error_after_rotation_deg_mean": 1.2345, "held_out_psnr": 21.5}) + "\n"
    )
    done.folder.mkdir(parents=True)
    results = {"pose_error_before_rotation_deg_mean": 4.46, "pose_error_after_rotation_deg_mean": 0.5}
    results |= {"pose_error_after_translation_mean": 0.0213, "psnr_tto": 29.345}
    files.write_json(done.folder / files.RESULTS, {"results": results})
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with Display(console, [going, done], jobs=1) as display:
            display.update([going], [])
            display.finished(done)
        shown[terminal] = console.file.getvalue()
    assert "50/100" in shown[True] and "1.23" in shown[True] and "21.50" in shown[True]
    assert shown[False] == "[1/2] s / b / seed 0: 4.46 -> 0.5 deg, translation x100 2.13, 29.34 dB  (1 min 05 s)\n"


def test_words_for_results_and_times():
    assert (
        summary({"results": {"pose_change_rotation_deg_mean": 0.4, "psnr_aligned": 20.0}})
        == "moved by 0.4 deg, 20.00 dB"
    )
    assert [duration(seconds) for seconds in (0.4, 59.9, 61, 3600, 7325)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 02 min",
    ]
