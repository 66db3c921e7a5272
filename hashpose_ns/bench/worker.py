"""One run of a suite: trained as ns-train does it, evaluated as ns-eval does it. Resumes from the newest checkpoint.
Structure from motion has nothing to train and no images to score; the rest of its record is the same.

The folder holds a run.json. Writes results.json last, or failure.json.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict

from hashpose_ns.bench import files
from hashpose_ns.bench.sfm import place_cameras
from hashpose_ns.bench.suites import SFM_METHODS
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.runs.files import CHECKPOINTS, CONFIG, last_step, read_pose_log, write_json

if TYPE_CHECKING:
    from hashpose_ns.matches.config import FeatureConfig
    from hashpose_ns.pipeline import HashPosePipeline

RENDERED_IMAGES = 4
"""Held-out images whose renders are kept."""


def main(folder: Path) -> int:
    """Runs, and says why where that fails. Returns the exit code."""
    try:
        run(folder)
    except (Exception, SystemExit) as error:
        # nerfstudio's scripts end with the exit code alone; the plugin's sentence is what the code was made of.
        cause = error.__context__ if isinstance(error, SystemExit) else error
        if isinstance(cause, HashPoseError):
            sentence = str(cause)
        else:
            traceback.print_exc()
            sentence = f"{type(cause or error).__name__}: {one_line(cause or error)}."  # type: ignore[arg-type]
        sys.stdout.flush()
        files.write_failure(folder, sentence)
        return 1
    return 0


def run(folder: Path) -> None:
    """Trains, evaluates and measures.

    Args:
        folder: the run's folder.
    """
    record = json.loads((folder / files.RECORD).read_text(encoding="utf-8"))
    from hashpose_ns.bench.environment import environment

    record.update(environment(), started=record.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    write_json(folder / files.RECORD, record)
    content: Dict[str, Any] = {"steps": record["steps"]}
    if record["train"]:
        whole, begin = last_step(folder) is None, cpu_seconds()
        train(record, folder)
        if whole:  # a run that was resumed has spent more than this process knows
            content["cpu_seconds"] = round(cpu_seconds() - begin, 2)
        content.update(training_time(folder), peak_memory_mb=peak_memory())
    begin = time.perf_counter()
    pipeline = load(record, folder)
    if record["base_method"] in SFM_METHODS:
        content.update(place_cameras(pipeline, record["base_method"], features(record, folder)))
        content.update(peak_memory_mb=peak_memory(), results=evaluate(pipeline, folder, False))
    else:
        content["results"] = evaluate(pipeline, folder, record["evaluate"] and record["train"])
        content["eval_seconds"] = round(time.perf_counter() - begin, 3)
        content["parameters"] = sum(parameter.numel() for parameter in pipeline.model.parameters())
    write_cameras(pipeline, folder / files.CAMERAS)
    content["measures"] = measure(pipeline, record)
    write_json(folder / files.RESULTS, content)
    (folder / files.FAILURE).unlink(missing_ok=True)


def cpu_seconds() -> float:
    """Seconds that this process and those it has waited for have spent."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def train(record: Dict[str, Any], folder: Path) -> None:
    """Trains to the end, unless a checkpoint says that this was done.

    Raises:
        HashPoseError: training stopped before its end.
    """
    from hashpose_ns.bench.configs import trainer_config
    from nerfstudio.scripts.train import main

    config = trainer_config(record, folder)
    last, step = config.max_num_iterations - 1, last_step(folder)
    if step is None or step < last:
        config.load_dir = folder / CHECKPOINTS if step is not None else None
        main(config)
    if last_step(folder) != last:
        raise HashPoseError(f"Training stopped before its last step, {last}.")


def load(record: Dict[str, Any], folder: Path) -> HashPosePipeline:
    """The trained pipeline with the test split held out; an untrained one if the run does not train."""
    if record["train"]:
        from nerfstudio.utils.eval_utils import eval_setup

        return eval_setup(folder / CONFIG, test_mode="test")[1]  # type: ignore[return-value]
    import torch

    from hashpose_ns.bench.configs import trainer_config
    from hashpose_ns.host import keep_freed_memory

    config = trainer_config(record, folder).pipeline
    assert config.datamanager.data is not None
    config.datamanager.dataparser.data = config.datamanager.data
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()  # as training does
    return config.setup(device=device, test_mode="inference")  # type: ignore[return-value]


def features(record: Dict[str, Any], folder: Path) -> FeatureConfig:
    """How a recorded run finds matches."""
    from hashpose_ns.bench.configs import trainer_config

    return trainer_config(record, folder).matches.features


def evaluate(pipeline: HashPosePipeline, folder: Path, render: bool) -> Dict[str, float]:
    """Pose errors, with BARF's way of computing angles beside ours, and if asked what ns-eval says of held-out images.
    A few renders are kept."""
    from hashpose_ns.cameras.alignment import align_centers, pose_errors

    if render:
        staging = folder / ".renders"
        shutil.rmtree(staging, ignore_errors=True)
        results = pipeline.get_average_eval_image_metrics(output_path=staging, get_std=True)
        keep_some(staging, folder / files.RENDERS)
    else:
        results = pipeline.pose_metrics()
    optimizer = pipeline.model.camera_optimizer
    refined, reference = optimizer.refined_camera_to_worlds().detach(), optimizer.reference_camera_to_worlds
    angles = pose_errors(refined, reference, align_centers(refined, reference), barf_exact=True).rotation_deg
    return {**results, "barf_rotation_deg_mean": float(angles.mean())}


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


def measure(pipeline: HashPosePipeline, record: Dict[str, Any]) -> Dict[str, Any]:
    """The suite's named measures."""
    from hashpose_ns.bench.measures import MEASURES

    measures = record["measures"].items()
    return {name: MEASURES[name](pipeline, record["seed"], **options) for name, options in measures}


def write_cameras(pipeline: HashPosePipeline, path: Path) -> None:
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
        for name in ("rotation_deg", "translation", "center"):
            arrays[name + suffix] = getattr(errors, name).cpu().numpy()
    arrays["names"] = np.array(image_names(pipeline.datamanager.train_dataparser_outputs.image_filenames))
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def training_time(folder: Path) -> Dict[str, float]:
    """Seconds of training in all, and milliseconds a step in its second half: the first steps, and what is compiled
    for them, are not what a step costs."""
    log = read_pose_log(folder)
    first, last = log[max(len(log) // 2 - 1, 0)], log[-1]
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
