"""`hashpose-match`: poses from matches alone, without a field. Structure from motion from the given poses or from none,
a gate that says whether to believe it, and an export in the frame of the input."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Literal, Optional

import numpy as np
import torch
import tyro

from hashpose_ns import __version__
from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.cameras.perturbation import PerturbationConfig
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.cameras.start import TrainingCameras
from hashpose_ns.command import run_command
from hashpose_ns.datamanager import HashPoseDataManagerConfig, leave_out_points
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.cli_colmap import ColmapFormat
from hashpose_ns.export.cli_nerfstudio import NerfstudioFormat
from hashpose_ns.export.cli_poses import JsonFormat, KittiFormat, TumFormat
from hashpose_ns.export.exported import ExportedCameras, ExportedPoints, Origin
from hashpose_ns.export.poses import exported_cameras
from hashpose_ns.export.projection import project
from hashpose_ns.export.replace import check_target, clear_abandoned
from hashpose_ns.export.transforms import input_file_extras
from hashpose_ns.matches.config import MatchConfig
from hashpose_ns.matches.features import MatchedImages, NoMatches
from hashpose_ns.matches.focal import lenses, refine_focal_lengths
from hashpose_ns.matches.report import MatchesReport
from hashpose_ns.matches.sfm import MAX_REPROJECTION
from hashpose_ns.matches.start import MatchedStart, matches_report, start_from_matches
from hashpose_ns.matches.strategy import are_known, matched_images
from hashpose_ns.photometry.scene import PosedImages
from hashpose_ns.runs.files import MATCHES_FILE
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE

PLACED = "matches"
CONFIRMED = "nothing: matches confirm the given pose"
LEFT = "nothing: matches do not determine it"
"""What moved a camera, in words."""


@dataclass
class Match:
    """Find camera poses by matches between the images alone: structure from motion, and a gate that says whether to
    believe it. No field is trained. If the poses cannot be believed, nothing is written and the exit code is 1. The
    dataparser comes last, as with ns-train."""

    output_dir: Path
    """Output folder, written atomically."""
    data: Optional[Path] = None
    """The capture: what the dataparser reads."""
    format: Literal["colmap", "nerfstudio", "tum", "kitti", "json"] = "colmap"
    """What to write, as hashpose-export does under these names.
    `colmap` and `nerfstudio` get the triangulated points, `colmap` with their tracks."""
    images: Literal["none", "link", "copy", "undistorted"] = "none"
    """With `format colmap`: put the images into OUTPUT_DIR/images. See hashpose-export colmap."""
    overwrite: bool = False
    """Replace an earlier export in the output folder. A folder with anything else in it is never replaced."""
    split: Literal["all", "train"] = "all"
    """Which images to use.
    - all: also those the dataparser would hold out for evaluation, if it has an `eval-mode`.
    - train: without them."""
    initial_poses: Literal["given", "perturbed", "identity"] = "given"
    """Where to start: at the dataparser's poses, at those poses after a perturbation, or from nothing."""
    perturbation: PerturbationConfig = field(default_factory=PerturbationConfig)
    """The noise of `initial-poses perturbed`."""
    from_none: bool = False
    """Look for poses without the given ones, which only say where the scene lies.
    The same as `matches.from-none True`."""
    focal_length: Literal["given", "refined"] = "given"
    """What becomes of the focal lengths.
    - given: they are right.
    - refined: one for all images with the same intrinsics is adjusted with the poses, and exported."""
    matches: MatchConfig = field(default_factory=lambda: MatchConfig(start="auto"))
    """How matches are found and used. `start always` writes what is found, believed or not."""
    dataparser: AnnotatedDataParserUnion = field(default_factory=NerfstudioDataParserConfig)
    """What reads the capture."""

    def main(self) -> None:
        """Finds the poses, prints what matches say, and writes them."""
        config = dataclasses.replace(self.matches, from_none=True) if self.from_none else self.matches
        config.features.validate()
        if config.start == "off":
            raise HashPoseError("Give --matches.start auto or always: without a start there is nothing to do.")
        clear_abandoned(self.output_dir)
        check_target(self.output_dir, self.overwrite)
        capture, writer = self.capture(), self.writer()
        writer.check(exported_cameras(capture, align="none"))  # what stands in the way should do so at once
        begin = time.perf_counter()
        given = capture.poses.initial_camera_to_worlds.double()
        known = are_known(given)
        try:
            if self.focal_length == "refined":
                refine(capture, config, given.numpy(), known)
            images = matched_images(capture, config)
        except NoMatches as reason:
            raise HashPoseError(f"No poses can be found by matches, because {reason}.") from reason
        with CONSOLE.status("Structure from motion"):
            start = start_from_matches(images, given.numpy(), config, known)
        names = capture.poses.image_names
        report = matches_report(start, images, given.numpy(), names, time.perf_counter() - begin)
        say(report)
        if start.verdict == "refused":
            raise HashPoseError(f"Matches give no poses that can be trusted: {start.sentence}. Nothing is written.")
        capture.poses.rebase(torch.from_numpy(start.camera_to_worlds), trusted=True)
        exported = matched_cameras(capture, start, report, images, known)
        extras = input_file_extras(self.dataparser) if self.format == "nerfstudio" else {}
        extras.pop("ply_file_path", None)
        writer.write(exported, **extras)

    def capture(self) -> PosedImages:
        """The images and their initial poses.

        Raises:
            HashPoseError: as training does, for whatever is wrong with the data.
        """
        parser: Any = self.dataparser
        leave_out_points(parser)
        if self.split == "all" and hasattr(parser, "eval_mode"):
            parser.eval_mode = "all"
        if hasattr(parser, "downscale_factor"):
            parser.downscale_factor = 1  # poses are of the images themselves
        manager = HashPoseDataManagerConfig(
            data=self.data, dataparser=parser, initial_poses=self.initial_poses, perturbation=self.perturbation
        ).setup(device="cpu", test_mode="inference")
        told = TrainingCameras.of(manager.train_dataset.metadata)
        assert told is not None
        poses = PoseOptimizer(
            PoseOptimizerConfig(),
            len(told.initial_camera_to_worlds),
            "cpu",
            told.initial_camera_to_worlds,
            told.reference_camera_to_worlds,
            told.image_names,
        )
        return PosedImages(poses, manager.train_dataset, manager.eval_dataset, manager.dataparser)

    def writer(self) -> Any:
        """What writes the format: a `Written` with a method `write`."""
        if self.format == "colmap":
            return ColmapFormat(self.output_dir, self.overwrite, images=self.images)
        if self.images != "none":
            raise HashPoseError(f"--images goes with --format colmap, not with {self.format}.")
        formats = {"nerfstudio": NerfstudioFormat, "tum": TumFormat, "kitti": KittiFormat, "json": JsonFormat}
        return formats[self.format](self.output_dir, self.overwrite)


