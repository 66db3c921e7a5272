"""Are photographs found in a trained field: iNeRF's protocol, no start at all, pictures of other scenes, and captures.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/localize.py --chair RUN/config.yml --fox RUN/config.yml \
        --data shared/data --output benchmarks/results/localize.json

Runs are trained from true poses with `--pipeline.model.camera-optimizer.mode off`: `chair` by hashpose-object on
chair_400 at half size, `fox` by hashpose-small on 40 of fox_270's images (every fifth left out, beginning with the
third by name). Errors are in the frame of the input: degrees between orientations, distance of the centres.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from record import Output, clock, show, write_record

from hashpose_ns.cameras.alignment import rotation_angle
from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.localize.api import Search
from hashpose_ns.localize.photographs import photograph_files
from hashpose_ns.localize.starts import KnownStarts
from hashpose_ns.photometry.localize import Localizer, SearchConfig, Start
from hashpose_ns.photometry.pixels import evenly_spaced
from nerfstudio.utils import poses as pose_utils


@dataclass
class Args(Output):
    """Settings."""

    data: Path = Path("../shared/data")
    """Folder of chair_400, fern_480 and fox_270."""
    chair: Path | None = None
    """config.yml of a run on the chair."""
    fox: Path | None = None
    """config.yml of a run on 40 images of the fox."""
    images: int = 5
    """Photographs that the protocol is run on."""
    starts: int = 5
    """Starts of each."""
    rays: int = SearchConfig.rays
    """Rays per photograph with gradients."""
    without_start: int = 20
    """Held-out photographs of the chair that are looked for without a start."""
    others: int = 10
    """Pictures of each other scene."""
    searches: tuple[tuple[str, int], ...] = (
        ("regions", 64),
        ("regions", 1),
        ("random", 64),
        ("random", 1),
        ("points", 64),
        ("points", 1),
    )
    """Pixels that are compared, and hypotheses, that the protocol is run with."""
    parts: tuple[str, ...] = ("capture", "without start", "protocol", "others")
    """What to measure. The record is written after each of them, and keeps what it holds of the others."""


def errors(pose: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Angle in degrees and distance of the centres."""
    turn = (pose[:, :3].T @ truth[:, :3])[None]
    return {
        "degrees": math.degrees(float(rotation_angle(turn)[0])),
        "distance": float((pose[:, 3] - truth[:, 3]).norm()),
    }


