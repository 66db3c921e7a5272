"""How far the guard can be trusted: its verdicts on pairs of poses whose errors are known, one JSON file.

    python benchmarks/guard_runs.py --suite null power --output benchmarks/results

`power`: true poses against noise of several sizes; `null`: two sets of noise of one size, and true poses against
themselves in another frame; `cameras`: all poses true but for three cameras; `budget`: small noise for several numbers
of steps; `training`: runs of ns-train (demo scene: perturbed, clean, clean with far too high a pose rate; fox, with
--fox); `runs`: finished runs, given by their config.yml with --runs. What is in the file already is not repeated.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Literal, Optional, Tuple

import torch
import tyro
from pose_runs import DEMO_SCENE, NOISE, OBJECT, QUIET, git
from torch import Tensor

from hashpose_ns.bench.environment import processor

Suite = Literal["null", "power", "cameras", "budget", "training", "runs"]
NOISES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Mean rotation errors in degrees."""


@dataclass
class Args:
    """Settings."""

    output: Path
    """Folder for guard.json."""
    suite: List[Suite] = field(default_factory=lambda: ["null", "power", "cameras", "budget"])  # type: ignore
    """What to do."""
    seeds: int = 4
    """Seeds per case."""
    only: str = ""
    """Only cases whose name contains this."""
    steps: int = 200
    """The guard's steps, where a suite does not vary them."""
    fox: Optional[Path] = None
    """Folder of the fox scene at 270x480, for `training`."""
    runs: List[Path] = field(default_factory=list)
    """config.yml of finished runs, for `runs`."""
    work: Path = Path("/tmp/hashpose_guard_runs")
    """Folder for runs of ns-train."""


def demo_pipeline():
    """The demo scene as hashpose-demo sees it, at its true poses and without training."""
    from hashpose_ns.methods import small
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    config = copy.deepcopy(small.config.pipeline)
    config.datamanager.dataparser = BlenderDataParserConfig(data=DEMO_SCENE)
    model = config.model
    model.scene, model.clip_to_box, model.scene_box_scale, model.sampler = "none", True, 0.8, "uniform"
    model.near_plane, model.far_plane, model.background_color = 2.0, 6.0, "white"
    return config.setup(device="cpu", test_mode="inference")


def noisy(poses: Tensor, degrees: float, seed: int) -> Tensor:
    """Poses after BARF's noise, of which the mean rotation is `degrees`: 1.596 deviations of each component."""
    from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses

    deviation = degrees / 57.2958 / 1.596
    return perturb_poses(poses, PerturbationConfig(rotation=deviation, translation=deviation, seed=seed))


def pixel_difference(cameras, first: Tensor, second: Tensor) -> float:
    """Mean distance in pixels at which two sets of poses see points within 0.75 of the origin, after the similarity of
    the points that brings them closest: what no photograph can tell is left out. Lens distortion is not considered."""
    import roma

    from hashpose_ns.cameras.alignment import align_poses

    points = 1.5 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.75
    second = align_poses(second, first).apply_to_poses(second.double())

    def seen(poses: Tensor, points: Tensor) -> Tensor:
        in_camera = (points - poses[:, None, :, 3].double()) @ poses[:, :, :3].double()
        visible = in_camera[..., 2:] < -0.2
        return torch.where(visible, -cameras.fx[:, None].double() * in_camera[..., :2] / in_camera[..., 2:], 0.0)

    target, change = seen(first, points), torch.zeros(7, dtype=torch.float64)

    def residual(change: Tensor) -> Tensor:
        turned = points @ roma.rotvec_to_rotmat(change[:3]).T
        return (seen(second, (1 + change[6]) * turned + change[3:6]) - target).flatten()

    for _ in range(3):
        jacobian = torch.stack(
            [(residual(change + 1e-5 * unit) - residual(change - 1e-5 * unit)) / 2e-5 for unit in torch.eye(7).double()]
        )
        change = change - torch.linalg.lstsq(jacobian.T, residual(change)[:, None]).solution[:, 0]
    return float(residual(change).view(-1, 2).norm(dim=-1).mean())