def refine(capture: PosedImages, config: MatchConfig, given: np.ndarray, known: bool) -> None:
    """Refines the focal lengths of a capture and says what became of them.

    Raises:
        HashPoseError: matches determine none.
    """
    cameras = capture.train_outputs.cameras
    before = cameras.fx.flatten().clone()
    groups = lenses(cameras)
    with CONSOLE.status("Focal lengths"):
        scales = refine_focal_lengths(cameras, lambda: matched_images(capture, config), given, config, known)
    if scales is None:
        raise HashPoseError("Matches determine no focal length; leave out --focal-length refined. Nothing is written.")
    for group in np.unique(groups):
        index = int(np.flatnonzero(groups == group)[0])
        CONSOLE.print(
            f"Focal length of {int((groups == group).sum())} images: {float(before[index]):.2f} -> "
            f"{float(cameras.fx[index]):.2f} pixels ({100 * (scales[index] - 1):+.2f} %)",
            highlight=False,
        )


def say(report: MatchesReport) -> None:
    """Prints what matches say: camera by camera, what speaks for it, and the verdict."""
    from rich.markup import escape

    CONSOLE.print(report.table())
    evidence = ", ".join(f"{name} {value:.4g}" for name, value in report.evidence.items())
    CONSOLE.print(f"Evidence: {evidence}", soft_wrap=True, highlight=False)
    words = {"given": "the given poses are right", "matches": "poses from matches", "refused": "not to be believed"}
    color = {"given": "green", "matches": "green", "refused": "bold red"}[report.verdict]
    said = f"Matches: {words[report.verdict]}; {report.sentence}."
    CONSOLE.print(f"[{color}]{escape(said)}[/{color}]", soft_wrap=True, highlight=False)


# -- from what was found to an export ----------------------------------------------------------------------------------


