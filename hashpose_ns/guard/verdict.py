"""From paired errors of held-out pixels to a verdict, for all cameras together and for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterable, List, Literal, Optional, Tuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hashpose_ns.guard.config import GuardConfig
from hashpose_ns.guard.matches import Disagreement
from hashpose_ns.guard.movement import Movement

ALPHA = 0.05
"""Probability of a verdict other than undecided where neither set of poses is better, half of it on each side; and of
calling any camera hurt where none is."""

LEAST_LOSS = 0.005
"""Mean log ratio, 0.02 dB, below which no harm is found: two trainings from poses that are the same but for rounding
differ by a tenth of this, in the same direction for many cameras."""

LEAST_GAIN = 0.025
"""Mean log ratio, 0.11 dB, below which no help is found. Refined poses were fitted to these photographs, held-out
pixels included: refined from the true ones, they gain 0.013 to 0.020 on the demo scene, by 10 seeds."""

LEAST_CAMERA_EFFECT = 0.2
"""A single camera's log ratio, 0.9 dB, from which it can be called hurt: what lost cameras do to the field costs those
that look at the same place a tenth of this or so, and these are where they were."""


@dataclass(frozen=True, eq=False)
class HeldOutErrors:
    """How well two sets of poses explain the same held-out pixels."""

    first: Float[Tensor, "num_blocks"]
    """Mean squared error of each held-out block at the first poses, float64."""
    second: Float[Tensor, "num_blocks"]
    """The same at the second poses."""
    coarse: Float[Tensor, "num_blocks"]
    """Error of a shrunk photograph in place of the field, see `GuardConfig.coarse`."""
    block_cameras: Int[Tensor, "num_blocks"]
    """Index of each block's image."""


WORSE_MATCHES = 0.095
"""Mean log ratio of cameras' distances from epipolar lines, a tenth more, from which matches contradict. Poses that
were fitted to the matches are up to a twentieth nearer to them than the true ones."""
FAR_FROM_MATCHES = 0.35
"""Median distance of matches from their epipolar lines, in degrees, from which poses are not said to be better. Poses
that fit leave a tenth of a degree."""
Doubt = Literal["coarse", "converging", "strays", "matches", "far"]
"""Held-out pixels are explained no better than by a shrunk photograph; cameras mostly turned towards each other or
apart; most of all turning is that of cameras that moved far without fitting clearly better; matches between the images
fit worse; matches fit no worse but are still far off."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What held-out pixels say about the second set of poses, compared with the first."""

    verdict: Literal["helped", "hurt", "undecided"]
    """Over all cameras."""
    log_ratio: float
    """Mean over cameras of log(second error / first error); negative where the second poses are better."""
    p_helped: float
    """Probability of a difference as good as this, or better, where neither set of poses is better."""
    p_hurt: float
    """Probability of a difference as bad as this, or worse."""
    first: Float[Tensor, "num_cameras"]
    """Mean squared error of each camera's held-out pixels at the first poses."""
    second: Float[Tensor, "num_cameras"]
    """The same at the second poses."""
    p_camera_hurt: Float[Tensor, "num_cameras"]
    """For each camera, the probability of a difference as bad, corrected for the number of cameras (Holm)."""
    doubt: Optional[Doubt]
    """Why the second poses are not said to be better although held-out pixels fit better; None in all other cases."""
    doubtful_cameras: List[int]
    """Indices of cameras that moved by more than `GuardConfig.stray` and do not fit clearly better for it. Those that
    fit worse are among `hurt_cameras` instead."""
    matches_contradict: bool = False
    """Whether matches fit the second poses clearly worse, whatever pixels say."""

    @property
    def hurt_cameras(self) -> List[int]:
        """Indices of cameras that fit worse at the second poses, by more than chance and LEAST_CAMERA_EFFECT."""
        worse = self.second > self.first * math.exp(LEAST_CAMERA_EFFECT)
        return torch.nonzero((self.p_camera_hurt < ALPHA) & worse).flatten().tolist()

    def psnrs(self) -> Tuple[Float[Tensor, "num_cameras"], Float[Tensor, "num_cameras"]]:
        """PSNR in dB of each camera's held-out pixels, at the first poses and at the second."""
        first, second = (-10 * mse.clamp(min=1e-12).log10() for mse in (self.first, self.second))
        return first, second


def can_decide(num_cameras: int) -> bool:
    """Whether so many cameras can be enough: the rarest outcome for fewer than 6 is not rare enough."""
    return 0.5**num_cameras <= ALPHA / 2


