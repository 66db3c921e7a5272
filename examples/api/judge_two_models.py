"""How far apart are two sets of poses of the same images? Each is a transforms.json.

python examples/api/judge_two_models.py mine/transforms.json theirs/transforms.json
"""

import json
import sys
from pathlib import Path

import torch

from hashpose_ns import pose_errors


def read(path: str) -> dict:
    """Image name -> camera-to-world pose."""
    frames = json.loads(Path(path).read_text(encoding="utf-8"))["frames"]
    return {Path(frame["file_path"]).stem: torch.tensor(frame["transform_matrix"])[:3].double() for frame in frames}


first, second = (read(path) for path in sys.argv[1:])
names = sorted(first.keys() & second.keys())
errors = pose_errors(torch.stack([first[name] for name in names]), torch.stack([second[name] for name in names]))
worst = int(errors.rotation_deg.argmax())
print(f"{len(names)} images in both; rotation {float(errors.rotation_deg.mean()):.3f} degrees in the mean")
print(f"farthest apart: {names[worst]}, {float(errors.rotation_deg[worst]):.3f} degrees")
