"""hashpose-export tum, kitti and json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from typing_extensions import Literal

from hashpose_ns.export.settings import Export, Written

if TYPE_CHECKING:
    from hashpose_ns.export.exported import ExportedCameras


@dataclass
class TrajectoryFormat(Written):
    """Files of trajectories: refined.txt, start.txt (the poses training started from), given.txt (the dataset's own,
    where training started elsewhere) and images.txt (a name a line). Poses are camera-to-world with OpenCV axes."""

    def times(self, exported: ExportedCameras) -> list[float]:
        """A time for each image."""
        from hashpose_ns.export.trajectories import timestamps

        return timestamps(exported.names, "index")

    def check(self, exported: ExportedCameras) -> None:
        """As for every export, and names and times of the images."""
        from hashpose_ns.data.names import check_names

        super().check(exported)
        check_names(exported.names, "export with `hashpose-export json` instead")
        self.times(exported)

    def write(self, exported: ExportedCameras) -> None:
        """Write the files and print what was done."""
        import torch

        from hashpose_ns.export.frame import flip_axes
        from hashpose_ns.export.trajectories import write_trajectory

        format = "tum" if isinstance(self, TumFormat) else "kitti"
        times = self.times(exported)
        poses = {"refined": exported.camera_to_worlds, "start": exported.start_camera_to_worlds}
        start = exported.start_camera_to_worlds
        if start is None or not torch.equal(start, exported.given_camera_to_worlds):
            poses["given"] = exported.given_camera_to_worlds
        with self.written_folder(exported) as folder:
            for name, camera_to_worlds in poses.items():
                if camera_to_worlds is not None:
                    write_trajectory(folder / f"{name}.txt", flip_axes(camera_to_worlds), times, format)
            names = [name for _, name in sorted(zip(times, exported.names))]
            (folder / "images.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        other, refined = ("given" if "given" in poses else "start"), self.output_dir / "refined.txt"
        self.print_summary(
            exported,
            f"a trajectory ({format.upper()})",
            refined,
            ["evo_ape", format, refined.with_name(f"{other}.txt"), refined, "--align", "--correct_scale"],
        )


@dataclass
class TumFormat(TrajectoryFormat):
    """Trajectories in TUM's format (time tx ty tz qx qy qz qw), as evo reads it."""

    timestamps: Literal["index", "names"] = "index"
    """Where times come from.
    - index: 0, 1, 2, ... in the order of the image names.
    - names: the last number in each image name."""

    def times(self, exported: ExportedCameras) -> list[float]:
        """A time for each image."""
        from hashpose_ns.export.trajectories import timestamps

        return timestamps(exported.names, self.timestamps)


@dataclass
class KittiFormat(TrajectoryFormat):
    """Trajectories in KITTI's format (the twelve numbers of a 3x4 matrix a line), in the order of the image names."""


@dataclass
class ExportTum(TumFormat, Export):
    """Export the refined cameras as trajectories in TUM's format (time tx ty tz qx qy qz qw), as evo reads it."""

    def main(self) -> None:
        """Load the run and write the files."""
        self.write(self.load()[1])


@dataclass
class ExportKitti(KittiFormat, Export):
    """Export the refined cameras as trajectories in KITTI's format (the twelve numbers of a 3x4 matrix a line), in the
    order of the image names, as evo reads it."""

    def main(self) -> None:
        """Load the run and write the files."""
        self.write(self.load()[1])


@dataclass
class JsonFormat(Written):
    """Cameras as OUTPUT_DIR/poses.json: for each image its pose, how far it moved and what moved it."""

    def write(self, exported: ExportedCameras, records: Optional[List[Dict[str, Any]]] = None) -> None:
        """Write the file and print what was done.

        Args:
            exported: the cameras.
            records: what is known of each image; by default what the cameras themselves say.
        """
        from hashpose_ns.export.per_image import image_records

        content = {
            **self.note(exported),
            "axes": "camera-to-world, OpenGL axes: right, up, backwards",
            "images": image_records(exported) if records is None else records,
        }
        with self.written_folder(exported) as folder:
            (folder / "poses.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
        path = self.output_dir / "poses.json"
        self.print_summary(exported, "JSON", path, ["python", "-m", "json.tool", path])


@dataclass
class ExportJson(JsonFormat, Export):
    """Export the refined cameras as OUTPUT_DIR/poses.json: for each image its pose, how far it moved, what moved it,
    and how well the field explains it."""

    loss: bool = True
    """Add each image's mean squared error and PSNR, from a thousand pixels."""
    uncertainty: bool = False
    """Add each training camera's standard deviations and covariance.
    They are conditional on the field and so optimistic: see docs/guard.md."""

    def main(self) -> None:
        """Load the run and write the file."""
        from hashpose_ns.export.per_image import image_losses, image_records, uncertainties

        scene, exported = self.load()
        records = image_records(exported)
        if self.loss:
            for record, loss in zip(records, image_losses(scene, exported)):
                record.update(loss)
        if self.uncertainty:
            for record, deviations in zip(records, uncertainties(scene, exported)):
                record["uncertainty"] = deviations
        self.write(exported, records)