def matched_cameras(
    capture: PosedImages, start: MatchedStart, report: MatchesReport, images: MatchedImages, known: bool
) -> ExportedCameras:
    """What was found, in the frame of the input, with the triangulated points.

    Cameras that matches do not determine keep the given pose, to the last bit; where none was given they are left out.

    Args:
        capture: refined poses are those that were found.
        start: what was found.
        report: the same for files.
        images: what it was found from.
        known: whether poses were given.
    """
    exported = exported_cameras(capture, align="none")
    placed = np.array([camera.placed for camera in report.cameras])
    how = "aligned to the given poses" if known else "arbitrary in place, orientation and scale, as none was given"
    poses = exported.camera_to_worlds
    if exported.start_camera_to_worlds is not None and known:
        poses = torch.where(torch.from_numpy(placed)[:, None, None], poses, exported.start_camera_to_worlds)
    moved = CONFIRMED if start.verdict == "given" else PLACED
    lines = [f"matches  {report.verdict}: {report.sentence}"]
    if report.left:
        what = "keep the given pose" if known else "are left out, as they had no pose"
        names = ", ".join(Path(name).name for name in report.left)
        lines.append(f"left     {len(report.left)} cameras that matches do not determine {what}: {names}")
    if exported.num_left_out:
        lines.append(f"left out {exported.num_left_out} images that the dataparser holds out")
    exported = dataclasses.replace(
        exported,
        camera_to_worlds=poses,
        start_camera_to_worlds=exported.start_camera_to_worlds if known else None,
        movement=exported.movement if known else None,
        refined_by=[moved if is_placed else LEFT for is_placed in placed],
        frame=dataclasses.replace(exported.frame, how=how, arbitrary=not known),
        num_left_out=0,
        origin=Origin(
            note={
                "written_by": f"hashpose-match {__version__}",
                "matches": {"verdict": report.verdict, "sentence": report.sentence},
            },
            lines=lines,
            files={MATCHES_FILE: json.dumps(report.as_json(), indent=1) + "\n"},
        ),
    )
    exported = dataclasses.replace(exported, points=_points(exported, start, images))
    return exported if known else _only(exported, np.flatnonzero(placed))


def _points(exported: ExportedCameras, start: MatchedStart, images: MatchedImages) -> Optional[ExportedPoints]:
    """The triangulated points that project to where placed cameras see them."""
    structure = start.structure
    if structure is None or start.tried is None or not structure.tracks:
        return None
    placed = structure.placed
    found, aligned = (torch.from_numpy(poses[placed]) for poses in (structure.camera_to_worlds, start.tried))
    similarity = align_poses(found, aligned)
    xyz = exported.frame.points(similarity.apply_to_points(torch.from_numpy(structure.points)))
    point = np.repeat(np.arange(len(structure.tracks)), [len(track) for track in structure.tracks])
    image, keypoint = np.concatenate(structure.tracks).T
    pixels = np.stack([images.pixels[i][k] for i, k in zip(image, keypoint)])
    of_image = torch.from_numpy(image)
    expected, visible = project(
        exported.cameras, of_image, exported.camera_to_worlds[of_image], xyz[torch.from_numpy(point)]
    )
    errors = np.linalg.norm(expected.numpy() - pixels, axis=1)
    good = visible.numpy() & placed[image] & (errors < MAX_REPROJECTION)
    good &= np.bincount(point[good], minlength=len(xyz))[point] >= 2
    point, image, pixels, errors = point[good], image[good], pixels[good], errors[good]
    kept, point = np.unique(point, return_inverse=True)
    counts = np.bincount(point, minlength=len(kept))
    colors = _colors(exported.image_filenames, image, pixels)
    rgb = np.stack([np.bincount(point, channel, len(kept)) / counts for channel in colors.T], axis=1)
    return ExportedPoints(
        xyz=xyz.numpy()[kept],
        rgb=rgb.round().astype(np.uint8),
        error=np.bincount(point, errors, len(kept)) / counts,
        seen_by=np.stack([point, image], axis=1),
        pixels=pixels,
    )


def _colors(filenames: List[Path], image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Colour [n, 3] of each of n pixels [n, 2] of some images, given as indices [n]."""
    from PIL import Image

    colors = np.zeros((len(pixels), 3))
    for index in np.unique(image):
        with Image.open(filenames[index]) as opened:
            picture = np.asarray(opened.convert("RGB"))
        rows = image == index
        column, row = np.clip(pixels[rows].astype(int), 0, np.array(picture.shape[1::-1]) - 1).T
        colors[rows] = picture[row, column]
    return colors


def _only(exported: ExportedCameras, kept: np.ndarray) -> ExportedCameras:
    """Some of the cameras, given as rising indices [n]; points are seen by these alone already."""
    index, length = torch.from_numpy(kept), len(exported.names)
    points = exported.points
    if points is not None and points.seen_by is not None:
        place = np.full(length, -1)
        place[kept] = np.arange(len(kept))
        seen_by = np.stack([points.seen_by[:, 0], place[points.seen_by[:, 1]]], axis=1)
        points = dataclasses.replace(points, seen_by=seen_by)
    changed: dict[str, Any] = {"points": points, "cameras": exported.cameras[index]}
    lists = ("image_filenames", "names", "splits", "indices", "refined_by", "mask_filenames", "depth_filenames")
    for name in (*lists, "camera_to_worlds", "learned_camera_to_worlds", "given_camera_to_worlds"):
        values = getattr(exported, name)
        if values is not None:
            changed[name] = [values[i] for i in kept] if isinstance(values, list) else values[index]
    return dataclasses.replace(exported, **changed)


def entrypoint() -> None:
    """Entrypoint for use with pyproject scripts."""
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence for multidimensional indexing")
    run_command(tyro.conf.FlagConversionOff[Match])


if __name__ == "__main__":
    entrypoint()