Case = Tuple[str, Tensor, Tensor, int]
"""Name, initial and refined poses, steps."""


def cases(suite: str, true: Tensor, args: Args) -> Iterator[Case]:
    """Pairs of poses of the demo scene."""
    from hashpose_ns.cameras.alignment import Similarity

    if suite == "power":
        for degrees in NOISES:
            for seed in range(args.seeds):
                yield f"true to {degrees} deg, {seed}", true, noisy(true, degrees, seed), args.steps
        for degrees in NOISES:
            yield f"{degrees} deg to true, 0", noisy(true, degrees, 0), true, args.steps
    if suite == "null":
        for degrees in (0.1, 0.5):
            for seed in range(5 * args.seeds):
                first, second = (noisy(true, degrees, 2 * seed + index) for index in (100, 101))
                yield f"{degrees} deg to another {degrees} deg, {seed}", first, second, args.steps
        rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
        frame = Similarity(torch.tensor(1.3).double(), rotation * torch.linalg.det(rotation), torch.ones(3).double())
        yield "true to true in another frame", true, frame.apply_to_poses(true), args.steps
    if suite == "cameras":
        for degrees in (0.5, 1.0, 2.0, 5.0):
            for seed in range(args.seeds):
                moved, wrong = true.clone(), noisy(true, degrees, seed)
                some = [(7 * seed + 13 * k) % len(true) for k in range(3)]
                moved[some] = wrong[some]
                yield f"cameras {some} by {degrees} deg, {seed}", true, moved, args.steps
    if suite == "budget":
        for steps in (50, 100, 400, 800):
            for degrees in (0.05, 0.1, 0.2):
                for seed in range(min(args.seeds, 2)):
                    yield f"true to {degrees} deg, {steps} steps, {seed}", true, noisy(true, degrees, seed), steps


def record(pipeline, case: Case, reference: Tensor) -> Dict[str, Any]:
    """The guard's verdict on a pair, and the pair's true errors."""
    from hashpose_ns.cameras.alignment import pose_errors
    from hashpose_ns.guard.compare import compare_poses
    from hashpose_ns.guard.config import GuardConfig

    _, initial, refined, steps = case
    begin = time.process_time()
    verdict = compare_poses(pipeline, initial, refined, steps, GuardConfig())
    return {
        "cpu_seconds": round(time.process_time() - begin, 2),
        "steps": steps,
        "verdict": verdict.verdict,
        "log_ratio": verdict.log_ratio,
        "p_helped": verdict.p_helped,
        "p_hurt": verdict.p_hurt,
        "psnr_initial": float((-10 * verdict.first.log10()).mean()),
        "psnr_refined": float((-10 * verdict.second.log10()).mean()),
        "hurt_cameras": verdict.hurt_cameras,
        "error_initial_deg": float(pose_errors(initial, reference).rotation_deg.mean()),
        "error_refined_deg": float(pose_errors(refined, reference).rotation_deg.mean()),
        "error_initial_pixels": pixel_difference(pipeline.datamanager.train_dataset.cameras, reference, initial),
        "error_refined_pixels": pixel_difference(pipeline.datamanager.train_dataset.cameras, reference, refined),
    }


def trainings(args: Args) -> Iterator[Tuple[str, str]]:
    """Names and ns-train's arguments."""
    demo, data = "hashpose-small " + OBJECT, f"blender-data --data {DEMO_SCENE}"
    given = "--pipeline.datamanager.initial-poses given "
    rate = "--optimizers.camera-opt.optimizer.lr 0.1 --optimizers.camera-opt.scheduler.lr-final 0.1 "
    for seed in range(args.seeds):
        seeds = f"--machine.seed {seed} --pipeline.datamanager.perturbation.seed {seed} --max-num-iterations 2000 "
        yield f"demo, noise 0.05, {seed}", demo + seeds + NOISE.format(0.05) + data
        yield f"demo, true poses, {seed}", demo + seeds + given + data
        yield f"demo, true poses and pose rate 0.1, {seed}", demo + seeds + given + rate + data
    if args.fox is not None:
        fox = "hashpose-small --pipeline.datamanager.camera-res-scale-factor 0.5 --max-num-iterations 4000 "
        turned = (
            "--pipeline.datamanager.initial-poses perturbed --pipeline.datamanager.perturbation.protocol l2g "
            "--pipeline.datamanager.perturbation.rotation 0.022 --pipeline.datamanager.perturbation.translation 0 "
        )
        data = f"nerfstudio-data --data {args.fox} --eval-mode all"
        yield "fox, turned by 2 deg", fox + turned + data
        yield "fox, COLMAP's poses", fox + data


