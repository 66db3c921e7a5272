"""hashpose-export video: what a run recorded, as a film."""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
import roma
import torch
from commands import pose_log
from PIL import Image

from hashpose_ns.cameras.alignment import align_poses, pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses
from hashpose_ns.export import cli, replay, video
from hashpose_ns.export.replay_drawing import ReplayDrawing
from hashpose_ns.plotting.cameras import frustum_segments
from hashpose_ns.plotting.figures import AFTER, BEFORE, TRUE
from hashpose_ns.runs.files import HISTORY_FILE
from hashpose_ns.runs.history import PoseHistory

STEPS = [0, 1, 4, 9, 16, 25, 36, 49]


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def cameras_around(num_cameras: int = 12, seed: int = 0) -> torch.Tensor:
    """Float64 cameras on a dome, looking at its middle; up is +z, as in an object capture."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_cameras, 3, dtype=torch.float64, generator=generator)
    centers[:, 2] = centers[:, 2].abs() + 0.2
    back = centers / centers.norm(dim=-1, keepdim=True)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 0, 1]).double().expand_as(back), back))
    return torch.stack([right, torch.linalg.cross(back, right), back, 3 * back], dim=-1)


def wrong_start() -> torch.Tensor:
    """The same cameras, each some 15 degrees and 0.3 units off."""
    noise = PerturbationConfig(rotation=0.15, translation=0.2, seed=3)
    return perturb_poses(cameras_around(), noise)


def between(start: torch.Tensor, end: torch.Tensor, weight: float) -> torch.Tensor:
    """Rigid poses on the way from one set to another."""
    rotations = roma.rotmat_slerp(start[..., :3], end[..., :3], torch.tensor([weight], dtype=torch.float64))[0]
    return torch.cat([rotations, torch.lerp(start[..., 3:], end[..., 3:], weight)], dim=-1)


@pytest.fixture
def make_run(tmp_path, helpers):
    """Writes a run's folder as training does: cameras that go from start to the reference, while the whole drifts."""

    def make(start, reference, checkpoint: bool = True, steps=STEPS, drift: bool = True) -> Path:
        run = tmp_path / "chair" / "hashpose" / "run"
        run.mkdir(parents=True)
        (run / "config.yml").write_text("")
        history = PoseHistory(run / HISTORY_FILE)
        for step in steps:
            poses = between(start, reference, step / steps[-1])
            moved = helpers.similarity(seed=step).apply_to_poses(poses) if drift and step else poses
            history.append(step, moved.numpy())
        if checkpoint:
            (run / "nerfstudio_models").mkdir()
            names = {"initial": start, "reference": reference}
            state = {f"_model.camera_optimizer.{name}_camera_to_worlds": x.float() for name, x in names.items()}
            parts = {"step": 49, "optimizers": {}, "schedulers": {}, "scalers": {}}
            torch.save({"pipeline": state, **parts}, run / "nerfstudio_models" / "step-000000049.ckpt")
        return run

    return make


@pytest.fixture
def perturbed_run(make_run) -> Path:
    return make_run(wrong_start(), cameras_around())


@pytest.fixture
def export(tmp_path, monkeypatch):
    """hashpose-export video on a run; returns the exit code."""

    def call(run: Path, name: str, *options) -> int:
        settings = ["--seconds", "0.5", "--hold-start", "0.2", "--hold-end", "0.3", "--size", "320", "180"]
        arguments = ["--load-config", run / "config.yml", "--output-path", tmp_path / name, *settings, *options]
        monkeypatch.setattr(sys, "argv", ["hashpose-export", "video", *map(str, arguments)])
        try:
            cli.entrypoint()
        except SystemExit as exit:
            return exit.code
        return 0

    return call


# -- what a run's folder holds -----------------------------------------------------------------------------------------


