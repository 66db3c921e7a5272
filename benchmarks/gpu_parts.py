"""The parts of gpu.py, each in a process of its own: python gpu_parts.py PART ROWS SETTINGS.

ROWS is the number of an open file that rows go to, a JSON object a line. SETTINGS is a JSON object: `size`, `data`. The
process imports what it needs, reads a line from its input (`seconds`: how long it may take; `ms`: what a step was
measured to take, or null) and measures. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

RECIPES = {
    "paper": "",
    "best": "--pipeline.model.num-samples 64 --pipeline.model.num-importance-samples 64 --recovery.at 0.3 0.45 0.6 "
    "--pipeline.datamanager.pixel-sampler.edge-fraction 0.5 --pipeline.model.curriculum.window 0.04 0.5 "
    "--pipeline.model.clip-to-box True --pipeline.model.scene-box-scale 0.8 "
    "--pipeline.model.camera-optimizer.side orbit --pipeline.model.camera-optimizer.start 0.03 "
    "--pipeline.model.camera-optimizer.warmup 0 --pipeline.model.camera-optimizer.settling.decay 0.7 "
    "--pipeline.model.field.decoder.direction-start 0.6 "
    "--optimizers.encoding.optimizer.lr 4e-2 --optimizers.encoding.scheduler.lr-final 4e-3 "
    "--optimizers.encoding.scheduler.cooldown 0.25 --optimizers.decoder.optimizer.lr 1e-3 "
    "--optimizers.decoder.scheduler.lr-final 1e-4 --optimizers.decoder.scheduler.cooldown 0.25 "
    "--optimizers.camera-opt.optimizer.lr 8e-3 --optimizers.camera-opt.scheduler.lr-final 1e-3 "
    "--optimizers.camera-opt.scheduler.cooldown 0.25",
}
"""Flags of a training on chair. `best` is what benchmarks/suites/convergence.yaml found, with a rate for the larger
decoder."""
STEP_OF = {"paper": 1.1, "best": 1.5}
"""Ms of a recipe's step, over that of the plain step: it also logs, and `best` asks for density first."""
MOST_STEPS = 20_000
UNKNOWN_MS = 8.0
EVALUATION = 20.0
"""Seconds kept for a chair's evaluation."""
SCORES = {
    "rotation_deg": "pose_error_after_rotation_deg_mean",
    "translation": "pose_error_after_translation_mean",
    "psnr_aligned": "psnr_aligned",
    "psnr_tto": "psnr_tto",
}
TINY = (
    "--pipeline.datamanager.train-num-rays-per-batch 32 --pipeline.model.num-samples 8 --pipeline.tto-steps 2 "
    "--pipeline.model.field.decoder.width 16 --pipeline.model.field.encoding.num-levels 4 "
    "--recovery.hypotheses 3 --recovery.steps 3 --recovery.rays 6"
)


class Refused(SystemExit):
    """The gate's exit codes, see gpu.py."""


class Run:
    """What a part knows.

    Args:
        settings: as in the module's docstring.
        emit: writes a row.
    """

    def __init__(self, settings: dict[str, Any], emit: Callable[..., None]) -> None:
        import training

        self.tiny, self.data, self.emit = settings["size"] == "tiny", settings["data"], emit
        self.size = training.SIZES[settings["size"]]
        self.folder = Path(tempfile.mkdtemp())
        self.end, self.ms = float("inf"), None

    @property
    def left(self) -> float:
        """Seconds until the part's limit."""
        return self.end - time.monotonic()

    def trainer(self, method: str, **settings: Any) -> Any:
        """A trainer at the size of everything, in a scene of that size."""
        import training

        scene = self.folder / "scene"
        if not scene.exists():
            training.make_scene(scene, self.size.views, self.size.resolution)
        settings = {training.RAYS: self.size.rays, **settings}
        if self.tiny:
            settings["pipeline.model.num_samples"] = self.size.samples
        return training.make_trainer(method, scene, self.folder / f"{method}_{len(settings)}", settings)


# -- parts -------------------------------------------------------------------------------------------------------------


