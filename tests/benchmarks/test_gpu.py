"""The command for a GPU machine: what it leaves when it is killed, when it stops, and how it shares its time."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAKE_PARTS = """
import json, os, sys
name, rows = sys.argv[1], int(sys.argv[2])
os.write(rows, b'{"ready": true}\\n')
order = json.loads(sys.stdin.readline() or "null")
if order and name == "gate" and os.environ.get("GATE"):
    sys.exit(int(os.environ["GATE"]))
for number in range(300 if order and name == os.environ.get("ENDLESS") else 30):
    os.write(rows, (json.dumps({"number": number, "method": name, "ms": 1.0 + number}) + "\\n").encode())
if order and name == os.environ.get("ENDLESS"):
    sys.stdin.read()
"""
"""In place of gpu_parts.py: rows as fast as they go."""


@pytest.fixture
def command(tmp_path: Path):
    """The command in a folder of its own, with parts that measure nothing."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    shutil.copy(BENCHMARKS / "gpu.py", folder)
    (folder / "gpu_parts.py").write_text(FAKE_PARTS)
    line = [sys.executable, str(folder / "gpu.py"), "measure", "--output", str(tmp_path / "out"), "--commit", ""]

    def start(*more: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen([*line, *more], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)

    return start


def read(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "gpu.json").read_text())


def test_killed_at_any_moment_it_leaves_all_rows_that_were_there(command, tmp_path):
    drawn = random.Random(0)
    for wanted in (1, *(drawn.randrange(2, 300) for _ in range(3))):
        process, seen = command("--parts", "gate", "step", ENDLESS="step"), 0
        while seen < wanted:
            try:
                seen = len(read(tmp_path)["rows"])
            except FileNotFoundError:
                continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        content = read(tmp_path)
        numbers = [row["number"] for row in content["rows"]]
        gate = min(len(numbers), 30)
        assert len(numbers) >= seen and numbers == [*range(gate), *range(len(numbers) - gate)]
        assert content["commit"] == "" and ("gate" in content["parts"] or len(numbers) <= 30)
        shutil.rmtree(tmp_path / "out")


def test_to_the_end_with_a_part_that_is_stopped_at_its_limit(command, tmp_path):
    process = command("--seconds", "13", "--parts", "gate", "step", "profile", ENDLESS="step")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    content = read(tmp_path)
    assert [content["parts"][name].get("exit_code") for name in ("gate", "step")] == [0, -9]
    assert len(content["rows"]) >= 330
    assert content["summary"]["step: step, ms"] == 150.5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "log.txt"}


@pytest.mark.parametrize("code, ended", [(4, 4), (5, 5), (1, 6)])
def test_a_gate_that_fails_ends_it(command, tmp_path, code, ended):
    process = command(GATE=str(code))
    process.communicate()
    assert process.returncode == ended
    content = read(tmp_path)
    assert list(content["parts"]) == ["gate"] and content["stopped"]


def test_limits_leave_time_for_those_after(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    left = 540.0
    limits = {}
    for index, part in enumerate(gpu.PARTS):
        limits[part.name] = gpu.limit(index, left)
        left -= limits[part.name]  # each takes all that it may
    assert left >= gpu.LAST_SECONDS - 1e-6 and min(limits.values()) >= 25
    assert limits["best"] > 100 and limits["paper"] > 100
    assert gpu.limit(0, 5.0) == 0.0
    names = [part.name for part in gpu.PARTS]
    assert names.index("paper") < names.index("profile") < names.index("decoder")


def test_the_scene_that_travels_has_few_test_images(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    for split, count in (("train", 3), ("test", 60)):
        (tmp_path / "scene" / split).mkdir(parents=True)
        frames = [{"file_path": f"./{split}/r_{number}"} for number in range(count)]
        (tmp_path / "scene" / f"transforms_{split}.json").write_text(json.dumps({"frames": frames}))
        for frame in frames:
            (tmp_path / "scene" / f"{frame['file_path']}.png").write_text("a picture")
    for source, target in (("scene", "small"), ("small", "again")):  # what has been made small stays as it is
        size = gpu._scene_that_travels(tmp_path / source, tmp_path / target)
        assert size == sum(path.stat().st_size for path in (tmp_path / target).rglob("*") if path.is_file())
        frames = json.loads((tmp_path / target / "transforms_test.json").read_text())["frames"]
        names = [Path(frame["file_path"]).name for frame in frames]
        assert len(names) == 25 and (names[0], names[-1]) == ("r_0", "r_59")
        assert {path.stem for path in (tmp_path / target / "test").iterdir()} == set(names)
        assert len(list((tmp_path / target / "train").iterdir())) == 3
