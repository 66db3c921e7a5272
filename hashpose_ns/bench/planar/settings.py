"""The settings of `hashpose-bench planar`, and the order of its work. Only light modules are imported up here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, List, NamedTuple, Tuple

from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    from hashpose_ns.bench.planar.alignment import Run

PICTURE = Path(__file__).parent / "chelsea.jpg"
"""Chelsea the cat, by Stefan van der Walt, who gave it to the public domain (CC0)."""

FAMILIES = {
    "hash": "the hash grid, as hash/READING/CURRICULUM",
    "frequency": "BARF's frequency encoding, as frequency/mask, or frequency/none for all octaves at once",
    "coordinates": "a ReLU network on bare coordinates",
    "gaussian": "a network with Gaussian activations on bare coordinates (GARF)",
}
"""Families of representations, in words."""
READINGS = ("linear", "product", "product_norm", "axis")
CURRICULA = ("lr", "mask", "repeat", "none")


class Representation(NamedTuple):
    """A way to represent a picture, written with slashes on the command line."""

    family: str
    """One of :data:`FAMILIES`."""
    reading: str = ""
    """How positions feel the hash grid's interpolation."""
    curriculum: str = ""
    """How the hash grid's levels open, or the octaves: mask or none."""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)

    @classmethod
    def parse(cls, word: str) -> Representation:
        """From the command line.

        Raises:
            HashPoseError: if there is no such representation.
        """
        parts = word.split("/")
        if len(parts) == 3 and parts[0] == "hash" and parts[1] in READINGS and parts[2] in CURRICULA:
            return cls(*parts)
        if word in ("frequency/mask", "frequency/none"):
            return cls("frequency", "", parts[1])
        if word in ("coordinates", "gaussian"):
            return cls(word)
        raise HashPoseError(
            f"There is no representation '{word}'; choose hash/READING/CURRICULUM with a reading among "
            f"{', '.join(READINGS)} and a curriculum among {', '.join(CURRICULA)}, or frequency/mask, frequency/none, "
            "coordinates or gaussian."
        )


@dataclass
class Planar:
    """Align patches of a photograph: BARF's experiment in the plane. Five patches are cut under random homographies,
    and the homographies and a neural picture are recovered together from the patches' colours alone."""

    image: Path = PICTURE
    """Any photograph; by default a cat that comes with the package."""
    output_dir: Path = Path("planar_output")
    """Folder for planar.json and the figures."""
    overwrite: bool = False
    """Replace the files of an earlier experiment there."""
    representations: Tuple[str, ...] = (
        "hash/axis/lr",
        "hash/linear/lr",
        "hash/linear/none",
        "frequency/mask",
        "frequency/none",
    )
    """What to compare. hash/READING/CURRICULUM is the smoothed hash grid: readings linear, product, product_norm, axis;
    curricula lr, mask, repeat, none. frequency/mask is BARF's network, frequency/none the same with all octaves from
    the start, coordinates without any, gaussian a network with Gaussian activations (GARF)."""
    seeds: Tuple[str, ...] = ("1",)
    """Seeds of the warps, the weights and the pixels drawn: their number (3), a list (0 1 5) or a range (4-4)."""
    size: int = 120
    """Pixels along the photograph's longer side, after resizing. Patches have half the shorter side."""
    noise: float = 0.05
    """Standard deviation of the patches' twists in sl(3). BARF has 0.1."""
    translation: float = 0.1
    """How far four patches are moved along either axis, each towards a corner, in halves of the longer side. BARF has
    0.2."""
    steps: int = 1500
    """Steps of gradient descent."""
    batch: int = 1000
    """Pixels in a step, drawn from all patches alike."""
    levels: int = 8
    """Levels of the hash grid."""
    base_resolution: int = 2
    """Cells along the longer side of the coarsest level."""
    max_resolution: int = 128
    """The same of the finest level."""
    decoder_width: int = 64
    """Width of the two hidden layers behind the hash grid."""
    network_width: int = 128
    """Width of the four hidden layers of the other families. BARF has 256."""
    hash_rate: float = 3e-2
    """Adam's learning rate for the hash grid and its decoder."""
    network_rate: float = 1e-3
    """The same for the networks of the other families."""
    warp_rate: float = 3e-3
    """The same for the warps."""
    decay: float = 0.1
    """All learning rates fall exponentially to this fraction of themselves."""
    warp_start: float = 0.05
    """Fraction of training in which the warps stand still. Over as long again their learning rate rises to its full
    value."""
    window: Tuple[float, float] = (0.0, 0.5)
    """Start and end, as fractions of training, in which levels or octaves open from coarse to fine."""

    def main(self) -> None:
        """Runs the experiment, prints a table and writes numbers and figures."""
        from rich.console import Console

        from hashpose_ns.bench.suites import parse_seeds

        representations = [Representation.parse(word) for word in dict.fromkeys(self.representations)]
        seeds = parse_seeds(self.seeds)
        self.validate()
        from hashpose_ns.bench.planar.output import check_output, print_table, write_output

        check_output(self.output_dir, self.overwrite)
        import torch

        from hashpose_ns.bench.planar.alignment import align, make_problem, read_photograph
        from hashpose_ns.bench.planar.gradients import sweep_levels

        console = Console()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # steps this small gain nothing from more
        try:
            photograph = read_photograph(self.image, self.size)
            problems = {seed: make_problem(photograph, self, seed) for seed in seeds}
            runs: List[Run] = []
            for seed, problem in problems.items():
                for representation in representations:
                    run = align(problem, representation, self, seed)
                    runs.append(run)
                    console.print(
                        f"seed {seed}  {representation}: corner error {run.corner_errors[0]:.2f} -> "
                        f"{run.corner_errors[-1]:.2f} pixels in {run.seconds[-1]:.1f} s",
                        highlight=False,
                        soft_wrap=True,
                    )
            sweeps = sweep_levels(problems[seeds[0]], self)
        finally:
            torch.set_num_threads(threads)
        print_table(console, runs)
        for line in write_output(self, problems[seeds[0]], runs, sweeps):
            console.print(line, highlight=False, soft_wrap=True)

    def validate(self) -> None:
        """Raises HashPoseError where a setting is out of range."""
        start, end = self.window
        checks = [
            (len(self.representations) > 0, "--representations needs at least one name"),
            (self.size >= 16, f"--size must be at least 16 pixels, not {self.size}"),
            (self.steps >= 10, f"--steps must be at least 10, not {self.steps}"),
            (self.batch >= 5, f"--batch must be at least 5 pixels, one of each patch, not {self.batch}"),
            (0 <= self.noise < 1, f"--noise must be between 0 and 1, not {self.noise}"),
            (0 <= self.translation < 1, f"--translation must be between 0 and 1, not {self.translation}"),
            (min(self.decoder_width, self.network_width) > 0, "widths must be at least 1"),
            (0 < self.decay <= 1, f"--decay must be above 0 and at most 1, not {self.decay}"),
            (0 <= self.warp_start < 0.5, f"--warp-start must be at least 0 and below 0.5, not {self.warp_start}"),
            (0 <= start < end <= 1, f"--window needs fractions 0 <= start < end <= 1, not {start} {end}"),
        ]
        for name in ("hash_rate", "network_rate", "warp_rate"):
            rate = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            checks.append((0 < rate < math.inf, f"{flag} must be a positive number, not {rate}"))
        for holds, sentence in checks:
            if not holds:
                raise HashPoseError(f"{sentence}.")
