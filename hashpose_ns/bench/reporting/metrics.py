"""What is reported of a run, and its mean and spread over seeds."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from typing_extensions import Literal

from hashpose_ns.bench.reporting.runs import BenchRun


@dataclass(frozen=True)
class Metric:
    """A number of a run, and how it is shown."""

    name: str
    """Its name in summary.json, in the published tables and here."""
    title: str
    """Its column's heading."""
    keys: Tuple[str, ...]
    """Where it is in results.json; the first key that is there counts."""
    scale: float = 1.0
    """Factor of what is shown to what is stored."""
    digits: int = 3
    """Decimals shown."""
    with_spread: bool = True
    """Whether the spread over seeds is shown beside it."""
    better: Optional[Literal["lower", "higher"]] = None
    """Which end is the good one; None where neither is."""
    over_seeds: Literal["mean", "max"] = "mean"
    """What stands for the seeds: their mean, or the largest of them."""

    @property
    def of_poses(self) -> bool:
        """Whether it compares poses after training with others: an error, or a movement where those were given."""
        return self.keys[0].startswith("pose_change_")

    def of(self, run: BenchRun) -> Optional[float]:
        """The number, as it is shown, of a run that is done; None where it was not measured."""
        for values in (run.results, run.outcome):
            for key in self.keys:
                if isinstance(values.get(key), (int, float)):
                    return self.scale * float(values[key])
        return None


def _pose_keys(measure: str) -> Tuple[str, str]:
    return f"pose_change_{measure}", f"pose_error_after_{measure}"


ROTATION = Metric(
    "rotation_deg",
    "rotation [deg]",
    ("pose_change_rotation_deg_mean", "barf_rotation_deg_mean", "pose_error_after_rotation_deg_mean"),
    better="lower",
)
TRANSLATION = Metric("translation_x100", "translation x100", _pose_keys("translation_mean"), 100.0, better="lower")
CENTER = Metric("center_x100", "centres x100", _pose_keys("center_mean"), 100.0, better="lower")
PSNR = Metric("psnr", "PSNR, TTO [dB]", ("psnr_tto",), digits=2, better="higher")
SSIM = Metric("ssim", "SSIM, TTO", ("ssim_tto",), better="higher")
LPIPS = Metric("lpips", "LPIPS, TTO", ("lpips_tto",), better="lower")
MS_PER_STEP = Metric("ms_per_step", "ms/step", ("ms_per_step",), digits=1)

BEFORE = Metric(
    "rotation_deg_before", "before [deg]", ("pose_error_before_rotation_deg_mean",), digits=2, with_spread=False
)

HEADLINE = (BEFORE, ROTATION, TRANSLATION, CENTER, PSNR, SSIM, LPIPS)
"""The columns of the first table of a scene."""

DETAILS = (
    Metric(
        "translation_x100_before",
        "translation x100 before",
        ("pose_error_before_translation_mean",),
        100.0,
        2,
        with_spread=False,
    ),
    Metric("rotation_deg_median", "median rotation", _pose_keys("rotation_deg_median"), better="lower"),
    Metric("rotation_deg_max", "worst camera", _pose_keys("rotation_deg_max"), better="lower", over_seeds="max"),
    Metric("psnr_aligned", "PSNR, aligned", ("psnr_aligned",), digits=2, better="higher"),
    Metric("ssim_aligned", "SSIM, aligned", ("ssim_aligned",), better="higher"),
    Metric("steps", "steps", ("steps",), digits=0, with_spread=False),
    MS_PER_STEP,
    Metric("train_seconds", "training", ("train_seconds",)),
    Metric("eval_seconds", "evaluation", ("eval_seconds",), with_spread=False),
    Metric("peak_memory_mb", "memory [MB]", ("peak_memory_mb",), digits=0, with_spread=False),
    Metric("parameters", "parameters", ("parameters",), digits=0, with_spread=False),
)
"""The columns of the second table of a scene."""


