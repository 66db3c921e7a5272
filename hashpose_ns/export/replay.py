"""A run's cameras over training, as pictures: what was recorded, how it is projected, and how a frame is drawn.

Frames are projected here and drawn with Pillow, in some hundredths of a second; matplotlib's 3-D axes take far longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, List, Literal, Optional, Tuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, align_poses, centers_coincide, pose_errors
from hashpose_ns.cameras.history import HISTORY_FILE, read_pose_history
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.plotting.figures import AFTER, BEFORE, TRUE
from hashpose_ns.runs.files import CHECKPOINTS, last_checkpoint, read_pose_log

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Align = Literal["reference", "input", "none"]
"""What the cameras of each record are aligned to."""

INK, FAINT, PAPER = "#333333", "#dddddd", "#ffffff"
SUPERSAMPLING = 2
"""Lines are drawn this much larger and averaged, which is their antialiasing."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A number over training."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    unit: str
    from_zero: bool = True
    """Whether the axis begins at 0; at the smallest value otherwise."""

    def at(self, step: float) -> Optional[float]:
        """The last value that was measured at or before a step; None before the first."""
        count = np.searchsorted(self.steps, step, side="right")
        return float(self.values[count - 1]) if count else None


@dataclass(frozen=True, eq=False)
class Replay:
    """Everything a replay shows, in one frame of reference."""

    steps: Float[np.ndarray, "records"]
    """Training step of each record."""
    cameras: Float[np.ndarray, "records num_cameras 3 4"]
    """Camera-to-world poses, OpenGL axes."""
    start: Float[np.ndarray, "num_cameras 3 4"]
    """Poses that training started from."""
    reference: Optional[Float[np.ndarray, "num_cameras 3 4"]]
    """Poses that errors are measured against; None where those are the start."""
    curves: List[Curve]
    """What is drawn beside the cameras."""


def load_replay(run: Path, align: Align = "reference") -> Replay:
    """What a run's folder knows of the way its poses took. Neither the dataset nor the field is loaded.

    Args:
        run: folder of a run, finished or not. The poses are in nerfstudio's frame.
        align: what each record is aligned to, by a similarity of its own: the reference, the start, or nothing. After a
            start with all centres in one point that would blow the first steps up to full size; there all records get
            the last one's similarity.

    Raises:
        HashPoseError: if the run recorded no poses, or a file cannot be read.
    """
    path = run / HISTORY_FILE
    if not path.is_file():
        raise HashPoseError(
            f"There is no {HISTORY_FILE} in {run}, which training writes as it goes; a run of an older version has to "
            "be trained again for a replay."
        )
    steps, recorded = read_pose_history(path)
    finite = np.isfinite(recorded).all(axis=(1, 2, 3))  # the last record of a run that diverged may not be
    steps, poses = steps[finite], torch.from_numpy(recorded[finite]).double()
    if len(steps) < 2:
        raise HashPoseError(f"{path} holds {len(steps)} records of poses; a replay needs at least 2.")
    start, reference = _start_and_reference(run, poses[0])
    target = start if reference is None else reference

    way = torch.cat([start[None], poses])
    # Errors are those of the cameras as they are drawn by default
    shown = _similarities(way, start, target)
    errors = [pose_errors(record, target, similarity) for record, similarity in zip(poses, shown[1:])]
    what = "movement" if reference is None else "error"
    curves = [
        Curve(f"mean rotation {what}", steps, np.array([float(error.rotation_deg.mean()) for error in errors]), "°"),
        Curve(f"mean centre {what}", steps, np.array([float(error.center.mean()) for error in errors]), ""),
    ]
    psnr = {record["step"]: record["held_out_psnr"] for record in read_pose_log(run) if "held_out_psnr" in record}
    if len(psnr) > 1:
        curves.append(Curve("held-out PSNR", np.array([*psnr]), np.array([*psnr.values()]), " dB", from_zero=False))

    similarities = {
        "reference": shown,
        "input": _similarities(way, start, start),
        "none": [Similarity.identity()] * len(way),
    }[align]
    drawn_start, *cameras = [s.apply_to_poses(record).numpy() for s, record in zip(similarities, way)]
    return Replay(
        steps=steps.astype(np.float64),
        cameras=np.stack(cameras),
        start=drawn_start,
        reference=None if reference is None else reference.numpy(),
        curves=curves,
    )


