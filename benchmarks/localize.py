"""Are photographs found in a trained field: iNeRF's protocol, no start at all, pictures of other scenes, and captures.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/localize.py --data ../shared/data --work WORK \
        --output benchmarks/results/localize.json

Fields are trained first, where WORK has none, from true poses with `camera-optimizer.mode off`: objects by
hashpose-object (chair and lego at half size, demo as it is), captures by hashpose-small. Held out are the test images
of the objects, every eighth image of fern and flower, and every fifth of the fox. Each case is written when it is done,
and one that the record has is not measured again. Errors are in the frame of the input: degrees between orientations,
distance of the centres.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from record import Output, clock, show, write_record

from hashpose_ns.cameras.alignment import align_poses, rotation_angle
from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig
from hashpose_ns.demo import DEMO_SCENE
from hashpose_ns.localize.api import Search
from hashpose_ns.localize.photographs import photograph_files
from hashpose_ns.localize.starts import KnownStarts
from hashpose_ns.matches.config import FeatureConfig
from hashpose_ns.matches.features import find_matches, pairs_to_match
from hashpose_ns.matches.sfm import structure_incremental
from hashpose_ns.photometry.localize import Localizer, SearchConfig, Start
from hashpose_ns.photometry.pixels import evenly_spaced
from hashpose_ns.photometry.scores import image_error
from hashpose_ns.runs.config import read_config
from hashpose_ns.runs.files import last_step
from nerfstudio.utils import poses as pose_utils

FORWARD_FACING = ("fern", "flower")
"""Scenes whose starts are shifted by half as much."""

WITHOUT_START = ("chair",)
"""Scenes whose photographs are looked for without a start."""

OTHERS = (("chair", "fern"), ("chair", "fox"), ("chair", "lego"), ("fern", "fox"), ("fern", "chair"))
"""Which scene is searched for pictures of which."""

OTHERS_AT_ONCE = 5
"""Pictures of each that are looked for before those of the next."""

RIGHT = {"degrees": 5.0, "distance": 0.2}
"""Errors from which on a photograph that is called found is called wrong."""


@dataclass
class Args(Output):
    """Settings."""

    data: Path = Path("../shared/data")
    """Folder of chair_400, lego_400, fern_480, flower_504 and fox_270."""
    work: Path = Path("localize_work")
    """Where prepared scenes and trained runs are."""
    scenes: tuple[str, ...] = ("chair", "lego", "fern", "flower", "demo")
    """Scenes that the protocol is run on."""
    images: int = 5
    """Photographs of each, at most."""
    starts: int = 5
    """Starts of each photograph where hypotheses are compared."""
    other_starts: int = 1
    """Starts of each photograph where strategies are compared."""
    rays: int = SearchConfig.rays
    """Rays per photograph with gradients."""
    without_start: int = 20
    """Held-out photographs of the chair that are looked for without a start."""
    others: int = 10
    """Pictures of each other scene."""
    parts: tuple[str, ...] = (
        *("others", "without start", "capture", "command"),
        *("without matches", "hypotheses", "one", "strategies", "more images"),
    )
    """What to measure, in this order."""
    steps: int = 1000
    """Of the fields of iNeRF's table on fern."""
    minutes: float = math.inf
    """CPU minutes after which to stop between two cases."""


FERN_SPREAD = 0.275
"""RMS distance of fern's cameras from their centre, in LLFF's units."""


LENS = ("fl_x", "fl_y", "cx", "cy", "w", "h")

SHARES = (0.25, 0.5, 1.0, 0.1)
"""Of fern's training images, which fields are trained on before others join."""


# -- scenes and runs ---------------------------------------------------------------------------------------------------


