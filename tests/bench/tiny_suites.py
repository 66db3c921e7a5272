"""Suites that take seconds, and a starter that does without a process for each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import yaml
from scenes import blender_scene

from hashpose_ns.bench import worker

TINY = (
    "--max-num-iterations 20 --steps-per-save 5 --steps-per-pose-log 5 --pipeline.eval-num-images 2 "
    "--pipeline.datamanager.train-num-rays-per-batch 64 --pipeline.datamanager.eval-num-rays-per-batch 64 "
    "--pipeline.tto-steps 2 --pipeline.tto-rays 32"
)
TINY_HASH = (
    "--pipeline.model.num-samples 16 --pipeline.model.field.encoding.num-levels 4 "
    "--pipeline.model.field.encoding.log2-hashmap-size 10 --pipeline.model.field.encoding.base-resolution 4 "
    "--pipeline.model.field.encoding.max-resolution 32 --pipeline.model.field.decoder.width 16"
)


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
        "flags": TINY,
        "families": {"hash": TINY_HASH},
    }
    return {**content, **changes}


def write_suite(folder: Path, name: str = "tiny", **changes: Any) -> List[str]:
    """Writes such a suite; what `hashpose-bench` is to be called with, but for --output-dir."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(suite_content(folder, **changes)))
    return ["run", "--suite", str(path), "--data", str(folder / "scenes"), "--report", "False"]


class InThisProcess:
    """Does a run at once when it is started, which saves a process' ten seconds of imports."""

    def __init__(self) -> None:
        self.started: List[Path] = []

    def start(self, folder: Path, slot: int) -> InThisProcess:
        from nerfstudio.utils import profiler, writer

        for state in (writer.EVENT_WRITERS, writer.EVENT_STORAGE, writer.GLOBAL_BUFFER, profiler.PROFILER):
            state.clear()
        self.started.append(folder)
        worker.main(folder)
        return self

    def done(self) -> bool:
        return True

    def cancel(self) -> None:
        pass