def _similarities(
    way: Float[Tensor, "records num_cameras 3 4"],
    start: Float[Tensor, "num_cameras 3 4"],
    target: Float[Tensor, "num_cameras 3 4"],
) -> List[Similarity]:
    """The map of each record to the frame of the target."""
    if centers_coincide(target.float()):
        return [Similarity.identity()] * len(way)
    if centers_coincide(start.float()):
        return [align_poses(way[-1], target)] * len(way)
    return [align_poses(record, target) for record in way]


def _start_and_reference(run: Path, first: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
    """Both from the latest checkpoint; the first record, and nothing, where no checkpoint has been saved yet."""
    checkpoint = last_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        return first, None
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["pipeline"]
        (start,), (reference,) = (
            [
                value.double()
                for key, value in state.items()
                if key.endswith(f"camera_optimizer.{name}_camera_to_worlds")
            ]
            for name in ("initial", "reference")
        )
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        raise HashPoseError(f"The checkpoint {checkpoint} cannot be read: {one_line(error)}.") from error
    if not first.shape == start.shape == reference.shape:
        raise HashPoseError(f"The poses recorded in {run} are not those of its checkpoint: {len(first)}, {len(start)}.")
    return start, None if torch.allclose(start, reference, atol=1e-6) else reference


def pyramids(camera_to_worlds: Float[np.ndarray, "*batch 3 4"], size: float) -> Float[np.ndarray, "*batch 5 3"]:
    """Tip and four corners of the viewing pyramid of each camera; OpenGL axes, looking down -z."""
    points = size * np.array([[0, 0, 0], [-1, -1, -2], [1, -1, -2], [1, 1, -2], [-1, 1, -2]]) / 2
    return points @ np.swapaxes(camera_to_worlds[..., :3], -1, -2) + camera_to_worlds[..., None, :, 3]


EDGES = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])
"""Edges of a pyramid, as indices of its points."""


class View:
    """A perspective view that turns about the cameras and holds all of them in a rectangle.

    Args:
        points: [n, 3] points to hold.
        cameras: [N, 3, 4] poses that tell what is up and where to look from.
        box: left, top, right, bottom in pixels.
        orbit: angle in radians that the view turns by, half of it to either side.
    """

    def __init__(
        self,
        points: Float[np.ndarray, "n 3"],
        cameras: Float[np.ndarray, "num_cameras 3 4"],
        box: Tuple[float, float, float, float],
        orbit: float,
    ) -> None:
        up = cameras[:, :, 1].mean(axis=0)
        up = up / np.linalg.norm(up) if np.linalg.norm(up) > 0.1 else np.array([0.0, 0.0, 1.0])
        looking = -cameras[:, :, 2].mean(axis=0)
        looking -= (looking @ up) * up
        forward_facing = np.linalg.norm(looking) > 0.5
        # From behind and beside cameras that all look one way; elsewhere any side is as good as another.
        side = np.cross(up, np.eye(3)[np.argmin(np.abs(up))]) if not forward_facing else -looking
        side /= np.linalg.norm(side)
        self.axes = np.stack([side, np.cross(up, side), up])
        self.azimuth, self.elevation = np.radians(40.0 if forward_facing else -30.0), np.radians(28.0)
        # A camera that flew off must not make specks of the others.
        distances = np.linalg.norm(points - np.median(points, axis=0), axis=-1)
        points = points[distances <= 3 * np.quantile(distances, 0.9)]
        self.center = (points.max(axis=0) + points.min(axis=0)) / 2
        self.distance = 3.5 * np.linalg.norm(points - self.center, axis=-1).max() + 1e-9
        self.orbit = orbit
        self.focal, self.middle = 1.0, np.zeros(2)
        seen = np.concatenate([self.project(points, turn) for turn in np.linspace(0, 1, 9 if orbit else 1)])
        low, high = seen.min(axis=0), seen.max(axis=0)
        left, top, right, bottom = box
        self.focal = float(min((right - left) / (high[0] - low[0] + 1e-9), (bottom - top) / (high[1] - low[1] + 1e-9)))
        self.middle = np.array([left + right, top + bottom]) / 2 - self.focal * (low + high) / 2

    def project(self, points: Float[np.ndarray, "*batch 3"], turn: float) -> Float[np.ndarray, "*batch 2"]:
        """Pixels of points, at a fraction of the orbit."""
        angle = self.azimuth + self.orbit * (turn - 0.5)
        sine, cosine = np.sin(self.elevation), np.cos(self.elevation)
        back = np.array([cosine * np.cos(angle), cosine * np.sin(angle), sine]) @ self.axes
        right = np.array([-np.sin(angle), np.cos(angle), 0.0]) @ self.axes
        local = (points - self.center) @ np.stack([right, -np.cross(back, right), back]).T
        depth = np.maximum(self.distance - local[..., 2:], 0.1 * self.distance)
        return self.focal * local[..., :2] / depth + self.middle


