"""Runs that are complete, cut off, changed or failing; processes that end with the one that started them; submitit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import pytest
import torch
from commands import environment
from tiny_suites import InThisProcess, write_suite

from hashpose_ns.bench import cli, files, jobs, runner
from hashpose_ns.bench.runner import Task, look_at, prepare
from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.files import CHECKPOINTS, POSE_LOG, last_step, write_json
from hashpose_ns.runs.history import read_pose_history

BENCH = [sys.executable, "-m", "hashpose_ns.bench.cli"]


@pytest.fixture
def bench(in_process, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """hashpose-bench in this process, runs included; `bench.engine.started` has the folders of those it did."""
    engine = InThisProcess()
    monkeypatch.setattr(jobs, "Jobs", lambda *_: engine)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)

    def call(*arguments):
        engine.started.clear()
        return in_process(cli.entrypoint, *arguments)

    call.engine = engine
    return call


def processes_about(folder: Path) -> List[int]:
    """Processes whose command names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in path.read_bytes().decode(errors="replace") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 900.0) -> None:
    """Waits for something that must come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def read(path: Path) -> Dict:
    return json.loads(path.read_text())


# -- a run's files -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_its_readers_expect(bench, tmp_path: Path):
    arguments = [*write_suite(tmp_path, presets=["paper"]), "--output-dir", str(tmp_path / "out")]
    outcome = bench(*arguments)
    assert outcome.code == 0, outcome.output[-3000:]
    folder = tmp_path / "out" / "tiny" / "chair" / "paper" / "seed_0"
    assert bench.engine.started == [folder]
    asked = read(folder / files.RECORD)
    assert {
        "suite",
        "scale",
        "scene",
        "preset",
        "seed",
        "title",
        "scenario",
        "settings",
        "base_method",
        "command",
    } <= set(asked)
    assert {"python", "torch", "nerfstudio", "hashpose", "processor", "cores", "gpu", "threads"} == set(
        asked["environment"]
    )
    assert asked["base_method"] == "hashpose-blender" and asked["settings"]["max_num_iterations"] == "20"
    content = read(folder / files.RESULTS)
    assert content["steps"] == 20 and content["train_seconds"] > 0 and content["ms_per_step"] > 0
    assert content["peak_memory_mb"] > 50 and content["parameters"] > 1000 and content["eval_seconds"] > 0
    results = content["results"]
    log = [json.loads(line) for line in (folder / POSE_LOG).read_text().splitlines()]
    assert [record["step"] for record in log] == [0, 5, 10, 15, 19]
    cameras = np.load(folder / files.CAMERAS)
    assert cameras["initial"].shape == cameras["refined"].shape == cameras["reference"].shape == (4, 3, 4)
    assert list(cameras["names"]) == [f"r_{i}.png" for i in range(4)]
    for measure in ("rotation_deg", "translation", "center"):
        # Three ways to the same number: ns-eval's result, the pose log's last record, the cameras' mean
        assert results[f"pose_error_after_{measure}_mean"] == pytest.approx(cameras[measure].mean(), rel=1e-5)
        assert log[-1][f"pose_error_after_{measure}_mean"] == pytest.approx(cameras[measure].mean(), rel=1e-4)
        assert results[f"pose_error_before_{measure}_mean"] == pytest.approx(
            cameras[f"{measure}_before"].mean(), rel=1e-5
        )
    # BARF's float32 arccos is good to a few thousandths of a degree at errors of degrees
    by_centers = results["pose_error_after_by_centers_rotation_deg_mean"]
    assert results["barf_rotation_deg_mean"] == pytest.approx(by_centers, abs=0.02)
    steps, poses = read_pose_history(folder / "pose_history.npys")
    assert steps[-1] == 19
    np.testing.assert_allclose(poses[-1], cameras["refined"], atol=1e-6)
    names = sorted(path.name for path in (folder / files.RENDERS).iterdir())
    assert names == [f"eval_{variant}_img_000{image}.png" for variant in ("aligned", "tto") for image in (0, 1)]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]

    # The command in run.json repeats this run and nothing else
    words = asked["command"].split()
    assert words[:2] == ["hashpose-bench", "run"]
    before = (folder / files.RESULTS).stat().st_mtime_ns
    again = bench(*words[1:], "--report", "False")
    assert again.code == 0 and bench.engine.started == [] and "1 of 1 runs are complete" in again.output
    assert (folder / files.RESULTS).stat().st_mtime_ns == before


def test_nerfstudios_own_commands_work_on_a_run(bench, ns_eval, tmp_path: Path):
    arguments = [*write_suite(tmp_path, presets=["barf"], families={"mlp": "--pipeline.model.field.width 16"})]
    assert bench(*arguments, "--output-dir", str(tmp_path / "out")).code == 0
    folder = tmp_path / "out" / "tiny" / "chair" / "barf" / "seed_0"
    outcome = ns_eval("--load-config", folder / "config.yml", "--output-path", tmp_path / "eval.json")
    assert outcome.code == 0, outcome.output[-3000:]
    theirs, ours = read(tmp_path / "eval.json")["results"], read(folder / files.RESULTS)["results"]
    timing = {"num_rays_per_sec", "num_rays_per_sec_std", "fps", "fps_std"}
    assert set(ours) - set(theirs) == {"barf_rotation_deg_mean"}
    for key in set(theirs) - timing:
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-6), key

    from hashpose_ns.runs.load import load_trained_pipeline

    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    pipeline = load_trained_pipeline(moved / folder.relative_to(tmp_path / "out") / "config.yml")
    refined = pipeline.model.camera_optimizer.refined_camera_to_worlds().detach().numpy()
    cameras = np.load(moved / folder.relative_to(tmp_path / "out") / files.CAMERAS)
    np.testing.assert_allclose(refined, cameras["refined"], atol=1e-6)


# -- what is left to do ------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_reported_and_others_go_on(bench, tmp_path: Path):
    absurd = {"name": "absurd", "like": "paper", "flags": "--optimizers.decoder.optimizer.lr 1e38"}
    arguments = [*write_suite(tmp_path, presets=[absurd, "paper"]), "--output-dir", str(tmp_path / "out")]
    outcome = bench(*arguments)
    assert outcome.code == 1
    assert (
        "1 of 2 runs are complete, 1 failed" in outcome.output
        and "Failed: chair / absurd / seed 0: The loss" in outcome.output
    )
    failed, fine = (tmp_path / "out" / "tiny" / "chair" / preset / "seed_0" for preset in ("absurd", "paper"))
    failure = read(failed / files.FAILURE)
    assert "is NaN" in failure["error"] and "\n" not in failure["error"]
    assert not (failed / files.RESULTS).exists() and (fine / files.RESULTS).exists()

    # Mended, it is done without being asked twice; the other one is left alone
    before = (fine / files.RESULTS).stat().st_mtime_ns
    absurd["flags"] = "--optimizers.decoder.optimizer.lr 1e-3"
    outcome = bench(*write_suite(tmp_path, presets=[absurd, "paper"]), "--output-dir", str(tmp_path / "out"))
    assert outcome.code == 0, outcome.output[-3000:]
    assert bench.engine.started == [failed] and not (failed / files.FAILURE).exists()
    assert (fine / files.RESULTS).stat().st_mtime_ns == before


def test_a_stopped_runner_stops_its_runs_and_the_same_command_goes_on(bench, tmp_path: Path):
    """The real commands: one run complete, one in the middle of training, one not begun."""
    long = {"max_num_iterations": 300, "steps_per_save": 20, "steps_per_pose_log": 50}
    arguments = [*write_suite(tmp_path, presets=["paper"], seeds=2), "--output-dir", str(tmp_path / "out")]
    arguments += ["--jobs", "1", "--set", *(f"{key}={value}" for key, value in long.items())]
    assert bench(*arguments, "--seeds", "0-0").code == 0
    done, cut = (tmp_path / "out" / "tiny" / "chair" / "paper" / f"seed_{seed}" for seed in (0, 1))
    before = (done / files.RESULTS).stat().st_mtime_ns

    process = subprocess.Popen([*BENCH, *arguments], env=environment(), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: process.poll() is not None or last_step(cut) is not None)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Stopped by SIGTERM: 1 of 2 runs are complete" in output
    assert processes_about(cut) == []
    assert not (cut / files.RESULTS).exists() and not (cut / files.FAILURE).exists()
    kept = last_step(cut)
    assert kept is not None and kept < 299, "it was to be stopped in the middle"

    outcome = bench(*arguments)
    assert outcome.code == 0, outcome.output[-3000:]
    assert bench.engine.started == [cut] and "Loaded the checkpoint" in outcome.output
    assert (done / files.RESULTS).stat().st_mtime_ns == before
    log = [json.loads(line) for line in (cut / POSE_LOG).read_text().splitlines()]
    assert [record["step"] for record in log] == [*range(0, 300, 50), 299]
    assert read(cut / files.RESULTS)["train_seconds"] == log[-1]["train_seconds"] > log[-2]["train_seconds"]


def test_a_run_that_was_trained_but_not_evaluated_is_evaluated_only(bench, tmp_path: Path):
    arguments = [*write_suite(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert bench(*arguments).code == 0
    folder = tmp_path / "out" / "tiny" / "chair" / "paper" / "seed_0"
    results = read(folder / files.RESULTS)
    (folder / files.RESULTS).unlink()
    trained = (folder / POSE_LOG).stat().st_mtime_ns
    assert bench(*arguments).code == 0
    assert (folder / POSE_LOG).stat().st_mtime_ns == trained
    again = read(folder / files.RESULTS)
    assert again["results"]["psnr_tto"] == pytest.approx(results["results"]["psnr_tto"], rel=1e-6)


def task_with(folder: Path, **settings) -> Task:
    return Task(
        {"base_method": "hashpose-blender", "settings": settings, "scene": "s", "preset": "p", "seed": 0, "steps": 9},
        folder,
    )


def test_other_settings_are_never_mixed_into_a_run(tmp_path: Path):
    folder = tmp_path / "run"
    task = task_with(folder, width=64)
    look_at(task, overwrite=False)
    assert task.state == "new"
    prepare(task)
    look_at(task, overwrite=False)
    assert task.state == "new"  # nothing but run.json: it was killed before its first checkpoint
    (folder / CHECKPOINTS).mkdir()
    (folder / CHECKPOINTS / "step-000000007.ckpt").touch()
    look_at(task, overwrite=False)
    assert task.state == "resume"
    changed = task_with(folder, width=32)
    with pytest.raises(HashPoseError, match=r"other settings \(width was 64, is 32\); --overwrite"):
        look_at(changed, overwrite=False)
    write_json(folder / files.RESULTS, {"results": {}})
    look_at(task, overwrite=False)
    assert task.state == "done"
    with pytest.raises(HashPoseError, match="other settings"):
        look_at(task_with(folder, width=64, depth=2), overwrite=False)
    look_at(changed, overwrite=True)
    assert changed.state == "new"
    prepare(changed)
    assert [path.name for path in folder.iterdir()] == [files.RECORD]
    assert read(folder / files.RECORD)["settings"] == {"width": 32}


def test_runs_from_before_settings_were_flags_are_known(tmp_path: Path):
    settings = {"rate": 1e-3, "window": [0.0, 0.5], "clip": True, "mode": "off"}
    earlier = {"base_method": "m", "settings": settings}
    now = {"rate": "1e-3", "window": "0 0.5", "clip": "True", "mode": "off"}
    assert runner.difference(earlier, {"base_method": "m", "settings": now, "train": True}) is None
    changed = {**now, "window": "0 0.6"}
    assert runner.difference(earlier, {"base_method": "m", "settings": changed}) == "window was [0.0, 0.5], is 0 0.6"


def test_two_runners_never_share_a_folder(bench, tmp_path: Path):
    arguments = [*write_suite(tmp_path), "--output-dir", str(tmp_path / "out")]
    with runner.alone_in(tmp_path / "out" / "tiny"):
        outcome = bench(*arguments)
        assert outcome.code == 1 and "Error: Another hashpose-bench is at work in" in outcome.output
        assert bench.engine.started == []
    with runner.alone_in(tmp_path / "out" / "tiny"):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(HashPoseError, match="holds files but no run.json"):
            look_at(task_with(tmp_path / "run"), overwrite)


# -- processes ---------------------------------------------------------------------------------------------------------

SLEEPERS = """
    import sys
    from pathlib import Path
    from rich.console import Console
    from hashpose_ns.bench import jobs, runner

    # In place of a training: something that ends by itself in a minute
    class Sleeper(jobs.DoRun):
        def __call__(self, folder):
            import os, sys, time, types
            sys.modules["hashpose_ns.bench.worker"] = types.SimpleNamespace(main=lambda path: WORK)
            return super().__call__(folder)
    jobs.DoRun = Sleeper
    record = dict(base_method="m", settings={}, scene="s", preset="p", steps=9)
    tasks = [runner.Task(dict(record, seed=seed), Path(sys.argv[1]) / f"seed_{seed}") for seed in range(3)]
    try:
        runner.run_tasks(tasks, jobs.Jobs(jobs.Cluster(), Path(sys.argv[1]), 2), 2, Console())
    except runner.Stopped as stop:
        print("stopped by", stop)