def test_each_record_is_aligned_to_the_reference(perturbed_run):
    shown = replay.load_replay(perturbed_run)
    start, reference = wrong_start(), cameras_around()
    assert shown.steps.tolist() == STEPS
    for step, cameras in zip(STEPS, shown.cameras):
        poses = between(start, reference, step / STEPS[-1])
        np.testing.assert_allclose(cameras, align_poses(poses, reference).apply_to_poses(poses), atol=1e-5)
    np.testing.assert_allclose(shown.start, align_poses(start, reference).apply_to_poses(start), atol=1e-5)
    np.testing.assert_allclose(shown.cameras[-1], reference, atol=1e-5)
    np.testing.assert_allclose(shown.reference, reference, atol=1e-6)


def test_other_alignments(perturbed_run, helpers):
    start, reference = wrong_start(), cameras_around()
    to_input = replay.load_replay(perturbed_run, "input")
    np.testing.assert_allclose(to_input.start, start, atol=1e-5)
    np.testing.assert_allclose(to_input.cameras[-1], align_poses(reference, start).apply_to_poses(reference), atol=1e-5)
    as_learned = replay.load_replay(perturbed_run, "none")
    np.testing.assert_allclose(
        as_learned.cameras[-1], helpers.similarity(49).apply_to_poses(cameras_around()), atol=1e-5
    )


def test_errors_are_those_of_the_pose_log(tiny_run):
    """At the steps that both a real run's log and its history hold."""
    curves = {curve.label: curve for curve in replay.load_replay(tiny_run.folder).curves}
    rotation, center = curves["mean rotation error"], curves["mean centre error"]
    common = [record for record in pose_log(tiny_run.folder) if record["step"] in rotation.steps]
    assert len(common) >= 5 and common[-1]["step"] == tiny_run.steps - 1
    for record in common:
        assert rotation.at(record["step"]) == pytest.approx(record["pose_error_after_rotation_deg_mean"], abs=1e-3)
        assert center.at(record["step"]) == pytest.approx(record["pose_error_after_center_mean"], abs=1e-4)
    assert curves["held-out PSNR"].at(0) == common[0]["held_out_psnr"]


def test_an_identity_start_is_not_blown_up(make_run, helpers):
    """Centres that have hardly left one point carry no scale: the last record's similarity is everyone's."""
    reference = cameras_around()
    blind = torch.eye(4, dtype=torch.float64)[:3].repeat(12, 1, 1)
    shown = replay.load_replay(make_run(blind, helpers.similarity().apply_to_poses(reference), drift=False))
    spread = np.linalg.norm(np.ptp(shown.cameras[..., 3], axis=1), axis=-1)
    np.testing.assert_allclose(spread / spread[-1], np.array(STEPS) / STEPS[-1], atol=1e-5)
    np.testing.assert_allclose(shown.cameras[-1], shown.reference, atol=1e-5)
    assert np.ptp(shown.start[:, :, 3], axis=0).max() < 1e-6
    # the error is of what is seen
    seen = np.linalg.norm(shown.cameras[3, :, :, 3] - shown.reference[:, :, 3], axis=-1).mean()
    assert shown.curves[1].at(STEPS[3]) == pytest.approx(seen, rel=1e-6)


def test_without_a_reference_of_its_own_movement_is_shown(make_run):
    start, end = cameras_around(), wrong_start()
    run = make_run(start, end, checkpoint=False)  # a run in training that has not saved yet
    shown = replay.load_replay(run)
    assert shown.reference is None and len(shown.curves) == 2
    moved = pose_errors(end, start)
    assert shown.curves[0].label == "mean rotation movement"
    assert shown.curves[0].at(49) == pytest.approx(float(moved.rotation_deg.mean()), abs=1e-3)
    assert shown.curves[1].at(49) == pytest.approx(float(moved.center.mean()), abs=1e-5)
    assert shown.curves[0].at(0) == pytest.approx(0.0, abs=1e-3)