def gate(run: Run) -> None:
    """Kernels against float64, and whether they are used."""
    import torch
    from encoding_cpu import make_encodings
    from encoding_gpu import check

    from hashpose_ns.bench.environment import environment
    from hashpose_ns.encoding import HashEncodingConfig, backends, triton
    from hashpose_ns.errors import HashPoseError

    run.emit(head={"environment": environment()["environment"]})
    if not torch.cuda.is_available():
        if not run.tiny:
            print("PyTorch sees no GPU here.")
            raise Refused(3)
        run.emit(not_tried="there is no GPU")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    grid = HashEncodingConfig().setup(num_dims=3).grid
    reason = triton.BACKEND.unsupported(device, torch.float32, grid)
    used = backends.choose_backend("auto", device, torch.float32, grid).name
    run.emit(backend=used, unsupported=reason)
    if reason is not None or used != "triton":
        print(f"The encoding would be computed by {used}: {reason}")
        raise Refused(4)
    torch.manual_seed(0)
    encodings = {"triton": make_encodings(device, ("eager", "triton"), "axis")["triton"]}
    try:
        for row in check(encodings, device):
            run.emit(**row)
    except HashPoseError as error:
        print(error)
        raise Refused(5) from error


def step(run: Run) -> None:
    """Steps of the methods by turns."""
    import torch

    methods = ("hashpose-small", "barf") if run.tiny else ("hashpose-blender", "barf-blender", "nerfacto")
    steppers: dict[str, Callable[[int], None]] = {}
    memory: dict[str, float] = {}
    for number, method in enumerate(methods):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        steppers[method] = warmed(run, method)
        if torch.cuda.is_available():
            memory[method] = (torch.cuda.max_memory_allocated() - before) / 2**20
        run.emit(method=method, memory_mb=memory.get(method))
        if number:
            turns(run, steppers, rounds=3)
    while run.left > 5 and not run.tiny:
        turns(run, steppers, rounds=1)


def warmed(run: Run, method: str, **settings: Any) -> Callable[[int], None]:
    """A function that does steps, after the first ones."""
    import training
    from record import synchronize

    more = training.stepper(run.trainer(method, **settings))
    more(3 if run.tiny else 20)
    synchronize()
    return more


def turns(run: Run, steppers: dict[str, Callable[[int], None]], rounds: int, seconds: float = 0.7) -> None:
    """A row for each turn of each method."""
    from record import synchronize

    for _ in range(rounds):
        for method, more in steppers.items():
            if run.left < 1:
                return
            count, begin = 0, time.perf_counter()
            while not count or (time.perf_counter() - begin < seconds and not run.tiny):
                more(2 if run.tiny else 10)
                count += 2 if run.tiny else 10
                synchronize()
            run.emit(method=method, steps=count, ms=round(1e3 * (time.perf_counter() - begin) / count, 4))


def encoding(run: Run) -> None:
    """Passes of the encodings."""
    import torch
    from encoding_cpu import make_encodings
    from encoding_gpu import measure

    if not torch.cuda.is_available():
        run.emit(not_tried="there is no GPU")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    encodings = make_encodings(device, ("eager", "triton"), "axis")
    ours_first = {name: encodings[name] for name in ("triton", *(each for each in encodings if each != "triton"))}
    for points, repeats in ((131072, 5), (16384, 5), (1048576, 3)):
        for row in measure(ours_first, points, repeats, device):
            run.emit(**row)
            if run.left < 3:
                return


