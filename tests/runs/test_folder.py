"""A run's folder belongs to one process, and a run that comes to nothing leaves what was there before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.folder import LOCK, RunFolder, claimed


def contents(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_a_run(folder: Path) -> None:
    (folder / "nerfstudio_models").mkdir(exist_ok=True)
    (folder / "nerfstudio_models" / "half.ckpt").write_text("half")
    (folder / "config.yml").write_text("new")
    (folder / "events").write_text("new")


def test_a_run_that_comes_to_nothing_leaves_no_folder(tmp_path):
    folder = claimed(tmp_path / "outputs" / "scene" / "hashpose" / "t")
    write_a_run(folder.path)
    folder.take_back()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay(tmp_path):
    output = tmp_path / "outputs"
    (output / "scene" / "hashpose" / "other").mkdir(parents=True)
    folder = claimed(output / "scene" / "hashpose" / "t")
    write_a_run(folder.path)
    folder.take_back()
    assert sorted(path.name for path in output.rglob("*")) == ["hashpose", "other", "scene"]
    folder = claimed(output / "scene" / "hashpose" / "other")
    write_a_run(folder.path)
    folder.take_back()
    assert list(folder.path.iterdir()) == []


def test_an_earlier_run_keeps_its_files_and_its_configuration(tmp_path):
    (tmp_path / "nerfstudio_models").mkdir()
    (tmp_path / "nerfstudio_models" / "step-000000009.ckpt").write_text("good")
    (tmp_path / "config.yml").write_text("good")
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    folder = claimed(tmp_path)
    (tmp_path / "config.yml").write_text("new")
    (tmp_path / "events").write_text("new")
    folder.take_back()
    assert contents(tmp_path) == before


def test_what_cannot_be_removed_stays_without_an_error(tmp_path, monkeypatch):
    folder = claimed(tmp_path / "mount" / "t")
    write_a_run(folder.path)

    def busy(self):
        raise OSError(16, "Device or resource busy", str(self))

    monkeypatch.setattr(Path, "rmdir", busy)
    folder.take_back()
    assert folder.path.is_dir()


def test_another_process_is_refused_and_changes_nothing(tmp_path):
    first = RunFolder(tmp_path / "t")  # as in another process: it is not this one's `claimed`
    write_a_run(first.path)
    before = contents(tmp_path)
    with pytest.raises(HashPoseError, match=rf"process \({os.getpid()} on .*\) trains in .*/t; .* --timestamp"):
        claimed(tmp_path / "t")
    assert contents(tmp_path) == before
    first.release()
    second = claimed(tmp_path / "t")
    assert claimed(tmp_path / "t") is second, "one process claims a folder once"
    second.release()
    assert not (tmp_path / "t" / LOCK).exists()


def test_a_lock_ends_with_its_process(tmp_path):
    (tmp_path / LOCK).write_text("4711 on a machine that was switched off\n")
    folder = claimed(tmp_path)
    folder.release()
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_locks_are_no_hindrance(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("hashpose_ns.runs.folder.fcntl.flock", unsupported)
    claimed(tmp_path / "t").take_back()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        claimed(tmp_path / "file" / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
