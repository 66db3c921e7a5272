"""How do matches grow with the number of images: pairs, seconds, memory?

    OMP_NUM_THREADS=1 python benchmarks/matches_scaling.py --output benchmarks/results/matches_scaling.json

Views of chair (100 for training and some of the 200 for testing) at 400x400 pixels and their true cameras. Each number
of images is a process of its own, as its peak memory is what is asked for, with an empty cache. The pairs of 500 and
1000 images are counted, not matched: which they are depends on poses alone, here those of a spiral around the object.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from record import Output, show, write_record


@dataclass
class Args(Output):
    """Settings."""

    data: Path = Path("../shared/data")
    """Folder of the scenes."""
    counts: tuple[int, ...] = (50, 100, 200)
    """Numbers of images that are matched."""
    planned: tuple[int, ...] = (500, 1000)
    """Numbers of images whose pairs are counted."""
    one: int = 0
    """Measure this number of images and print what was found as JSON: the benchmark calls itself so."""


def measure(count: int, data: Path) -> dict[str, Any]:
    """Keypoints, matching and structure of so many views of chair."""
    import torch

    from hashpose_ns.matches.config import MatchConfig
    from hashpose_ns.matches.features import find_matches, pairs_to_match
    from hashpose_ns.matches.start import start_from_matches
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    parser = BlenderDataParserConfig(data=data / "chair_400").setup()
    parts = [parser.get_dataparser_outputs(split) for split in ("train", "test")]
    files = [Path(name) for part in parts for name in part.image_filenames][:count]
    poses = torch.cat([part.cameras.camera_to_worlds for part in parts])[:count].double().numpy()
    cameras = parts[0].cameras[torch.zeros(count, dtype=torch.long)]  # all have one lens
    config = MatchConfig(start="auto")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.process_time()
    pairs = pairs_to_match(poses, count, config.features)
    none = find_matches(files, cameras, None, pairs[:0], config.features)  # keypoints alone
    found_keypoints = time.process_time()
    images = find_matches(files, cameras, None, pairs, config.features)
    matched = time.process_time()
    memory_matching = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = start_from_matches(images, poses, config)
    done = time.process_time()
    keypoints = found_keypoints - begin
    matching = matched - found_keypoints - keypoints  # the second call finds keypoints again
    return {
        "images": len(files),
        "pairs": len(pairs),
        "verified_pairs": len(images.pairs),
        "keypoints_per_image": round(float(np.mean([len(points) for points in none.points])), 1),
        "keypoint_seconds": round(keypoints, 2),
        "matching_seconds": round(matching, 2),
        "ms_per_pair": round(1000 * matching / len(pairs), 3),
        "structure_seconds": round(done - matched, 2),
        "memory_mb_before": round(before),
        "memory_mb_matching": round(memory_matching),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "verdict": start.verdict,
    }


def spiral(count: int) -> np.ndarray:
    """Cameras on a spiral over the upper half of a sphere, looking at its centre."""
    turn, height = 0.35 * np.arange(count), np.linspace(0.1, 0.9, count)
    flat = np.sqrt(1 - height**2)
    back = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(back, right), back, 4.0 * back], axis=2)


def main(args: Args) -> None:
    """Measures each number of images in turn, counts pairs, writes."""
    if args.one:
        print(json.dumps(measure(args.one, args.data)))
        return
    from hashpose_ns.matches.config import FeatureConfig
    from hashpose_ns.matches.features import pairs_to_match

    rows = []
    for count in args.counts:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--data", str(args.data), "--one", str(count)]
            done = subprocess.run(
                command, env={**os.environ, "XDG_CACHE_HOME": cache}, stdout=subprocess.PIPE, text=True, check=True
            )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    planned = []
    for count in args.planned:
        for per_image in (20, FeatureConfig.pairs_per_image):
            pairs = pairs_to_match(spiral(count), count, FeatureConfig(pairs_per_image=per_image))
            planned.append({"images": count, "pairs_per_image": per_image, "pairs": len(pairs)})
    show("Matches of views of chair, 400x400", rows)
    show("Pairs", planned)
    write_record(args.output, rows=rows, planned=planned)


if __name__ == "__main__":
    main(tyro.cli(Args))