def test_records_that_are_no_numbers_are_left_out(perturbed_run):
    poses = torch.full((12, 3, 4), torch.nan)
    with open(perturbed_run / HISTORY_FILE, "ab") as file:
        np.save(file, np.array(64)), np.save(file, poses.numpy())
    assert replay.load_replay(perturbed_run).steps.tolist() == STEPS


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_a_frame_shows_cameras_where_they_are(make_run):
    """Edges of every pyramid have their colour; the reference is drawn where it differs only."""
    start, reference = cameras_around(), cameras_around(seed=7)
    run = make_run(start, reference)
    drawing = ReplayDrawing(replay.load_replay(run), (960, 540), "a title")
    image = drawing.frame(len(STEPS) // 2, 0.0).astype(int)

    def distances(points, color):
        """Of each edge's middle from a colour, at the nearest of the nine pixels about it."""
        middles = np.mean(frustum_segments(drawing.views.oblique(), points), axis=1)
        pixels = drawing.scene.transData.transform(middles) * [1, -1] + [0, 540]
        middles = np.floor(pixels).astype(int)
        near = [image[v - 1 : v + 2, u - 1 : u + 2].reshape(-1, 3) - rgb(color) for u, v in middles]
        return np.array([np.abs(pixels).max(axis=-1).min() for pixels in near])

    assert np.mean(distances(drawing.moving[len(STEPS) // 2], AFTER) < 40) > 0.95
    assert np.mean(distances(drawing.reference, TRUE) < 60) > 0.8  # some lie under others
    assert np.mean(distances(drawing.moving[0], AFTER) < 40) < 0.2
    replay_without = replay.Replay(**{**vars(drawing.replay), "reference": None})
    image = ReplayDrawing(replay_without, (960, 540)).frame(3, 0.0).astype(int)
    assert (np.abs(image - rgb(TRUE)).max(axis=-1) < 20).sum() == 0
    assert (np.abs(image - rgb(BEFORE)).max(axis=-1) < 60).sum() > 100


def test_frames_begin_and_end_where_training_did(perturbed_run):
    positions = video.frame_positions(8, fps=10, seconds=2, hold_start=1, hold_end=0.5)
    assert len(positions) == 35
    assert (positions[:10] == 0).all() and (positions[-5:] == 7).all()
    assert np.allclose(np.diff(positions[10:30]), 7 / 19)
    drawing = ReplayDrawing(replay.load_replay(perturbed_run), (320, 180))
    first, last = drawing.frame(0.0, 0.0), drawing.frame(7.0, 0.0)
    assert drawing.frame(0.0, 0.0).tobytes() == first.tobytes() != last.tobytes()


# -- files -------------------------------------------------------------------------------------------------------------


def drawn_by_default(run: Path) -> list:
    drawing = ReplayDrawing(replay.load_replay(run), (320, 180), "chair: 12 cameras")
    return list(video.draw_frames(drawing, video.frame_positions(8, 20, 0.5, 0.2, 0.3)))


def test_mp4(tmp_path, perturbed_run, export, capsys):
    assert export(perturbed_run, "film.mp4") == 0
    assert "Wrote 20 frames of 12 cameras over steps 0 to 49" in capsys.readouterr().out
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 20
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    for read, drawn in zip(frames, drawn_by_default(perturbed_run), strict=True):
        error = np.square(read.astype(float) - drawn).mean()
        assert 10 * np.log10(255**2 / error) > 24  # colour has half the resolution


def test_gif(tmp_path, perturbed_run, export):
    assert export(perturbed_run, "film.gif") == 0
    drawn = drawn_by_default(perturbed_run)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (320, 180) and film.info["loop"] == 0
        time = 0
        for index in range(film.n_frames):  # frames that are the same are one that stands longer
            film.seek(index)
            error = np.abs(np.asarray(film.convert("RGB")).astype(float) - drawn[time // 50])
            assert error.mean() < 3 and np.quantile(error, 0.99) < 50
            time += film.info["duration"]
        assert time == 1000


def test_a_turning_view(tmp_path, perturbed_run, export):
    assert export(perturbed_run, "still.gif") == 0 and export(perturbed_run, "turning.gif", "--orbit-degrees", 40) == 0
    with Image.open(tmp_path / "still.gif") as still, Image.open(tmp_path / "turning.gif") as turning:
        assert still.n_frames < turning.n_frames == 20


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_run_without_history_is_one_sentence(tmp_path, perturbed_run, export, capsys):
    (perturbed_run / HISTORY_FILE).unlink()
    assert export(perturbed_run, "film.gif") == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"Error: There is no {HISTORY_FILE} in {perturbed_run}") and printed.count("\n") == 1
    (perturbed_run / HISTORY_FILE).write_bytes(b"")
    assert export(perturbed_run, "film.gif") == 1
    assert "holds 0 records" in capsys.readouterr().out
    assert not (tmp_path / "film.gif").exists()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("film.avi", [], "has to end in .mp4 or .gif"),
        ("film.mp4", ["--size", 321, 180], "have to be even"),
        ("film.gif", ["--size", 10, 10], "between 120 and 4096"),
        ("film.gif", ["--fps", 0], "--fps 0"),
        ("film.gif", ["--seconds", -1], "--seconds has to be positive"),
        ("chair", [], "has to end in"),
        ("film.gif", ["--load-config", "nowhere.yml"], "There is no file nowhere.yml"),
    ],
)
def test_settings_that_make_no_film(tmp_path, perturbed_run, export, capsys, name, options, message):
    before = sorted(tmp_path.iterdir())
    assert export(perturbed_run, name, *options) == 1
    assert message in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_that_cannot_be_read_is_named(perturbed_run, export, capsys):
    (checkpoint,) = perturbed_run.glob("*/*.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    assert export(perturbed_run, "film.gif") == 1
    assert f"The checkpoint {checkpoint} cannot be used" in capsys.readouterr().out


def test_a_file_is_replaced_only_when_told_so(tmp_path, perturbed_run, export, capsys):
    (tmp_path / "film.gif").write_text("precious")
    assert export(perturbed_run, "film.gif") == 1
    assert "film.gif exists" in capsys.readouterr().out
    assert (tmp_path / "film.gif").read_text() == "precious"
    assert export(perturbed_run, "film.gif", "--overwrite", True) == 0
    assert (tmp_path / "film.gif").read_bytes()[:6] == b"GIF89a"
    (tmp_path / "folder.gif").mkdir()
    assert export(perturbed_run, "folder.gif", "--overwrite", True) == 1
    assert "is a folder" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["new/film.mp4", "new/film.gif", "film.gif"])
def test_failure_half_way_leaves_everything_as_it_was(tmp_path, perturbed_run, export, monkeypatch, name):
    (tmp_path / "film.gif").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    drawn, frame = count(), ReplayDrawing.frame

    def stops(self, *args):
        if next(drawn) == 10:
            raise KeyboardInterrupt
        return frame(self, *args)

    monkeypatch.setattr(ReplayDrawing, "frame", stops)
    assert export(perturbed_run, name, "--overwrite", True) == 130
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "film.gif").read_text() == "precious"


def test_no_encoder_is_said(tmp_path, perturbed_run, export, monkeypatch, capsys):
    def without(name, mode):
        raise ValueError(name)

    monkeypatch.setattr(av.codec, "Codec", without)
    assert export(perturbed_run, "film.mp4") == 1
    assert "write a .gif" in capsys.readouterr().out
    assert not (tmp_path / "film.mp4").exists()


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_a_full_disk_is_one_sentence(tmp_path, perturbed_run, export, capsys, name):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, before[1]))
    try:
        code = export(perturbed_run, name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    output = capsys.readouterr().out
    assert code == 1 and output.strip() == f"Error: {tmp_path / name} could not be written (File too large)."
    assert sorted(tmp_path.rglob("*film*")) == []


def test_the_log_of_psnr_may_be_missing_or_short(perturbed_run):
    (perturbed_run / "pose_errors.jsonl").write_text(json.dumps({"step": 0, "held_out_psnr": 9.0}) + "\n")
    assert len(replay.load_replay(perturbed_run).curves) == 2
