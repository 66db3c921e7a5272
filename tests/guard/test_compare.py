"""The guard on the packaged chair: pose sets whose order is known, and the commands that run it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import roma
import torch
from commands import FEW_RAYS, NO_EVAL, SMALL_FIELD, checkpoints
from scenes import CHAIR

from hashpose_ns.cameras.alignment import Similarity
from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses
from hashpose_ns.datamanager import HashPoseDataManagerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import HashPoseFieldConfig
from hashpose_ns.guard.cli import entrypoint
from hashpose_ns.guard.compare import compare_poses, run_guard
from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.fallback import fall_back_unless_helped
from hashpose_ns.guard.judge import judge_config
from hashpose_ns.guard.report import GuardReport, listed, read_report, read_verdict
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.peers.nerfacto import NerfactoPosesModelConfig
from hashpose_ns.pipeline import HashPosePipeline, HashPosePipelineConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

STEPS = 60
SHORT = {"rays": 256, "coarse": 2, "coarse_alone": 2}
"""Settings for judging fields that are trained so shortly: their pictures are coarse at true poses, too."""


@pytest.fixture(scope="module")
def pipeline() -> HashPosePipeline:
    """The chair at 40x40 with its true poses, untrained."""
    torch.manual_seed(0)
    encoding = HashEncodingConfig(num_levels=5, log2_hashmap_size=13, base_resolution=8, max_resolution=64)
    return HashPosePipelineConfig(
        datamanager=HashPoseDataManagerConfig(
            dataparser=BlenderDataParserConfig(data=CHAIR), camera_res_scale_factor=0.4
        ),
        model=HashPoseModelConfig(
            field=HashPoseFieldConfig(encoding=encoding),
            scene="none",
            scene_box_scale=0.8,
            clip_to_box=True,
            sampler="uniform",
            near_plane=2.0,
            far_plane=6.0,
            num_samples=24,
            background_color="white",
        ),
    ).setup(device="cpu", test_mode="inference")


@pytest.fixture
def true_poses(pipeline) -> torch.Tensor:
    return pipeline.model.camera_optimizer.reference_camera_to_worlds.clone()


def wrong(poses: torch.Tensor, noise: float = 0.1) -> torch.Tensor:
    return perturb_poses(poses, PerturbationConfig(rotation=noise, translation=noise))


def compare(pipeline, initial, refined, steps: int = STEPS, **config):
    return compare_poses(pipeline.scene, initial, refined, steps, GuardConfig(**{**SHORT, **config}))


# -- pairs of poses ----------------------------------------------------------------------------------------------------


def test_it_tells_true_poses_from_wrong_ones_in_either_order(pipeline, true_poses):
    helped, hurt = (
        compare(pipeline, *pair) for pair in ((wrong(true_poses), true_poses), (true_poses, wrong(true_poses)))
    )
    assert (helped.verdict, hurt.verdict) == ("helped", "hurt")
    assert helped.log_ratio < -0.1 and hurt.log_ratio > 0.1


def test_identical_poses_differ_by_nothing(pipeline, true_poses):
    verdict = compare(pipeline, true_poses, true_poses.clone(), steps=10)
    assert verdict.verdict == "undecided" and verdict.hurt_cameras == []
    # but for the rounding of the alignment of equal poses, which moves them by 1e-7
    torch.testing.assert_close(verdict.first, verdict.second, rtol=1e-3, atol=0)


def test_the_frame_makes_no_difference(pipeline, true_poses):
    frame = Similarity(
        torch.tensor(2.5).double(),
        roma.random_rotmat(generator=torch.Generator().manual_seed(0)).double(),
        torch.tensor([3.0, -1.0, 0.5]).double(),
    )
    verdict = compare(pipeline, true_poses, frame.apply_to_poses(true_poses))
    assert verdict.verdict == "undecided" and abs(verdict.log_ratio) < 0.02


def test_lost_cameras_are_named(pipeline, true_poses):
    moved = true_poses.clone()
    moved[[4, 30]] = wrong(true_poses, 0.5)[[4, 30]]
    verdict = compare(pipeline, true_poses, moved)
    assert set(verdict.hurt_cameras) == {4, 30}
    assert float(verdict.second[[4, 30]].min() / verdict.second.median()) > 2


def test_judging_leaves_everything_as_it_was(pipeline, true_poses):
    model = pipeline.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config, training = json.dumps(dataclasses.asdict(model.config), default=str), model.training
    random, cameras = torch.get_rng_state(), pipeline.datamanager.train_dataset.cameras.camera_to_worlds.clone()
    compare(pipeline, true_poses, wrong(true_poses), steps=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(pipeline.datamanager.train_dataset.cameras.camera_to_worlds, cameras)
    assert json.dumps(dataclasses.asdict(model.config), default=str) == config and model.training == training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_settings_out_of_range_are_refused(pipeline, true_poses):
    outside = ({"rays": 1}, {"held_out": 1.0}, {"block": 0.0}, {"steps": -1}, {"fallback_at": (0.3, 1.0)})
    for setting in (*outside, {"fallback_rate": 1.5}, {"coarse": 0}, {"stray": -1.0}, {"converging": 1.5}):
        with pytest.raises(HashPoseError):
            GuardConfig(**setting).validate()
    with pytest.raises(HashPoseError, match="fractions"):
        compare(pipeline, true_poses, true_poses, held_out=0.0)


def test_steps_follow_the_length_of_training():
    assert [GuardConfig().steps_for(steps) for steps in (100, 8000, 200_000)] == [200, 400, 2000]
    assert GuardConfig(steps=7).steps_for(8000) == 7


def test_the_judge_sees_the_run_s_scene(pipeline):
    judge = judge_config(pipeline.config.model)
    assert (judge.scene, judge.near_plane, judge.background_color) == ("none", 2.0, "white")
    assert judge.field.encoding.max_resolution == 64 and judge.field.encoding.gradient == "linear"
    assert judge.camera_optimizer.mode == "off" and pipeline.config.model.camera_optimizer.mode == "SE3"
    other = judge_config(NerfactoPosesModelConfig(near_plane=0.2))
    assert (other.scene, other.sampler, other.near_plane) == ("contraction", "piecewise", 0.2)


# -- the report --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(pipeline) -> GuardReport:
    """Of a refinement that moved two cameras away from their true poses."""
    optimizer = pipeline.model.camera_optimizer
    with torch.no_grad():
        optimizer.pose_adjustment[[1, 2]] = 0.3 * torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    report = run_guard(pipeline.scene, GuardConfig(rays=256, steps=STEPS))
    with torch.no_grad():
        optimizer.pose_adjustment.zero_()
    return report


def test_the_report_names_cameras_by_their_images(pipeline, report):
    names = pipeline.model.camera_optimizer.image_names
    assert [camera.name for camera in report.cameras] == names
    assert set(report.hurt_cameras) == {names[1], names[2]}
    assert [camera.name for camera in report.cameras if camera.hurt] == report.hurt_cameras
    gains = [camera.psnr_gain for camera in report.cameras]
    assert report.psnr_gain == pytest.approx(sum(gains) / len(gains))
    assert report.psnr_gain == pytest.approx(report.psnr_refined - report.psnr_initial)
    assert report.settings["steps"] == STEPS and report.seconds > 0
    assert f"{len(names)} images" in report.sentence and "dB" in report.sentence


def test_cameras_are_named_without_their_common_folder(report):
    assert listed(["/data/images/a.jpg"]) == "a.jpg"
    assert listed(["/data/left/a.jpg", "/data/right/a.jpg"]) == "left/a.jpg, right/a.jpg"
    assert listed(["/data/a.jpg", "b.jpg"]) == "/data/a.jpg, b.jpg"
    assert listed([f"{i}.png" for i in range(10)], most=2) == "0.png, 1.png and 8 more"
    report = dataclasses.replace(report, hurt_cameras=["a/1.png", "a/2.png"], doubtful_cameras=["a/3.png"])
    assert report.camera_sentences() == [
        "2 cameras fit worse than before refinement: 1.png, 2.png",
        "1 camera moved far and does not clearly fit better for it: 3.png",
    ]
    assert dataclasses.replace(report, hurt_cameras=[], doubtful_cameras=[]).camera_sentences() == []


def test_the_report_survives_its_file(report, tmp_path):
    path = report.write(tmp_path)
    assert read_report(path) == report and [file.name for file in tmp_path.iterdir()] == ["guard.json"]
    assert json.loads(path.read_text())["verdict"] == report.verdict
    content = json.loads(path.read_text())
    for entry in (content, *content["cameras"]):  # as it was before cameras could be doubtful
        entry.pop("doubtful_cameras", None)
        entry.pop("doubtful", None)
    path.write_text(json.dumps(content))
    assert read_report(path).doubtful_cameras == [] and not read_report(path).cameras[0].doubtful


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.clear(),
        lambda content: content.pop("step"),
        *(
            lambda content, key=key, value=value: content.update({key: value})
            for key, value in {
                "verdict": "good",
                "sentence": 3,
                "step": "2",
                "psnr_gain": "x",
                "hurt_cameras": [1],
                "doubtful_cameras": None,
                "cameras": {},
                "settings": [],
            }.items()
        ),
        lambda content: content["cameras"][0].update(hurt="x"),
        lambda content: content["cameras"][0].update(rotation_std_deg=["x"]),
        lambda content: content["cameras"].append(None),
    ],
)
def test_a_report_with_values_of_other_types_is_refused(report, tmp_path, change):
    path = report.write(tmp_path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(HashPoseError, match="cannot be read; run hashpose-guard again"):
        read_report(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_report_is_refused(tmp_path, content):
    (tmp_path / "guard.json").write_bytes(content)
    with pytest.raises(HashPoseError, match="cannot be read; run hashpose-guard again"):
        read_report(tmp_path / "guard.json")


def test_a_verdict_on_an_earlier_checkpoint_is_none(report, tmp_path):
    assert read_verdict(tmp_path) is None
    report = dataclasses.replace(report, step=99)
    report.write(tmp_path)
    assert read_verdict(tmp_path) is None, "no checkpoint at all"
    (tmp_path / "nerfstudio_models").mkdir()
    (tmp_path / "nerfstudio_models" / "step-000000099.ckpt").touch()
    assert read_verdict(tmp_path) == report
    (tmp_path / "nerfstudio_models" / "step-000000199.ckpt").touch()
    assert read_verdict(tmp_path) is None


def test_metrics_are_flat_floats(report):
    metrics = report.metrics()
    assert all(isinstance(value, float) and name.startswith("guard_") for name, value in metrics.items())
    assert metrics["guard_hurt_cameras"] == 2
    codes = {
        verdict: dataclasses.replace(report, verdict=verdict).metrics()["guard_verdict"]
        for verdict in ("helped", "undecided", "kept", "hurt")
    }
    assert codes == {"helped": 1.0, "undecided": 0.0, "kept": 0.0, "hurt": -1.0}
    assert dataclasses.replace(report, verdict="kept").metrics()["guard_kept"] == 1.0 and metrics["guard_kept"] == 0.0


# -- on the way --------------------------------------------------------------------------------------------------------


@pytest.fixture
def refining(pipeline, true_poses):
    """Sets where training started and where refinement has led; returns the camera optimizer and its Adam, which has
    taken a step."""
    optimizer = pipeline.model.camera_optimizer
    adam = torch.optim.Adam([optimizer.pose_adjustment], lr=1e-3)

    def begin(initial: torch.Tensor, refined: torch.Tensor):
        optimizer.initial_camera_to_worlds.copy_(initial)
        optimizer.base_camera_to_worlds.copy_(initial)
        for index, pose in enumerate(refined):
            optimizer.set_refined(index, pose)
        optimizer.set_progress(0.5)
        optimizer.pose_adjustment.grad = torch.ones_like(optimizer.pose_adjustment)
        adam.step()
        return optimizer, adam

    pipeline.model.set_training_length(20)
    yield begin
    optimizer.initial_camera_to_worlds.copy_(true_poses)
    optimizer.base_camera_to_worlds.copy_(true_poses)
    optimizer.load_state_dict({**optimizer.state_dict(), "fallen_back": torch.ones(())})
    optimizer.held.clear()
    with torch.no_grad():
        optimizer.pose_adjustment.zero_()


def fall_back(pipeline, adam, last: bool = False, **more) -> str:
    config = GuardConfig(**{**SHORT, **more}, steps=STEPS, fallback_rate=0.25)
    return fall_back_unless_helped(pipeline.scene, adam, config, last)


def test_poses_that_got_worse_go_back_and_are_refined_gently(pipeline, true_poses, refining):
    optimizer, adam = refining(true_poses, wrong(true_poses))
    optimizer.held.add(3)
    held = optimizer.refined_camera_to_worlds()[3].detach().clone()
    said = fall_back(pipeline, adam)
    assert "worse" in said and "back where they started" in said and "0.25" in said
    refined = optimizer.refined_camera_to_worlds().detach()
    others = [index for index in range(len(refined)) if index != 3]
    torch.testing.assert_close(refined[others], true_poses[others], rtol=0, atol=0)
    torch.testing.assert_close(refined[3], held, rtol=0, atol=0)
    assert adam.param_groups[0]["lr"] == 0.25e-3 and optimizer.rate_factor(0.9) == 0.25 and optimizer.active
    assert not adam.state[optimizer.pose_adjustment]["exp_avg"].any()


def test_at_the_last_look_they_stay_there(pipeline, true_poses, refining):
    optimizer, adam = refining(true_poses, wrong(true_poses))
    assert "stay there" in fall_back(pipeline, adam, last=True)
    optimizer.set_progress(0.55)
    assert not optimizer.active and optimizer.rate_factor(0.9) == 0.0
    assert not optimizer.refined_camera_to_worlds().requires_grad


def test_poses_that_have_not_moved_yet_are_not_held_back(pipeline, true_poses, refining):
    optimizer, adam = refining(true_poses, true_poses)
    with torch.no_grad():
        optimizer.pose_adjustment.zero_()
    fall_back(pipeline, adam, last=True)
    assert optimizer.active and optimizer.rate_factor(0.9) == 1.0


def test_poses_that_got_better_go_on_as_if_nobody_had_looked(pipeline, true_poses, refining):
    optimizer, adam = refining(wrong(true_poses), true_poses)
    twists, random = optimizer.pose_adjustment.detach().clone(), torch.get_rng_state()
    said = fall_back(pipeline, adam, last=True)
    assert "better" in said and "back" not in said
    torch.testing.assert_close(optimizer.pose_adjustment.detach(), twists, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert optimizer.active and adam.param_groups[0]["lr"] == 1e-3
    assert adam.state[optimizer.pose_adjustment]["exp_avg"].any()


def test_help_that_is_doubted_does_not_keep_them_at_the_last_look(pipeline, true_poses, refining):
    """They are better, but nobody can tell: the field shows less than thumbnails of 10 pixels."""
    optimizer, adam = refining(wrong(true_poses), true_poses)
    said = fall_back(pipeline, adam, last=True, coarse_alone=10)
    assert "better by" in said and "thumbnails" in said and "stay there" in said
    assert not optimizer.has_moved


def test_falling_back_is_part_of_checkpoints_and_missing_in_version_1(pipeline, true_poses, refining, capsys):
    optimizer, adam = refining(true_poses, wrong(true_poses))
    fall_back(pipeline, adam)
    saved = {f"_model.{name}": value.clone() for name, value in pipeline.model.state_dict().items()}
    optimizer.fall_back(0.0)
    pipeline.load_pipeline(saved, 10)
    assert optimizer.rate_factor(0.9) == 0.25
    del saved["_model.camera_optimizer.fallen_back"], saved["_model.format"]  # as version 1 of the format had it
    pipeline.load_pipeline(saved, 10)
    saved["_model.format"] = torch.tensor(99)
    with pytest.raises(SystemExit):
        pipeline.load_pipeline(saved, 10)
    assert "written by a newer version of hashpose" in capsys.readouterr().out


# -- the commands ------------------------------------------------------------------------------------------------------


def train(ns_train, folder: Path, steps: int, *more):
    return ns_train(
        *("hashpose-blender", "--output-dir", folder, "--experiment-name", "chair", "--timestamp", "run"),
        *("--data", CHAIR, "--pipeline.datamanager.camera-res-scale-factor", 0.2, "--max-num-iterations", steps),
        *("--guard.rays", 64, "--pipeline.eval-num-images", 1, "--pipeline.tto-steps", 0),
        *(*SMALL_FIELD, *FEW_RAYS, *NO_EVAL, *more),
    )


def test_training_judges_its_poses_and_evaluation_repeats_the_verdict(ns_train, ns_eval, in_process, tmp_path):
    run = tmp_path / "chair" / "hashpose-blender" / "run"
    outcome = train(ns_train, tmp_path, 10, "--guard.mode", "off")
    assert outcome.code == 0 and "Guard:" not in outcome.output and not (run / "guard.json").exists()

    outcome = in_process(entrypoint, "--load-config", run / "config.yml", "--steps", 4, "--rays", 64)
    assert outcome.code == 0 and "Guard: " in outcome.output
    assert read_verdict(run).step == 9

    resume = ("--load-dir", run / "nerfstudio_models")
    outcome = train(ns_train, tmp_path, 20, *resume, "--guard.mode", "report", "--guard.steps", 4)
    assert outcome.code == 0, outcome.output
    report = read_verdict(run)
    assert report.step == 19 and report.settings["steps"] == 4 and report.sentence in outcome.output.replace("\n", " ")

    results = tmp_path / "results.json"
    assert ns_eval("--load-config", run / "config.yml", "--output-path", results).code == 0
    metrics = json.loads(results.read_text())["results"]
    assert {name: metrics[name] for name in report.metrics()} == report.metrics()

    checkpoints(run)[-1].rename(run / "nerfstudio_models" / "step-000000029.ckpt")  # as after more training
    assert read_verdict(run) is None


def harmful(ns_train, folder: Path, *more):
    """Trains from true poses at a rate that throws them far away."""
    return train(
        *(ns_train, folder, 30, "--pipeline.datamanager.initial-poses", "given", "--guard.mode", "report"),
        *("--optimizers.camera-opt.optimizer.lr", 0.1, "--pipeline.model.camera-optimizer.start", 0.0),
        *("--guard.steps", 20, *more),
    )


def test_training_keeps_poses_that_it_would_harm(ns_train, ns_eval, tmp_path):
    run = tmp_path / "chair" / "hashpose-blender" / "run"
    outcome = harmful(ns_train, tmp_path, "--guard.fallback-at", 0.6)
    assert outcome.code == 0, outcome.output
    assert "step     18  guard:" in outcome.output and "back where they started, and stay there" in outcome.output
    results = tmp_path / "results.json"
    assert ns_eval("--load-config", run / "config.yml", "--output-path", results).code == 0
    metrics = json.loads(results.read_text())["results"]
    assert metrics["pose_change_rotation_deg_max"] < 1e-4 and metrics["pose_change_center_max"] < 1e-6
    assert metrics["guard_kept"] == 1.0 and read_verdict(run).verdict == "kept"
    assert "poses you gave were kept" in outcome.output

    outcome = harmful(ns_train, tmp_path / "off", "--guard.fallback-at", 0.3, "--guard.mode", "off")
    assert outcome.code == 0 and "back where they started" not in outcome.output


def test_the_command_asks_the_matches_that_training_asked(in_process, tmp_path, monkeypatch):
    loaded, judged, images = SimpleNamespace(scene="scene"), [], "matches"
    config = SimpleNamespace(matches="settings")
    monkeypatch.setattr("hashpose_ns.runs.load.load_trained_pipeline", lambda path, test_mode: loaded)
    monkeypatch.setattr("hashpose_ns.runs.config.read_config", lambda path: config)
    monkeypatch.setattr(
        "hashpose_ns.matches.strategy.cached_matches", lambda *given: images if given == ("scene", "settings") else None
    )
    report = SimpleNamespace(write=lambda folder: folder / "guard.json", print=lambda: None)
    monkeypatch.setattr(
        "hashpose_ns.guard.compare.run_guard", lambda scene, config, matched: judged.append((scene, matched)) or report
    )
    assert in_process(entrypoint, "--load-config", tmp_path / "config.yml").code == 0
    assert judged == [("scene", "matches")]


def test_a_run_that_is_not_there_is_one_sentence(in_process, tmp_path):
    outcome = in_process(entrypoint, "--load-config", tmp_path / "config.yml")
    assert outcome.code == 1 and "There is no file" in outcome.output and "Traceback" not in outcome.output
    assert list(tmp_path.iterdir()) == []
