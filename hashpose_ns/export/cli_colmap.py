"""hashpose-export colmap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Tuple, Union

from typing_extensions import Literal

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.settings import ExportWithPoints, Written

if TYPE_CHECKING:
    from hashpose_ns.export.exported import ExportedCameras
    from hashpose_ns.export.update import ColmapModel


@dataclass
class ColmapFormat(Written):
    """Cameras as a COLMAP model in OUTPUT_DIR/sparse/0."""

    format: Literal["bin", "txt"] = "bin"
    """COLMAP's binary or text format."""
    images: Literal["none", "link", "copy", "undistorted"] = "none"
    """Put images (and masks) into OUTPUT_DIR, which makes the folder a dataset of its own.
    - none: leave them out.
    - link: symbolic links.
    - copy: copies.
    - undistorted: copies without lens distortion, and PINHOLE cameras."""

    def check(self, exported: ExportedCameras) -> None:
        """As for every export, and images, names and intrinsics."""
        from hashpose_ns.export.images import check_images

        super().check(exported)
        check_images(exported, self.images, self.output_dir)
        self._check_model(exported)

    def _check_model(self, exported: ExportedCameras) -> None:
        from hashpose_ns.export.colmap import check_colmap_names, colmap_cameras_of

        check_colmap_names(exported.names, self.format)
        if self.images != "undistorted":
            colmap_cameras_of(exported.cameras)

    def write(self, exported: ExportedCameras) -> None:
        """Write the model and print what was done."""
        from hashpose_ns.export.colmap import write_colmap_model
        from hashpose_ns.export.frame import flip_axes
        from hashpose_ns.export.images import place_images

        with self.written_folder(exported) as folder:
            cameras = place_images(folder, exported, self.images)
            model = folder / "sparse" / "0"
            model.mkdir(parents=True)
            points = exported.points
            if points is not None and self.images == "undistorted":
                points = replace(points, pixels=None)  # which are the distorted image's
            write_colmap_model(
                model, flip_axes(exported.camera_to_worlds), cameras, exported.names, points, self.format
            )
        num_points = 0 if exported.points is None else len(exported.points.xyz)
        self.print_summary(
            exported,
            f"COLMAP ({self.format}) with {num_points} points",
            self.output_dir / "sparse" / "0",
            self._command(exported, num_points),
        )

    def _command(self, exported: ExportedCameras, num_points: int) -> List[Union[str, Path]]:
        command = ["ns-train", "splatfacto" if num_points else "nerfacto", "--data", self.output_dir, "colmap"]
        command += ["--colmap-path", "sparse/0"]
        if self.images == "none":
            command += ["--images-path", exported.image_folder]
        elif exported.mask_filenames:
            command += ["--masks-path", "masks"]
        return command if num_points else [*command, "--load-3D-points", "False"]


@dataclass
class ExportColmap(ColmapFormat, ExportWithPoints):
    """Export the refined cameras as a COLMAP model in OUTPUT_DIR/sparse/0."""

    update: Optional[Path] = None
    """Folder of an existing COLMAP model to write again with the refined poses.
    Cameras, image ids, observations and tracks stay; its points are triangulated again if pycolmap is installed.
    --points is not used. The existing model is not touched."""

    def main(self) -> None:
        """Load the run and write the model."""
        from hashpose_ns.export.points import with_points

        if self.update is not None:
            if self.images == "undistorted":
                raise HashPoseError("--update keeps the model's cameras, so its images cannot be undistorted.")
            self.write_update(*self.load_update(self.update))
            return
        scene, exported = self.load(load_points=self.points == "input")
        self.write(with_points(scene, exported, self.points, self.num_points))

    def inputs(self) -> List[Path]:
        """As for every export, and the model to update."""
        return [*super().inputs(), *([] if self.update is None else [self.update])]

    def _check_model(self, exported: ExportedCameras) -> None:
        if self.update is None:
            super()._check_model(exported)

    def load_update(self, directory: Path) -> Tuple[ColmapModel, ExportedCameras]:
        """The existing model, and the run's cameras with the names that their images have in it.

        Raises:
            HashPoseError: as `load`, and if the model is broken or not the run's.
        """
        from hashpose_ns.export.colmap import check_colmap_names
        from hashpose_ns.export.update import named_as_in, read_colmap_model, update_poses

        model = read_colmap_model(directory)
        check_colmap_names([image.name for image in model.images.values()], self.format)

        def check(exported: ExportedCameras) -> None:
            update_poses(model, exported, directory)
            self.check(self._with_others(model, named_as_in(model, exported, directory)))

        exported = self.load(and_check=check)[1]
        return model, named_as_in(model, exported, directory)

    def _with_others(self, model: ColmapModel, exported: ExportedCameras) -> ExportedCameras:
        """Exported cameras with further images of a model, to be put beside theirs.

        Raises:
            HashPoseError: if they are not where the others are, or masks are needed for them.
        """
        named = set(exported.names)
        others = [image.name for image in model.images.values() if image.name not in named]
        if self.images == "none" or not others:
            return exported
        files = [exported.image_folder / name for name in others]
        missing = next((path for path in files if not path.is_file()), exported.mask_filenames and files[0])
        if missing:
            raise HashPoseError(
                f"The run did not export {len(others)} images of the model, and {missing} or its mask is not known to "
                "it; export with --split all, or with --images none."
            )
        names, filenames = [*exported.names, *others], [*exported.image_filenames, *files]
        return replace(exported, names=names, image_filenames=filenames)

    def write_update(self, old: ColmapModel, exported: ExportedCameras) -> None:
        """Write an existing model with new poses and print what was done."""
        from hashpose_ns.export.images import place_images
        from hashpose_ns.export.update import has_rigs, update_points, update_poses, write_rigs

        assert self.update is not None
        # of the model, which may be another one than the run's dataset has
        frame = replace(exported.frame, name=f"the frame of the COLMAP model {self.update}")
        exported = replace(exported, frame=frame)
        new, report = update_points(old, update_poses(old, exported, self.update))
        notes = []
        with self.written_folder(exported) as folder:
            place_images(folder, self._with_others(old, exported), self.images)
            model = folder / "sparse" / "0"
            model.mkdir(parents=True)
            new.write(model, self.format)
            if has_rigs(self.update):
                why = write_rigs(self.update, new, model, self.format)
                notes.append(
                    "rigs     kept, with the new poses of their frames"
                    if why is None
                    else f"rigs     not kept, so each camera is one and each image a frame: {why}"
                )
        if not old.points:
            points = "none, as in the model"
        elif report is None:
            points = f"{len(new.points)}, where they were: pip install hashpose[colmap] to triangulate them again"
        else:
            points = f"{report.kept} triangulated again, {report.dropped} dropped"
            if report.error_before is not None and report.error_after is not None:
                points += (
                    f"; median reprojection error {report.error_before:.3g} px before, {report.error_after:.3g} px "
                    "after (dropped ones included)"
                )
        notes.append(f"points   {points}")
        others = len(old.images) - len(exported.names)
        if others:
            notes.append(f"others   {others} images of the model keep the pose they had")
        self.print_summary(
            exported,
            f"COLMAP ({self.format}), {self.update} with new poses",
            self.output_dir / "sparse" / "0",
            self._command(exported, len(new.points)),
            notes,
        )
