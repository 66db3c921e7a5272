"""SparsePose's record: scores of weights, and fields from unposed pictures of objects that training never drew.

    OMP_NUM_THREADS=1 python benchmarks/sparse.py --weights run/weights.npz --work WORK \\
        --output benchmarks/results/sparse.json

For each object and number of views: photographs are rendered, `hashpose-sparse poses` finds their cameras, and
hashpose-object trains from these and from the true ones. Test views are true cameras, brought into the found cameras'
frame by the similarity of the training cameras, and optimised at test time as in every evaluation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
import tyro
from PIL import Image
from record import REPOSITORY, Output, show, write_record
from torch import Tensor

from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.data.source import cameras_of_file
from hashpose_ns.export.frame import flip_axes
from hashpose_ns.export.transforms import write_transforms
from hashpose_ns.localize.photographs import Lens, cameras_of
from hashpose_ns.sparse.evaluation import HELD_OUT, score_families
from hashpose_ns.sparse.geometry import angles, pair_rotations
from hashpose_ns.sparse.objects import random_objects
from hashpose_ns.sparse.render import render
from hashpose_ns.sparse.scenes import look_at
from hashpose_ns.sparse.weights import load_weights

SIZE, TANGENT, OVERSAMPLED = 200, 0.32, 2
"""Of the photographs: pixels of a side, tangent of half the angle of view, and rays per pixel along a side."""
DISTANCE = 2.0
"""Of cameras from the object, whose ball has a radius of 0.5."""
TEST_VIEWS = 12


@dataclass
class Args(Output):
    """Settings."""

    weights: Optional[Path] = None
    """weights.npz; by default the package's."""
    work: Path = Path("bench_output/sparse")
    """Folder for photographs, poses and runs. What is there is not made again."""
    scenes: int = 300
    """Held-out scenes of each family and number of views that are scored; 0 scores nothing."""
    views: tuple[int, ...] = (3, 5, 8)
    """Numbers of views that are scored."""
    objects: tuple[int, ...] = (0,)
    """Held-out objects that fields are trained of."""
    field_views: tuple[int, ...] = (5, 8)
    """Numbers of photographs that fields are trained on."""
    starts: tuple[str, ...] = ("true", "found")
    """Where fields start: true, found, or coarse, which is found without refinement."""
    iterations: int = 2500
    """Steps of a field."""
    logs: tuple[Path, ...] = ()
    """log.jsonl of the runs that trained them, one after the other, which go into the record."""


def photographs(seed: int, views: int, folder: Path) -> tuple[list[Path], list[Path], Tensor]:
    """Renders an object: training files, test files, and all true poses [n, 3, 4], OpenGL axes, an object of the size
    that hashpose-sparse writes."""
    generator = torch.Generator().manual_seed(HELD_OUT + 1000 + seed)
    objects = random_objects("articulated", 1, generator)
    count = views + TEST_VIEWS
    azimuth = 2 * torch.pi * torch.rand(count, generator=generator)
    elevation = torch.deg2rad(5 + 50 * torch.rand(count, generator=generator))
    azimuth[views:] = 2 * torch.pi * torch.arange(TEST_VIEWS) / TEST_VIEWS
    outwards = torch.stack([azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin()], -1)
    positions = DISTANCE * (0.9 + 0.2 * torch.rand(count, 1, generator=generator)) * outwards
    aims = 0.06 * torch.randn(count, 3, generator=generator)
    rotations = look_at(
        torch.nn.functional.normalize(aims - positions, dim=-1), 0.15 * torch.randn(count, generator=generator)
    )
    poses = torch.cat([rotations, -(rotations @ positions[..., None])], -1)
    light = torch.nn.functional.normalize(torch.tensor([0.4, 0.3, 0.9]), dim=0).expand(count, 3)
    index, tangents = torch.zeros(count, dtype=torch.long), torch.full((count,), TANGENT)
    black, white = (
        render(objects, index, poses, tangents, light, torch.full((count, 3), value), OVERSAMPLED * SIZE)[0]
        for value in (0.0, 1.0)
    )
    opaque = ((white - black).abs().amax(1, keepdim=True) < 0.5).float()
    rgba = torch.nn.functional.avg_pool2d(torch.cat([black, opaque], 1), OVERSAMPLED)
    rgba[:, :3] = (rgba[:, :3] / rgba[:, 3:].clamp_min(1e-3)).clamp(0, 1)
    files = []
    for i, picture in enumerate(rgba):
        path = folder / ("train" if i < views else "test") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * picture.permute(1, 2, 0)).round().byte().numpy(), "RGBA").save(path)
        files.append(path)
    centers = positions * (0.7 / 0.5)  # the ball fills the box of hashpose-object but for its corners
    return (
        files[:views],
        files[views:],
        flip_axes(torch.cat([rotations.transpose(1, 2), centers[..., None]], -1)).double(),
    )