def write_capture(scene: str, data: Path, folder: Path) -> None:
    """A capture as a transforms.json with fixed splits. Fern in LLFF's units, in which the nearest depth is 4/3 and the
    average camera the origin; flower, whose bounds are not there, in such that its cameras lie as far apart as fern's;
    the fox in its own."""
    frames: list[dict[str, Any]] = []
    if scene == "fern":
        outputs = LLFFDataParserConfig(data=data / "fern_480", eval_mode="all").setup().get_dataparser_outputs("train")
        camera, files = outputs.cameras, outputs.image_filenames
        poses = camera.camera_to_worlds.double().numpy()
        names = ("fl_x", "fx"), ("fl_y", "fy"), ("cx", "cx"), ("cy", "cy"), ("w", "width"), ("h", "height")
        lens = {name: float(getattr(camera, field)[0]) for name, field in names}
    else:
        source = data / {"flower": "flower_504", "fox": "fox_270"}[scene]
        content = json.loads((source / "transforms.json").read_text())
        lens = {key: value for key, value in content.items() if key != "frames"}
        frames = sorted(content["frames"], key=lambda each: each["file_path"])
        files = [source / each["file_path"] for each in frames]
        poses = np.array([each["transform_matrix"] for each in frames], dtype=float)[:, :3]
    if scene == "flower":
        spread = FERN_SPREAD / np.sqrt(np.square(poses[..., 3] - poses[..., 3].mean(0)).sum(-1).mean())
        poses[..., 3] = spread * (poses[..., 3] - poses[..., 3].mean(0))
    every, first = (5, 2) if scene == "fox" else (8, 0)
    paths = [Path(os.path.relpath(file, folder)).as_posix() for file in files]
    held = [path for number, path in enumerate(paths) if number % every == first]
    frames = [
        {**(frames[number] if frames else {}), "file_path": path, "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]}
        for number, (path, pose) in enumerate(zip(paths, poses))
    ]
    splits = {
        "train_filenames": [path for path in paths if path not in held],
        "val_filenames": held,
        "test_filenames": held,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps({**lens, **splits, "frames": frames}, indent=1))


def write_some(data: Path, work: Path, folder: Path, names: list[str], found: dict[str, Any]) -> None:
    """Fern at half size as `write_capture` has it, with some of its training images only, and with poses of others that
    were found.

    Args:
        names: training images that are there, at their true poses.
        found: poses of others by name.
    """
    whole = work / "scenes" / "fern"
    if not whole.exists():
        write_capture("fern", data, whole)
    content = json.loads((whole / "transforms.json").read_text())
    images = work / "scenes" / "fern_small"
    images.mkdir(parents=True, exist_ok=True)
    frames, trained, held = [], [], []
    for frame in content["frames"]:
        file = whole / frame["file_path"]
        small = images / file.name
        if not small.exists():
            with Image.open(file) as image:
                image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.BOX).save(small)
        path = Path(os.path.relpath(small, folder)).as_posix()
        if frame["file_path"] in content["test_filenames"]:
            held.append(path)
        elif file.name in names or file.name in found:
            trained.append(path)
        else:
            continue
        pose = frame["transform_matrix"] if file.name not in found else found[file.name]
        frames.append({"file_path": path, "transform_matrix": pose})
    lens = {key: content[key] // 2 if key in ("w", "h") else content[key] / 2 for key in LENS}
    splits = {"train_filenames": trained, "val_filenames": held, "test_filenames": held}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps({**lens, **splits, "frames": frames}, indent=1))


