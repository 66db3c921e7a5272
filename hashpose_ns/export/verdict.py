"""What the guard said about a run, and what an export makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Literal, Optional, Sequence

from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    from hashpose_ns.guard.report import GuardReport

OnHurt = Literal["refuse", "warn", "keep-initial"]


def check_verdict(run: Path, on_hurt: OnHurt) -> "Optional[GuardReport]":
    """Reads the guard's verdict on a run's latest checkpoint.

    Args:
        run: the run's folder.
        on_hurt: what to do where refinement made the poses worse.

    Returns:
        The verdict, or None where the guard did not judge this checkpoint.

    Raises:
        HashPoseError: if refinement hurt and ``on_hurt`` is to refuse that.
    """
    from hashpose_ns.guard.report import read_verdict

    report = read_verdict(run)
    if report is not None and report.verdict == "hurt" and on_hurt == "refuse":
        raise HashPoseError(
            f"The guard says that refinement made the poses of this run worse ({report.sentence.rstrip('.')}); keep "
            "the poses you have, or export them anyway with --on-hurt warn."
        )
    return report


def cameras_to_put_back(report: "Optional[GuardReport]", on_hurt: OnHurt, image_names: Sequence[str]) -> List[int]:
    """Indices of the training cameras that an export puts back to where training started: those the guard found hurt
    or doubtful, and all where refinement hurt as a whole.

    Args:
        report: the guard's verdict, if there is one.
        on_hurt: only ``keep-initial`` puts cameras back.
        image_names: names of the training images, as the camera optimizer has them.
    """
    if report is None or on_hurt != "keep-initial":
        return []
    if report.verdict == "hurt":
        return list(range(len(image_names)))
    put_back = []
    for named in report.hurt_cameras + report.doubtful_cameras:
        matches = [index for index, name in enumerate(image_names) if name == named]
        if not matches:  # training saw the images at another size, in another folder
            matches = [index for index, name in enumerate(image_names) if Path(name).name == Path(named).name]
        if len(matches) != 1:
            raise HashPoseError(f"The guard names the camera {named}, which is not one of the training images now.")
        put_back += matches
    return put_back


def verdict_lines(report: Any, on_hurt: OnHurt) -> List[str]:
    """What to tell about the guard's verdict, for the console."""
    if report is None:
        return ["not asked; hashpose-guard tells whether refinement helped"]
    lines = [f"{report.verdict}: {report.sentence}"]
    then = "put back to their initial poses" if on_hurt == "keep-initial" else "--on-hurt keep-initial puts them back"
    for what, cameras in (
        ("worse than before", report.hurt_cameras),
        ("moved far without fitting better", report.doubtful_cameras),
    ):
        if cameras and report.verdict != "hurt":
            names = ", ".join(Path(name).name for name in cameras[:5])
            more = f" and {len(cameras) - 5} more" if len(cameras) > 5 else ""
            lines.append(f"{what}: {names}{more}; {then}")
    return lines