@lru_cache
def _font(size: int) -> ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


class ReplayDrawing:
    """Draws a replay's frames.

    Args:
        replay: what to show.
        size: width and height in pixels.
        title: printed at the top.
        orbit_degrees: angle by which the view turns from the first frame to the last.
    """

    def __init__(self, replay: Replay, size: Tuple[int, int], title: str = "", orbit_degrees: float = 0.0) -> None:
        self.replay, self.size, self.title = replay, size, title
        self.unit = min(size[0] / 640, size[1] / 360)
        target = replay.start if replay.reference is None else replay.reference
        if centers_coincide(torch.from_numpy(target).float()):
            target = replay.cameras[-1]
        spread = np.linalg.norm(target[:, :, 3] - target[:, :, 3].mean(axis=0), axis=-1).mean() + 1e-9
        length = 0.12 * float(spread) * min(1.0, (60 / len(target)) ** 0.25)
        self.moving = pyramids(replay.cameras, length)
        self.start = pyramids(replay.start, length)
        self.reference = None if replay.reference is None else pyramids(replay.reference, length)
        still = [self.start] if self.reference is None else [self.start, self.reference]
        shown = np.concatenate(
            [points.reshape(-1, 3) for points in (*still, *self.moving[:: len(self.moving) // 8 + 1])]
        )
        self.panel = size[0] - int(195 * self.unit)
        box = (12 * self.unit, 34 * self.unit, self.panel - 12 * self.unit, size[1] - 30 * self.unit)
        self.view = View(shown, target, box, np.radians(orbit_degrees))

    def frame(self, record: float, turn: float) -> Image.Image:
        """One frame.

        Args:
            record: which record of the history, between two of them by straight lines.
            turn: fraction of the orbit, 0 to 1.
        """
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (SUPERSAMPLING * self.size[0], SUPERSAMPLING * self.size[1]), PAPER)
        draw = ImageDraw.Draw(image)
        before = min(int(record), len(self.moving) - 2)
        weight = record - before
        now = (1 - weight) * self.moving[before] + weight * self.moving[before + 1]
        self._pyramids(draw, self.start, turn, "#c4c4c4", 0.8)
        if self.reference is not None:
            self._pyramids(draw, self.reference, turn, TRUE, 1.0)
        self._lines(draw, self.view.project(np.stack([self.start[:, 0], now[:, 0]], axis=1), turn), BEFORE, 1.0)
        self._pyramids(draw, now, turn, AFTER, 1.2)
        draw.rectangle((SUPERSAMPLING * self.panel, 0, *image.size), fill=PAPER)
        step = float(np.interp(record, np.arange(len(self.replay.steps)), self.replay.steps))
        boxes = self._plot_boxes()
        for curve, box in zip(self.replay.curves, boxes):
            self._plot(draw, curve, box, step)
        image = image.reduce(SUPERSAMPLING)
        self._text(ImageDraw.Draw(image), step, boxes)
        return image

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _lines(self, draw: ImageDraw.ImageDraw, lines: Float[np.ndarray, "n 2 2"], color: str, width: float) -> None:
        width = max(1, round(SUPERSAMPLING * self.unit * width))
        for line in (SUPERSAMPLING * lines).reshape(-1, 4).tolist():
            draw.line(line, fill=color, width=width)

    def _pyramids(self, draw: ImageDraw.ImageDraw, points: np.ndarray, turn: float, color: str, width: float) -> None:
        self._lines(draw, self.view.project(points, turn)[:, EDGES].reshape(-1, 2, 2), color, width)

    def _plot_boxes(self) -> List[Tuple[float, float, float, float]]:
        """Left, top, right, bottom of each curve's plot, in pixels."""
        top, bottom = 34 * self.unit, self.size[1] - 30 * self.unit
        height = (bottom - top) / len(self.replay.curves)
        return [
            (
                self.panel + 6 * self.unit,
                top + (k + 0.26) * height,
                self.size[0] - 14 * self.unit,
                top + (k + 0.9) * height,
            )
            for k in range(len(self.replay.curves))
        ]

    def _plot(self, draw: ImageDraw.ImageDraw, curve: Curve, box: Tuple[float, ...], step: float) -> None:
        left, top, right, bottom = box
        low, high = 0.0 if curve.from_zero else float(curve.values.min()), float(curve.values.max())

        def pixels(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
            x = left + (right - left) * steps / max(self.replay.steps[-1], 1.0)
            return np.stack([x, bottom - (bottom - top) * (values - low) / max(high - low, 1e-12)], axis=-1)

        def line(points: np.ndarray, color: str, width: float) -> None:
            width = max(1, round(SUPERSAMPLING * self.unit * width))
            draw.line((SUPERSAMPLING * points).ravel().tolist(), fill=color, width=width, joint="curve")

        line(np.array([[left, bottom], [right, bottom]]), BEFORE, 1.0)
        line(pixels(curve.steps, curve.values), FAINT, 1.5)
        if curve.at(step) is None:
            return
        past = curve.steps <= step
        points = pixels(curve.steps[past], curve.values[past])
        if len(points) > 1:
            line(points, AFTER, 2.0)
        (x, y), radius = SUPERSAMPLING * points[-1], 3 * SUPERSAMPLING * self.unit
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=AFTER)

    def _text(self, draw: ImageDraw.ImageDraw, step: float, boxes: List[Tuple[float, float, float, float]]) -> None:
        unit, (width, height) = self.unit, self.size
        small, large = _font(round(12 * unit)), _font(round(15 * unit))
        draw.text((12 * unit, 20 * unit), self.title, fill=INK, font=large, anchor="ls")
        draw.text((width - 14 * unit, 20 * unit), f"step {step:,.0f}", fill=INK, font=large, anchor="rs")
        for curve, (left, top, right, _) in zip(self.replay.curves, boxes):
            draw.text((left, top - 7 * unit), curve.label, fill=INK, font=small, anchor="ls")
            value = curve.at(step)
            if value is not None:
                text = f"{value:.2f}{curve.unit}" if curve.unit else f"{value:.3f}"
                draw.text((right, top - 7 * unit), text, fill=AFTER, font=large, anchor="rs")
        left, _, right, bottom = boxes[-1]
        draw.text((left, bottom + 14 * unit), "0", fill=INK, font=small, anchor="ls")
        draw.text((right, bottom + 14 * unit), f"{self.replay.steps[-1]:,.0f} steps", fill=INK, font=small, anchor="rs")
        x = 12 * unit
        names = [("start", BEFORE), ("now", AFTER)] + ([("reference", TRUE)] if self.reference is not None else [])
        for name, color in names:
            y = height - 12 * unit
            draw.line((x, y, x + 16 * unit, y), fill=color, width=round(3 * unit))
            draw.text((x + 21 * unit, y), name, fill=INK, font=small, anchor="lm")
            x += 35 * unit + draw.textlength(name, font=small)