def command(*words: str | Path) -> None:
    """Runs a command of nerfstudio or of this package, in this Python. Its output goes to the console."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, *map(str, words)], env=environment, check=True)


def field(folder: Path, data: Path, iterations: int) -> dict[str, Any]:
    """Trains and evaluates hashpose-object on a transforms.json; what ns-eval writes."""
    results = folder / "eval.json"
    if not results.exists():
        run = ("--output-dir", folder, "--experiment-name", "e", "--timestamp", "t", "--vis", "tensorboard")
        axes = "nerfstudio-data --orientation-method none --center-method none --auto-scale-poses False".split()
        quiet = f"--max-num-iterations {iterations} --machine.seed 1 --matches.start off --guard.mode off".split()
        enter = "import sys; from nerfstudio.scripts.{0} import entrypoint; sys.argv[0] = 'ns-{0}'; entrypoint()"
        command("-c", enter.format("train"), "hashpose-object", "--data", data, *run, *quiet, *axes)
        config = next(folder.glob("e/*/t/config.yml"))
        output = ("--output-path", results, "--render-output-path", folder / "renders")
        command("-c", enter.format("eval"), "--load-config", config, *output)
    if not (folder / "refined").exists():
        config = next(folder.glob("e/*/t/config.yml"))
        output = ("--output-dir", folder / "refined", "--points", "empty")
        command("-m", "hashpose_ns.export.cli", "nerfstudio", "--load-config", config, *output)
    return json.loads(results.read_text())["results"]


def pairs(poses: Tensor, true: Tensor) -> dict[str, float]:
    """Angles between the turns of pairs of cameras [n, 3, 4] and the true ones, in degrees."""
    turns, true_turns = (pair_rotations(each[:, :, :3].transpose(1, 2)) for each in (poses, true))
    errors = angles(turns, true_turns)
    return {"median": round(float(errors.quantile(0.5)), 2), "worst": round(float(errors.max()), 2)}


def draw(place: Path, starts: tuple[str, ...], path: Path) -> None:
    """Test views: true ones, and those of the fields after test-time optimisation, a row for each start."""
    views = range(0, TEST_VIEWS, 2)
    sheet = Image.new("RGB", (SIZE * len(views), SIZE * (1 + len(starts))), "white")
    for column, view in enumerate(views):
        for row, start in enumerate(starts):
            with Image.open(place / start / "renders" / f"eval_tto_img_{view:04}.png") as both:  # true, rendered
                sheet.paste(both.crop((0, 0, SIZE, SIZE)), (column * SIZE, 0))
                sheet.paste(both.crop((SIZE, 0, 2 * SIZE, SIZE)), (column * SIZE, (row + 1) * SIZE))
    sheet.save(path)


def end_to_end(args: Args, seed: int, views: int) -> list[dict[str, Any]]:
    """From photographs of an object to fields; a row for each start."""
    place = args.work / f"object{seed}_{views}"
    place.mkdir(parents=True, exist_ok=True)
    train, test, true = photographs(seed, views, place / "photographs")
    focal = SIZE / 2 / TANGENT
    lens = Lens(focal, focal, SIZE / 2, SIZE / 2, SIZE, SIZE)
    rows = []
    for start in args.starts:
        data = place / start / "data"
        if start == "true":
            poses = true
        else:
            found = place / f"{start}_poses"
            if not found.exists():
                weights = () if args.weights is None else ("--weights", args.weights)
                fov = 2 * torch.rad2deg(torch.atan(torch.tensor(TANGENT)))
                steps = ("--steps", "0") if start == "coarse" else ()
                words = ("--images", *train, "--output-dir", found, "--fov", f"{float(fov):.4f}", *weights, *steps)
                command("-m", "hashpose_ns.sparse_command.cli", "poses", *words)
            source = cameras_of_file(found / "transforms.json").camera_to_worlds
            to_found = align_poses(true[:views], source)
            poses = torch.cat([source, to_found.apply_to_poses(true[views:])])
        data.mkdir(parents=True, exist_ok=True)
        files = [path.resolve() for path in (*train, *test)]
        lists = {"train": files[:views], "val": files[views:], "test": files[views:]}
        write_transforms(data, poses, cameras_of([lens] * len(files)), files, "", split_lists=lists)
        result = field(place / start, data, args.iterations)
        refined = cameras_of_file(place / start / "refined" / "transforms.json")
        order = sorted(range(views), key=lambda i: refined.filenames[i].name)
        rows.append(
            {
                "object": seed,
                "views": views,
                "start": start,
                "steps": args.iterations,
                "pairs_before_deg": pairs(poses[:views], true[:views]),
                "pairs_after_deg": pairs(refined.camera_to_worlds[order], true[:views]),
                **{name: round(result[name], 4) for name in ("psnr_aligned", "psnr_tto", "ssim_tto") if name in result},
            }
        )
    return rows


def main(args: Args) -> None:
    """Scores, trains, writes."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    network, note = load_weights(args.weights)
    fields = [row for seed in args.objects for views in args.field_views for row in end_to_end(args, seed, views)]
    if fields:
        show("fields", fields)
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            place = args.work / f"object{args.objects[-1]}_{args.field_views[-1]}"
            draw(place, args.starts, args.output.with_suffix(".png"))
    families = ("articulated", "blobs") if args.scenes else ()
    scores = score_families(network, families, args.views, args.scenes, 5, 1, torch.device("cpu"))
    rows = [
        {"family": row["family"], "views": row["views"], "stage": stage, **values}
        for row in scores
        for stage, values in [("chance", row["chance"]), *((str(i), v) for i, v in enumerate(row["stages"]))]
    ]
    if rows:
        show("pairs of views", rows)
    log = [[json.loads(line) for line in path.read_text().splitlines()] for path in args.logs]
    write_record(args.output, weights=note, scores=scores, fields=fields, training=log)


if __name__ == "__main__":
    main(tyro.cli(Args))
