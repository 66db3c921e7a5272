"""How far do pictures of an object bring cameras before training, and what does a step of local-to-global poses cost?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/centering.py --data path/to/scenes \\
        --output benchmarks/results/centering.json

Errors of initial poses as they are and as `--centering.mode auto` would shift cameras, on objects at 100x100, for
BARF's and L2G-NeRF's noise; aligned by poses. Nothing is trained for that. How far silhouettes' centres are apart at
true poses is also asked of procedural objects, seen whole and cut by the frame. The cost is that of training steps of
hashpose-object with twists and with rays that move by themselves, in turns, in one process.
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import roma
import torch
import tyro
from record import Output, show, summary, take_turns, write_record

from hashpose_ns.cameras.alignment import pose_errors
from hashpose_ns.cameras.centering import CenteringConfig, centred
from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses
from hashpose_ns.methods import object_
from hashpose_ns.photometry.centering import silhouettes
from hashpose_ns.sparse.objects import random_objects
from hashpose_ns.sparse.render import render
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.optimizers import Optimizers

BARF = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
L2G = (1, 2, 3, 5, 7, 8)
AIMS = (0.0, 0.1, 0.3, 0.5)
"""Standard deviations of where cameras look, beside the middle of a procedural object of radius 0.5."""
VIEWS, PIXELS, TANGENT = 30, 64, 0.45
"""Pictures of a procedural object, their size, and the tangent of half their angle of view."""
WARPS = {"twists": None, "local-to-global, width 64": (64, 32), "local-to-global, width 256": (256, 128)}


@dataclass
class Args(Output):
    """Settings."""

    data: Path = Path("data")
    """Folder of the scenes, each in Blender's format at 400x400."""
    scenes: tuple[str, ...] = ("chair_400", "lego_400")
    """Names of the scenes."""
    seeds: int = 3
    """Draws of the noise."""
    objects: int = 50
    """Procedural objects of each kind; 0 leaves them out."""
    rounds: int = 40
    """Steps of each kind of poses; 0 leaves the cost out."""


def pipeline_of(folder: Path, warp: tuple[int, int] | None = None) -> Any:
    """hashpose-object's pipeline at 100x100, with twists or with a warp of a width and an embedding."""
    config = copy.deepcopy(object_.config.pipeline)
    config.datamanager.dataparser.data, config.datamanager.camera_res_scale_factor = folder, 0.25
    if warp is not None:
        poses = config.model.camera_optimizer
        poses.model, (poses.warp.width, poses.warp.embedding) = "local-to-global", warp
        config.datamanager.pixel_sampler.cameras = "equal"
    return config.setup(device="cpu", test_mode="val")


def noises(seeds: int) -> dict[str, list[PerturbationConfig]]:
    """What is put on the true poses, by name."""
    found = {f"barf {size}": [PerturbationConfig("barf", size, size, seed) for seed in range(seeds)] for size in BARF}
    for n in L2G:
        found[f"l2g n={n}"] = [PerturbationConfig("l2g", 0.01 * n, 0.1 * n, seed) for seed in range(seeds)]
    return found


def starts(args: Args) -> list[dict[str, Any]]:
    """A row for each scene and noise: means over the seeds, and how many of them would be shifted."""
    rows = []
    for scene in args.scenes:
        pipeline = pipeline_of(args.data / scene)
        reference = pipeline.model.camera_optimizer.reference_camera_to_worlds
        seen = [found for found in silhouettes(pipeline.scene) if found is not None]
        assert len(seen) == len(reference), "every picture shows the object"
        centres, areas = (torch.stack(parts) for parts in zip(*seen))
        for name, configs in noises(args.seeds).items():
            found = [
                (poses, *centred(poses, centres, areas)) for poses in (perturb_poses(reference, c) for c in configs)
            ]
            errors = [[pose_errors(each, reference) for each in (before, after)] for before, after, _ in found]
            mean = [statistics.mean(float(pair[i].translation.mean()) for pair in errors) for i in (0, 1)]
            rows.append(
                {
                    "scene": scene,
                    "noise": name,
                    "rotation_deg": statistics.mean(float(pair[0].rotation_deg.mean()) for pair in errors),
                    "apart": [min(row[2] for row in found), max(row[2] for row in found)],
                    "shifted": sum(row[2] > CenteringConfig().threshold for row in found),
                    "translation_x100": 100 * mean[0],
                    "centred_x100": 100 * mean[1],
                }
            )
    return rows


