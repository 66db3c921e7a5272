"""hashpose-bench's command line: quick to answer, and clear before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment
from tiny_suites import write_suite

from hashpose_ns.bench import cli, suites


@pytest.fixture
def bench(in_process):
    return lambda *arguments: in_process(cli.entrypoint, *arguments)


def test_help_and_list_import_nothing_heavy():
    for arguments in (["--help"], ["run", "--help"], ["list"]):
        program = (
            f"import sys; sys.argv = ['hashpose-bench', *{arguments}]; from hashpose_ns.bench.cli import entrypoint\n"
        )
        program += "try:\n    entrypoint()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        program += "print('HEAVY', sorted({'torch', 'nerfstudio', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
        assert done.returncode == 0 and "HEAVY []" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]


def test_the_list_names_everything(bench):
    outcome = bench("list")
    assert outcome.code == 0
    text = " ".join(outcome.output.split())
    for name in [*suites.suite_names(), *suites.presets(), *suites.scales(), *suites.scenarios()]:
        assert name in text
    only = bench("list", "--what", "scales").output
    assert "smoke" in only and "llff-identity" not in only


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["run", "--suite", "smok"], "There is no suite 'smok'; did you mean 'smoke'?"),
        (["run", "--suite", "smoke", "--scale", "tiny"], "There is no scale 'tiny'."),
        (["run", "--suite", "smoke", "--presets", "gaarf"], "There is no preset 'gaarf'; did you mean 'garf'?"),
        (["run", "--suite", "smoke", "--scenes", "lego"], "The suite 'smoke' has no scene 'lego'."),
        (["run", "--suite", "smoke", "--seeds", "x"], "--seeds takes"),
        (["run", "--suite", "smoke", "--jobs", "0"], "--jobs must be at least 1."),
        (["run", "--suite", "smoke", "--set", "a"], "--set takes path=value"),
        (["run", "--suite", "smoke", "--set", "max_num_iteration=3"], "did you mean --max-num-iterations?"),
        (["run", "--suite", "ablation"], "give the folder {data} stands for with --data."),
        (["run", "--suite", "ablation", "--data", "/nowhere"], "The scene 'chair' is not there"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_before_anything_runs(bench, arguments, sentence, tmp_path: Path):
    outcome = bench(*arguments, "--output-dir", str(tmp_path / "out"))
    assert outcome.code == 1
    assert sentence in " ".join(outcome.output.split()) and "Traceback" not in outcome.output
    assert not (tmp_path / "out").exists()


def test_a_scene_that_cannot_be_read_is_said_before_anything_runs(bench, tmp_path: Path):
    arguments = [*write_suite(tmp_path, scenes={"chair": "{data}/chair", "broken": "{data}/broken"})]
    (tmp_path / "scenes" / "broken").mkdir()
    outcome = bench(*arguments, "--output-dir", str(tmp_path / "out"))
    assert outcome.code == 1 and "Error: The scene 'broken'" in outcome.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_runs_and_writes_nothing(bench, tmp_path: Path):
    arguments = [*write_suite(tmp_path, presets=["paper", "barf"], seeds=2), "--output-dir", str(tmp_path / "out")]
    outcome = bench(*arguments, "--dry-run", "True", "--set", "max_num_iterations=77")
    assert outcome.code == 0 and outcome.output.count("to do") == 4 and outcome.output.count("77") == 4
    assert not (tmp_path / "out").exists()
