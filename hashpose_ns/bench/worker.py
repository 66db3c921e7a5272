"""One run of a suite in a process of its own: trained as ns-train does it, evaluated as ns-eval does it.

    python -m hashpose_ns.bench.worker RUN_FOLDER [PARENT_PID]

The folder holds a run.json. Goes on from the newest checkpoint in it. Writes results.json last, or failure.json.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Tuple

from hashpose_ns.bench import files
from hashpose_ns.errors import HashPoseError, one_line

if TYPE_CHECKING:
    from hashpose_ns.pipeline import HashPosePipeline

RENDERED_IMAGES = 4
"""Held-out images whose renders are kept."""


def stop_with(parent: int) -> None:
    """Has the kernel end this process when the one that started it is no more; only Linux can.

    Args:
        parent: process id of the one that started it.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it had ended before
            sys.exit(1)


def run(folder: Path) -> None:
    """Trains and evaluates.

    Args:
        folder: the run's folder.
    """
    record = json.loads((folder / files.RECORD).read_text(encoding="utf-8"))
    from hashpose_ns.bench.environment import environment

    record.update(environment(), started=record.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    files.write_json(folder / files.RECORD, record)
    train(record, folder)
    memory = peak_memory()
    begin = time.perf_counter()
    pipeline, results = evaluate(folder)
    eval_seconds = time.perf_counter() - begin
    write_cameras(pipeline, folder / files.CAMERAS)
    final = {
        "results": results,
        "steps": record["steps"],
        **training_time(folder),
        "eval_seconds": round(eval_seconds, 3),
        "peak_memory_mb": memory,
        "parameters": sum(parameter.numel() for parameter in pipeline.model.parameters()),
    }
    files.write_json(folder / files.RESULTS, final)
    (folder / files.FAILURE).unlink(missing_ok=True)


def train(record: Dict[str, Any], folder: Path) -> None:
    """Trains to the end, unless a checkpoint says that this was done.

    Raises:
        HashPoseError: training stopped before its end.
    """
    from hashpose_ns.bench.configs import trainer_config
    from nerfstudio.scripts.train import main

    config = trainer_config(record, folder)
    last = config.max_num_iterations - 1
    checkpoint = files.last_checkpoint(folder)
    if checkpoint is None or checkpoint < last:
        config.load_dir = folder / files.CHECKPOINTS if checkpoint is not None else None
        main(config)
    if files.last_checkpoint(folder) != last:
        raise HashPoseError(f"Training stopped before its last step, {last}.")


def evaluate(folder: Path) -> Tuple["HashPosePipeline", Dict[str, float]]:
    """Evaluates the held-out images of the test split, and keeps some of their renders.

    Returns:
        The trained pipeline, and ns-eval's metrics with BARF's way of computing angles beside ours.
    """
    from hashpose_ns.cameras.alignment import pose_errors
    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, _ = eval_setup(folder / "config.yml", test_mode="test")
    staging = folder / ".renders"
    shutil.rmtree(staging, ignore_errors=True)
    results = pipeline.get_average_eval_image_metrics(output_path=staging, get_std=True)
    keep_some(staging, folder / files.RENDERS)
    optimizer = pipeline.model.camera_optimizer
    refined, reference = optimizer.refined_camera_to_worlds().detach(), optimizer.reference_camera_to_worlds
    angles = pose_errors(refined, reference, barf_exact=True).rotation_deg
    results["barf_rotation_deg_mean"] = float(angles.mean())
    return pipeline, results


def keep_some(staging: Path, renders: Path) -> None:
    """Takes the pictures of a few images over from all that were rendered; depth and opacity are left out."""
    from hashpose_ns.photometry.pixels import evenly_spaced

    aligned = sorted(staging.glob("eval_aligned_img_*.png"))
    shutil.rmtree(renders, ignore_errors=True)
    renders.mkdir()
    for position in evenly_spaced(len(aligned), min(RENDERED_IMAGES, len(aligned))):
        for path in staging.glob(f"eval_*_{aligned[position].stem.removeprefix('eval_aligned_')}.png"):
            path.replace(renders / path.name)
    shutil.rmtree(staging)


def write_cameras(pipeline: "HashPosePipeline", path: Path) -> None:
    """Initial, refined and reference poses [N, 3, 4] of the training cameras, their images' names, and the errors of
    each: `rotation_deg`, `translation`, `center`, and the same with `_before`."""
    import numpy as np

    from hashpose_ns.cameras.alignment import pose_errors
    from hashpose_ns.data.names import image_names

    optimizer = pipeline.model.camera_optimizer
    poses = {
        "initial": optimizer.initial_camera_to_worlds,
        "refined": optimizer.refined_camera_to_worlds().detach(),
        "reference": optimizer.reference_camera_to_worlds,
    }
    arrays = {name: pose.cpu().double().numpy() for name, pose in poses.items()}
    for when, suffix in (("refined", ""), ("initial", "_before")):
        errors = pose_errors(poses[when], poses["reference"])
        for measure in ("rotation_deg", "translation", "center"):
            arrays[measure + suffix] = getattr(errors, measure).cpu().numpy()
    arrays["names"] = np.array(image_names(pipeline.datamanager.train_dataparser_outputs.image_filenames))
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def training_time(folder: Path) -> Dict[str, float]:
    """Seconds of training in all, and milliseconds a step in its second half: the first steps, and what is compiled
    for them, are not what a step costs."""
    log = [json.loads(line) for line in (folder / files.POSE_LOG).read_text().splitlines()]
    first, last = log[len(log) // 2 - 1], log[-1]
    steps = last["step"] - first["step"]
    seconds = last["train_seconds"] - first["train_seconds"]
    return {"train_seconds": last["train_seconds"], "ms_per_step": round(1e3 * seconds / max(steps, 1), 4)}


def peak_memory() -> float:
    """MiB: of the GPU's tensors where there is a GPU, of this process elsewhere."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def main(folder: Path) -> int:
    """Runs, and says why where that fails. Returns the exit code."""
    try:
        run(folder)
    except (Exception, SystemExit) as error:
        # nerfstudio's scripts end with the exit code alone; the plugin's sentence is what the code was made of.
        cause = error.__context__ if isinstance(error, SystemExit) else error
        if not isinstance(cause, HashPoseError):
            traceback.print_exc()
        sys.stdout.flush()
        files.write_failure(folder, str(cause) if isinstance(cause, HashPoseError) else describe(cause or error))
        return 1
    return 0


def describe(error: BaseException) -> str:
    """An unexpected error in a line."""
    return f"{type(error).__name__}: {one_line(error)}."  # type: ignore


if __name__ == "__main__":
    if len(sys.argv) > 2:
        stop_with(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
