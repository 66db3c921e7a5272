"""Suites that take seconds, and an engine that does without a process for each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import yaml
from scenes import blender_scene

from hashpose_ns.bench import worker

TINY = {
    "max_num_iterations": 20,
    "steps_per_save": 5,
    "steps_per_pose_log": 5,
    "pipeline.datamanager.train_num_rays_per_batch": 64,
    "pipeline.datamanager.eval_num_rays_per_batch": 64,
    "pipeline.eval_num_images": 2,
    "pipeline.tto_steps": 2,
    "pipeline.tto_rays": 32,
}
TINY_HASH = {
    "pipeline.model.num_samples": 16,
    "pipeline.model.field.encoding.num_levels": 4,
    "pipeline.model.field.encoding.log2_hashmap_size": 10,
    "pipeline.model.field.encoding.base_resolution": 4,
    "pipeline.model.field.encoding.max_resolution": 32,
    "pipeline.model.field.decoder.width": 16,
}


def suite_content(folder: Path, **changes: Any) -> Dict[str, Any]:
    """A suite on a few small pictures of the chair, which are put into a folder."""
    scene = folder / "scenes" / "chair"
    if not scene.exists():
        blender_scene(scene, num_train=4, num_test=2, size=16)
    content = {
        "description": "Nothing but a test.",
        "scenario": "blender-barf-0.05",
        "scale": "smoke",
        "scenes": {"chair": "{data}/chair"},
        "presets": ["paper"],
        "settings": TINY,
        "families": {"hash": TINY_HASH},
    }
    return {**content, **changes}


def write_suite(folder: Path, name: str = "tiny", **changes: Any) -> List[str]:
    """Writes such a suite; what `hashpose-bench` is to be called with, but for --output-dir."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(suite_content(folder, **changes)))
    return ["run", "--suite", str(path), "--data", str(folder / "scenes"), "--no-report"]


class InThisProcess:
    """Does a run at once when it is started, which saves a process' ten seconds of imports."""

    def __init__(self, *_) -> None:
        self.started: List[Path] = []

    def start(self, folder: Path, slot: int) -> "InThisProcess":
        from nerfstudio.utils import profiler, writer

        for state in (writer.EVENT_WRITERS, writer.EVENT_STORAGE, writer.GLOBAL_BUFFER, profiler.PROFILER):
            state.clear()
        self.started.append(folder)
        worker.main(folder)
        return self

    def is_over(self) -> bool:
        return True

    def ending(self) -> str:
        return "It left no word."

    def stop(self) -> None:
        pass
