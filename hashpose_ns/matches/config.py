"""Settings of everything that uses matches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

from hashpose_ns.errors import HashPoseError


@dataclass
class FeatureConfig:
    """How matches are found."""

    max_image_size: int = 2000
    """Longer side of an image, in pixels, above which it is reduced before keypoint detection."""
    max_keypoints: int = 8192
    """Keypoints of an image at most; the coarsest are kept."""
    exhaustive: int = 150
    """Number of images up to which every pair of them is matched."""
    pairs_per_image: int = 40
    """Roughly how many others each image is matched with, if there are more images.
    Half of them are its nearest cameras, half its neighbours by name at growing distances."""
    min_inliers: int = 15
    """Verified matches of a pair, below which the pair is dropped."""

    def validate(self) -> None:
        """Raises HashPoseError if a setting is out of range."""
        for name in ("max_image_size", "max_keypoints", "exhaustive", "pairs_per_image", "min_inliers"):
            if getattr(self, name) < 1:
                raise HashPoseError(f"matches.features.{name.replace('_', '-')} must be at least 1.")


@dataclass
class MatchTermConfig:
    """The term of matches in the training loss."""

    kind: Literal["epipolar", "tracks"] = "epipolar"
    """What the distance is that pulls poses.
    - epipolar: of each point of a match from the epipolar line of the other.
    - tracks: of each keypoint from the projection of its track's point, triangulated anew in every step."""
    weight: float = 0.1
    """Weight of the term at the start of training, beside the photometric loss; 0 leaves it out."""
    fade: float = 0.5
    """Fraction of training at which the term has faded out. It falls linearly from the start."""
    per_step: int = 2048
    """Matches that are drawn for a step; all of them where there are no more.
    Of tracks an eighth as many are drawn, with up to eight keypoints each."""
    least: int = 50
    """Matches of an image, in the mean, from which the term is used.
    Of fewer, as small pictures have, many are wrong."""
    scale: float = 0.5
    """Distance in pixels from which matches pull less the further they are away, as wrong ones are."""

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        if self.weight < 0 or self.per_step < 1 or self.scale <= 0:
            raise HashPoseError(
                "matches.term.weight must not be negative, .per-step must be at least 1 and .scale above 0."
            )
        if not 0 <= self.fade <= 1:
            raise HashPoseError(f"matches.term.fade is a fraction of training, not {self.fade}.")

    def weight_at(self, progress: float) -> float:
        """The term's weight at a fraction of training."""
        return self.weight * max(1.0 - progress / self.fade, 0.0) if self.fade > 0 else 0.0


@dataclass
class MatchConfig:
    """What matches between the training images are used for. They take pycolmap."""

    start: Literal["off", "auto", "always"] = "off"
    """Whether training starts at poses that matches give.
    - auto: if they can be believed and are better than those given, in runs that refine poses.
    - always: wherever there are any.
    - off: never."""
    from_none: Optional[bool] = None
    """Whether structure from motion starts from nothing instead of from the given poses.
    Unset: if these are unknown (`initial-poses identity`), and if it fails from them."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """How matches are found."""
    term: MatchTermConfig = field(default_factory=MatchTermConfig)
    """How matches pull poses while the field is young, where the start is not trusted."""