"""
SLEEP = "(open(path / 'up', 'w'), time.sleep(60))"


def sleepers(work: str) -> List[str]:
    return [sys.executable, "-c", textwrap.dedent(SLEEPERS).replace("WORK", work)]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_runner(how: signal.Signals, tmp_path: Path):
    process = subprocess.Popen(
        [*sleepers(SLEEP), str(tmp_path)], env=environment(), stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip
    wait_until(lambda: all((tmp_path / f"seed_{seed}" / "up").exists() for seed in (0, 1)))
    assert len(processes_about(tmp_path)) >= 2
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    wait_until(lambda: not processes_about(tmp_path), 30)
    if how != signal.SIGKILL:
        assert f"stopped by {how.name}" in output and "Traceback" not in output
    assert not list(tmp_path.glob(f"*/{files.FAILURE}")), "being stopped is no failure"
    assert not (tmp_path / "seed_2").exists()


def test_under_nohup_a_terminal_that_closes_stops_nothing(tmp_path: Path):
    command = sleepers(SLEEP.replace("60", "1"))
    process = subprocess.Popen(["nohup", *command, str(tmp_path)], env=environment(), start_new_session=True)
    wait_until(lambda: (tmp_path / "seed_0" / "up").exists())
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(timeout=90) == 0
    assert (tmp_path / "seed_2" / "up").exists()


def test_a_process_that_is_killed_is_a_failure(tmp_path: Path):
    command = sleepers("os.kill(os.getpid(), 9)")
    subprocess.run([*command, str(tmp_path)], env=environment(), check=True, timeout=120)
    for seed in range(3):
        assert "ended from outside" in read(tmp_path / f"seed_{seed}" / files.FAILURE)["error"]


def test_two_runs_at_a_time(tmp_path: Path, in_process, monkeypatch: pytest.MonkeyPatch):
    """Real jobs of submitit on this machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = [*write_suite(tmp_path, presets=["paper"], seeds=2), "--output-dir", str(tmp_path / "out")]
    outcome = in_process(cli.entrypoint, *arguments, "--jobs", "2")
    assert outcome.code == 0, outcome.output[-3000:]
    assert "[2/2] chair / paper / seed" in outcome.output and " deg, translation x100 " in outcome.output
    folders = [tmp_path / "out" / "tiny" / "chair" / "paper" / f"seed_{seed}" for seed in (0, 1)]
    for folder in folders:
        assert read(folder / files.RESULTS)["steps"] == 20
        assert read(folder / files.RECORD)["environment"]["threads"] == 1
        assert "Training Finished" in (folder / files.LOG).read_text()
    assert len(list((tmp_path / "out" / ".submitit").glob("*_result.pkl"))) == 2


