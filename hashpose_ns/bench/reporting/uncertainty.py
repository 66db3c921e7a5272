"""Whether predicted pose uncertainties mean something: what runs predict against their spread over seeds."""

from __future__ import annotations

from typing import Optional

import numpy as np
import pandas as pd
import roma
import torch

from hashpose_ns.bench.reporting.figures import load_cameras
from hashpose_ns.cameras.alignment import align_poses

KINDS = ("rotation_deg", "center")


def compare(runs: pd.DataFrame) -> Optional[pd.DataFrame]:
    """For each camera and kind (rotation in degrees, centre in scene units) what was `predicted` (mean over runs), the
    standard deviation of its aligned poses over runs (`spread`) and its RMS `error`.

    Args:
        runs: of one preset, with the measure `uncertainty`.

    Returns:
        None with fewer than two such runs.
    """
    measured = [
        (outcome["measures"]["uncertainty"], cameras)
        for folder, outcome in zip(runs.folder, runs.outcome)
        if "uncertainty" in outcome.get("measures", {}) and (cameras := load_cameras(folder)) is not None
    ]
    if len(measured) < 2:
        return None
    pairs = [[torch.from_numpy(cameras[name]) for name in ("refined", "reference")] for _, cameras in measured]
    poses = torch.stack([align_poses(*pair).apply_to_poses(pair[0]) for pair in pairs])
    mean_rotation = roma.special_procrustes(poses[..., :3].mean(dim=0))
    turned = torch.rad2deg(roma.rotmat_to_rotvec(mean_rotation.mT @ poses[..., :3]).norm(dim=-1))
    moved = (poses[..., 3] - poses[..., 3].mean(dim=0)).norm(dim=-1)
    spreads = {"rotation_deg": turned, "center": moved}
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "kind": kind,
                    "predicted": np.mean([said[kind] for said, _ in measured], axis=0),
                    "spread": (spreads[kind].square().sum(dim=0) / (len(measured) - 1)).sqrt().numpy(),
                    "error": np.sqrt(np.mean([cameras[kind] ** 2 for _, cameras in measured], axis=0)),
                }
            )
            for kind in KINDS
        ]
    )


def summary(data: pd.DataFrame) -> pd.DataFrame:
    """Medians over cameras and rank correlations, a row per kind."""

    def of(some: pd.DataFrame) -> pd.Series:
        ranks = some[["predicted", "spread", "error"]].corr("spearman").predicted
        return pd.Series(
            {
                **{f"{name} (median)": some[name].median() for name in ("predicted", "spread", "error")},
                **{f"{name} / predicted": (some[name] / some.predicted).median() for name in ("spread", "error")},
                **{f"rank correlation with {name}": ranks[name] for name in ("spread", "error")},
            }
        )

    return data.groupby("kind", sort=False)[["predicted", "spread", "error"]].apply(of)
