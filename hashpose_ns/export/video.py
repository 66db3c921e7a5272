"""Frames of a replay to an MP4 file or an animated GIF."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Iterator, Tuple

import numpy as np

from hashpose_ns.errors import HashPoseError

if TYPE_CHECKING:
    from hashpose_ns.export.replay_drawing import Frame, ReplayDrawing

ENDINGS = (".mp4", ".gif")
GIF_COLORS = 32
"""Four inks in eight shades; twice as many make files a quarter larger and look the same."""


def check_video_settings(
    output_path: Path, size: Tuple[int, int], fps: float, seconds: float, hold_start: float, hold_end: float
) -> None:
    """Raises HashPoseError with the first setting that no video can be made with."""
    if output_path.suffix.lower() not in ENDINGS:
        raise HashPoseError(f"--output-path {output_path} has to end in .mp4 or .gif, which decides the format.")
    if min(size) < 120 or max(size) > 4096:
        raise HashPoseError(f"--size {size[0]} {size[1]}: width and height have to lie between 120 and 4096 pixels.")
    if output_path.suffix.lower() == ".mp4" and any(side % 2 for side in size):
        raise HashPoseError(f"--size {size[0]} {size[1]}: width and height of an MP4 have to be even.")
    if not 1 <= fps <= 100:
        raise HashPoseError(f"--fps {fps:g} has to lie between 1 and 100.")
    if not (seconds > 0 and hold_start >= 0 and hold_end >= 0):
        raise HashPoseError("--seconds has to be positive, --hold-start and --hold-end not negative.")


def frame_positions(num_records: int, fps: float, seconds: float, hold_start: float, hold_end: float) -> np.ndarray:
    """Which record each frame shows, in fractions of a record: the first, all at an even pace, the last."""
    start, moving, end = (round(fps * length) for length in (hold_start, seconds, hold_end))
    last = num_records - 1
    return np.concatenate([np.zeros(start), np.linspace(0, last, max(moving, 2)), np.full(end, last)])


def draw_frames(drawing: ReplayDrawing, positions: np.ndarray) -> Iterator[Frame]:
    """The frames at some positions of a replay; the view turns evenly over all of them."""
    for index, position in enumerate(positions):
        yield drawing.frame(float(position), index / max(len(positions) - 1, 1))


def write_mp4(frames: Iterable[Frame], path: Path, size: Tuple[int, int], fps: float) -> None:
    """Writes H.264 by the encoder in PyAV's wheel, in the pixel format that every player takes.

    Raises:
        HashPoseError: if this machine's PyAV was built without the encoder.
        OSError: if the file cannot be written.
    """
    import av

    try:
        av.codec.Codec("libx264", "w")
    except Exception as error:  # PyAV has renamed the class of this one
        raise HashPoseError("PyAV has no H.264 encoder here; write a .gif, or install PyAV from its wheel.") from error
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "20"}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    except av.error.FFmpegError as error:  # which versions of PyAV make an OSError of differs
        raise OSError(error.errno, error.strerror) from error


def write_gif(frames: Iterator[Frame], path: Path, fps: float) -> None:
    """Writes a GIF that repeats for ever. All frames have the palette of the first; with one for each, as Pillow and
    imageio would have it, files are four times as large."""
    from PIL import Image

    first = Image.fromarray(next(frames)).quantize(GIF_COLORS, method=Image.Quantize.MAXCOVERAGE)
    others = (Image.fromarray(frame).quantize(palette=first, dither=Image.Dither.NONE) for frame in frames)
    # Durations are hundredths of a second in the file, and browsers take less than two for ten.
    duration = 10 * max(2, round(100 / fps))
    first.save(path, format="GIF", save_all=True, append_images=others, duration=duration, loop=0, optimize=True)
