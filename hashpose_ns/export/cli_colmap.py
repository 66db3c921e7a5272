"""hashpose-export colmap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional

from typing_extensions import Literal

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.settings import ExportWithPoints

if TYPE_CHECKING:
    from hashpose_ns.export.exported import ExportedCameras


@dataclass
class ExportColmap(ExportWithPoints):
    """Export the refined cameras as a COLMAP model in OUTPUT_DIR/sparse/0."""

    format: Literal["bin", "txt"] = "bin"
    """COLMAP's binary or text format."""
    images: Literal["none", "link", "copy", "undistorted"] = "none"
    """Put the images into OUTPUT_DIR/images (and masks into OUTPUT_DIR/masks), which makes the folder a dataset of its
    own. link: symbolic links. copy: copies. undistorted: copies without lens distortion, and PINHOLE cameras."""
    update: Optional[Path] = None
    """Folder of an existing COLMAP model. Writes that model with its cameras, image ids, observations and tracks, but
    with the refined poses, and with its points triangulated again where pycolmap is installed; --points is not used.
    The existing model is not touched."""

    def main(self) -> None:
        """Load the run and write the model."""
        from hashpose_ns.export.points import with_points

        if self.update is not None:
            if self.images == "undistorted":
                raise HashPoseError("--update keeps the model's cameras, so its images cannot be undistorted.")
            self.write_update(self.load()[1])
            return
        scene, exported = self.load(load_points=self.points == "input")
        self.write(with_points(scene, exported, self.points, self.num_points))

    def inputs(self) -> List[Path]:
        """As for every export, and the model to update."""
        return [*super().inputs(), *([] if self.update is None else [self.update / "images"])]

    def write(self, exported: ExportedCameras) -> None:
        """Write the model and print what was done."""
        from hashpose_ns.export.colmap import write_colmap_model
        from hashpose_ns.export.frame import flip_axes
        from hashpose_ns.export.images import place_images

        with self.written_folder(exported) as folder:
            cameras = place_images(folder, exported, self.images)
            model = folder / "sparse" / "0"
            model.mkdir(parents=True)
            write_colmap_model(
                model, flip_axes(exported.camera_to_worlds), cameras, exported.names, exported.points, self.format
            )
        num_points = 0 if exported.points is None else len(exported.points.xyz)
        self.print_summary(
            exported,
            f"COLMAP ({self.format}) with {num_points} points",
            self.output_dir / "sparse" / "0",
            self._command(exported, num_points),
        )

    def write_update(self, exported: ExportedCameras) -> None:
        """Write an existing model with new poses and print what was done."""
        from hashpose_ns.export.images import place_images
        from hashpose_ns.export.update import read_colmap_model, update_points, update_poses

        assert self.update is not None
        # of the model, which may be another one than the run's dataset has
        frame = replace(exported.frame, name=f"the frame of the COLMAP model {self.update}")
        exported = replace(exported, frame=frame)
        old = read_colmap_model(self.update)
        new, report = update_points(old, update_poses(old, exported, self.update))
        with self.written_folder(exported) as folder:
            place_images(folder, exported, self.images)
            model = folder / "sparse" / "0"
            model.mkdir(parents=True)
            new.write(model, self.format)
        if report.error_before is None or report.error_after is None:
            notes = [f"points   {report.kept}, where they were: pip install hashpose[colmap] to triangulate them again"]
        else:
            notes = [
                f"points   {report.kept} triangulated again, {report.dropped} dropped; median reprojection error "
                f"{report.error_before:.3g} px before, {report.error_after:.3g} px after (dropped ones included)"
            ]
        others = len(old.images) - len(exported.names)
        if others:
            notes.append(f"others   {others} images of the model keep the pose they had")
        self.print_summary(
            exported,
            f"COLMAP ({self.format}), {self.update} with new poses",
            self.output_dir / "sparse" / "0",
            self._command(exported, report.kept),
            notes,
        )

    def _command(self, exported: ExportedCameras, num_points: int) -> str:
        images = "" if self.images != "none" else f" --images-path {exported.image_folder}"
        masks = " --masks-path masks" if self.images != "none" and exported.mask_filenames else ""
        method, no_points = ("splatfacto", "") if num_points else ("nerfacto", " --load-3D-points False")
        return f"ns-train {method} --data {self.output_dir} colmap --colmap-path sparse/0{images}{masks}{no_points}"