def disturbed(pose: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """iNeRF's start: turned about a random axis through the world's origin by U(-40, 40) degrees, then shifted by
    U(-.2, .2) along each axis of the world."""
    axis = torch.randn(3, generator=generator)
    angle = math.radians(40.0) * (2 * torch.rand(1, generator=generator) - 1)
    turn = exp_map_SE3(torch.cat([torch.zeros(3), angle * axis / axis.norm()])[None])[0]
    start = pose_utils.multiply(turn.to(pose), pose)
    start[:, 3] += 0.2 * (2 * torch.rand(3, generator=generator) - 1).to(pose)
    return start


def shares(found: list[dict[str, float]]) -> dict[str, float]:
    """iNeRF's scores, in percent, and medians."""
    return {
        "under 5 degrees": 100 * statistics.fmean(each["degrees"] < 5 for each in found),
        "under .05": 100 * statistics.fmean(each["distance"] < 0.05 for each in found),
        "median degrees": statistics.median(each["degrees"] for each in found),
        "median distance": statistics.median(each["distance"] for each in found),
    }


def protocol(search: Search, args: Args, done: Callable[[list], None]) -> None:
    """iNeRF's protocol by strategies and hypotheses, at equal rays; `done` is told of what there is so far."""
    scene, rows = search.scene, []
    truth = scene.aligned_held_out_poses()
    indices = evenly_spaced(len(truth), args.images)
    starts = []
    for index in indices:
        generator = torch.Generator().manual_seed(index)
        starts += [(index, disturbed(truth[index], generator)) for _ in range(args.starts)]
    before = [errors(start, truth[index]) for index, start in starts]
    rows.append({"rays from": "(the starts)", "hypotheses": None, **shares(before)})
    for strategy, hypotheses in args.searches:
        config = SearchConfig(strategy=strategy, hypotheses=hypotheses, rays=args.rays)  # type: ignore[arg-type]
        localizer, found, verdicts = Localizer(scene, config), [], []
        begin = clock()
        for index, start in starts:
            result = localizer.localize(scene.held_out, [index], [Start(start)])[0]
            found.append(errors(result.pose, truth[index]))
            verdicts.append(search.acceptance.found(result))
        right = [each["degrees"] < 5 and each["distance"] < 0.2 for each in found]
        rows.append(
            {
                "rays from": strategy,
                "hypotheses": hypotheses,
                **shares(found),
                "called found": sum(verdicts),
                "found and wrong": sum(verdict and not good for verdict, good in zip(verdicts, right)),
                "seconds an image": (clock() - begin) / len(starts),
            }
        )
        show("iNeRF's protocol", rows[-1:])
        done(rows)


def without_start(search: Search, args: Args) -> dict[str, Any]:
    """Held-out photographs of the chair, of which nothing is known."""
    scene = search.scene
    truth = scene.aligned_held_out_poses()
    localizer = Localizer(scene, SearchConfig(rays=args.rays))
    begin, found, verdicts = clock(), [], []
    indices = evenly_spaced(len(truth), args.without_start)
    for index in indices:
        result = localizer.localize(scene.held_out, [index])[0]
        found.append({**errors(result.pose, truth[index]), "residual": result.residual, "agreement": result.agreement})
        verdicts.append(search.acceptance.found(result))
    right = [each["degrees"] < 5 and each["distance"] < 0.2 for each in found]
    return {
        "photographs": len(indices),
        **shares(found),
        "called found": sum(verdicts),
        "found and wrong": sum(verdict and not good for verdict, good in zip(verdicts, right)),
        "seconds an image": (clock() - begin) / len(indices),
        "each": found,
    }


def pictures_of(folder: Path, shape: tuple[int, int], count: int, target: Path) -> list[Path]:
    """Pictures cropped to the shape of a run's images, on white, at its size."""
    paths = [path for path in photograph_files([folder])[0] if "depth" not in path.name and "normal" not in path.name]
    written = []
    for number in evenly_spaced(len(paths), count):
        image = Image.open(paths[number]).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        scale = min(image.width / shape[0], image.height / shape[1])
        width, height = round(shape[0] * scale), round(shape[1] * scale)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        path = target / f"{folder.name}_{number:03d}.png"
        image.crop((left, top, left + width, top + height)).resize(shape, Image.Resampling.LANCZOS).save(path)
        written.append(path)
    return written


def looked_for(search: Search, paths: list[Path]) -> list[Any]:
    """Results for photographs, of which nothing is known."""
    filenames, names = photograph_files(paths)
    nothing = KnownStarts.none(len(names))
    return search.localize(search.photographs(filenames, nothing), names, nothing)


def others(search: Search, scene: str, folders: list[Path], args: Args) -> list[dict[str, Any]]:
    """Pictures of other scenes, cropped to the shape of this one's."""
    cameras, rows = search.scene.train_outputs.cameras, []
    shape = int(cameras.width[0]), int(cameras.height[0])
    for folder in folders:
        with tempfile.TemporaryDirectory() as target:
            begin = clock()
            results = looked_for(search, pictures_of(folder, shape, args.others, Path(target)))
        rows.append(
            {
                "field": scene,
                "pictures of": folder.parts[-2] if folder.name in ("images", "test") else folder.name,
                "pictures": len(results),
                "called found": sum(result.found for result in results),
                "least residual": min(result.residual for result in results),
                "limit": search.acceptance.limit,
                "seconds an image": (clock() - begin) / len(results),
            }
        )
        show("Pictures of other scenes", rows[-1:])
    return rows


def capture(search: Search, args: Args) -> dict[str, Any]:
    """The fox's images that were left out, against COLMAP's poses."""
    folder = args.data / "fox_270"
    frames = sorted(json.loads((folder / "transforms.json").read_text())["frames"], key=lambda each: each["file_path"])
    left_out = [frame for number, frame in enumerate(frames) if number % 5 == 2]
    begin = clock()
    results = looked_for(search, [folder / frame["file_path"] for frame in left_out])
    seconds = (clock() - begin) / len(results)
    centers = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)[:, :3, 3]
    by_name = {Path(frame["file_path"]).name: frame for frame in left_out}
    each = []
    for result in results:
        truth = torch.tensor(by_name[result.filename.name]["transform_matrix"], dtype=torch.float64)[:3]
        found = errors(result.camera_to_world, truth)
        each.append(
            {"name": result.filename.name, **found, "residual": result.residual, "agreement": result.agreement,
             "found": result.found, "std degrees": result.rotation_std_deg, "std distance": result.translation_std}
        )  # fmt: skip
    return {
        "photographs": len(each),
        "called found": sum(one["found"] for one in each),
        "median degrees": statistics.median(one["degrees"] for one in each),
        "worst degrees": max(one["degrees"] for one in each),
        "median distance": statistics.median(one["distance"] for one in each),
        "worst distance": max(one["distance"] for one in each),
        "cameras' RMS distance from their centre": float((centers - centers.mean(0)).square().sum(-1).mean().sqrt()),
        "seconds an image": seconds,
        "each": each,
    }


def main(args: Args) -> None:
    """Measures what runs were given for."""
    record: dict[str, Any] = {}
    if args.output is not None and args.output.exists():
        record = json.loads(args.output.read_text())["measured"]

    def write(name: str, content: Any) -> None:
        record[name] = content
        write_record(args.output, measured=record)

    chair = None if args.chair is None else Search(args.chair, SearchConfig(rays=args.rays))
    fox = None if args.fox is None else Search(args.fox, SearchConfig(rays=args.rays))
    fern, chairs, foxes = args.data / "fern_480" / "images", args.data / "chair_400" / "test", args.data / "fox_270"
    record["rays"] = args.rays
    for name, search in (("chair", chair), ("fox", fox)):
        if search is not None:
            limits = search.acceptance
            record[f"{name}: training residuals"] = {"median": limits.typical, "limit": limits.limit}
    if fox is not None and "capture" in args.parts:
        write("fox, 10 left out", capture(fox, args))
        show("fox", [record["fox, 10 left out"]], leave_out=["each"])
    if chair is not None and "without start" in args.parts:
        write("chair, no start", without_start(chair, args))
        show("chair, no start", [record["chair, no start"]], leave_out=["each"])
    if chair is not None and "protocol" in args.parts:
        protocol(chair, args, lambda rows: write("protocol", rows))
    if chair is not None and "others" in args.parts:
        write("other scenes, chair", others(chair, "chair", [fern, foxes / "images"], args))
    if fox is not None and "others" in args.parts:
        write("other scenes, fox", others(fox, "fox", [chairs, fern], args))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args))
