"""config.yml is read as data: settings as training wrote them, and a sentence for everything else."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path

import pytest
import yaml

from hashpose_ns.errors import HashPoseError
from hashpose_ns.methods import small
from hashpose_ns.runs.config import read_config


@pytest.fixture(scope="module")
def config():
    config = copy.deepcopy(small.config)  # other tests have it, too
    config.data = config.pipeline.datamanager.data = Path("scene")
    return config


@pytest.fixture(scope="module")
def text(config) -> str:
    return yaml.dump(config)  # as nerfstudio writes it


def test_settings_come_back_as_nerfstudios_loader_reads_them(config, text, tmp_path):
    (tmp_path / "config.yml").write_text(text)
    assert read_config(tmp_path / "config.yml") == yaml.load(text, Loader=yaml.Loader) == config


def test_settings_that_an_earlier_version_did_not_have_are_defaults(config, text, tmp_path):
    lines = [line for line in text.splitlines() if not line.startswith("  changed_images")]
    (tmp_path / "config.yml").write_text("\n".join(lines))
    assert read_config(tmp_path / "config.yml") == config


def test_a_run_from_another_system_has_its_paths(text, tmp_path):
    (tmp_path / "config.yml").write_text(text.replace("pathlib.PosixPath", "pathlib.WindowsPath"))
    assert read_config(tmp_path / "config.yml").data == Path("scene")


GUARD = "hashpose_ns.guard.config.GuardConfig"
PIPELINE = "name:hashpose_ns.pipeline.HashPosePipeline"


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda text: text + 'evil: !!python/object/apply:os.mkdir ["PWNED"]\n', "os.mkdir is not part"),
        (lambda text: text + 'evil: !!python/object/new:os.mkdir ["PWNED"]\n', "object/new:os.mkdir"),
        (lambda text: text + 'evil: !!python/object/apply:pathlib.os.mkdir ["PWNED"]\n', "is not part"),
        (lambda text: text + "evil: !!python/object/apply:nerfstudio.utils.scripts.run_command [ls]\n", "is not part"),
        (lambda text: text + "evil: !!python/object/apply:nerfstudio.engine.trainer.Trainer [1]\n", "is not part"),
        (lambda text: text + "evil: !!python/module:os\n", "module:os"),
        (lambda text: text.replace(PIPELINE, "name:subprocess.Popen"), "subprocess.Popen is not part"),
        (lambda text: text.replace(PIPELINE, "name:os.system"), "os.system is not part"),
        (lambda text: text.replace(GUARD, "subprocess.Popen"), "subprocess.Popen is not part"),
        (lambda text: text.replace(GUARD, "hashpose_ns.trainer.HashPoseTrainer"), "HashPoseTrainer is not part"),
        (lambda text: text.replace(GUARD, GUARD + "X"), "there is no hashpose_ns.guard.config.GuardConfigX in"),
        (lambda text: text.replace(GUARD, "hashpose_ns.moved.GuardConfig"), "no hashpose_ns.moved.GuardConfig in"),
        (lambda text: "", "it holds a NoneType"),
        (lambda text: "null\n", "it holds a NoneType"),
        (lambda text: "- 1\n- 2\n", "it holds a list"),
        (lambda text: "\t" + text, "found character '\\t'"),
        (lambda text: "[" * 1500, "recursion"),
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: text[: text.index("\nvis:") + 1], "it is cut off"),
        (
            lambda text: text.replace("max_num_iterations: ", "max_num_iterations: many # "),
            "'many', which is not a number",
        ),
        (lambda text: re.sub("tto_steps: .*", "tto_steps: x", text), "pipeline.tto_steps is 'x'"),
        (lambda text: text[: text.index("\npipeline:")] + "\npipeline: 5\nvis: viewer\n", "cannot be read"),
        (lambda text: b"\xff\xfe" + text.encode("utf-16"), "it is no text"),
        (lambda text: bytes(200), "cannot be read"),
    ],
)
def test_anything_else_is_one_sentence(text, tmp_path, monkeypatch, change, reason):
    monkeypatch.chdir(tmp_path)
    changed = change(text)
    (tmp_path / "config.yml").write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(
        HashPoseError, match=r"^The configuration [^\n]*config.yml cannot be read: [^\n]*\.$"
    ) as refusal:
        read_config(tmp_path / "config.yml")
    assert reason in str(refusal.value)
    assert os.listdir(tmp_path) == ["config.yml"]
