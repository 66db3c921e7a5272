"""hashpose-localize --add: a new run that goes on with what was found, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import checkpoints, model_state
from scenes import CHAIR, chair_frames, chair_image

from hashpose_ns.errors import HashPoseError
from hashpose_ns.localize.adding import _free_folder, check_addable, new_photographs
from hashpose_ns.localize.api import Search
from hashpose_ns.localize.cli import entrypoint
from hashpose_ns.localize.foreign import NerfstudioRenderer
from hashpose_ns.photometry.localize import Acceptance

STEPS = 8


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two pictures of the chair beside their cameras, and one that the run holds out."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    angle, frames = chair_frames("test", 2)
    for number, frame in enumerate(frames):
        chair_image(frame, 64).save(folder / f"new_{number}.png")
    entries = [
        {"file_path": f"new_{number}.png", "transform_matrix": frame["transform_matrix"]}
        for number, frame in enumerate(frames)
    ]
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": angle, "frames": entries}))
    held_out = sorted((CHAIR / "test").glob("*.png"))[0]
    (folder / "held_out.png").write_bytes(held_out.read_bytes())
    return folder


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_training_goes_on_in_a_run_of_its_own(tiny_run, in_process, unchecked, tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(Acceptance, "found", lambda self, localization: True)  # the field is 200 small steps old
    before = content(tiny_run.folder)
    arguments = [
        *("--load-config", tiny_run.folder / "config.yml", "--images", photographs, "--batch", 3),
        *("--start", photographs / "transforms.json", "--hypotheses", 1, "--rays", 1024, "--overlay-size", 0),
    ]
    done = in_process(entrypoint, *arguments, "--output-dir", tmp_path / "found", "--add", "True", "--add-steps", STEPS)
    assert done.code == 0, done.output[-3000:]
    said = " ".join(done.output.split())
    assert "1 of these are images of the run already" in said
    assert f"2 photographs beside 40 images for {STEPS} steps" in said
    assert "40 of them are among the 42 now, and 2 are new" in said
    assert content(tiny_run.folder) == before

    folder = tiny_run.folder.with_name("run-added")
    last = tiny_run.steps + STEPS - 1
    assert [path.name for path in checkpoints(folder)] == [f"step-{last:09d}.ckpt"]
    old, new = model_state(tiny_run.folder), model_state(folder)
    poses = "camera_optimizer.pose_adjustment"
    assert (new[poses][:40] - old[poses]).abs().max() < 0.02 < old[poses].abs().max()
    assert not torch.equal(new[poses][40:], torch.zeros(2, 6)), "what joined is refined as well"

    # the file's poses are those that were found, in the frame of the input
    found = json.loads((tmp_path / "found" / "poses.json").read_text())["images"]
    listed = json.loads((folder / "added" / "transforms.json").read_text())["frames"]
    assert [Path(frame["file_path"]).name for frame in listed] == [f"new_{number}.png" for number in range(2)]
    by_name = {image["name"]: image["camera_to_world"] for image in found}
    for frame in listed:
        assert frame["transform_matrix"][:3] == by_name[Path(frame["file_path"]).name]

    # the new run is one like any other, and knows its images
    search = Search(folder / "config.yml")
    results = [
        SimpleNamespace(found=True, filename=path) for path in (photographs / "new_0.png", CHAIR / "train/r_0.png")
    ]
    assert new_photographs(search, results) == []
    given = search.given.poses(search.scene.train_outputs)[40:]
    expected = torch.tensor([by_name[f"new_{number}.png"] for number in (0, 1)], dtype=torch.float64)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)


def test_new_runs_have_names_of_their_own(tmp_path):
    assert _free_folder(tmp_path / "run") == tmp_path / "run-added"
    (tmp_path / "run-added").mkdir()
    assert _free_folder(tmp_path / "run") == _free_folder(tmp_path / "run-added") == tmp_path / "run-added-2"


def test_runs_of_other_methods_and_masks_that_do_not_fit_are_refused(unchecked):
    def search(renderer, masks):
        return SimpleNamespace(
            scene=SimpleNamespace(renderer=renderer, train_outputs=SimpleNamespace(mask_filenames=masks))
        )

    with pytest.raises(HashPoseError, match="hashpose methods only"):
        check_addable(search(NerfstudioRenderer(torch.nn.Linear(1, 1)), None), masks=False)
    with pytest.raises(HashPoseError, match="leave --masks out"):
        check_addable(search(None, None), masks=True)
    with pytest.raises(HashPoseError, match="by --masks"):
        check_addable(search(None, [Path("a")]), masks=False)
    check_addable(search(None, None), masks=False)
