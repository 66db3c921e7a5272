"""A folder appears whole or not at all, and nothing but an earlier export is ever replaced."""

import os
from pathlib import Path

import pytest

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.replace import replaced_folder


def snapshot(folder: Path) -> dict:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def export(target: Path, text: str = "new", overwrite: bool = False) -> None:
    with replaced_folder(target, overwrite) as folder:
        (folder / "transforms.json").write_text(text)


def test_folder_and_its_parents_appear(tmp_path):
    export(tmp_path / "a" / "b" / "out")
    assert snapshot(tmp_path) == {"a": None, "a/b": None, "a/b/out": None, "a/b/out/transforms.json": "new"}
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "a/b/out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_target_is_not_there_before_the_end(tmp_path):
    with replaced_folder(tmp_path / "out") as folder:
        assert folder.parent == tmp_path
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        with replaced_folder(tmp_path / "a" / "out") as folder:
            (folder / "sparse").mkdir()
            (folder / "sparse" / "half").write_text("half")
            raise error
    assert snapshot(tmp_path) == {}


def test_existing_folder_is_refused_and_untouched(tmp_path):
    export(tmp_path / "out", "old")
    before = snapshot(tmp_path)
    with pytest.raises(HashPoseError, match=r"out exists; .* --overwrite True"):
        export(tmp_path / "out")
    assert snapshot(tmp_path) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(HashPoseError, match="empty exists"):
        export(tmp_path / "empty")


def test_overwrite_replaces_an_earlier_export_as_a_whole(tmp_path):
    with replaced_folder(tmp_path / "out") as folder:
        (folder / "sparse/0").mkdir(parents=True)
        (folder / "sparse/0/cameras.bin").write_text("old")
    export(tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == {"out": None, "out/transforms.json": "new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_overwrite_keeps_the_earlier_export(tmp_path, error):
    export(tmp_path / "out", "old")
    before = snapshot(tmp_path)
    with pytest.raises(error):
        with replaced_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "transforms.json").write_text("half")
            raise error
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("failing", [1, 2])
def test_failure_at_the_exchange_puts_the_earlier_export_back(tmp_path, monkeypatch, failing):
    export(tmp_path / "out", "old")
    before = snapshot(tmp_path)
    rename, calls = os.rename, []

    def failing_rename(source, destination):
        calls.append(source)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("foreign", ["images/0.png", "sparse/0/notes.txt", "transforms.json/x", "config.yml"])
def test_overwrite_never_costs_other_files(tmp_path, foreign):
    path = tmp_path / "data" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    before = snapshot(tmp_path)
    with pytest.raises(HashPoseError, match=f"{foreign} in it does not come from an export"):
        export(tmp_path / "data", overwrite=True)
    assert snapshot(tmp_path) == before


def test_foreign_file_that_comes_meanwhile_is_kept(tmp_path):
    export(tmp_path / "out", "old")
    with pytest.raises(HashPoseError, match="late.txt in it does not come from an export"):
        with replaced_folder(tmp_path / "out", overwrite=True):
            (tmp_path / "out" / "late.txt").write_text("precious")
    assert snapshot(tmp_path / "out") == {"late.txt": "precious", "transforms.json": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_file_or_linked_images_as_target_are_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(HashPoseError, match="is not a folder"):
        export(tmp_path / "file", overwrite=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sparse").symlink_to(tmp_path / "images")
    with pytest.raises(HashPoseError, match="sparse in it does not come from an export"):
        export(tmp_path / "out", overwrite=True)


def test_linked_target_is_replaced_where_it_points(tmp_path):
    export(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert snapshot(tmp_path / "real") == {"transforms.json": "new"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_parent_is_told(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(HashPoseError, match="cannot be written"):
            export(tmp_path / "a" / "out")
    finally:
        tmp_path.chmod(0o700)


def test_parent_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(HashPoseError, match="cannot be written"):
        export(tmp_path / "file" / "out")
    assert snapshot(tmp_path) == {"file": "precious"}