def decide(
    errors: HeldOutErrors, moved: Movement, config: GuardConfig, matches: Optional[Disagreement] = None
) -> Verdict:
    """Tests whether a set of poses, refined from another, is better than it.

    Over all: Wilcoxon's signed-rank test of the cameras' log ratios of errors, one-sided each way at ALPHA / 2, and a
    mean of at least LEAST_GAIN or LEAST_LOSS. It asks that cameras be equally likely to fit better or worse where
    neither set is better, and is undecided for fewer than 6 cameras. For each camera: the same test of its blocks'
    differences of errors, so that empty blocks have little to say, with Holm's correction for the number of cameras.

    Wrong poses can fit better than other wrong ones, so help is believed only where a field shows more than a shrunk
    photograph, and cameras did not move in ways that pixels hardly see (`Doubt`).

    Args:
        errors: of held-out pixels at both sets of poses.
        moved: how the second set differs from the first.
        config: what is doubted.
        matches: how they fit both sets, where there are any.
    Raises:
        ValueError: an error is negative or NaN.
    """
    for part in (errors.first, errors.second):
        if not bool((torch.isfinite(part) & (part >= 0)).all()):
            raise ValueError("An error of held-out pixels is negative or not a number.")
    num_cameras = int(errors.block_cameras.max()) + 1
    counts = torch.bincount(errors.block_cameras, minlength=num_cameras)

    def per_camera(values: Tensor) -> Tensor:
        sums = torch.zeros(num_cameras, dtype=torch.float64).index_add_(0, errors.block_cameras, values.double())
        return sums / counts

    def log_ratio_to(before: Tensor) -> np.ndarray:
        # Pictures of nothing are rendered without error, by both.
        return (second.clamp(min=1e-12) / before.clamp(min=1e-12)).log().numpy()

    first, second = per_camera(errors.first), per_camera(errors.second)
    log_ratios = log_ratio_to(first)
    p_helped, p_hurt = wilcoxon_p(log_ratios, "less"), wilcoxon_p(log_ratios, "greater")
    differences, cameras = (errors.second - errors.first).numpy(), errors.block_cameras.numpy()

    def p_cameras(of: Iterable[int], alternative: Literal["less", "greater"]) -> np.ndarray:
        return holm(np.array([wilcoxon_p(differences[cameras == index], alternative) for index in of]))

    p_worse = p_cameras(range(num_cameras), "greater")
    degrees = moved.degrees.numpy()
    strayed = np.flatnonzero(degrees > config.stray)
    clearly_better = (p_cameras(strayed, "less") < ALPHA) & (log_ratios[strayed] < -LEAST_CAMERA_EFFECT)
    clearly_worse = (p_worse[strayed] < ALPHA) & (log_ratios[strayed] > LEAST_CAMERA_EFFECT)
    strays, doubtful = strayed[~clearly_better], strayed[~clearly_better & ~clearly_worse]
    log_ratio = float(log_ratios.mean())
    contradicted = matches is not None and contradict(matches)
    verdict: Literal["helped", "hurt", "undecided"] = "undecided"
    doubt: Optional[Doubt] = None
    if p_helped < ALPHA / 2 and log_ratio <= -LEAST_GAIN:
        if log_ratio_to(per_camera(errors.coarse)).mean() > 0:
            doubt = "coarse"
        elif moved.converging > config.converging:
            doubt = "converging"
        elif degrees[strays].sum() > 0.5 * degrees.sum():
            doubt = "strays"
        elif contradicted:
            doubt = "matches"
        elif matches is not None and tells(matches) and matches.median_deg > FAR_FROM_MATCHES:
            doubt = "far"
        verdict = "helped" if doubt is None else "undecided"
    if p_hurt < ALPHA / 2 and log_ratio >= LEAST_LOSS:
        verdict = "hurt"
    return Verdict(
        verdict,
        log_ratio,
        p_helped,
        p_hurt,
        first,
        second,
        torch.from_numpy(p_worse),
        doubt,
        doubtful.tolist(),
        contradicted,
    )


def tells(matches: Disagreement) -> bool:
    """Whether enough cameras have matches for these to have a say."""
    return can_decide(len(matches.log_ratios))


def contradict(matches: Disagreement) -> bool:
    """Whether matches fit the second poses clearly worse, by cameras."""
    log_ratios = matches.log_ratios
    if not tells(matches) or log_ratios.mean() < WORSE_MATCHES:
        return False
    return wilcoxon_p(log_ratios, "greater") < ALPHA / 2


def wilcoxon_p(differences: Float[np.ndarray, "n"], alternative: Literal["less", "greater"]) -> float:
    """One-sided p value of Wilcoxon's signed-rank test; 1 where all differences are zero."""
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences, alternative=alternative).pvalue)


def holm(p_values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """p values corrected for their number: below alpha, with the probability alpha, anywhere where all nulls hold (Holm
    1979)."""
    order = np.argsort(p_values)
    scaled = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(scaled, 1.0)
    return corrected
