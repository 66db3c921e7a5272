"""Everything about speed that only a GPU can tell, in one command of at most ten minutes.

    PYTHONPATH=. python benchmarks/gpu_all.py --output $OUT --data path/to/chair_400 --commit $(git rev-parse HEAD)

Runs encoding_gpu.py, step.py, launches.py, decoder.py, scaling.py and evaluation.py at the paper's sizes, and then
gpu_chair.py with as many steps as fit into the time that remains. Each part has a time limit, so that one that fails or
hangs costs only itself.
Needs what gpu_chair.py needs. Writes a JSON file per part and gpu_all.json, which says how each of them ended.
Not run on a GPU so far; `--size tiny` tries the script on a CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from record import REPOSITORY, show

from hashpose_ns.demo import DEMO_SCENE

LIMITS = {"encoding_gpu": 90, "step": 150, "launches": 40, "decoder": 80, "scaling": 90, "evaluation": 70}
"""Seconds that each part may take at most."""
LAST_SECONDS = 10
"""Kept for writing and printing."""
CHAIR_FIXED_SECONDS = 100
"""What gpu_chair.py takes beside its training steps: start-up twice and evaluation."""


@dataclass
class Args:
    """Settings."""

    output: Path
    """Folder for the JSON files."""
    data: Path = DEMO_SCENE
    """NeRF-Synthetic's chair at 400x400 for the last part; else the packaged one, 100x100."""
    size: Literal["tiny", "paper"] = "paper"
    """Sizes of all parts."""
    seconds: float = 580.0
    """Time limit of everything."""
    commit: str | None = None
    """Commit to note, where the checkout's .git is not at hand."""


def run(command: list[str], log: Path, limit: float, environment: dict[str, str]) -> dict[str, Any]:
    """Runs a command, and ends it and all that it started at the limit: how it ended, seconds and its last words."""
    begin = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            ended = f"exit code {process.wait(max(limit, 1.0))}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"stopped after {limit:.0f} s"
    words = log.read_text(errors="replace")
    return {"ended": ended, "seconds": round(time.perf_counter() - begin, 1), "last_words": words[-1500:]}


def chair_steps(output: Path, method: str, seconds: float) -> int:
    """Training steps that fit into the time, by what a step was measured to take."""
    try:
        ms = json.loads((output / "step.json").read_text())["results"][method]["ms"]
    except (OSError, KeyError, ValueError):
        ms = 10.0
    return max(20, int(0.85 * 1000 * (seconds - CHAIR_FIXED_SECONDS) / ms))


def main(args: Args) -> None:
    """Runs the parts one after the other."""
    tiny = args.size == "tiny"
    if not torch.cuda.is_available() and not tiny:
        sys.exit("These benchmarks need a CUDA GPU and PyTorch sees none here; --size tiny tries them on a CPU.")
    end = time.perf_counter() + args.seconds
    args.output.mkdir(parents=True, exist_ok=True)
    here, output = Path(__file__).parent, args.output
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    if args.commit:
        environment["HASHPOSE_COMMIT"] = args.commit
    size, rounds = ["--size", args.size], lambda count: ["--rounds", "2" if tiny else str(count)]
    flags = {
        "encoding_gpu": ["--commit", args.commit] if args.commit else [],
        "step": [*size, *rounds(5), "--seconds", "1.0"],
        "launches": [],
        "decoder": [*size, *(["--no-compiled"] if tiny else [])],
        "scaling": [*size, *rounds(5), "--seconds", "0.3"],
        "evaluation": [*size, *rounds(2)],
    }
    report: dict[str, Any] = {"size": args.size, "commit": args.commit, "parts": {}}

    def finish(name: str, result: dict[str, Any]) -> None:
        report["parts"][name] = result
        (output / "gpu_all.json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"---- {name}\n{result['last_words']}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary) / "log"
        for name, limit in LIMITS.items():
            file = output / f"{name}.json"
            command = [sys.executable, str(here / f"{name}.py"), *flags[name], "--output", str(file)]
            limit = min(limit * (4 if tiny else 1), end - LAST_SECONDS - time.perf_counter())
            finish(name, run(command, log, limit, environment))
        left = end - LAST_SECONDS - time.perf_counter()
        steps = 20 if tiny else chair_steps(output, "hashpose-blender", left)
        # Its folder has checkpoints and logs; only its JSON is wanted.
        work = Path(temporary) / "chair"
        command = [sys.executable, str(here / "gpu_chair.py"), "--data", str(args.data), "--output", str(work)]
        command += ["--steps", str(steps), "--eval-images", "2" if tiny else "10", "--no-tests", "--recipes", "paper"]
        if tiny:
            small = {"datamanager.train-num-rays-per-batch": 32, "model.num-samples": 8, "tto-steps": 2}
            command += ["--flags=" + " ".join(f"--pipeline.{key} {value}" for key, value in small.items())]
        finish("gpu_chair", run(command, log, left, environment))
        if (work / "gpu_chair.json").exists():
            shutil.copy(work / "gpu_chair.json", output)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    show(f"gpu_all, {device}", [{"part": name, **part} for name, part in report["parts"].items()], ["last_words"])


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
