"""The history of poses: what is kept, how it is read back, and how it is taken over by a resumed run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hashpose_ns.runs.history import MAX_RECORDS, PoseHistory, is_recorded, read_pose_history


@pytest.mark.parametrize("total", [1, 7, 300, 4000, 200_000])
def test_the_first_and_last_steps_are_kept_and_at_most_so_many(total, unchecked):  # checks of so many calls take long
    steps = [step for step in range(total) if is_recorded(step, total)]
    assert steps[0] == 0 and steps[-1] == total - 1
    assert len(steps) <= MAX_RECORDS + 1
    if total > MAX_RECORDS**2:  # denser at the start than at the end
        gaps = np.diff(steps)
        assert len(steps) >= MAX_RECORDS and gaps[:10].max() < gaps[-10:-1].min()


def fill(history: PoseHistory, steps) -> torch.Tensor:
    poses = torch.randn(len(steps), 5, 3, 4, generator=torch.Generator().manual_seed(0))
    for step, pose in zip(steps, poses):
        history.append(step, pose.numpy())
    return poses


def test_it_reads_back_what_was_appended(tmp_path):
    history = PoseHistory(tmp_path / "h.npys")
    poses = np.ones((2, 3, 4))
    history.append(0, poses)
    poses *= 2  # what was kept must not follow
    history.append(3, poses)
    steps, poses = read_pose_history(tmp_path / "h.npys")
    assert steps.tolist() == history.steps == [0, 3]
    assert poses.shape == (2, 2, 3, 4) and (poses[0] == 1).all() and (poses[1] == 2).all()
    np.testing.assert_array_equal(np.stack(history.camera_to_worlds), poses)


def test_a_record_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "h.npys"
    poses = fill(PoseHistory(path), [0, 5, 9])
    whole = path.read_bytes()
    for cut in (1, 100, 300, len(whole) // 3 - 10):
        path.write_bytes(whole[:-cut])
        steps, read = read_pose_history(path)
        assert steps.tolist() == [0, 5]
        np.testing.assert_array_equal(read, poses[:2].numpy())
    path.write_bytes(b"")
    assert len(read_pose_history(path)[0]) == 0


@pytest.mark.parametrize("damage", ["zip", "garbage", "pickle", "other cameras", "step back", "huge"])
def test_what_is_whole_before_the_damage_is_taken(damage, tmp_path):
    path = tmp_path / "h.npys"
    poses = fill(PoseHistory(path), [0, 5])
    with open(path, "ab") as file:
        if damage == "zip":
            np.savez(file, step=np.array(7))
        elif damage == "garbage":
            file.write(bytes(range(256)))
        elif damage == "huge":
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**15, 3, 4)}
            np.save(file, np.array(9))
            np.lib.format.write_array_header_1_0(file, header)
        else:
            np.save(file, np.array(3 if damage == "step back" else 9))
            number = 6 if damage == "other cameras" else 5
            np.save(file, np.array(["x"], dtype=object) if damage == "pickle" else np.zeros((number, 3, 4), np.float32))
            fill(PoseHistory(tmp_path / "more.npys"), [11])
            file.write((tmp_path / "more.npys").read_bytes())
    steps, read = read_pose_history(path)
    assert steps.tolist() == [0, 5]
    np.testing.assert_array_equal(read, poses.numpy())
    assert PoseHistory(tmp_path / "new.npys", source=path, before_step=9, num_cameras=5).steps == [0, 5]
    assert PoseHistory(tmp_path / "new.npys", source=path, before_step=9, num_cameras=7).steps == []


def test_a_resumed_run_takes_over_what_lies_before_its_checkpoint(tmp_path):
    poses = fill(PoseHistory(tmp_path / "h.npys"), [0, 5, 9])
    for path in (tmp_path / "other.npys", tmp_path / "h.npys"):  # into another folder, and in place
        history = PoseHistory(path, source=tmp_path / "h.npys", before_step=6)
        history.append(6, poses[2].numpy())
        steps, read = read_pose_history(path)
        assert steps.tolist() == [0, 5, 6]
        np.testing.assert_array_equal(read, poses.numpy())
    assert PoseHistory(tmp_path / "new.npys", source=tmp_path / "absent.npys").steps == []
