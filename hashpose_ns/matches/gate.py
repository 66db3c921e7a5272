"""Is structure from motion to be believed? By what matches say, without ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Set

import numpy as np
from jaxtyping import Bool, Float, Int

from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.sfm import AGREEING_PIXELS, FLIP, Structure, epipolar_errors
from hashpose_ns.matches.uncertainty import pose_deviations

DETERMINED = 1.0
"""Degrees: a camera whose standard deviation is larger is not determined by matches."""
MOST = 0.7
"""Fraction of the cameras that must be determined."""
CONFIRMING = 20
"""Matches of a camera that must agree with it where it is, to confirm it."""
SHARED = 15
"""Agreeing matches that two images must share to count as neighbours."""
NEIGHBORS = 3
"""Others that a camera must share agreeing matches with, each of which has as many. Cameras that hang on two others, or
on a few that hang together, go wherever false matches of repeated or symmetric parts take them."""
AGREEING = 0.7
"""Fraction of the matches that must agree."""


@dataclass(frozen=True, eq=False)
class Support:
    """How well poses explain matches."""

    share: float
    """Fraction of matches that agree."""
    median: float
    """Of the distances of all matches from their epipolar lines, in pixels."""
    median_angle: float
    """The same as an angle, in radians."""
    of_camera: Float[np.ndarray, "num_images"]
    """Fraction of each camera's matches that agree; NaN where it has none."""
    agreeing: Int[np.ndarray, "num_images"]
    """How many of each camera's matches agree."""

    @property
    def confirms(self) -> bool:
        """Whether enough matches agree for most cameras to be confirmed by them. Poses that are wrong by degrees agree
        with one match in ten."""
        return bool((self.agreeing >= CONFIRMING).mean() >= MOST) and self.share >= AGREEING

    def as_good_as(self, other: Support) -> bool:
        """Whether these poses explain matches no worse than poses that were fitted to them."""
        return self.share >= other.share - 0.03 and self.median <= 1.25 * other.median + 0.05

    def numbers(self, prefix: str = "") -> Dict[str, float]:
        """Share and median, for reports."""
        return {f"{prefix}share": round(self.share, 4), f"{prefix}median_px": round(float(self.median), 4)}


def support(images: MatchedImages, camera_to_worlds: Float[np.ndarray, "num_images 3 4"]) -> Support:
    """How well poses explain matches.

    Args:
        images: keypoints and verified matches.
        camera_to_worlds: poses, OpenGL axes.
    """
    return _support(images, epipolar_errors(images, camera_to_worlds))


