"""When can structure from motion be believed? Cases with known poses, what the gate sees of each, and what is true.

    OMP_NUM_THREADS=1 python benchmarks/match_gate.py --data DATA --output benchmarks/results/match_gate.json

A case is a scene, some of its views (all, far apart, or neighbours), a size or a blur of the pictures, and noise on the
poses by BARF's protocol. Cases of chair, fern and fox design the gate; those of lego and flower test it.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image, ImageFilter
from record import Output, write_record

from hashpose_ns.cameras.alignment import pose_errors
from hashpose_ns.cameras.perturbation import PerturbationConfig, identity_poses, perturb_poses
from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig
from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.matches.features import find_matches, pairs_to_match
from hashpose_ns.matches.start import start_from_matches
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig


@dataclass
class Args(Output):
    """Settings."""

    data: Path = Path("../shared/data")
    """Folder of the scenes."""
    scenes: tuple[str, ...] = ("chair", "fern", "fox", "lego", "flower")
    """Scenes to take cases of."""
    only: str = ""
    """Part of the names of cases to try; all without it."""


@dataclass
class Case:
    """One start of one capture."""

    scene: str
    views: int = 0
    """Number of views; 0 takes all."""
    spread: str = "far"
    """`far`: each view as far from the others as it can be; `near`: neighbours."""
    noise: float = 0.15
    """Of the poses, in radians and scene units; negative: all unknown."""
    scale: float = 1.0
    """Of the pictures' size."""
    blur: float = 0.0
    """Standard deviation of a Gaussian blur, in pixels."""
    seed: int = 0
    """Of the noise."""
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        parts = [self.scene, f"{self.views or 'all'} {self.spread}" if self.views else "all", f"noise {self.noise:g}"]
        parts += [f"x{self.scale:g}"] if self.scale != 1 else []
        parts += [f"blur {self.blur:g}"] if self.blur else []
        parts += [f"seed {self.seed}"] if self.seed else []
        return ", ".join(parts)


def cases(scene: str) -> list[Case]:
    """All cases of a scene."""
    made = [Case(scene, noise=noise) for noise in (0.0, 0.03, 0.15, 0.3, -1.0)] + [Case(scene, seed=1)]
    if scene in ("chair", "lego"):
        made += [Case(scene, views=views) for views in (50, 25, 12, 9, 6)]
        made += [Case(scene, views=25, seed=1), Case(scene, views=25, noise=0.0), Case(scene, views=12, noise=0.0)]
        made += [Case(scene, views=25, noise=0.03), Case(scene, views=12, noise=0.03)]
        made += [Case(scene, views=views, spread="near") for views in (25, 9)]
        made += [Case(scene, scale=0.5), Case(scene, scale=0.25), Case(scene, scale=0.25, noise=0.0)]
        made += [Case(scene, blur=2.0), Case(scene, blur=2.0, noise=0.0)]
    else:
        made += [Case(scene, views=views) for views in (9, 5, 3)] + [Case(scene, views=5, spread="near")]
        made += [Case(scene, scale=0.5), Case(scene, scale=0.25), Case(scene, scale=0.25, noise=0.0)]
        made += [Case(scene, blur=3.0), Case(scene, blur=3.0, noise=0.0), Case(scene, views=9, noise=0.0)]
    return made


def load(scene: str, data: Path) -> tuple[list[Path], Cameras]:
    """Training images and their true cameras."""
    if scene in ("chair", "lego"):
        config: Any = BlenderDataParserConfig(data=data / f"{scene}_400")
    elif scene == "fern":
        config = LLFFDataParserConfig(data=data / "fern_480")
    else:
        folder = {"fox": "fox_270", "flower": "flower_504"}[scene]
        config = NerfstudioDataParserConfig(data=data / folder, load_3D_points=False)
    outputs = config.setup().get_dataparser_outputs("train")
    return [Path(name) for name in outputs.image_filenames], outputs.cameras


def chosen(cameras: Cameras, case: Case) -> list[int]:
    """Indices of a case's views."""
    if not case.views or case.views >= len(cameras):
        return list(range(len(cameras)))
    centers = cameras.camera_to_worlds[:, :, 3]
    if case.spread == "near":
        return sorted((centers - centers[0]).norm(dim=1).argsort()[: case.views].tolist())
    picked = [0]
    while len(picked) < case.views:
        picked.append(int(torch.cdist(centers, centers[picked]).min(dim=1).values.argmax()))
    return sorted(picked)


def prepared(files: list[Path], cameras: Cameras, case: Case, folder: Path) -> tuple[list[Path], Cameras]:
    """The case's images, made smaller or blurred in a folder."""
    index = chosen(cameras, case)
    files, cameras = [files[i] for i in index], cameras[torch.tensor(index)]
    if case.scale == 1 and not case.blur:
        return files, cameras
    made = []
    for number, file in enumerate(files):
        with Image.open(file) as opened:
            picture: Image.Image = opened.copy()
        if case.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(case.blur))
        if case.scale != 1:
            size = round(picture.width * case.scale), round(picture.height * case.scale)
            picture = picture.resize(size, Image.Resampling.BOX)
        made.append(folder / f"{number:04d}.png")
        picture.save(made[-1])
    if case.scale != 1:
        cameras.rescale_output_resolution(case.scale)
    return made, cameras


def errors(poses: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Mean, median and worst rotation error in degrees, and centres' in scene units."""
    found = pose_errors(poses, reference).summary()
    return {name: round(value, 5) for name, value in found.items() if name.startswith(("rotation", "center"))}


def run(case: Case, data: Path) -> dict[str, Any]:
    """One case: what is true, and what the gate saw and said."""
    with tempfile.TemporaryDirectory() as folder:
        files, cameras = prepared(*load(case.scene, data), case, Path(folder))
        reference = cameras.camera_to_worlds.double()
        if case.noise < 0:
            given = identity_poses(len(reference)).double()
        else:
            noise = PerturbationConfig(rotation=case.noise, translation=case.noise, seed=case.seed)
            given = perturb_poses(reference.float(), noise).double() if case.noise else reference
        config = MatchConfig(start="auto")
        begin = time.process_time()
        images = find_matches(files, cameras, None, pairs_to_match(None, len(files), config.features), config.features)
        matched = time.process_time()
        start = start_from_matches(images, given.numpy(), config, known=case.noise >= 0)
        done = time.process_time()
    tried = torch.from_numpy(start.tried) if start.tried is not None else given
    return {
        "name": case.name,
        "scene": case.scene,
        "images": len(files),
        "before": errors(given, reference) if case.noise >= 0 else None,
        "sfm": errors(tried, reference) if bool(torch.isfinite(tried).all()) else None,
        "start": errors(torch.from_numpy(start.camera_to_worlds), reference),
        "verdict": start.verdict,
        "sentence": start.sentence,
        "evidence": start.evidence,
        "match_seconds": round(matched - begin, 2),
        "sfm_seconds": round(done - matched, 2),
    }


def main(args: Args) -> None:
    """Runs all cases and writes what was found, case by case."""
    rows: list[dict[str, Any]] = []
    for scene in args.scenes:
        for case in cases(scene):
            if args.only not in case.name:
                continue
            rows.append(run(case, args.data))
            row = rows[-1]
            before, sfm = (row[key]["rotation_deg_mean"] if row[key] else float("nan") for key in ("before", "sfm"))
            print(
                f"{row['name']:34s} {before:7.3f} -> {sfm:8.3f}  {row['verdict']:9s} {json.dumps(row['evidence'])}",
                flush=True,
            )
            if args.output is not None:
                write_record(args.output, cases=rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