def procedural(args: Args) -> list[dict[str, Any]]:
    """A row for each family and aim: how far centres of whole silhouettes are apart at the true poses."""
    generator, rows = torch.Generator().manual_seed(0), []
    for family in ("articulated", "blobs"):
        for aim in AIMS:
            found, whole = [], 0
            for _ in range(args.objects):
                scene, poses = pictured(random_objects(family, 1, generator), aim, generator)  # type: ignore[arg-type]
                seen = silhouettes(scene)
                rows_seen = [index for index, silhouette in enumerate(seen) if silhouette is not None]
                whole += len(rows_seen)
                if 2 * len(rows_seen) >= VIEWS:
                    centres, areas = (torch.stack(parts) for parts in zip(*(seen[index] for index in rows_seen)))
                    found.append(centred(poses[rows_seen], centres, areas)[1])
            rows.append(
                {
                    "family": family,
                    "aim": aim,
                    "whole": whole / (VIEWS * args.objects),
                    "objects": len(found),
                    "apart_median": statistics.median(found),
                    "apart_largest": max(found),
                }
            )
    return rows


def pictured(objects: Any, aim: float, generator: torch.Generator) -> tuple[Any, torch.Tensor]:
    """An object on white from all around, as what `silhouettes` asks of a scene, and the poses (OpenGL axes)."""
    back = torch.nn.functional.normalize(torch.randn(VIEWS, 3, generator=generator), dim=-1)
    centers = back * (2 + torch.rand(VIEWS, 1, generator=generator))
    ahead = torch.nn.functional.normalize(aim * torch.randn(VIEWS, 3, generator=generator) - centers, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(ahead, torch.tensor([[0.0, 0.0, 1.0]])), dim=-1)
    rotations = torch.stack([right, torch.linalg.cross(ahead, right), ahead], dim=1)  # OpenCV's, world to camera
    poses = torch.cat([rotations, -rotations @ centers[..., None]], dim=-1)
    light = roma.random_rotmat(1, generator=generator)[:, 0].expand(VIEWS, 3)
    which, tangents = torch.zeros(VIEWS, dtype=torch.long), torch.full((VIEWS,), TANGENT)
    images, _ = render(objects, which, poses, tangents, light, torch.ones(VIEWS, 3), PIXELS)
    pictures = images.movedim(1, -1)
    flip = torch.tensor([1.0, -1.0, -1.0])
    camera_to_worlds = torch.cat([rotations.transpose(1, 2) * flip, centers[..., None]], dim=-1)
    focal = 0.5 * PIXELS / TANGENT
    cameras = Cameras(camera_to_worlds, focal, focal, PIXELS / 2, PIXELS / 2, PIXELS, PIXELS)
    train = Pictures([{"image": picture} for picture in pictures])
    train.cameras = cameras
    return SimpleNamespace(train=train, model_config=SimpleNamespace(background_color="white")), camera_to_worlds


class Pictures(list):
    """A dataset of pictures."""

    cameras: Cameras


def costs(args: Args) -> dict[str, dict[str, float]]:
    """CPU milliseconds of a training step, field and poses, by kind of poses."""
    steps, count = {}, 100_000
    for name, warp in WARPS.items():
        pipeline = pipeline_of(args.data / args.scenes[0], warp)
        pipeline.model.set_training_length(count)
        pipeline.train()
        groups = pipeline.get_param_groups()
        optimizers = Optimizers({key: {**object_.config.optimizers[key], "scheduler": None} for key in groups}, groups)
        position = iter(range(count // 2, count))  # poses move, and all levels are open

        def step(pipeline=pipeline, optimizers=optimizers, position=position) -> None:
            now = next(position)
            pipeline.model.update_to_step(now)
            optimizers.zero_grad_all()
            sum(pipeline.get_train_loss_dict(now)[1].values()).backward()
            optimizers.optimizer_step_all()

        steps[name] = step
    return {name: summary(ms) for name, ms in take_turns(steps, args.rounds, warm_up=3).items()}


def main(args: Args) -> None:
    """Measures, prints and writes."""
    torch.manual_seed(0)
    rows = starts(args)
    show("Initial poses, as they are and centred", rows)
    others = procedural(args) if args.objects else []
    if others:
        show("Procedural objects at their true poses", others)
    cost = costs(args) if args.rounds else {}
    if cost:
        show("CPU milliseconds of a step", [{"poses": name, **ms} for name, ms in cost.items()])
    write_record(args.output, starts=rows, procedural=others, step=cost)


if __name__ == "__main__":
    main(tyro.cli(Args))
