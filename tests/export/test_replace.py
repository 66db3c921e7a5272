"""A folder appears whole or not at all, and nothing but an earlier export is ever replaced."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.replace import MANIFEST, check_target, replaced_file, replaced_folder


def snapshot(folder: Path, manifests: bool = False) -> dict:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if manifests or path.name != MANIFEST
    }


def export(target: Path, text: str = "new", overwrite: bool = False) -> None:
    with replaced_folder(target, overwrite) as folder:
        (folder / "transforms.json").write_text(text)


def test_folder_and_its_parents_appear(tmp_path):
    export(tmp_path / "a" / "b" / "out")
    assert snapshot(tmp_path) == {"a": None, "a/b": None, "a/b/out": None, "a/b/out/transforms.json": "new"}
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "a/b/out").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert set(json.loads((tmp_path / "a/b/out" / MANIFEST).read_text())["files"]) == {MANIFEST, "transforms.json"}


def test_target_is_not_there_before_the_end(tmp_path):
    with replaced_folder(tmp_path / "out") as folder:
        assert tmp_path in folder.parents
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
    before = snapshot(tmp_path, True)
    with pytest.raises(HashPoseError, match=r"out exists; .* --overwrite True"):
        export(tmp_path / "out")
    assert snapshot(tmp_path, True) == before
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
    before = snapshot(tmp_path, True)
    with pytest.raises(error):
        with replaced_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "transforms.json").write_text("half")
            raise error
    assert snapshot(tmp_path, True) == before


@pytest.mark.parametrize("failing", [1, 2])
def test_failure_at_the_exchange_puts_the_earlier_export_back(tmp_path, monkeypatch, failing):
    export(tmp_path / "out", "old")
    before = snapshot(tmp_path, True)
    rename, calls = os.rename, []

    def failing_rename(source, destination):
        calls.append(source)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path, True) == before


@pytest.mark.parametrize("foreign", ["images/0.png", "sparse/0/cameras.bin", "transforms.json", "config.yml"])
def test_overwrite_never_costs_other_files(tmp_path, foreign):
    """A name proves nothing: a user's own model or transforms.json is no export."""
    path = tmp_path / "data" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    before = snapshot(tmp_path, True)
    with pytest.raises(HashPoseError, match=f"{foreign} in it does not come from an export"):
        export(tmp_path / "data", overwrite=True)
    assert snapshot(tmp_path, True) == before


def annotated(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "mine": "precious"}))


