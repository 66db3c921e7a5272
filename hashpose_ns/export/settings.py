"""Settings and steps that exports of a trained run share.

Only light modules are imported up here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional, Sequence, Tuple, Union

from typing_extensions import Literal

from hashpose_ns import __version__
from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    from hashpose_ns.export.exported import ExportedCameras
    from hashpose_ns.photometry.scene import PosedScene


@dataclass
class Written:
    """A folder of cameras in some format."""

    output_dir: Path
    """Output folder, written atomically."""
    overwrite: bool = False
    """Replace an earlier export in the output folder. A folder with anything else in it is never replaced."""

    def check(self, exported: "ExportedCameras") -> None:
        """Raises HashPoseError if the output folder may not be written, or the format cannot hold the cameras."""
        from hashpose_ns.export.replace import check_target

        check_target(self.output_dir, self.overwrite, [*self.inputs(), *exported.sources])

    @contextmanager
    def written_folder(self, exported: "ExportedCameras") -> Iterator[Path]:
        """A folder that takes the output folder's name when the block ends well, with a list of its files.

        Raises:
            HashPoseError: as `check`.
        """
        from hashpose_ns.export.replace import replaced_folder

        self.check(exported)
        needed = [*self.inputs(), *exported.sources]
        try:
            with replaced_folder(self.output_dir, self.overwrite, self.note(exported), needed) as folder:
                for name, text in (exported.origin.files if exported.origin is not None else {}).items():
                    (folder / name).write_text(text, encoding="utf-8")
                yield folder
        except OSError as error:
            raise HashPoseError(f"{self.output_dir} could not be written ({error.strerror or error}).") from error

    def inputs(self) -> List[Path]:
        """Files and folders, beside the dataset, that the export reads."""
        return []

    def note(self, exported: "ExportedCameras") -> dict[str, Any]:
        """What an export says about itself."""
        return {
            **self.about(exported),
            "frame": exported.frame.description,
            "images": [
                {"name": name, "split": split, "refined_by": how}
                for name, split, how in zip(exported.names, exported.splits, exported.refined_by)
            ],
        }

    def about(self, exported: "ExportedCameras") -> dict[str, Any]:
        """Where the cameras come from; `written_by` is the command."""
        assert exported.origin is not None
        return exported.origin.note

    def lines_about(self, exported: "ExportedCameras") -> List[str]:
        """The same for the console."""
        return exported.origin.lines if exported.origin is not None else []

    def print_summary(
        self,
        exported: "ExportedCameras",
        what: str,
        path: Path,
        use: Sequence[Union[str, Path]],
        notes: Optional[List[str]] = None,
    ) -> None:
        """Print what was exported, how far the cameras moved, where it is and what to do with it.

        Args:
            exported: the cameras.
            what: the format, in words.
            path: the file or folder to look at.
            use: a command that takes the export, word by word.
            notes: further lines.
        """
        from hashpose_ns.export.exported import FROZEN, KEPT, OPTIMIZED
        from nerfstudio.utils.rich_utils import CONSOLE

        lines = [f"Exported {len(exported.names)} cameras as {what}: {path}"]
        lines.append(f"  frame    {exported.frame.description}")
        if exported.movement is not None:
            # rounding of double precision is no movement
            moved = exported.movement
            rotation, center = (value.round(decimals=9) for value in (moved.rotation_deg, moved.center))
            furthest = int(center.argmax())
            lines.append(
                f"  moved    {float(rotation.mean()):.3g} deg and {float(center.mean()):.3g} units on average; "
                f"furthest {exported.names[furthest]}, {float(rotation[furthest]):.3g} deg and "
                f"{float(center[furthest]):.3g} units"
                if rotation.any() or center.any()
                else "  moved    no camera"
            )
        for how, words in ((FROZEN, "frozen"), (KEPT, "put back to their initial poses")):
            if how in exported.refined_by:
                lines.append(f"  kept     {exported.refined_by.count(how)} cameras, {words}")
        lines += [f"  {line}" for line in self.lines_about(exported)]
        lines.append(f"  images   {exported.image_folder}")
        if "eval" in exported.splits:
            optimized = exported.refined_by.count(OPTIMIZED)
            lines.append(
                f"  with     the evaluation images ({exported.splits.count('eval')}), {optimized} of their cameras "
                "optimised against the field, the rest aligned only"
            )
        if exported.num_left_out:
            lines.append(f"  left out the evaluation images ({exported.num_left_out}); --split all adds them")
        lines += [f"  {note}" for note in notes or []]
        lines.append(f"  use      {shlex.join(map(str, use))}")
        # plain text: names and paths may hold brackets, and bytes that are no letters
        text = "\n".join(lines).encode(CONSOLE.encoding, "backslashreplace").decode(CONSOLE.encoding)
        CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass
class Export(Written):
    """Settings that every export has."""

    load_config: Path = field(kw_only=True)
    """Path to the config.yml of the trained run."""
    align: Literal["input", "none"] = "input"
    """What undoes the drift of the whole scene during training.
    - input: align the refined cameras to the poses training started from.
    - none: keep the poses as they were learned.
    Runs with frozen cameras or an identity start are kept as learned either way."""
    split: Literal["train", "all"] = "train"
    """Which images to export.
    - train: those the run was trained on.
    - all: the evaluation images too, aligned by the training cameras, then optimised against the field."""
    on_hurt: Literal["refuse", "warn", "keep-initial"] = "refuse"
    """What to do if the guard found that refinement made the poses worse.
    - refuse: export nothing if it did so as a whole.
    - warn: say so.
    - keep-initial: cameras that got worse keep the pose training started from."""

    def load(
        self, load_points: bool = False, and_check: "Optional[Callable[[ExportedCameras], None]]" = None
    ) -> Tuple["PosedScene", "ExportedCameras"]:
        """Checks the output folder and the guard's verdict, loads the run, and brings its cameras into the input's
        frame.

        Args:
            load_points: ask the dataparser for the input's 3-D points.
            and_check: raises HashPoseError if something stands in the way; `check` if None.

        Raises:
            HashPoseError: as that check, and for whatever else stands in the way, before anything takes time.
        """
        from hashpose_ns.export.replace import check_target, clear_abandoned

        clear_abandoned(self.output_dir)
        check_target(self.output_dir, self.overwrite, self.inputs())
        from hashpose_ns.export.poses import exported_cameras
        from hashpose_ns.export.verdict import cameras_to_put_back, check_verdict
        from hashpose_ns.runs.load import load_trained_pipeline

        report = check_verdict(self.load_config.parent, self.on_hurt)
        scene = load_trained_pipeline(self.load_config, load_points).scene
        put_back = cameras_to_put_back(report, self.on_hurt, scene.poses.image_names)
        check = and_check or self.check
        if self.split == "all" and scene.test_time.steps > 0:
            # first without what takes time, the poses of held-out cameras
            quick = replace(scene, test_time=replace(scene.test_time, steps=0))
            check(exported_cameras(quick, self.align, self.split, put_back))
        exported = exported_cameras(scene, self.align, self.split, put_back)
        check(exported)
        return scene, replace(exported, verdict=report)

    def inputs(self) -> List[Path]:
        """Files and folders, beside the dataset, that the export reads."""
        return [self.load_config.parent, self.load_config]

    def about(self, exported: "ExportedCameras") -> dict[str, Any]:
        """The run, and what the guard says of it."""
        report = exported.verdict
        return {
            "written_by": f"hashpose-export {__version__}",
            "run": str(self.load_config.resolve().parent),
            "guard": None if report is None else {"verdict": report.verdict, "sentence": report.sentence},
        }

    def lines_about(self, exported: "ExportedCameras") -> List[str]:
        """What the guard says."""
        from hashpose_ns.export.verdict import verdict_lines

        return [f"guard    {line}" for line in verdict_lines(exported.verdict, self.on_hurt)]


@dataclass
class ExportWithPoints(Export):
    """Settings of exports that hold 3-D points."""

    points: Literal["field", "input", "empty"] = "field"
    """3-D points to write.
    - field: sampled from the surfaces of the trained field, kept if its views agree.
    - input: those of the input dataset; they are not refined with the cameras.
    - empty: none."""
    num_points: int = 50_000
    """How many of the field's points to keep at most."""