def train(settings: str, name: str, args: Args) -> Path:
    """Trains once; the run's config.yml."""
    experiment = "".join(letter if letter.isalnum() else "_" for letter in name)
    method, flags = settings.split(" ", 1)
    command = [
        "ns-train", method, "--output-dir", str(args.work), "--experiment-name", experiment, "--timestamp", "run",
        *QUIET, *shlex.split(flags),
    ]  # fmt: skip
    run = args.work / experiment / method / "run"
    if not list(run.glob("nerfstudio_models/*.ckpt")):
        program = str(Path(sys.executable).parent / command[0])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        subprocess.run([program, *command[1:]], env=environment, check=True, stdout=subprocess.DEVNULL)
    return run / "config.yml"


def main(args: Args) -> None:
    """Runs the suites."""
    path = args.output / "guard.json"
    commit = git("rev-parse", "HEAD")
    if git("status", "--porcelain", "--", "hashpose_ns", "benchmarks/guard_runs.py"):
        commit += " with uncommitted changes"
    results: Dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(suite: str, name: str, make: Callable[[], Dict[str, Any]]) -> None:
        if args.only not in name or name in results.setdefault(suite, {}):
            return
        done = make()
        results[suite][name] = {**done, "commit": commit}
        results["command"] = shlex.join(["python", *sys.argv])
        results["machine"] = {"processor": processor(), "cores": os.cpu_count(), "threads_per_run": 1}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{suite}: {name}: {done['verdict']}, {done['log_ratio']:+.4f}, {done['cpu_seconds']} s", flush=True)

    args.output.mkdir(parents=True, exist_ok=True)
    pipeline = demo_pipeline()
    true = pipeline.model.camera_optimizer.reference_camera_to_worlds
    for suite in args.suite:
        for case in cases(suite, true, args):
            keep(suite, case[0], lambda: record(pipeline, case, true))
        finished: List[Tuple[str, Callable[[], Path], str]] = []
        if suite == "training":
            finished = [
                (name, lambda name=name, text=text: train(text, name, args), text) for name, text in trainings(args)
            ]
        if suite == "runs":
            finished = [(config.parents[2].name, lambda config=config: config, "") for config in args.runs]
        for name, config, command in (run for run in finished if args.only in run[0]):
            judge_run(keep, suite, name, config, command, args)


def judge_run(keep: Callable, suite: str, name: str, config: Callable[[], Path], command: str, args: Args) -> None:
    """The guard's verdict on a finished run, and on what it found against the true poses where it started elsewhere."""
    from hashpose_ns.export.poses import load_trained_pipeline

    @functools.lru_cache
    def pipeline():
        return load_trained_pipeline(config(), test_mode="val")

    def judged(from_reference: bool) -> Dict[str, Any]:
        optimizer = pipeline().model.camera_optimizer
        reference = optimizer.reference_camera_to_worlds
        initial = reference if from_reference else optimizer.initial_camera_to_worlds
        case = (name, initial, optimizer.refined_camera_to_worlds().detach(), args.steps)
        return {**record(pipeline(), case, reference), "ns-train": command}

    keep(suite, name, lambda: judged(False))
    if pipeline().config.datamanager.initial_poses != "given":
        keep(suite, f"{name}: what was found, against the reference", lambda: judged(True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args))