@dataclass(frozen=True)
class Statistic:
    """A metric over the seeds of one preset."""

    values: Dict[int, float]
    """Seed -> value, of the seeds that measured it. A value may be NaN or infinite."""
    over_seeds: Literal["mean", "max"] = "mean"
    """What `value` is."""

    @property
    def not_finite(self) -> int:
        """How many values are no finite numbers."""
        return sum(not math.isfinite(value) for value in self.values.values())

    @property
    def value(self) -> Optional[float]:
        """Mean (or largest) of the values; None where there are none, or one of them is not finite."""
        if not self.values or self.not_finite:
            return None
        numbers = list(self.values.values())
        return max(numbers) if self.over_seeds == "max" else statistics.fmean(numbers)

    @property
    def spread(self) -> Optional[float]:
        """Sample standard deviation over seeds; None with fewer than two of them."""
        if self.over_seeds == "max" or self.value is None or len(self.values) < 2:
            return None
        return statistics.stdev(self.values.values())

    def as_json(self) -> Dict[str, Any]:
        """For summary.json, which holds no NaN: null stands for what is not finite."""
        seeds = {str(seed): value if math.isfinite(value) else None for seed, value in self.values.items()}
        spread = {} if self.over_seeds == "max" else {"standard_deviation": self.spread}
        return {self.over_seeds: self.value, **spread, "n": len(self.values), "seeds": seeds}


def over_seeds(metric: Metric, runs: Sequence[BenchRun]) -> Statistic:
    """A metric over runs that are done."""
    values = {run.seed: metric.of(run) for run in runs}
    return Statistic({seed: value for seed, value in values.items() if value is not None}, metric.over_seeds)


def success(runs: Sequence[BenchRun], below_deg: float) -> Optional[Tuple[int, int]]:
    """How many runs ended with a mean rotation error below a bound, and of how many: a run that failed did not.

    None where nothing has ended, and where poses have no error: training started from poses that count as true.
    """
    ended = [run for run in runs if run.state == "failed" or (run.state == "done" and not is_movement(run))]
    errors = [ROTATION.of(run) for run in ended if run.state == "done"]
    if not ended or (errors and not any(error is not None for error in errors)):
        return None
    return sum(error is not None and error < below_deg for error in errors), len(ended)


def is_movement(run: BenchRun) -> bool:
    """Whether a run's pose measures say how far cameras moved from the given poses, which nothing says are wrong."""
    return any(key.startswith("pose_change_") for key in run.results)


# -- in words ----------------------------------------------------------------------------------------------------------

NOT_MEASURED, NOT_GIVEN = "not measured", "not given"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that fits: `48 s`, `12.5 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def number(metric: Metric, value: float) -> str:
    """A value of a metric, with the decimals that tell something."""
    if metric.name in ("train_seconds", "eval_seconds"):
        return duration(value)
    if metric.name == "parameters" and value >= 1e5:
        return f"{value / 1e6:.2f} M"
    digits = metric.digits if abs(value) < 10 else min(metric.digits, 2)
    return f"{value:.{digits}f}"


def words(metric: Metric, statistic: Statistic, expected: int) -> str:
    """A table's cell: `0.085 ± 0.012`, with `±` and a dash for one seed, and n where seeds are missing.

    Args:
        metric: what is shown.
        statistic: its values.
        expected: number of seeds that are done.
    """
    if not statistic.values:
        return NOT_MEASURED
    if statistic.not_finite:
        return f"not finite in {statistic.not_finite} of {len(statistic.values)}"
    assert statistic.value is not None
    text = number(metric, statistic.value)
    if metric.with_spread and statistic.over_seeds == "mean":
        if statistic.spread is None:
            text += " ± -"
        elif metric.name == "train_seconds":
            text += f" ± {100 * statistic.spread / max(statistic.value, 1e-12):.0f} %"
        else:
            digits = len(text.partition(".")[2])
            text += f" ± {statistic.spread:.{digits}f}"
    return text if len(statistic.values) == expected else f"{text} (n {len(statistic.values)})"


def best(metric: Metric, statistics_by_row: Sequence[Optional[Statistic]]) -> List[bool]:
    """Which rows hold the best value of a column; none where there is nothing to choose from."""
    values = [statistic.value if statistic is not None else None for statistic in statistics_by_row]
    numbers = [value for value in values if value is not None]
    if metric.better is None or len(set(numbers)) < 2:
        return [False] * len(values)
    winner = min(numbers) if metric.better == "lower" else max(numbers)
    return [value == winner for value in values]
