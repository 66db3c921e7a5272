"""hashpose-export: the refined poses of a trained run, in the frame of the dataset it was trained on.

Only light modules are imported up here, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, List, Union

import tyro
from typing_extensions import Annotated, Literal

from hashpose_ns import __version__
from hashpose_ns.errors import exits_on_user_error

if TYPE_CHECKING:
    from hashpose_ns.export.poses import ExportedCameras


@dataclass
class Export:
    """Settings that every export has."""

    load_config: Path
    """Path to the config.yml of the trained run."""
    output_dir: Path
    """Folder to write. It appears whole or not at all."""
    overwrite: bool = False
    """Replace an earlier export in the output folder. A folder with anything else in it is never replaced."""
    align: Literal["input", "none"] = "input"
    """Training leaves the position, orientation and size of the whole scene free to drift. input: undo the drift by
    aligning the refined cameras to the poses that training started from. none: keep the poses as they were learned.
    Runs with frozen cameras or an identity start are kept as learned either way."""


@dataclass
class ExportColmap(Export):
    """Export the refined cameras as a COLMAP model in OUTPUT_DIR/sparse/0."""

    format: Literal["bin", "txt"] = "bin"
    """COLMAP's binary or text format."""
    points: Literal["empty", "input"] = "empty"
    """3-D points to write. empty: none. input: those of the input dataset, where its dataparser loads them. They are
    not refined with the cameras."""

    def main(self) -> None:
        """Load the run and write the model."""
        from hashpose_ns.export.replace import check_target

        check_target(self.output_dir, self.overwrite)
        from hashpose_ns.export.poses import exported_cameras, load_trained_pipeline

        pipeline = load_trained_pipeline(self.load_config, load_points=self.points == "input")
        self.write(exported_cameras(pipeline, self.align, with_points=self.points == "input"))

    def write(self, exported: ExportedCameras) -> None:
        """Write the model and print what was done."""
        from hashpose_ns.export.colmap import write_colmap_model
        from hashpose_ns.export.replace import replaced_folder

        # from OpenGL's camera axes to OpenCV's
        camera_to_worlds = exported.camera_to_worlds.clone()
        camera_to_worlds[:, :, 1:3] *= -1
        with replaced_folder(self.output_dir, self.overwrite) as folder:
            model = folder / "sparse" / "0"
            model.mkdir(parents=True)
            write_colmap_model(model, camera_to_worlds, exported.cameras, exported.names, exported.points, self.format)
        num_points = 0 if exported.points is None else len(exported.points.xyz)
        no_points = " --load-3D-points False" if num_points == 0 else ""
        print_summary(
            exported,
            f"COLMAP ({self.format}) with {num_points} points",
            self.output_dir / "sparse" / "0",
            f"ns-train nerfacto --data {self.output_dir} colmap --colmap-path sparse/0 "
            f"--images-path {exported.image_folder}{no_points}",
        )


@dataclass
class ExportNerfstudio(Export):
    """Export the refined cameras as OUTPUT_DIR/transforms.json, which points at the original images."""

    def main(self) -> None:
        """Load the run and write the file."""
        from hashpose_ns.export.replace import check_target

        check_target(self.output_dir, self.overwrite)
        from hashpose_ns.export.poses import exported_cameras, load_trained_pipeline
        from hashpose_ns.export.transforms import input_file_extras

        pipeline = load_trained_pipeline(self.load_config)
        extras = input_file_extras(pipeline.datamanager.dataparser.config)
        self.write(exported_cameras(pipeline, self.align), **extras)

    def write(self, exported: ExportedCameras, **extras) -> None:
        """Write the file and print what was done.

        Args:
            exported: the cameras.
            extras: what ``input_file_extras`` returned.
        """
        from hashpose_ns.export.replace import replaced_folder
        from hashpose_ns.export.transforms import write_transforms

        note = (
            f"Refined camera poses of the run {self.load_config.resolve().parent}. Frame: {exported.frame}. Written by "
            f"hashpose-export {__version__}."
        )
        with replaced_folder(self.output_dir, self.overwrite) as folder:
            write_transforms(
                folder,
                exported.camera_to_worlds,
                exported.cameras,
                exported.image_filenames,
                note,
                relative_to=self.output_dir,
                mask_filenames=exported.mask_filenames,
                depth_filenames=exported.depth_filenames,
                **extras,
            )
        print_summary(
            exported,
            "transforms.json",
            self.output_dir / "transforms.json",
            f"ns-train nerfacto --data {self.output_dir} nerfstudio-data",
        )


def print_summary(exported: ExportedCameras, what: str, path: Path, command: str) -> None:
    """Print what was exported, how far the cameras moved, where it is and how to train on it."""
    from nerfstudio.utils.rich_utils import CONSOLE

    lines: List[str] = [f"Exported {len(exported.names)} refined cameras as {what}: {path}"]
    lines.append(f"  frame    {exported.frame}")
    if exported.movement is not None:
        rotation, center = exported.movement.rotation_deg, exported.movement.center
        furthest = int(center.argmax())
        lines.append(
            f"  moved    {float(rotation.mean()):.3g} deg and {float(center.mean()):.3g} units on average; furthest "
            f"{exported.names[furthest]}, {float(rotation[furthest]):.3g} deg and {float(center[furthest]):.3g} units"
        )
    lines.append(f"  images   {exported.image_folder}")
    if exported.num_left_out:
        how = "; to refine all, train with the dataparser's --eval-mode all" if exported.has_eval_mode else ""
        lines.append(f"  left out the evaluation images ({exported.num_left_out}), which have no refined pose{how}")
    lines.append(f"  use      {command}")
    # plain text: names and paths may hold brackets
    CONSOLE.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


Commands = tyro.conf.FlagConversionOff[
    Union[
        Annotated[ExportColmap, tyro.conf.subcommand(name="colmap")],
        Annotated[ExportNerfstudio, tyro.conf.subcommand(name="nerfstudio")],
    ]
]


@exits_on_user_error
def entrypoint() -> None:
    """Entrypoint for use with pyproject scripts."""
    tyro.extras.set_accent_color("bright_yellow")
    tyro.cli(Commands).main()


if __name__ == "__main__":
    entrypoint()
