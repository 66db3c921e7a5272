"""hashpose-guard: whether a finished run's refinement helped.

Only light modules are imported up here, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hashpose_ns.command import run_command
from hashpose_ns.guard.config import GuardConfig


@dataclass
class Guard:
    """Judge without ground truth whether a finished run's refined poses are better than those it started from. The
    verdict goes to the console and to guard.json in the run's folder."""

    load_config: Path
    """Path to the config.yml of the trained run."""
    steps: int = GuardConfig.steps
    """Steps of the judging field on both sets of poses together; 0 takes 5 % of training's.
    Half as many follow on each set alone. 0 takes at least 200 and at most 2000."""
    rays: int = GuardConfig.rays
    """Rays a step."""
    seed: int = GuardConfig.seed
    """Seed of held-out pixels, rays and field."""

    def main(self) -> None:
        """Load the run, judge it, write and print the verdict."""
        config = GuardConfig(mode="report", steps=self.steps, rays=self.rays, seed=self.seed)
        config.validate()
        from hashpose_ns.guard.compare import run_guard
        from hashpose_ns.matches.strategy import cached_matches
        from hashpose_ns.runs.config import read_config
        from hashpose_ns.runs.load import load_trained_pipeline
        from nerfstudio.utils.rich_utils import CONSOLE

        scene = load_trained_pipeline(self.load_config, test_mode="val").scene
        matches = cached_matches(scene, getattr(read_config(self.load_config), "matches", None))
        report = run_guard(scene, config, matches)
        path = report.write(self.load_config.resolve().parent)
        report.print()
        CONSOLE.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)


def entrypoint() -> None:
    """Entrypoint for use with pyproject scripts."""
    run_command(Guard)


if __name__ == "__main__":
    entrypoint()
