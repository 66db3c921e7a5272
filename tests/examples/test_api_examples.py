"""The examples of the Python API, run as they stand."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples" / "api"


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs an example in this process; what it printed."""

    def run(name: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        state = torch.get_rng_state()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        torch.set_rng_state(state)
        return capsys.readouterr().out

    return run


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_trajectories_are_aligned(example):
    scale, rotation, centers = numbers(example("align_trajectories"))
    assert scale == pytest.approx(2, abs=0.02) and rotation < 0.1 and centers < 0.05


def test_the_encoding_stands_alone(example):
    loss, *gradient = numbers(example("encoding_alone"))
    assert loss < 0.02 and len(gradient) == 10


def test_poses_are_refined_by_ones_own_loss(example):
    (error,) = numbers(example("own_field"))
    assert error < 0.01


def test_refined_poses_are_taken_and_judged(example, tiny_run, tmp_path):
    from hashpose_ns import load_run, refined_poses
    from hashpose_ns.photometry.scene import PosedScene

    printed = example("export_from_python", tiny_run.folder / "config.yml", tmp_path / "poses.npz")
    written = np.load(tmp_path / "poses.npz")
    assert f"{len(written)} poses after {tiny_run.steps} steps" in printed

    run = load_run(str(tiny_run.folder / "config.yml"))
    assert isinstance(run, PosedScene) and len(run.train) == len(written)
    for name, pose in refined_poses(run).items():
        np.testing.assert_array_equal(written[name], pose)

    models = tmp_path / "refined.json", tmp_path / "given.json"
    given = run.poses.reference_camera_to_worlds.numpy()
    for path, poses in zip(models, (list(written.values()), list(given))):
        frames = [
            {"file_path": f"images/{name}", "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]}
            for name, pose in zip(written, poses)
        ]
        path.write_text(json.dumps({"frames": frames}))
    printed = example("judge_two_models", *models)
    assert printed.startswith(f"{len(written)} images in both") and 0 < numbers(printed)[0] <= numbers(printed)[-1]
