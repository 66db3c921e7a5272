"""hashpose-export nerfstudio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hashpose_ns.export.settings import ExportWithPoints, Written

if TYPE_CHECKING:
    from hashpose_ns.export.exported import ExportedCameras


@dataclass
class NerfstudioFormat(Written):
    """Cameras as OUTPUT_DIR/transforms.json, which points at the original images."""

    def write(self, exported: ExportedCameras, **extras) -> None:
        """Write the file and print what was done.

        Args:
            exported: the cameras.
            extras: what ``input_file_extras`` returned.
        """
        from hashpose_ns.export.points import write_ply
        from hashpose_ns.export.transforms import write_transforms

        about = self.about(exported)
        of_run = f" of the run {about['run']}" if "run" in about else ""
        note = f"Refined camera poses{of_run}. Frame: {exported.frame.description}. Written by {about['written_by']}."
        notes = [{"split": split, "refined_by": how} for split, how in zip(exported.splits, exported.refined_by)]
        with self.written_folder(exported) as folder:
            if exported.points is not None:
                write_ply(folder / "points.ply", exported.points)
                extras["ply_file_path"] = Path("points.ply")
            write_transforms(
                folder,
                exported.camera_to_worlds,
                exported.cameras,
                exported.image_filenames,
                note,
                relative_to=self.output_dir,
                mask_filenames=exported.mask_filenames,
                depth_filenames=exported.depth_filenames,
                frame_notes=notes,
                **extras,
            )
        has_points = "ply_file_path" in extras
        self.print_summary(
            exported,
            "transforms.json" + (f" with {len(exported.points.xyz)} points" if exported.points is not None else ""),
            self.output_dir / "transforms.json",
            ["ns-train", "splatfacto" if has_points else "nerfacto", "--data", self.output_dir, "nerfstudio-data"]
            + (["--load-3D-points", "True"] if has_points else []),
        )


@dataclass
class ExportNerfstudio(NerfstudioFormat, ExportWithPoints):
    """Export the refined cameras as OUTPUT_DIR/transforms.json, which points at the original images."""

    def main(self) -> None:
        """Load the run and write the file."""
        from hashpose_ns.export.points import with_points
        from hashpose_ns.export.transforms import input_file_extras

        scene, exported = self.load(load_points=self.points == "input")
        extras = input_file_extras(scene.dataparser.config)
        extras.pop("ply_file_path", None)
        self.write(with_points(scene, exported, self.points, self.num_points), **extras)