def train(scene: str, data: Path, work: Path, steps: int | None = None) -> Path:
    """The config.yml of a run from true poses, trained if it is not there.

    Args:
        steps: of a scene whose folder is there; as the method has it by default.
    """
    method = "hashpose-small" if steps or scene in (*FORWARD_FACING, "fox") else "hashpose-object"
    config = work / "runs" / scene / method / "run" / "config.yml"
    if is_trained(config):
        return config
    never = "--steps-per-eval-batch 0 --steps-per-eval-image 0 --steps-per-eval-all-images 0 --guard.mode off"
    poses = "--recovery.at --guard.fallback-at --matches.start off --pipeline.model.camera-optimizer.mode off"
    command = [
        *(str(Path(sys.executable).parent / "ns-train"), method, "--output-dir", str(work / "runs")),
        *("--experiment-name", scene, "--timestamp", "run", "--vis", "tensorboard", *never.split(), *poses.split()),
        *("--steps-per-save", "100000", "--pipeline.held-out-rays", "0"),
    ]
    if method == "hashpose-object":
        if scene != "demo":
            command += ["--pipeline.datamanager.camera-res-scale-factor", "0.5"]
        folder = DEMO_SCENE if scene == "demo" else data / f"{scene}_400"
        command += ["blender-data", "--data", str(folder)]
    else:
        folder = work / "scenes" / scene
        if steps:
            command += ["--max-num-iterations", str(steps)]
        else:
            write_capture(scene, data, folder)
        command += ["nerfstudio-data", "--data", str(folder), "--downscale-factor", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return config


def is_trained(config: Path) -> bool:
    """Whether a run is there, and came to its end: one that was stopped has a checkpoint as well."""
    step = last_step(config.parent)
    return step is not None and step + 1 == read_config(config).max_num_iterations


# -- errors ------------------------------------------------------------------------------------------------------------


def errors(pose: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Angle in degrees and distance of the centres."""
    turn = (pose[:, :3].T @ truth[:, :3])[None]
    return {
        "degrees": round(math.degrees(float(rotation_angle(turn)[0])), 4),
        "distance": round(float((pose[:, 3] - truth[:, 3]).norm()), 5),
    }


def disturbed(pose: torch.Tensor, shift: float, generator: torch.Generator) -> torch.Tensor:
    """iNeRF's start: turned about a random axis through the world's origin by U(-40, 40) degrees, then shifted by
    U(-shift, shift) along each axis of the world."""
    axis = torch.randn(3, generator=generator)
    angle = math.radians(40.0) * (2 * torch.rand(1, generator=generator) - 1)
    turn = exp_map_SE3(torch.cat([torch.zeros(3), angle * axis / axis.norm()])[None])[0]
    start = pose_utils.multiply(turn.to(pose), pose)
    start[:, 3] += shift * (2 * torch.rand(3, generator=generator) - 1).to(pose)
    return start


def shares(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """iNeRF's scores, in percent, and the verdicts."""
    row: dict[str, Any] = {
        "cases": len(cases),
        "under 5 degrees": round(100 * statistics.fmean(each["degrees"] < 5 for each in cases), 1),
        "under .05": round(100 * statistics.fmean(each["distance"] < 0.05 for each in cases), 1),
        "median degrees": statistics.median(each["degrees"] for each in cases),
        "median distance": statistics.median(each["distance"] for each in cases),
    }
    if "found" in cases[0]:
        wrong = [each for each in cases if any(each[name] >= limit for name, limit in RIGHT.items())]
        row["called found"] = sum(each["found"] for each in cases)
        row["found and wrong"] = sum(each["found"] for each in wrong)
        row["seconds an image"] = round(statistics.fmean(each["seconds"] for each in cases), 2)
    return row


# -- what is measured --------------------------------------------------------------------------------------------------


class Benchmark:
    """The record, and what it still lacks."""

    def __init__(self, args: Args) -> None:
        self.args = args
        self.record: dict[str, Any] = {}
        if args.output is not None and args.output.exists():
            self.record = json.loads(args.output.read_text())["measured"]
        self.record["rays"] = args.rays
        self.searches: dict[str, Search] = {}

    def search(self, scene: str) -> Search:
        """A scene's run, trained and loaded when first asked for."""
        if scene not in self.searches:
            self.searches.clear()  # one field at a time
            self.searches[scene] = Search(
                train(scene, self.args.data, self.args.work), SearchConfig(rays=self.args.rays)
            )
            limits = self.searches[scene].acceptance
            self.record.setdefault("training residuals", {})[scene] = {"median": limits.typical, "limit": limits.limit}
        return self.searches[scene]

    def truth(self, scene: str) -> torch.Tensor:
        """Poses of the held-out images in the frame of the input, float64."""
        search = self.search(scene)
        return search.given.poses(search.scene.held_out_outputs)

    def write(self) -> None:
        """Writes the record with its summaries."""
        rows = [
            {"scene": scene, "rays from": strategy, "hypotheses": int(hypotheses), **shares(cases)}
            for name, cases in self.record.get("protocol, each", {}).items()
            if cases
            for scene, strategy, hypotheses in [name.split("/")]
        ]
        if rows:
            self.record["protocol"] = rows
        if "other scenes, each" in self.record:
            self.record["other scenes"] = [
                {
                    "pictures": name,
                    "cases": len(each),
                    "called found": sum(one["found"] for one in each),
                    "least residual": min(one["residual"] for one in each),
                    "limit": each[0]["limit"],
                    "most matches": max(one["matches"] for one in each),
                    "seconds an image": round(statistics.fmean(one["seconds"] for one in each), 2),
                }
                for name, each in self.record["other scenes, each"].items()
                if each
            ]
        if "without a start, each" in self.record:
            self.record["without a start"] = [
                {"scene": scene, **shares(cases)}
                for scene, cases in self.record["without a start, each"].items()
                if cases
            ]
        write_record(self.args.output, measured=self.record)

    # Each of these yields after every case.

    def protocol(self, scene: str, strategy: str, hypotheses: int, starts: int) -> Iterator[None]:
        """iNeRF's protocol: by one search of colours alone or, for the strategy `command`, as the command does it, with
        matches and a second attempt."""
        cases = self.record.setdefault("protocol, each", {}).setdefault(f"{scene}/{strategy}/{hypotheses}", [])
        command = strategy == "command"
        done = {(case["image"], case["start"]) for case in cases}
        search, truth = self.search(scene), self.truth(scene)
        shift = 0.1 if scene in FORWARD_FACING else 0.2
        rays: Any = "regions" if command else strategy
        localizer = Localizer(search.scene, SearchConfig(strategy=rays, hypotheses=hypotheses, rays=self.args.rays))
        look = search.found if command else localizer.localize
        before = self.record.setdefault("starts", {}).setdefault(scene, [])
        for index in evenly_spaced(len(truth), min(self.args.images, len(truth))):
            generator = torch.Generator().manual_seed(index)
            for number in range(starts):
                start = disturbed(truth[index], shift, generator)
                where = {"image": index, "start": number}
                if not any(case["image"] == index and case["start"] == number for case in before):
                    before.append({**where, **errors(start, truth[index])})
                if (index, number) in done:
                    continue
                begin = clock()
                found = look(search.scene.held_out, [index], [Start(search.to_learned(start[None])[0])])
                cases.append({**where, **self._outcome(search, found[0], truth[index], begin)})
                yield

    def _outcome(self, search: Search, found: Any, truth: torch.Tensor, begin: float) -> dict[str, Any]:
        return {
            **errors(search.to_input(found.pose[None])[0], truth),
            "residual": round(found.residual, 4),
            "agreement": round(found.agreement, 3),
            "found": search.acceptance.found(found),
            "matches": found.matches,
            "seconds": round(clock() - begin, 2),
        }

    def without_start(self, scene: str, matches: bool) -> Iterator[None]:
        """Held-out photographs, of which nothing is known, with and without matches."""
        name = scene if matches else f"{scene}, no matches"
        cases = self.record.setdefault("without a start, each", {}).setdefault(name, [])
        search, truth = self.search(scene), self.truth(scene)
        if not matches:
            search = Search(search.scene, SearchConfig(rays=self.args.rays, matches=False))
        for index in evenly_spaced(len(truth), self.args.without_start):
            if not any(case["image"] == index for case in cases):
                begin = clock()
                found = search.found(search.scene.held_out, [index], [Start()])[0]
                cases.append({"image": index, **self._outcome(search, found, truth[index], begin)})
                yield

    def others(self, scene: str, pictures: str, numbers: range) -> Iterator[None]:
        """Some of the pictures of another scene, cropped to the shape of this one's, on white."""
        each = self.record.setdefault("other scenes, each", {}).setdefault(f"{pictures} in {scene}", [])
        wanted = [number for number in numbers if not any(one["picture"] == number for one in each)]
        if not wanted:
            return
        search = self.search(scene)
        folders = {
            "fern": "fern_480/images",
            "chair": "chair_400/test",
            "fox": "fox_270/images",
            "lego": "lego_400/test",
        }
        cameras = search.scene.train_outputs.cameras
        shape = int(cameras.width[0]), int(cameras.height[0])
        target = self.args.work / "scenes" / f"{pictures}_in_{scene}"
        target.mkdir(parents=True, exist_ok=True)
        paths = pictures_of(self.args.data / folders[pictures], shape, self.args.others, target)
        for number in wanted:
            begin = clock()
            result = looked_for(search, [paths[number]])[0]
            each.append(
                {
                    "picture": number,
                    "residual": round(result.residual, 4),
                    "limit": round(search.acceptance.limit, 4),
                    "agreement": round(result.agreement, 3),
                    "matches": result.matches,
                    "found": result.found,
                    "seconds": round(clock() - begin, 2),
                }
            )
            yield

    def capture(self) -> Iterator[None]:
        """The fox's images that were left out, against COLMAP's poses."""
        if "fox, 10 left out" in self.record:
            return
        search, truth = self.search("fox"), self.truth("fox")
        held_out = search.scene.held_out.image_filenames
        begin = clock()
        results = looked_for(search, held_out)
        seconds = (clock() - begin) / len(results)
        centers = search.given.source.camera_to_worlds[..., 3]
        each = [
            {"name": result.filename.name, **errors(result.camera_to_world, truth[row]), "residual": result.residual,
             "agreement": result.agreement, "found": result.found, "std degrees": result.rotation_std_deg,
             "std distance": result.translation_std}
            for row, result in enumerate(results)
        ]  # fmt: skip
        self.record["fox, 10 left out"] = {
            "photographs": len(each),
            "called found": sum(one["found"] for one in each),
            "median degrees": statistics.median(one["degrees"] for one in each),
            "worst degrees": max(one["degrees"] for one in each),
            "median distance": statistics.median(one["distance"] for one in each),
            "worst distance": max(one["distance"] for one in each),
            "cameras' RMS distance from their centre": float(
                (centers - centers.mean(0)).square().sum(-1).mean().sqrt()
            ),
            "seconds an image": seconds,
            "each": each,
        }
        yield

    def registered(self) -> Iterator[None]:
        """The same ten by COLMAP's incremental mapper: all fifty images, the forty aligned with the given poses."""
        if "fox, 10 left out, pycolmap" in self.record:
            return
        search, truth = self.search("fox"), self.truth("fox")
        outputs = search.scene.train_outputs, search.scene.held_out_outputs
        files = [Path(path) for part in outputs for path in part.image_filenames]
        cameras = outputs[0].cameras[torch.tensor([0] * len(files))]  # one camera took them all
        begin = clock()
        pairs = pairs_to_match(None, len(files), FeatureConfig())
        structure = structure_incremental(find_matches(files, cameras, None, pairs, FeatureConfig()))
        assert structure is not None
        seconds, trained = clock() - begin, len(files) - len(truth)
        given = torch.cat([search.given.poses(outputs[0]), truth])
        poses, placed = torch.from_numpy(structure.camera_to_worlds), structure.placed
        known = [row for row in range(trained) if placed[row]]
        aligned = align_poses(poses[known], given[known]).apply_to_poses(poses)
        each = [errors(aligned[row], given[row]) for row in range(trained, len(files)) if placed[row]]
        self.record["fox, 10 left out, pycolmap"] = {
            "photographs": len(truth),
            "registered": len(each),
            "median degrees": statistics.median(one["degrees"] for one in each),
            "worst degrees": max(one["degrees"] for one in each),
            "median distance": statistics.median(one["distance"] for one in each),
            "worst distance": max(one["distance"] for one in each),
            "seconds of all": round(seconds, 1),
            "each": each,
        }
        yield

    def more_images(self) -> Iterator[None]:
        """iNeRF's table on fern: PSNR of the held-out images of a field from a share of the training images, and of one
        from these and what was found of the others: trained anew, and as `--add` goes on."""
        args, rows = self.args, self.record.setdefault("fern, more images", {})
        content = json.loads((args.work / "scenes" / "fern" / "transforms.json").read_text())
        names = [Path(path).name for path in content["train_filenames"]]
        for share in SHARES:
            chosen = [names[row] for row in evenly_spaced(len(names), round(share * len(names)))]
            others = [name for name in names if name not in chosen]
            scene = f"fern_{round(100 * share)}"
            row = rows.setdefault(str(share), {"images": len(chosen), "steps": args.steps})
            if "PSNR" not in row:
                write_some(args.data, args.work, args.work / "scenes" / scene, chosen, {})
                row["PSNR"] = held_out_psnr(train(scene, args.data, args.work, args.steps))
                yield
            if others and "found" not in row:
                base = train(scene, args.data, args.work, args.steps)
                target = args.work / "found" / scene
                small = [str(args.work / "scenes" / "fern_small" / name) for name in others]
                command = [sys.executable, "-m", "hashpose_ns.localize.cli", "--load-config", str(base), "--images"]
                options = ["--overlay-size", "0", "--overwrite", "True", "--add", "True", "--output-dir", str(target)]
                code = subprocess.run([*command, *small, *options]).returncode
                file = target / "transforms.json"
                frames = json.loads(file.read_text())["frames"] if code == 0 else []
                poses = {Path(frame["file_path"]).name: frame["transform_matrix"] for frame in frames}
                true = {Path(frame["file_path"]).name: frame["transform_matrix"] for frame in content["frames"]}
                off = [errors(*(torch.tensor(each[name])[:3] for each in (poses, true))) for name in poses]
                row.update({"looked for": len(others), "found": len(poses), "errors": off})
                if poses:
                    row["PSNR, --add"] = held_out_psnr(base.parent.with_name("run-added") / "config.yml")
                yield
            if row.get("found") and "PSNR, trained anew" not in row:
                frames = json.loads((args.work / "found" / scene / "transforms.json").read_text())["frames"]
                poses = {Path(frame["file_path"]).name: frame["transform_matrix"] for frame in frames}
                write_some(args.data, args.work, args.work / "scenes" / f"{scene}_more", chosen, poses)
                row["PSNR, trained anew"] = held_out_psnr(train(f"{scene}_more", args.data, args.work, args.steps))
                yield

    def all(self) -> Iterator[None]:
        """Everything that is asked for."""
        args = self.args
        for part in args.parts:
            if part == "capture":
                yield from self.capture()
                yield from self.registered()
            if part == "without start":
                for scene in WITHOUT_START:
                    yield from self.without_start(scene, matches=True)
            if part == "without matches":
                yield from self.without_start("chair", matches=False)
            if part == "others":
                for begin in range(0, args.others, OTHERS_AT_ONCE):
                    for scene, pictures in OTHERS:
                        numbers = range(begin, min(begin + OTHERS_AT_ONCE, args.others))
                        yield from self.others(scene, pictures, numbers)
            if part in ("command", "hypotheses", "one"):
                strategy = "command" if part == "command" else "regions"
                for scene in args.scenes:
                    yield from self.protocol(scene, strategy, 1 if part == "one" else 64, args.starts)
            if part == "more images":
                yield from self.more_images()
            if part == "strategies":
                for scene in args.scenes:
                    for strategy in ("random", "points"):
                        for hypotheses in (64, 1):
                            yield from self.protocol(scene, strategy, hypotheses, args.other_starts)


def held_out_psnr(config: Path) -> float:
    """Mean over the held-out images, at their true poses, of random pixels."""
    scene = Search(config).scene
    poses = scene.aligned_held_out_poses()
    mse = [image_error(scene.renderer, scene.held_out, row, pose, 20_000) for row, pose in enumerate(poses)]
    return round(statistics.fmean(-10.0 * math.log10(each) for each in mse if each), 2)


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
        path = target / f"{number:03d}.png"
        image.crop((left, top, left + width, top + height)).resize(shape, Image.Resampling.LANCZOS).save(path)
        written.append(path)
    return written


def looked_for(search: Search, paths: list[Path]) -> list[Any]:
    """Results for photographs, of which nothing is known."""
    filenames, names = photograph_files(paths)
    nothing = KnownStarts.none(len(names))
    return search.localize(search.photographs(filenames, nothing), names, nothing)


def main(args: Args) -> None:
    """Measures what the record lacks."""
    benchmark, begin = Benchmark(args), clock()
    for _ in benchmark.all():
        benchmark.write()
        if clock() - begin > 60 * args.minutes:
            sys.exit(3)
    benchmark.write()
    show("iNeRF's protocol", benchmark.record.get("protocol", []))
    show("No start", benchmark.record.get("without a start", []))
    show(
        "Pictures of other scenes",
        benchmark.record.get("other scenes", []),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args))