def _support(images: MatchedImages, errors: List[Float[np.ndarray, "_num_matches"]]) -> Support:
    """As `support`, by the distances of all matches, pair by pair."""
    together = np.concatenate(errors) if errors else np.zeros(0)
    agreeing, all_ = np.zeros(images.num_images), np.zeros(images.num_images)
    for (first, second), of_pair in zip(images.pairs, errors):
        for index in (first, second):
            agreeing[index] += (of_pair < AGREEING_PIXELS).sum()
            all_[index] += len(of_pair)
    median = float(np.median(together)) if len(together) else np.inf
    return Support(
        share=float((together < AGREEING_PIXELS).mean()) if len(together) else 0.0,
        median=median,
        median_angle=median / float(images.focals.mean()),
        of_camera=np.where(all_ > 0, agreeing / np.maximum(all_, 1), np.nan),
        agreeing=agreeing.astype(np.int64),
    )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What speaks for or against a structure."""

    support: Support
    """How well it explains matches, those that it was not made from included."""
    deviations: Float[np.ndarray, "num_images"]
    """Standard deviation of each camera's rotation, in degrees; infinite where matches say nothing."""
    tracks: Float[np.ndarray, "num_images"]
    """Points of each image that are seen in three or more."""
    turns_agree: float
    """Fraction of pairs, by their matches, whose relative rotation is that of their essential matrix within 5
    degrees."""
    reprojection: float
    """Mean distance of observations from where points are seen, in pixels."""

    @classmethod
    def of(cls, images: MatchedImages, structure: Structure) -> Evidence:
        """Collects it."""
        errors = epipolar_errors(images, structure.camera_to_worlds)
        deviations, _ = pose_deviations(images, structure, DETERMINED)
        return cls(
            support=_support(images, errors),
            deviations=np.where(_in_core(images, errors), deviations, np.inf),
            tracks=structure.three_view_tracks().astype(float),
            turns_agree=_turns_agree(images, structure.camera_to_worlds),
            reprojection=structure.reprojection,
        )

    @property
    def determined(self) -> Bool[np.ndarray, "num_images"]:
        """Cameras that matches determine."""
        return self.deviations < DETERMINED

    def numbers(self) -> Dict[str, float]:
        """For reports. Deviations in degrees."""
        known = self.deviations[self.determined]
        return {
            **self.support.numbers(),
            "determined": int(self.determined.sum()),
            "deviation_median": round(float(np.median(known)), 4) if len(known) else 0.0,
            "deviation_max": round(float(known.max()), 4) if len(known) else 0.0,
            "tracks_mean": round(float(self.tracks.mean()), 2),
            "tracks_low": round(float(np.percentile(self.tracks, 20)), 2),
            "turns_agree": round(self.turns_agree, 4),
            "reprojection_px": round(self.reprojection, 4),
        }

    def reason_for_doubt(self) -> Optional[str]:
        """Why not to believe the structure, in words without a full stop; None if there is no reason."""
        count, cameras = int(self.determined.sum()), len(self.deviations)
        if count < max(3, MOST * cameras):
            return f"matches determine only {count} of {cameras} cameras"
        if self.support.share < AGREEING:
            return f"only {100 * self.support.share:.0f} % of the matches agree with the poses that they give"
        return None


def believed(evidence: Evidence) -> bool:
    """Whether there is no reason for doubt."""
    return evidence.reason_for_doubt() is None


def _in_core(images: MatchedImages, errors: List[Float[np.ndarray, "_num_matches"]]) -> Bool[np.ndarray, "num_images"]:
    """Cameras that hang together: the largest set in which each has `NEIGHBORS` others (all others, of fewer cameras)
    with which it shares `SHARED` matches and most of all that there are (the k-core of that graph).

    Args:
        images: keypoints and verified matches.
        errors: distances of all matches from their epipolar lines, pair by pair.
    """
    neighbors: List[Set[int]] = [set() for _ in range(images.num_images)]
    for (first, second), of_pair in zip(images.pairs.tolist(), errors):
        agreeing = int((of_pair < AGREEING_PIXELS).sum())
        if agreeing >= SHARED and agreeing > len(of_pair) / 2:
            neighbors[first].add(second)
            neighbors[second].add(first)
    least = min(NEIGHBORS, images.num_images - 1)
    left = set(range(images.num_images))
    while True:
        going = {index for index in left if len(neighbors[index] & left) < least}
        if not going:
            return np.isin(np.arange(images.num_images), sorted(left))
        left -= going


def _turns_agree(images: MatchedImages, camera_to_worlds: Float[np.ndarray, "num_images 3 4"]) -> float:
    agreeing = total = 0.0
    for (first, second), match, rotation in zip(images.pairs.tolist(), images.matches, images.rotations):
        relative = FLIP @ camera_to_worlds[second, :, :3].T @ camera_to_worlds[first, :, :3] @ FLIP
        if not np.isfinite(rotation).all():
            continue
        total += len(match)
        if np.isfinite(relative).all():
            cosine = 0.5 * (np.trace(relative @ rotation.T) - 1.0)
            agreeing += len(match) * float(cosine > np.cos(np.radians(5.0)))
    return agreeing / total if total else 0.0
