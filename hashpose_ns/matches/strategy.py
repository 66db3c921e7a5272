"""Starts training at poses from matches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Optional

import torch

from hashpose_ns.cameras.alignment import rotation_angle
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.matches.epipolar import MatchTerm
from hashpose_ns.matches.features import MatchedImages, NoMatches, find_matches, pairs_to_match
from hashpose_ns.matches.report import MatchesReport
from hashpose_ns.matches.start import MatchedStart, matches_report, start_from_matches
from hashpose_ns.matches.tracks import TrackTerm, chained
from hashpose_ns.photometry.scene import PosedImages, PosedScene
from hashpose_ns.photometry.strategy import PoseStrategy, Say

ALIKE = 1e-3
"""Cameras whose orientations differ by fewer degrees and that are in one place are not known."""


class StartFromMatches(PoseStrategy):
    """Finds matches between the training images, has training start at poses that they give, and matches pull poses in
    training where there is no such start.

    Args:
        config: settings.
    """

    def __init__(self, config: MatchConfig) -> None:
        self.config = config
        self.images: Optional[MatchedImages] = None
        """Matches between the training images, where there are any and they are wanted."""
        self.start: Optional[MatchedStart] = None
        """What was found, in the process that began the training."""
        self.report: Optional[MatchesReport] = None
        """The same for files."""

    def validate(self) -> None:
        self.config.features.validate()
        self.config.term.validate()

    def prepare(self, scene: PosedScene, resumed: bool, say: Say) -> None:
        if self.config.start == "off" or (self.config.start == "auto" and scene.poses.config.mode == "off"):
            return  # runs that refine no poses want them as they are
        try:
            self._prepare(scene, resumed, say)
        except (NoMatches, ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
            # The latter are pycolmap's. Matches that cannot be used cost no training.
            reason = str(error) if isinstance(error, NoMatches) else f"pycolmap failed ({one_line(error)})"
            if self.config.start == "always" and not resumed:
                raise HashPoseError(f"Training cannot start at poses from matches, because {reason}.") from error
            say(f"matches: training starts at the poses as they are, because {reason}")

    def _prepare(self, scene: PosedScene, resumed: bool, say: Say) -> None:
        begin = time.perf_counter()
        self.images = matched_images(scene, self.config)
        matches = self.images.flat()
        if len(matches) and 2 * len(matches) >= self.config.term.least * matches.num_images:
            if self.config.term.kind == "tracks":
                scene.poses.terms["match_loss"] = TrackTerm(chained(self.images), self.config.term)
            else:
                scene.poses.terms["match_loss"] = MatchTerm(matches, self.config.term)
        if resumed:
            return
        initial = scene.poses.initial_camera_to_worlds.detach().double().cpu()
        self.start = start_from_matches(self.images, initial.numpy(), self.config, known=are_known(initial))
        seconds = time.perf_counter() - begin
        self.report = matches_report(self.start, self.images, initial.numpy(), scene.poses.image_names, seconds)
        say(f"matches: {self.report.outcome}")
        if self.start.trusted:
            scene.poses.rebase(torch.from_numpy(self.start.camera_to_worlds), trusted=True)


def matched_images(scene: PosedImages, config: MatchConfig, only_cached: bool = False) -> MatchedImages:
    """The matches between a capture's training images.

    Args:
        scene: images, their cameras, and initial poses, by which pairs of many images are chosen.
        config: settings.
        only_cached: whether to take what the user's cache has, and compute nothing.

    Raises:
        NoMatches: there can be none, or with `only_cached` there are none.
    """
    outputs = scene.train_outputs
    files = [Path(name) for name in outputs.image_filenames]
    masks = [Path(name) for name in outputs.mask_filenames] if outputs.mask_filenames is not None else None
    initial = scene.poses.initial_camera_to_worlds.detach().double().cpu()
    known = initial.numpy() if are_known(initial) else None
    pairs = pairs_to_match(known, len(files), config.features)
    return find_matches(files, outputs.cameras, masks, pairs, config.features, only_cached)


def cached_matches(scene: PosedImages, config: Optional[MatchConfig]) -> Optional[MatchedImages]:
    """The matches that a run's training has left in the user's cache.

    Args:
        scene: images, their cameras, and initial poses.
        config: the run's settings; None of a run that has none.
    Returns:
        The matches; None where the run looked at none, or the cache has lost them.
    """
    if config is None or config.start == "off":
        return None
    try:
        return matched_images(scene, config, only_cached=True)
    except NoMatches:
        return None


def are_known(camera_to_worlds: torch.Tensor) -> bool:
    """Whether poses [N, 3, 4] say anything: not if all cameras are in one place and look the same way."""
    centers, rotations = camera_to_worlds[:, :, 3], camera_to_worlds[:, :, :3]
    if float((centers - centers[:1]).abs().max()) > 1e-9 * max(float(centers.abs().max()), 1.0):
        return True
    return float(torch.rad2deg(rotation_angle(rotations[0].T @ rotations)).max()) > ALIKE
