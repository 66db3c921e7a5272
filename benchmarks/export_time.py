"""Seconds that each export of 1000 cameras takes beyond loading the run; JSON with machine and commit.

python benchmarks/export_time.py --output benchmarks/results/export_time.json
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import tyro
from record import Output, show, take_turns, write_record


@dataclass
class Args(Output):
    """Settings."""

    cameras: int = 1000
    """Cameras."""
    points: int = 50_000
    """Points, each seen by 5 cameras."""
    repeats: int = 3
    """The best of so many is taken."""


def made_up_run(folder: Path, args: Args):
    """A dataset of empty pictures around the origin, and what exports need of a run trained on it."""
    import roma
    from PIL import Image

    from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
    from hashpose_ns.export.exported import ExportedPoints
    from hashpose_ns.photometry.scene import PosedScene, TestTimeOptimization
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    generator = torch.Generator().manual_seed(0)
    rotations = roma.random_rotmat(args.cameras, dtype=torch.float64, generator=generator)
    poses = torch.eye(4, dtype=torch.float64).repeat(args.cameras, 1, 1)
    poses[:, :3] = torch.cat([rotations, 4 * rotations[:, :, 2:]], dim=-1)
    (folder / "images").mkdir(parents=True)
    frames = []
    for index, pose in enumerate(poses):
        Image.new("RGB", (8, 6)).save(folder / f"images/{index:05d}.png")
        frames.append({"file_path": f"images/{index:05d}.png", "transform_matrix": pose.tolist()})
    lens = dict(fl_x=8.0, fl_y=8.0, cx=4.0, cy=3.0, w=8, h=6, k1=0.01)
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    parser = NerfstudioDataParserConfig(data=folder, eval_mode="all", downscale_factor=1).setup()
    outputs = parser.get_dataparser_outputs("train")
    initial = outputs.cameras.camera_to_worlds
    names = [path.as_posix() for path in outputs.image_filenames]
    scene = PosedScene(
        renderer=None,  # type: ignore[arg-type]
        model_config=None,
        poses=PoseOptimizerConfig(mode="off").setup(
            num_cameras=len(names), device="cpu", initial_camera_to_worlds=initial, image_names=names
        ),
        train=SimpleNamespace(_dataparser_outputs=outputs),  # type: ignore[arg-type]
        held_out=SimpleNamespace(image_filenames=[]),  # type: ignore[arg-type]
        dataparser=parser,
        curriculum=None,
        test_time=TestTimeOptimization(steps=0, rays=0, images=1, lr=0.0),
        step=0,
        total_steps=1,
    )
    rng = np.random.default_rng(0)
    seen = rng.integers(0, args.cameras, (args.points, 5))
    points = ExportedPoints(
        rng.uniform(-0.5, 0.5, (args.points, 3)), rng.integers(0, 255, (args.points, 3), np.uint8),
        np.ones(args.points), np.stack([np.repeat(np.arange(args.points), 5), seen.ravel()], axis=1),
    )  # fmt: skip
    return SimpleNamespace(scene=scene), points


def main(args: Args) -> None:
    """Times the formats."""
    from hashpose_ns.export import points as export_points
    from hashpose_ns.export.cli import ExportColmap, ExportJson, ExportKitti, ExportNerfstudio, ExportTum
    from hashpose_ns.runs import load

    config = Path("config.yml")
    exports = {
        "colmap, no points": lambda to: ExportColmap(to, points="empty", load_config=config),
        "colmap, points with tracks": lambda to: ExportColmap(to, load_config=config),
        "colmap, text, points with tracks": lambda to: ExportColmap(to, format="txt", load_config=config),
        "nerfstudio, points": lambda to: ExportNerfstudio(to, load_config=config),
        "tum": lambda to: ExportTum(to, load_config=config),
        "kitti": lambda to: ExportKitti(to, load_config=config),
        "json, no losses": lambda to: ExportJson(to, loss=False, load_config=config),
    }
    with tempfile.TemporaryDirectory() as temporary:
        pipeline, points = made_up_run(Path(temporary) / "data", args)
        targets = (Path(temporary) / str(number) for number in itertools.count())
        functions = {name: lambda make=make: make(next(targets)).main() for name, make in exports.items()}
        with (
            mock.patch.object(load, "load_trained_pipeline", lambda *_: pipeline),
            mock.patch.object(export_points, "_field_points", lambda *_: points),
        ):
            times = take_turns(functions, args.repeats, now=time.perf_counter)
    seconds = {name: round(min(ms) / 1000, 3) for name, ms in times.items()}
    show(f"Seconds to export {args.cameras} cameras", [{"format": name, "s": s} for name, s in seconds.items()])
    write_record(args.output, cameras=args.cameras, points=args.points, seconds=seconds)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
