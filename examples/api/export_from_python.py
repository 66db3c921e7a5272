"""Takes the refined poses of a trained run as arrays.

python examples/api/export_from_python.py outputs/.../config.yml poses.npz
"""

import sys

import numpy as np

from hashpose_ns import load_run, refined_poses

config, output = sys.argv[1:]
run = load_run(config)
poses = refined_poses(run)  # in the frame and the units of the input
np.savez(output, **{name: pose.numpy() for name, pose in poses.items()})
print(f"{len(poses)} poses after {run.step + 1} steps: {output}")
