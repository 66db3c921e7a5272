"""What belongs to an image goes with it to other images: rows, moments, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import FEW_RAYS, NO_EVAL, SMALL_FIELD, checkpoints, model_state
from scenes import blender_scene, nerfstudio_scene
from torch import nn

from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.carry import carried, carry_moments, is_changed, rows_of_images


def prints(digests: list[int], names: list[int]) -> dict[str, torch.Tensor]:
    return {"image_digests": torch.tensor(digests), "image_names": torch.tensor(names)}


def test_images_are_found_again_by_content_and_else_by_name():
    saved = prints([10, 11, 12, 13], [0, 1, 2, 3])
    assert rows_of_images(saved, prints([13, 10, 99], [7, 1, 8])) == [3, 0, None]  # renamed, renamed, new
    assert rows_of_images(saved, prints([10, 50, 12], [0, 1, 2])) == [0, 1, 2]  # the second has another content
    assert rows_of_images(saved, prints([10, 50, 51], [0, 1, 1])) == [0, None, None]  # two of that name
    twice = prints([10, 10], [0, 1])
    assert rows_of_images(twice, prints([10, 10, 9], [1, 0, 2])) == [1, 0, None]  # one content, told apart by name
    assert not is_changed(rows_of_images(saved, saved), 4) and is_changed([0, 1, 2], 4) and is_changed([1, 0], 2)


def test_images_that_are_all_others_and_checkpoints_that_do_not_know_theirs_are_refused():
    with pytest.raises(HashPoseError, match="None of the images"):
        rows_of_images(prints([1, 2], [1, 2]), prints([3], [3]))
    with pytest.raises(HashPoseError, match="does not say which images"):
        rows_of_images({}, prints([3], [3]))


def test_rows_and_moments_go_with_their_images():
    value = torch.arange(12.0).view(2, 3, 2)
    assert carried(value, [2, None], torch.full((2, 2, 2), -1.0), 1).tolist() == [
        [[4, 5], [-1, -1]],
        [[10, 11], [-1, -1]],
    ]

    old, other = nn.Parameter(torch.zeros(3, 6)), nn.Parameter(torch.zeros(3, 6))
    before = torch.optim.Adam([other, old])
    old.grad, other.grad = torch.arange(18.0).view(3, 6), torch.ones(3, 6)
    before.step()
    saved = {"poses": copy.deepcopy(before.state_dict())}
    new = nn.Parameter(torch.zeros(4, 6))
    now = torch.optim.Adam([nn.Parameter(torch.zeros(3, 6)), new])
    carry_moments(saved, {"poses": now}, {new: 0}, [1, None, 0, 2])
    now.load_state_dict(saved["poses"])
    expected = torch.zeros(4, 6)
    expected[[0, 2, 3]] = before.state[old]["exp_avg"][[1, 0, 2]]
    assert torch.equal(now.state[new]["exp_avg"], expected)
    untouched = now.state[now.param_groups[0]["params"][0]]
    assert torch.equal(untouched["exp_avg"], before.state[other]["exp_avg"])


def quick(folder: Path, data: Path, *parser: str, steps: int = 12) -> list[str]:
    arguments = [
        *("hashpose-blender", "--experiment-name", "e", "--timestamp", "t", "--output-dir", folder),
        *("--max-num-iterations", steps, "--steps-per-save", 1000, "--pipeline.datamanager.initial-poses", "given"),
        *("--pipeline.model.camera-optimizer.start", 0, "--pipeline.model.camera-optimizer.warmup", 0),
        *("--pipeline.model.field.decoder.appearance-dim", 3, *SMALL_FIELD, *FEW_RAYS, *NO_EVAL),
        *(*parser, "--data", data),
    ]
    return list(map(str, arguments))


def test_training_goes_on_with_fewer_and_more_images(ns_train, tmp_path):
    scene, changed = blender_scene(tmp_path / "scene", num_train=7), tmp_path / "changed"
    shutil.copytree(scene, changed)
    for folder, frames in ((scene, slice(0, 6)), (changed, slice(1, 7))):
        meta = json.loads((folder / "transforms_train.json").read_text())
        meta["frames"] = meta["frames"][frames]
        (folder / "transforms_train.json").write_text(json.dumps(meta))
    first = ns_train(*quick(tmp_path / "first", scene, "blender-data"))
    assert first.code == 0, first.output[-3000:]
    run = tmp_path / "first" / "e" / "hashpose-blender" / "t"
    command = quick(tmp_path / "second", changed, "blender-data", steps=13)
    command[1:1] = ["--load-dir", str(run / "nerfstudio_models")]
    refused = ns_train(*command)
    assert refused.code == 1 and "other cameras than the data has now" in refused.output
    second = ns_train(command[0], "--pipeline.changed-images", "carry", *command[1:])
    assert second.code == 0, second.output[-3000:]
    assert "trained on 6 images: 5 of them are among the 6 now, and 1 are new" in " ".join(second.output.split())
    folder = tmp_path / "second" / "e" / "hashpose-blender" / "t"
    before, after = model_state(run), model_state(folder)
    poses, appearance = "camera_optimizer.pose_adjustment", "field.appearance.weight"
    step = 1e-3  # the most that the one step in between moves anything by
    assert before[poses][1:].abs().max() > 2 * step
    for key in (poses, appearance):
        torch.testing.assert_close(after[key][:5], before[key][1:], rtol=0, atol=step)
    torch.testing.assert_close(after[appearance][5], before[appearance].mean(dim=0), rtol=0, atol=step)
    assert after[poses][5].abs().max() < step
    counts = [
        torch.load(checkpoints(each)[-1])["optimizers"]["camera_opt"]["state"][0]["step"] for each in (run, folder)
    ]
    assert [int(count) for count in counts] == [12, 13]


def test_data_whose_frame_moves_with_the_images_are_refused(ns_train, tmp_path):
    scene = nerfstudio_scene(tmp_path / "scene", num_images=6)
    parser = ("nerfstudio-data", "--eval-mode", "interval", "--eval-interval", "6", "--downscale-factor", "1")
    first = ns_train(*quick(tmp_path / "first", scene, *parser, steps=2))
    assert first.code == 0, first.output[-3000:]
    meta = json.loads((scene / "transforms.json").read_text())
    meta["frames"] = meta["frames"][:-1]
    (scene / "transforms.json").write_text(json.dumps(meta))
    command = quick(tmp_path / "second", scene, *parser, steps=4)
    command[1:1] = ["--load-dir", str(tmp_path / "first" / "e" / "hashpose-blender" / "t" / "nerfstudio_models")]
    second = ns_train(command[0], "--pipeline.changed-images", "carry", *command[1:])
    assert second.code == 1 and "hashpose-localize --add" in second.output
