"""nerfstudio's commands, run as a user runs them, and settings that make training take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import torch

SMALL_FIELD = (
    *("--pipeline.model.num-samples", "24"),
    *("--pipeline.model.field.encoding.num-levels", "5"),
    *("--pipeline.model.field.encoding.log2-hashmap-size", "13"),
    *("--pipeline.model.field.encoding.base-resolution", "4"),
    *("--pipeline.model.field.encoding.max-resolution", "64"),
    *("--pipeline.model.field.decoder.width", "32"),
)
"""A field that takes milliseconds a step."""

FEW_RAYS = (
    *("--pipeline.datamanager.train-num-rays-per-batch", "64"),
    *("--pipeline.datamanager.eval-num-rays-per-batch", "64"),
)

NO_EVAL = (
    *("--vis", "tensorboard"),
    *("--steps-per-eval-batch", "0"),
    *("--steps-per-eval-image", "0"),
    *("--steps-per-eval-all-images", "0"),
)


def environment() -> Dict[str, str]:
    """A machine without a GPU, where training is repeatable."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def command(name: str, *arguments) -> List[str]:
    """A console script of this Python's environment, as an argument list."""
    return [str(Path(sys.executable).parent / name), *map(str, arguments)]


def run(name: str, *arguments, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    """Runs a console script; output and errors come back in `stdout`, in order."""
    return subprocess.run(
        command(name, *arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


def succeed(name: str, *arguments, timeout: float = 300) -> str:
    """Runs a console script that must succeed; its output."""
    process = run(name, *arguments, timeout=timeout)
    assert process.returncode == 0, process.stdout[-4000:]
    return process.stdout


def checkpoints(run_folder: Path) -> List[Path]:
    """A run's checkpoints, earliest first."""
    return sorted((run_folder / "nerfstudio_models").glob("*.ckpt"))


def model_state(run_folder: Path) -> Dict[str, torch.Tensor]:
    """The model's state in a run's latest checkpoint, loaded by torch's safe default."""
    state = torch.load(checkpoints(run_folder)[-1], map_location="cpu", weights_only=True)
    state = {key: value for key, value in state["pipeline"].items() if key.startswith("_model.")}
    return {key.removeprefix("_model."): value for key, value in state.items()}


def pose_log(run_folder: Path) -> List[Dict[str, float]]:
    """The records of a run's pose_errors.jsonl."""
    return [json.loads(line) for line in (run_folder / "pose_errors.jsonl").read_text().splitlines()]