def test_each_run_has_a_gpu_of_its_own_or_a_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for gpus, visible, shares in ((2, "4,6", ["4", "6", "4"]), (2, None, ["0", "1", "0"]), (0, "", ["", "", ""])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = [jobs.Jobs(jobs.Cluster(), tmp_path, 3)._share(slot) for slot in range(3)]
        assert [share["CUDA_VISIBLE_DEVICES"] for share in found] == shares
        assert {share["OMP_NUM_THREADS"] for share in found} == {"2" if gpus else "1"}


def test_without_submitit_one_sentence(in_process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "submitit", None)  # import submitit raises ImportError
    outcome = in_process(cli.entrypoint, *write_suite(tmp_path), "--output-dir", str(tmp_path / "out"))
    assert outcome.code == 1 and "pip install 'hashpose[bench]'" in outcome.output
    assert not (tmp_path / "out").exists()


# -- suites of records -------------------------------------------------------------------------------------------------


def test_a_suite_may_only_measure(bench, tmp_path: Path):
    """Poses judged without training, as in benchmarks/suites/guard-pairs.yaml."""
    measures = {"guard": {"initial": "reference", "refined": 5.0, "steps": 2}, "pixels": {"radius": 0.5}}
    arguments = write_suite(tmp_path, train=False, measures=measures)
    outcome = bench(*arguments, "--output-dir", str(tmp_path / "out"))
    assert outcome.code == 0, outcome.output[-3000:]
    content = read(tmp_path / "out" / "tiny" / "chair" / "paper" / "seed_0" / files.RESULTS)
    verdict, pixels = content["measures"]["guard"], content["measures"]["pixels"]["pixels"]
    assert verdict["verdict"] in ("helped", "hurt", "undecided") and content["steps"] == 0
    assert verdict["error_initial_deg"] < 1e-4 < 1 < verdict["error_refined_deg"] < 20
    assert verdict["error_initial_pixels"] < 1e-4 < verdict["error_refined_pixels"] and pixels > 0
    assert not (tmp_path / "out" / "tiny" / "chair" / "paper" / "seed_0" / CHECKPOINTS).exists()


def test_a_suite_may_leave_evaluation_out(bench, tmp_path: Path):
    arguments = write_suite(tmp_path, evaluate=False, measures={"uncertainty": {}})
    assert bench(*arguments, "--output-dir", str(tmp_path / "out")).code == 0
    folder = tmp_path / "out" / "tiny" / "chair" / "paper" / "seed_0"
    content = read(folder / files.RESULTS)
    assert "psnr_tto" not in content["results"] and not (folder / files.RENDERS).exists()
    assert content["results"]["barf_rotation_deg_mean"] > 0 and content["cpu_seconds"] > 0
    assert len(content["measures"]["uncertainty"]["center"]) == 4
    for measures, sentence in (
        ({"uncertainties": {}}, "There is no measure 'uncertainties'; choose among pixels"),
        ({"guard": {"step": 3}}, "The measure 'guard' has no option 'step'; did you mean 'steps'?"),
    ):
        outcome = bench(*write_suite(tmp_path, "other", measures=measures), "--output-dir", str(tmp_path / "out"))
        assert outcome.code == 1 and sentence in " ".join(outcome.output.split()) and bench.engine.started == []
