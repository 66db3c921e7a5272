"""What is for looking at may be damaged: what is whole of it is taken."""

from __future__ import annotations

import json

import pytest

from hashpose_ns.runs.files import append_pose_log, last_record, read_pose_log, resume_pose_log

WHOLE = [{"step": step, "train_seconds": 0.5 * step, "held_out_psnr": 9.0} for step in (0, 3, 6)]
LINES = [json.dumps(record) for record in WHOLE]


@pytest.mark.parametrize(
    "line",
    [
        LINES[1][:-9],
        "",
        "garbage \x00\x01",
        "[1]",
        "5",
        '{"step": null}',
        '{"step": "5"}',
        '{"step": 1.5}',
        '{"step": -1}',
        '{"step": Infinity}',
        '{"step": 7, "train_seconds": "x"}',
        '{"step": 7, "train_seconds": NaN}',
        '{"step": 7, "held_out_psnr": null}',
        "[" * 5000,
    ],
)
def test_lines_that_are_no_records_are_left_out(line, tmp_path):
    log = tmp_path / "pose_errors.jsonl"
    log.write_text("\n".join([*LINES[:2], line, LINES[2], line]))  # the last without the end of a line
    assert read_pose_log(tmp_path) == WHOLE and last_record(tmp_path) == WHOLE[-1]
    assert resume_pose_log(tmp_path, tmp_path, before_step=6) == 1.5
    append_pose_log(tmp_path, WHOLE[2])
    assert log.read_text().splitlines() == LINES


def test_a_log_without_a_record_does_not_swallow_the_next(tmp_path):
    (tmp_path / "pose_errors.jsonl").write_bytes(b"\xff{cut")
    assert resume_pose_log(tmp_path, tmp_path, before_step=6) == 0.0
    append_pose_log(tmp_path, WHOLE[0])
    assert read_pose_log(tmp_path) == WHOLE[:1]