def listed_only(path: Path) -> None:
    path.write_text(json.dumps({"files": ["transforms.json", MANIFEST]}))


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("transforms.json", lambda path: path.write_text("edited"), "transforms.json in it was changed since it was"),
        ("transforms.json", linked, "transforms.json in it was changed since it was written"),
        ("transforms.json", lambda path: (path.unlink(), os.mkfifo(path)), "transforms.json in it was changed"),
        (MANIFEST, annotated, "export.json in it was changed, or is from another version"),
        (MANIFEST, listed_only, "export.json in it was changed, or is from another version; delete the"),
        (MANIFEST, lambda path: path.write_text("[]"), "export.json in it was changed, or is from another version"),
        (MANIFEST, Path.unlink, "transforms.json in it does not come from an export"),
        ("mine\n.txt", lambda path: path.write_text("precious"), r"'mine\\n.txt' in it does not come"),
        ("images", lambda path: path.symlink_to("../elsewhere"), "images in it does not come from an export"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_kept(tmp_path, name, change, sentence):
    export(tmp_path / "out", "old")
    change(tmp_path / "out" / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HashPoseError, match=sentence):
        export(tmp_path / "out", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_that_an_export_made_are_its_own(tmp_path):
    (tmp_path / "photo.jpg").write_text("precious")
    for text in ("old", "new"):
        with replaced_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "images").mkdir()
            (folder / "images" / "0.jpg").symlink_to(tmp_path / "photo.jpg")
            (folder / "text").write_text(text)
    assert (tmp_path / "out/text").read_text() == "new" and (tmp_path / "photo.jpg").read_text() == "precious"
    (tmp_path / "out/images/0.jpg").unlink()
    (tmp_path / "out/images/0.jpg").symlink_to(tmp_path / "another.jpg")
    with pytest.raises(HashPoseError, match="images/0.jpg in it was changed since"):
        export(tmp_path / "out", overwrite=True)


def test_empty_folders_of_the_user_survive(tmp_path):
    with replaced_folder(tmp_path / "out") as folder:
        (folder / "sparse/0").mkdir(parents=True)
        (folder / "sparse/0/cameras.bin").write_text("old")
    for name in ("later/today", "sparse/0/mine", "sparse/1"):
        (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out").chmod(0o750)
    export(tmp_path / "out", overwrite=True)
    kept = dict.fromkeys(["later", "later/today", "sparse", "sparse/0", "sparse/0/mine", "sparse/1"])
    assert snapshot(tmp_path / "out") == {**kept, "transforms.json": "new"}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750 and os.listdir(tmp_path) == ["out"]
    with pytest.raises(HashPoseError, match="later in it is a folder"):
        with replaced_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "later").write_text("in the way")
    assert snapshot(tmp_path / "out") == {**kept, "transforms.json": "new"}


def test_foreign_file_that_comes_meanwhile_is_kept(tmp_path):
    export(tmp_path / "out", "old")
    with pytest.raises(HashPoseError, match="late.txt in it does not come from an export"):
        with replaced_folder(tmp_path / "out", overwrite=True):
            (tmp_path / "out" / "late.txt").write_text("precious")
    assert snapshot(tmp_path / "out") == {"late.txt": "precious", "transforms.json": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_files_and_links_as_target_are_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(HashPoseError, match="is not a folder"):
        export(tmp_path / "file", overwrite=True)
    export(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("link", "loop"):
        with pytest.raises(HashPoseError, match=f"{name} is a link, and links are not replaced"):
            export(tmp_path / name, overwrite=True)
    with pytest.raises(HashPoseError, match="loop is a link to itself"):
        export(tmp_path / "loop/out")
    with pytest.raises(HashPoseError, match="film.gif is a link"):
        (tmp_path / "film.gif").symlink_to(tmp_path / "file")
        with replaced_file(tmp_path / "film.gif", overwrite=True):
            raise AssertionError
    assert (tmp_path / "real/transforms.json").read_text() == "old"


@pytest.mark.parametrize(
    "needed",
    [
        "out/images/0.jpg",  # a name in it, wherever that leads
        "data/linked.jpg",  # a link to a link in it
        "data/images/0.jpg",  # through a linked folder
        "out",
        "out/gone.jpg",
        "OTHER/images/0.jpg",
    ],
)
def test_what_is_still_needed_is_never_replaced(tmp_path, needed):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/0.jpg").write_text("precious")
    with replaced_folder(tmp_path / "out") as folder:
        (folder / "images").mkdir()
        (folder / "images/0.jpg").symlink_to("../../photos/0.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images").symlink_to("../out/images")
    (tmp_path / "data/linked.jpg").symlink_to("../data/images/../images/0.jpg")
    (tmp_path / "OTHER").symlink_to("out")
    target = tmp_path / "data" / ".." / "out"
    why = "this export reads it" if needed == "out" else f".*{needed}, which this export reads, lies in it"
    with pytest.raises(HashPoseError, match=f"out cannot be replaced, as {why};"):
        with replaced_folder(target, overwrite=True, needed=[tmp_path / "photos/0.jpg", tmp_path / needed]):
            raise AssertionError
    check_target(tmp_path / "out", True, needed=[tmp_path / "photos/0.jpg"])


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from hashpose_ns.export import replace
where, target = sys.argv[1], Path(sys.argv[2])
rename, renamed = os.rename, []
def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)
def rename_and_die(*args):
    rename(*args)
    renamed.append(args)
    if where == f"rename {len(renamed)}":
        kill()
os.rename = rename_and_die
if where == "deletion":
    unlink = Path.unlink
    Path.unlink = lambda path: (unlink(path), kill())
with replace.replaced_folder(target, overwrite=True) as folder:
    (folder / "transforms.json").write_text("killed")
    (folder / "more").write_text("killed")
    if where == "writing":
        kill()
"""


@pytest.mark.parametrize(
    "where, found", [("writing", "old"), ("rename 1", "old"), ("rename 2", "killed"), ("deletion", "killed")]
)
def test_what_a_kill_left_is_cleared_away_by_the_next_export(tmp_path, where, found):
    with replaced_folder(tmp_path / "out") as folder:
        (folder / "transforms.json").write_text("old")
        (folder / "points.ply").write_text("old")
    (tmp_path / "out/mine").mkdir()
    killed = subprocess.run([sys.executable, "-c", INTERRUPTED, where, tmp_path / "out"])
    assert killed.returncode == -signal.SIGKILL
    assert any(name.endswith(".partial") for name in os.listdir(tmp_path))
    with pytest.raises(HashPoseError, match="out exists"):
        export(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out/transforms.json").read_text() == found and (tmp_path / "out/mine").is_dir()
    export(tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == {"out": None, "out/mine": None, "out/transforms.json": "new"}


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    script = INTERRUPTED.replace("kill()\n", "print(flush=True); input()\n")
    command = [sys.executable, "-c", script, "writing", tmp_path / "out"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        hidden = [name for name in os.listdir(tmp_path)]
        export(tmp_path / "out")
        assert sorted(os.listdir(tmp_path)) == sorted([*hidden, "out"])
        other.communicate(b"\n")
    assert snapshot(tmp_path) == {"out": None, "out/more": "killed", "out/transforms.json": "killed"}


def test_hidden_folders_that_no_export_made_are_left_alone(tmp_path):
    for name in (".out.abcdefgh.partial/notes.txt", ".out.abcdefg.partial/new", ".film.gif.abcdefgh.partial/notes.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("precious")
    (tmp_path / ".film.gif.12345678.partial").mkdir()
    (tmp_path / ".film.gif.12345678.partial/film.gif").write_text("of a kill")
    before = snapshot(tmp_path)
    export(tmp_path / "out")
    with replaced_file(tmp_path / "film.gif") as path:
        path.write_text("film")
    for name in (".film.gif.12345678.partial", ".film.gif.12345678.partial/film.gif"):
        del before[name]
    assert snapshot(tmp_path) == {**before, "out": None, "out/transforms.json": "new", "film.gif": "film"}


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
