"""Every command that reads a run's folder: damage is one sentence, what else lies there is left alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import FEW_RAYS, NO_EVAL, SMALL_FIELD, checkpoints
from PIL import Image
from scenes import blender_scene

from hashpose_ns.export import cli as export_cli
from hashpose_ns.guard import cli as guard_cli
from nerfstudio.scripts import train


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return blender_scene(tmp_path_factory.mktemp("scene") / "scene", num_train=10)


def training(scene: Path, output: Path, *more) -> list:
    arguments = ["hashpose-blender", "--experiment-name", "e", "--timestamp", "t", "--output-dir", output]
    arguments += ["--data", scene, "--guard.mode", "off", "--save-only-latest-checkpoint", "False"]
    arguments += ["--pipeline.tto-steps", 1, "--pipeline.tto-rays", 64]
    return [*arguments, *SMALL_FIELD, *FEW_RAYS, *NO_EVAL, *more]


@pytest.fixture(scope="module")
def run(scene, tmp_path_factory) -> Path:
    """A run with two checkpoints."""
    output = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        arguments = training(scene, output, "--max-num-iterations", 5, "--steps-per-save", 2)
        patch.setattr(sys, "argv", ["ns-train", *map(str, arguments)])
        train.entrypoint()
    return output / "e" / "hashpose-blender" / "t"


@pytest.fixture
def commands(run, ns_train, ns_eval, in_process, tmp_path):
    """Commands by name, each on the folder."""
    config = ("--load-config", run / "config.yml")
    film = ("--output-path", tmp_path / "film.gif", "--seconds", 0.1, "--hold-start", 0, "--hold-end", 0)
    return {
        "export": lambda: in_process(export_cli.entrypoint, "json", *config, "--output-dir", tmp_path / "poses"),
        "film": lambda: in_process(export_cli.entrypoint, "video", *config, *film, "--size", 160, 120),
        "guard": lambda: in_process(guard_cli.entrypoint, *config, "--steps", 2, "--rays", 32),
        "ns-eval": lambda: ns_eval(*config, "--output-path", tmp_path / "eval.json"),
    }


def one_error(outcome) -> str:
    errors = re.findall(r"^Error: (.*)$", outcome.output, flags=re.MULTILINE)
    assert outcome.code == 1 and len(errors) == 1 and "Traceback" not in outcome.output, outcome.output[-3000:]
    return errors[0]


@pytest.mark.parametrize("name", ["export", "film", "guard", "ns-eval"])
def test_one_bit_of_the_newest_checkpoint_stops_every_command(name, run, commands):
    newest = checkpoints(run)[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:30_000] + bytes([whole[30_000] ^ 4]) + whole[30_001:])
    try:
        error = one_error(commands[name]())
    finally:
        newest.write_bytes(whole)
    assert f"{newest} cannot be used: it is damaged, as the checksum of" in error
    assert f"{checkpoints(run)[-2]} is whole" in error


def test_what_else_lies_in_the_folder_is_left_alone(run, commands):
    foreign = [run / "nerfstudio_models" / name for name in (".DS_Store", "notes.txt", "zzz")]
    for path in foreign[:2]:
        path.write_text("mine")
    foreign[2].mkdir()
    with open(run / "pose_errors.jsonl", "a") as log:
        log.write('\n{"step": null}\n{"step": 7, "tr')
    with open(run / "pose_history.npys", "ab") as history:
        np.savez(history, np.zeros(3))
    for name, command in commands.items():
        outcome = command()
        assert outcome.code == 0, (name, outcome.output[-3000:])
    assert all(path.exists() for path in foreign)


def test_a_config_that_would_run_a_program_does_not(run, commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = (run / "config.yml").read_text()
    (run / "config.yml").write_text(whole + 'evil: !!python/object/apply:os.mkdir ["PWNED"]\n')
    try:
        for name in ("export", "guard"):
            assert "os.mkdir is not part of a configuration" in one_error(commands[name]())
    finally:
        (run / "config.yml").write_text(whole)
    assert not (tmp_path / "PWNED").exists()


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_going_on_with_damage_and_with_other_pictures(ns_train, tmp_path):
    scene = blender_scene(tmp_path / "scene")
    arguments = training(scene, tmp_path / "out")
    assert ns_train(*arguments, "--max-num-iterations", 3).code == 0
    run = tmp_path / "out" / "e" / "hashpose-blender" / "t"
    (path,) = checkpoints(run)
    whole = path.read_bytes()
    (path.parent / ".DS_Store").write_text("")
    resume = [*arguments, "--max-num-iterations", 5, "--load-dir", path.parent]

    # Moments that are a row short: the fused Adam would write past their end
    state = torch.load(path)
    for moments in state["optimizers"]["decoder"]["state"].values():
        moments["exp_avg"] = moments["exp_avg"][:-1].clone()
    torch.save(state, path)
    assert "exp_avg of parameter 0 in its optimizer decoder" in one_error(ns_train(*resume))
    path.write_bytes(whole)

    image = scene / "train" / "r_2.png"
    Image.new("RGBA", Image.open(image).size, "red").save(image)
    error = one_error(ns_train(*resume))
    assert (
        "1 of 6 images have another content now, the first is r_2.png" in error and "--pipeline.changed-images" in error
    )
    assert [found.name for found in checkpoints(run)] == [path.name] and path.read_bytes() == whole

    # Files for looking at do not decide whether one may go on
    (run / "pose_errors.jsonl").write_text('{"step": 0, "cut')
    (run / "pose_history.npys").write_bytes(b"PK\x03\x04")
    outcome = ns_train(*resume, "--pipeline.changed-images", "warn")
    assert outcome.code == 0, outcome.output[-3000:]
    assert "1 of 6 images have another content now" in outcome.output
    assert checkpoints(run)[-1].name == "step-000000004.ckpt"
