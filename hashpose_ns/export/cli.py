"""hashpose-export: the refined poses of a trained run, in the frame of the dataset it was trained on, and a film of
how they got there.

Only light modules are imported up here, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple, Union

import tyro
from typing_extensions import Annotated, Literal

from hashpose_ns.command import run_command
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.cli_colmap import ExportColmap
from hashpose_ns.export.cli_nerfstudio import ExportNerfstudio
from hashpose_ns.export.cli_poses import ExportJson, ExportKitti, ExportTum


@dataclass
class ExportVideo:
    """Export a film of the cameras over training, as MP4 or GIF. Neither the dataset nor a browser is needed, and a run
    that is still training will do."""

    load_config: Path
    """Path to the config.yml of the run."""
    output_path: Path
    """File to write; .mp4 or .gif decides the format."""
    overwrite: bool = False
    """Replace a file that is there."""
    align: Literal["reference", "input", "none"] = "reference"
    """What the cameras of each frame are aligned to.
    - reference: the poses that errors are measured against.
    - input: the poses training started from.
    - none: nothing.
    After an identity start every frame is aligned as the last one is."""
    seconds: float = 8.0
    """How long the cameras move."""
    hold_start: float = 0.5
    """Seconds that the first frame stands."""
    hold_end: float = 1.5
    """Seconds that the last frame stands."""
    fps: float = 20.0
    """Frames per second."""
    size: Tuple[int, int] = (640, 360)
    """Width and height in pixels."""
    orbit_degrees: float = 0.0
    """Angle that the view turns by over the film. A turning view makes a larger file."""
    title: Optional[str] = None
    """Printed at the top; by default the experiment's name and how many cameras there are."""

    def main(self) -> None:
        """Read what the run recorded and write the film."""
        from hashpose_ns.export.replace import check_target_file, replaced_file
        from hashpose_ns.export.video import check_video_settings, draw_frames, frame_positions, write_gif, write_mp4

        lengths = (self.fps, self.seconds, self.hold_start, self.hold_end)
        check_video_settings(self.output_path, self.size, *lengths)
        check_target_file(self.output_path, self.overwrite)
        if not self.load_config.is_file():
            raise HashPoseError(f"There is no file {self.load_config}; --load-config takes the config.yml of a run.")
        from rich.progress import track

        from hashpose_ns.export.replay import load_replay
        from hashpose_ns.export.replay_drawing import ReplayDrawing
        from nerfstudio.utils.rich_utils import CONSOLE

        run = self.load_config.resolve().parent
        replay = load_replay(run, self.align)
        title = f"{run.parent.parent.name}: {len(replay.start)} cameras" if self.title is None else self.title
        drawing = ReplayDrawing(replay, self.size, title, self.orbit_degrees)
        positions = frame_positions(len(replay.steps), *lengths)
        frames = draw_frames(drawing, positions)
        frames = iter(track(frames, "Drawing", total=len(positions), console=CONSOLE, transient=True))
        try:
            with replaced_file(self.output_path, self.overwrite) as path:
                if path.suffix.lower() == ".gif":
                    write_gif(frames, path, self.fps)
                else:
                    write_mp4(frames, path, self.size, self.fps)
        except OSError as error:
            raise HashPoseError(f"{self.output_path} could not be written ({error.strerror or error}).") from error
        CONSOLE.print(
            f"Wrote {len(positions)} frames of {len(replay.start)} cameras over steps {replay.steps[0]:.0f} to "
            f"{replay.steps[-1]:.0f}, {self.output_path.stat().st_size / 1e6:.2f} MB: {self.output_path}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


Commands = tyro.conf.FlagConversionOff[
    Union[
        Annotated[ExportColmap, tyro.conf.subcommand(name="colmap")],
        Annotated[ExportNerfstudio, tyro.conf.subcommand(name="nerfstudio")],
        Annotated[ExportTum, tyro.conf.subcommand(name="tum")],
        Annotated[ExportKitti, tyro.conf.subcommand(name="kitti")],
        Annotated[ExportJson, tyro.conf.subcommand(name="json")],
        Annotated[ExportVideo, tyro.conf.subcommand(name="video")],
    ]
]


def entrypoint() -> None:
    """Entrypoint for use with pyproject scripts."""
    run_command(Commands, "Export the refined cameras of a trained run, in the frame, scale and names of its input.")


if __name__ == "__main__":
    entrypoint()