def chair(run: Run, recipe: str) -> None:
    """A training on chair, and its evaluation."""
    import shlex

    import torch
    import tyro

    from hashpose_ns.demo import DEMO_SCENE
    from hashpose_ns.methods import blender
    from hashpose_ns.runs.files import read_pose_log
    from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
    from nerfstudio.scripts.train import _set_random_seed

    begin = time.monotonic()
    ms = STEP_OF[recipe] * (run.ms or UNKNOWN_MS)
    training_seconds = run.left - EVALUATION - 15  # setting up
    steps = 20 if run.tiny else max(1000, min(MOST_STEPS, int(0.9e3 * training_seconds / ms)))
    arguments = [
        *("--output-dir", str(run.folder), "--experiment-name", "chair", "--timestamp", recipe),
        *("--max-num-iterations", str(steps), "--machine.seed", "0", "--vis", "tensorboard"),
        *("--machine.device-type", "cuda" if torch.cuda.is_available() else "cpu"),
        *("--pipeline.datamanager.perturbation.seed", "0", "--pipeline.eval-num-images", "1" if run.tiny else "10"),
        *("--logging.local-writer.enable", "False", "--steps-per-pose-log", "10" if run.tiny else "500"),
        *("--steps-per-eval-batch", "0", "--steps-per-eval-image", "0", "--steps-per-eval-all-images", "0"),
        *shlex.split(RECIPES[recipe]),
        *(shlex.split(TINY) if run.tiny else ()),
        *(("--pipeline.model.num-importance-samples", "8") if run.tiny and recipe == "best" else ()),
        *("blender-data", "--data", run.data or str(DEMO_SCENE)),
    ]
    run.emit(planned_steps=steps, seconds=round(run.left, 1), arguments=arguments[6:-3])
    # Nothing of this project is installed there, so that nerfstudio knows none of its methods by name.
    one_value = (tyro.conf.FlagConversionOff,)
    config: Any = tyro.cli(type(blender.config), default=deepcopy(blender.config), args=arguments, config=one_value)
    _set_random_seed(0)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    folder, said = config.get_base_dir(), 0

    def after(step: int) -> None:
        nonlocal said
        if step % 10 == 0 or step == steps - 1:
            log = read_pose_log(folder) if step % 50 == 0 or step == steps - 1 else []
            for record in log[said:]:
                run.emit(wall_seconds=round(time.monotonic() - begin, 2), **record)
            said = max(said, len(log))
            trainer.stop_training = run.left < EVALUATION

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after))
    trainer.train()
    done = trainer.trained_step + 1
    evaluation = time.perf_counter()
    scores = trainer.pipeline.get_average_eval_image_metrics()
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    run.emit(
        steps=done,
        of=steps,
        train_seconds=round(trainer.train_seconds, 2),
        ms_per_step=round(1e3 * trainer.train_seconds / done, 4),
        evaluation_seconds=round(time.perf_counter() - evaluation, 2),
        memory_mb=peak,
        scores={name: scores[key] for name, key in SCORES.items()},
        metrics={key: value for key, value in scores.items() if isinstance(value, (int, float))},
    )


def best(run: Run) -> None:
    """Chair, with what a study at small scale found."""
    chair(run, "best")


def paper(run: Run) -> None:
    """Chair, by the preset as it is."""
    chair(run, "paper")


def compiled(run: Run) -> None:
    """The plain step, and the one with CUDA graphs."""
    if run.tiny:
        run.emit(not_tried="a compiler takes a minute")
        return
    plain = warmed(run, "hashpose-blender")
    turns(run, {"plain": plain}, rounds=1)
    graphs = warmed(run, "hashpose-blender", **{"pipeline.model.compile": True})
    while run.left > 3:
        turns(run, {"plain": plain, "compiled": graphs}, rounds=1)


def profile(run: Run) -> None:
    """What the GPU records of a step, and what is counted."""
    import launches
    import torch
    import training

    method = run.size.method
    if torch.cuda.is_available():
        trainer = run.trainer(method)
        training.stepper(trainer)(20)
        run.emit(method=method, on_the_device=launches.on_the_device(trainer, training.START_STEP + 20))
    counted = launches.count(method, run.folder / "scene" if (run.folder / "scene").exists() else _scene(run),
                             run.folder / "count", {})  # fmt: skip
    run.emit(method=method, counted=counted["total"], waits=counted["waits"])


def _scene(run: Run) -> Path:
    import training

    return training.make_scene(run.folder / "scene", 10, 16)


def decoder(run: Run) -> None:
    """Forward and backward passes of the decoder."""
    import decoder as alone
    from record import summary, take_turns

    args = alone.Args(size="tiny" if run.tiny else "paper", compiled=not run.tiny)
    for width in (256, 64):
        steps, missing = alone.alternatives(width, args)
        for name, ms in take_turns(steps, 5 if run.tiny else 15).items():
            run.emit(width=width, decoder=name, **summary(ms))
        run.emit(width=width, not_measured=missing)


PARTS = {each.__name__: each for each in (gate, step, encoding, best, paper, compiled, profile, decoder)}


def main() -> None:
    """Waits for its turn and measures."""
    name, rows, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])

    def emit(**row: Any) -> None:
        os.write(rows, (json.dumps(row, default=str) + "\n").encode())

    try:
        import tyro  # noqa: F401

        import hashpose_ns.trainer  # noqa: F401
        import nerfstudio.scripts.train  # noqa: F401

        run = Run(settings, emit)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
        raise SystemExit(3) from error
    emit(ready=True)
    order = json.loads(sys.stdin.readline() or "null")
    if order is None:
        return

    def end_with_the_driver() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_the_driver, daemon=True).start()
    run.end, run.ms = time.monotonic() + order["seconds"], order["ms"]
    PARTS[name](run)
    sys.stdout.flush()
    os._exit(0)  # nothing is left to do that would be worth the time


if __name__ == "__main__":
    main()
