"""The guard's report: in words, as JSON in the run's folder, and as flat floats. Light, for readers."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional

from hashpose_ns.errors import HashPoseError
from hashpose_ns.matches.report import read_matches
from hashpose_ns.runs.files import GUARD_FILE, last_step, write_json

VERSION = 1


@dataclass(frozen=True)
class CameraReport:
    """What held-out pixels of one training image say about its camera."""

    name: str
    """The image's file name, as in `PoseOptimizer.image_names`."""
    psnr_initial: float
    """PSNR of its held-out pixels at the initial poses, in dB."""
    psnr_refined: float
    """The same at the refined poses."""
    psnr_gain: float
    """Refined minus initial."""
    p_hurt: float
    """Probability of a loss like this, or worse, by chance; corrected for the number of cameras."""
    hurt: bool
    """Whether it fits worse than before by more than chance."""
    doubtful: bool = False
    """Whether it moved far from where it started and does not clearly fit better for it."""
    rotation_std_deg: Optional[List[float]] = None
    """Standard deviations of turns about the refined camera's axes (right, up, backwards) in degrees, conditional on
    the field."""
    translation_std: Optional[List[float]] = None
    """The same of steps along the axes, in scene units."""


@dataclass(frozen=True)
class GuardReport:
    """Whether refinement helped, judged without ground truth."""

    verdict: Literal["helped", "hurt", "undecided", "kept"]
    """Over all cameras. `kept`: they are where training started, as refinement on the way did not help."""
    sentence: str
    """What held-out pixels say, in words, without a full stop."""
    step: int
    """Last step of training before the poses that were judged."""
    psnr_initial: float
    """Mean over cameras of the PSNR of held-out pixels at the initial poses, in dB, of a small field after a short
    training: only the difference to the next one means something."""
    psnr_refined: float
    """The same at the refined poses."""
    psnr_gain: float
    """Refined minus initial."""
    log_ratio: float
    """Mean over cameras of log(error refined / error initial)."""
    p_helped: float
    """Probability of a gain like this, or more, by chance."""
    p_hurt: float
    """Probability of a loss like this, or more, by chance."""
    hurt_cameras: List[str]
    """Names of cameras that fit worse than before by more than chance."""
    cameras: List[CameraReport]
    """Every training camera."""
    settings: Dict[str, Any]
    """The guard's settings, with the steps that were taken."""
    seconds: float
    """How long it took."""
    doubtful_cameras: List[str] = field(default_factory=list)
    """Names of cameras that moved far and do not clearly fit better for it."""
    matches: Optional[Dict[str, str]] = None
    """`verdict` and `sentence` of what matches said of where training started; None if they were not asked."""
    version: int = VERSION
    """Of the file's format."""

    def metrics(self) -> Dict[str, float]:
        """Flat floats as in ns-eval's JSON; `guard_verdict` is 1 for helped, 0 for undecided and kept, -1 for hurt."""
        return {
            "guard_verdict": float({"helped": 1, "undecided": 0, "kept": 0, "hurt": -1}[self.verdict]),
            "guard_kept": float(self.verdict == "kept"),
            "guard_psnr_initial": self.psnr_initial,
            "guard_psnr_refined": self.psnr_refined,
            "guard_psnr_gain": self.psnr_gain,
            "guard_p_helped": self.p_helped,
            "guard_p_hurt": self.p_hurt,
            "guard_hurt_cameras": float(len(self.hurt_cameras)),
            "guard_doubtful_cameras": float(len(self.doubtful_cameras)),
        }

    def write(self, run_folder: Path) -> Path:
        """Writes guard.json atomically, with what matches said of the start, by the report that lies beside it.

        Returns:
            The file.

        Raises:
            HashPoseError: the folder cannot be written.
        """
        path, matches = run_folder / GUARD_FILE, read_matches(run_folder)
        content = dataclasses.asdict(self)
        if matches is not None:
            content["matches"] = {"verdict": matches.verdict, "sentence": matches.sentence}
        try:
            write_json(path, content)
        except OSError as error:
            raise HashPoseError(f"The guard's report {path} cannot be written ({error.strerror}).") from error
        return path

    def print(self) -> None:
        """The verdict and its numbers on the console."""
        from rich.text import Text

        from nerfstudio.utils.rich_utils import CONSOLE

        said, color = {
            "helped": ("refinement helped", "green"),
            "hurt": ("REFINEMENT MADE THE POSES WORSE", "bold red"),
            "undecided": ("undecided whether refinement helped", "yellow"),
            "kept": ("the poses you gave were kept, as refined ones did not fit better", "green"),
        }[self.verdict]
        CONSOLE.print(Text(f"Guard: {said}; {self.sentence}.", style=color), soft_wrap=True)
        if self.verdict == "hurt":
            CONSOLE.print(
                "Keep the poses you gave, or refine at a lower rate (--optimizers.camera-opt.optimizer.lr).",
                soft_wrap=True,
            )
        for sentence in self.camera_sentences():
            CONSOLE.print(Text(f"Guard: {sentence}.", style="yellow"), soft_wrap=True)

    def camera_sentences(self) -> List[str]:
        """Names the cameras that are hurt and those that are doubtful, where there are any; without full stops."""
        said = []
        if self.hurt_cameras:
            fits = "camera fits" if len(self.hurt_cameras) == 1 else "cameras fit"
            said.append(f"{len(self.hurt_cameras)} {fits} worse than before refinement: {listed(self.hurt_cameras)}")
        if self.doubtful_cameras:
            moved = "camera moved far and does" if len(self.doubtful_cameras) == 1 else "cameras moved far and do"
            said.append(
                f"{len(self.doubtful_cameras)} {moved} not clearly fit better for it: {listed(self.doubtful_cameras)}"
            )
        return said


def back_sentence(rate: float) -> str:
    """Says that cameras were put back, and what comes then.

    Args:
        rate: factor on their learning rate from then on.
    """
    then = f"are refined again at {rate:g} of the rate" if rate > 0 else "stay there"
    return f"cameras are back where they started, and {then}"


def listed(names: List[str], most: int = 8) -> str:
    """Names of cameras, without the folder that all their images are in."""
    folders = [os.path.dirname(name) for name in names]
    common = os.path.commonpath(folders) if len({os.path.isabs(folder) for folder in folders}) == 1 else ""
    short = [os.path.relpath(name, common) if common else name for name in names[:most]]
    return ", ".join(short) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_report(path: Path) -> GuardReport:
    """Reads a guard.json.

    Raises:
        HashPoseError: it is not there, or no such report.
    """
    import msgspec

    try:
        return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), GuardReport)
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        raise HashPoseError(f"The guard's report {path} cannot be read; run hashpose-guard again.") from error


def read_verdict(run_folder: Path) -> Optional[GuardReport]:
    """The report on a run's latest checkpoint; None if the guard did not run, or judged an earlier checkpoint.

    Args:
        run_folder: where config.yml is.
    Raises:
        HashPoseError: the report cannot be read.
    """
    path, step = run_folder / GUARD_FILE, last_step(run_folder)
    if not path.is_file() or step is None:
        return None
    report = read_report(path)
    return report if report.step == step else None
