"""A start from matches: structure from motion, taken to the frame of the given poses, and whether to believe it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Dict, List, Literal, Optional, Sequence, Tuple

import numpy as np
import roma
import torch
from jaxtyping import Bool, Float

from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.matches.features import MatchedImages
from hashpose_ns.matches.gate import CONFIRMING, Evidence, Support, believed, support
from hashpose_ns.matches.report import MatchedCamera, MatchesReport
from hashpose_ns.matches.sfm import ANGLES, Structure, structure_from_given, structure_from_none

Verdict = Literal["given", "matches", "refused"]
CLEAR = 0.9
"""Where this part of the matches agrees, there is nothing better to look for."""
NEAREST_DEPTH = 1.4
"""Where unknown poses get the 2nd percentile of their points' depths: just behind the near plane of 1 that
forward-facing scenes have (LLFF's convention is 4/3 for the nearest point)."""


@dataclass(frozen=True, eq=False)
class MatchedStart:
    """Where refinement should start, as far as matches can tell."""

    camera_to_worlds: Float[np.ndarray, "num_images 3 4"]
    """Poses to start at, OpenGL axes, in the frame of the given poses: those, or what matches gave."""
    verdict: Verdict
    """`given`: the given poses agree with the matches already; `matches`: poses come from matches; `refused`: what
    matches gave is not believed, and the given poses stay."""
    sentence: str
    """Why, in words, without a full stop."""
    placed: Bool[np.ndarray, "num_images"]
    """Cameras that matches determine; the others are as they were given."""
    tried: Optional[Float[np.ndarray, "num_images 3 4"]]
    """What structure from motion gave, believed or not; None if that is nothing."""
    evidence: Dict[str, float]
    """What the verdict rests on."""
    deviations: Optional[Float[np.ndarray, "num_images"]] = None
    """Standard deviations of the rotations in `tried`, in degrees; infinite where matches say nothing."""
    structure: Optional[Structure] = None
    """Points and cameras that matches gave, in a frame of their own, where they are believed."""

    @property
    def trusted(self) -> bool:
        """Whether the start is right to a fraction of a degree."""
        return self.verdict != "refused"


def start_from_matches(
    images: MatchedImages,
    camera_to_worlds: Float[np.ndarray, "num_images 3 4"],
    config: MatchConfig,
    known: bool = True,
) -> MatchedStart:
    """Finds poses by structure from motion and decides between them and the given ones.

    Args:
        images: keypoints and verified matches.
        camera_to_worlds: given poses, OpenGL axes.
        config: settings.
        known: whether the given poses say anything.
    """
    before = support(images, camera_to_worlds)
    best = best_structure(images, camera_to_worlds, before, config, known)
    if best is None:
        return _refused(camera_to_worlds, before, None, None, "matches between the images determine no cameras")
    structure, evidence = best
    after = evidence.support
    structure = dataclasses.replace(structure, placed=structure.placed & evidence.determined)
    enough = int(structure.placed.sum()) >= 3
    tried = in_frame_of(camera_to_worlds, structure, known) if enough else None
    numbers = {**evidence.numbers(), **before.numbers("given_")}
    if known and before.confirms and before.as_good_as(after):
        sentence = f"{100 * before.share:.0f} % of the matches agree with them, to {before.median:.2f} pixels"
        everything = np.ones(len(camera_to_worlds), dtype=bool)
        return MatchedStart(
            camera_to_worlds.copy(), "given", sentence, everything, tried, numbers, evidence.deviations, structure
        )
    reason = evidence.reason_for_doubt()
    if tried is None or (reason is not None and config.start != "always"):
        return _refused(camera_to_worlds, before, tried, evidence, reason or "matches determine no cameras")
    placed = structure.placed
    sentence = (
        f"{int(placed.sum())} of {len(placed)} cameras placed by matches, of which {100 * after.share:.0f} % agree, to "
        f"{after.median:.2f} pixels"
    )
    return MatchedStart(tried, "matches", sentence, placed, tried, numbers, evidence.deviations, structure)


def best_structure(
    images: MatchedImages,
    camera_to_worlds: Float[np.ndarray, "num_images 3 4"],
    before: Support,
    config: MatchConfig,
    known: bool,
) -> Optional[Tuple[Structure, Evidence]]:
    """The structure that most matches agree with, of those that start where the settings say; None if there is none.

    Args:
        images, camera_to_worlds, config, known: as in `start_from_matches`.
        before: what the matches say of the given poses.
    """
    tries: List[Tuple[Structure, Evidence]] = []
    for attempt in _attempts(config, known):
        found = _from_none(images) if attempt == "none" else _from_given(images, camera_to_worlds, before)
        if found is None:
            continue
        tries.append((found, Evidence.of(images, found)))
        if believed(tries[-1][1]) and tries[-1][1].support.share > CLEAR:
            break
    return max(tries, key=lambda each: (believed(each[1]), each[1].support.share)) if tries else None


def _attempts(config: MatchConfig, known: bool) -> List[str]:
    if config.from_none or not known:
        return ["none"]
    return ["given"] if config.from_none is False else ["given", "none"]


def _from_none(images: MatchedImages) -> Optional[Structure]:
    """From nothing, and then as from given poses that are nearly right."""
    found = structure_from_none(images)
    if found is None or not found.placed.all():
        return found  # what is not placed has no pose to triangulate from
    return structure_from_given(images, found.camera_to_worlds, angles=()) or found


def _from_given(
    images: MatchedImages, camera_to_worlds: Float[np.ndarray, "num_images 3 4"], before: Support
) -> Optional[Structure]:
    """From given poses; the further off they are, the more passes."""
    degrees = np.degrees(before.median_angle) if np.isfinite(before.median_angle) else np.inf
    reach = max(2.0 * degrees, ANGLES[-1])
    return structure_from_given(images, camera_to_worlds, [angle for angle in ANGLES if angle <= reach])


def in_frame_of(
    given: Float[np.ndarray, "num_images 3 4"], structure: Structure, known: bool
) -> Float[np.ndarray, "num_images 3 4"]:
    """Poses of a structure in the frame of given ones: the placed cameras moved by the similarity that brings them
    nearest, the others as they were given.

    Args:
        given: poses, OpenGL axes.
        structure: of the same images.
        known: whether the given poses say anything. If not, the frame is one that a forward-facing capture may have.
    """
    placed = structure.placed
    found = torch.from_numpy(structure.camera_to_worlds[placed])
    tried = given.copy()
    if not known:
        moved = _forward_facing(structure)
        tried[:] = moved[placed][0]
        tried[placed] = moved[placed]
        return tried
    similarity = align_poses(found, torch.from_numpy(given[placed]))
    tried[placed] = similarity.apply_to_poses(found).numpy()
    return tried


def _forward_facing(structure: Structure) -> Float[np.ndarray, "num_images 3 4"]:
    """Poses in a frame of their own: the mean camera at the origin with no rotation, the nearest points in front of
    it at `NEAREST_DEPTH`."""
    poses = structure.camera_to_worlds
    placed = poses[structure.placed]
    rotation = roma.special_procrustes(torch.from_numpy(placed[:, :, :3].sum(axis=0))).numpy()
    center = placed[:, :, 3].mean(axis=0)
    depths = -((structure.points - center) @ rotation)[:, 2]
    depths = depths[depths > 0]
    nearest = float(np.percentile(depths, 2)) if len(depths) else 1.0
    scale = NEAREST_DEPTH / nearest
    turned = rotation.T @ poses
    turned[:, :, 3] = scale * (turned[:, :, 3] - rotation.T @ center)
    return turned


def _refused(
    given: Float[np.ndarray, "num_images 3 4"],
    before: Support,
    tried: Optional[Float[np.ndarray, "num_images 3 4"]],
    evidence: Optional[Evidence],
    reason: str,
) -> MatchedStart:
    numbers = {**(evidence.numbers() if evidence is not None else {}), **before.numbers("given_")}
    nobody = np.zeros(len(given), dtype=bool)
    deviations = evidence.deviations if evidence is not None else None
    return MatchedStart(given.copy(), "refused", reason, nobody, tried, numbers, deviations)


def matches_report(
    start: MatchedStart,
    images: MatchedImages,
    given: Float[np.ndarray, "num_images 3 4"],
    names: Sequence[str],
    seconds: float,
) -> MatchesReport:
    """What was found, for files and readers.

    Args:
        start: where refinement starts.
        images: what it was found from.
        given: the poses that were given, OpenGL axes.
        names: of the images.
        seconds: how long it took.
    """
    counts = np.zeros(images.num_images, dtype=np.int64)
    for (first, second), match in zip(images.pairs.tolist(), images.matches):
        counts[[first, second]] += len(match)
    of_given = support(images, given)
    before, placed = of_given.of_camera, start.placed
    if start.verdict == "given":
        placed = placed & (of_given.agreeing >= CONFIRMING)
    after = support(images, start.tried).of_camera if start.tried is not None else np.full(len(before), np.nan)
    deviations = start.deviations if start.deviations is not None else np.full(len(before), np.nan)

    def number(value: float) -> Optional[float]:
        return round(float(value), 5) if np.isfinite(value) else None

    cameras = [
        MatchedCamera(
            name=name,
            placed=bool(placed[index]),
            matches=int(counts[index]),
            agreeing_given=number(before[index]),
            agreeing_found=number(after[index]),
            deviation_deg=number(deviations[index]),
        )
        for index, name in enumerate(names)
    ]
    evidence = {name: value for name, value in start.evidence.items() if np.isfinite(value)}
    return MatchesReport(start.verdict, start.sentence, evidence, cameras, round(seconds, 3))
