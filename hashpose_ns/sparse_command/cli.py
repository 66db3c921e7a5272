"""hashpose-sparse: poses of a handful of photographs of an object by SparsePose, its training and its evaluation.

Only light modules are imported up here, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Tuple, Union

import tyro
from typing_extensions import Annotated

from hashpose_ns.command import run_command
from hashpose_ns.errors import HashPoseError
from hashpose_ns.sparse.settings import TrainSettings
from hashpose_ns.stopping import StopSignals


def device_named(name: str):
    """The torch device of a flag.

    Raises:
        HashPoseError: there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HashPoseError(f"This machine has no device {name}; give --device cpu or auto.") from error
    return device


@dataclass
class Train:
    """Train SparsePose on procedural objects, rendered on the fly. Run again with the same flags, it resumes."""

    output_dir: Path
    """Folder of the checkpoint, the weights, the log and its figure."""
    settings: TrainSettings = field(default_factory=TrainSettings)
    """What decides the result."""
    init: Optional[Path] = None
    """Weights whose coarse part a new run starts from."""
    allow_change: bool = False
    """Resume with other settings than before; when and which is noted in the weights."""
    minutes: Optional[float] = None
    """Stop after as many minutes; run again to continue."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda or cuda:1."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of the network's products. auto: bf16 where the device has it in hardware."""
    report_every: int = 200
    """Steps between lines of the log."""
    save_every: float = 60.0
    """Seconds between checkpoints."""

    def main(self) -> None:
        """Train, then draw the log."""
        from hashpose_ns.host import keep_freed_memory
        from hashpose_ns.sparse.training import Training

        keep_freed_memory()
        if self.report_every < 1:
            raise HashPoseError("--report-every must be at least 1.")
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HashPoseError(f"{self.output_dir} cannot be made ({error.strerror}).") from error
        training = Training(self.output_dir, self.settings, device_named(self.device), self.precision)
        if training.resume(self.allow_change):
            print(f"Resumes at step {training.step} of {self.settings.steps}.")
        elif self.init is not None:
            training.start_from(self.init)
        with StopSignals() as signals:
            seconds = None if self.minutes is None else 60 * self.minutes
            say = lambda line: print(line, flush=True)  # noqa: E731
            training.run(signals, seconds, self.report_every, self.save_every, say)
        from hashpose_ns.sparse.figure import plot_log

        plot_log(self.output_dir)
        print(f"Step {training.step} of {self.settings.steps}; weights, log and curves are in {self.output_dir}.")


@dataclass
class Eval:
    """Score weights on objects that training never draws: turns between pairs of views, and camera centres."""

    weights: Optional[Path] = None
    """A weights.npz of hashpose-sparse train; by default the package's, if it has any."""
    views: Tuple[int, ...] = (3, 5, 8)
    """Numbers of views."""
    families: Tuple[Literal["articulated", "blobs"], ...] = ("articulated", "blobs")
    """Objects to score on."""
    scenes: int = 200
    """Scenes of each."""
    steps: int = 5
    """Refinement steps."""
    seed: int = 1
    """Seed of objects, cameras and points."""
    device: str = "auto"
    """Where to run: auto, cpu, cuda or cuda:1."""
    output_path: Optional[Path] = None
    """JSON file to write."""
    overwrite: bool = False
    """Replace the file."""

    def main(self) -> None:
        """Score, print tables and write the numbers."""
        import json

        from hashpose_ns.export.replace import check_target_file, replaced_file

        if self.output_path is not None:
            check_target_file(self.output_path, self.overwrite)
        if self.scenes < 2 or self.steps < 0 or min(self.views, default=0) < 2:
            raise HashPoseError("--scenes and --views are at least 2, and --steps not negative.")
        from hashpose_ns.sparse.evaluation import results_table, score_families
        from hashpose_ns.sparse.weights import load_weights
        from nerfstudio.utils.rich_utils import CONSOLE

        network, note = load_weights(self.weights)
        device = device_named(self.device)
        rows = score_families(network.to(device), self.families, self.views, self.scenes, self.steps, self.seed, device)
        for row in rows:
            CONSOLE.print(results_table(row))
        if self.output_path is not None:
            with replaced_file(self.output_path, self.overwrite) as path:
                path.write_text(json.dumps({"weights": note, "results": rows}, indent=1) + "\n", encoding="utf-8")


@dataclass
class Poses:
    """Find the cameras of a handful of photographs of one object. Poses are written as transforms.json and COLMAP
    model. Experimental: what the network has learned are procedural objects."""

    images: Tuple[Path, ...]
    """Photographs of one object, or a folder of them; 3 to 9 are meant."""
    output_dir: Path
    """Output folder, written atomically."""
    intrinsics: Optional[Path] = None
    """A transforms.json or COLMAP model that names the photographs. Its poses are not read."""
    fov: Optional[float] = None
    """Angle of view along the longer side in degrees, where no file has intrinsics."""
    masks: Optional[Path] = None
    """Folder with a mask for each photograph, under its name with any suffix, white where the object is."""
    weights: Optional[Path] = None
    """A weights.npz of hashpose-sparse train; by default the package's, if it has any."""
    steps: int = 5
    """Refinement steps."""
    seed: int = 0
    """Seed of the points that refinement draws."""
    overwrite: bool = False
    """Replace an earlier result in the output folder. A folder with anything else in it is never replaced."""

    def main(self) -> None:
        """Read the photographs, find the poses and write them."""
        from hashpose_ns import __version__
        from hashpose_ns.export.replace import check_target, clear_abandoned, replaced_folder

        what = "hashpose-sparse"
        clear_abandoned(self.output_dir)
        inputs = [*self.images, *(path for path in (self.intrinsics, self.masks, self.weights) if path is not None)]
        check_target(self.output_dir, self.overwrite, inputs, what=what)
        if self.steps < 0:
            raise HashPoseError("--steps is the number of refinement steps, 0 or more.")
        from hashpose_ns.sparse.weights import load_weights

        network, note = load_weights(self.weights)
        from hashpose_ns.localize.photographs import cameras_of, masks_of, photograph_files
        from hashpose_ns.sparse.crops import crops_of
        from hashpose_ns.sparse.start import FRAME, find_cameras
        from hashpose_ns.sparse_command.poses import lenses_of, write_found
        from nerfstudio.utils.rich_utils import CONSOLE

        filenames, names = photograph_files(self.images, [self.masks] if self.masks is not None else [])
        if len(filenames) < 2:
            raise HashPoseError("One photograph has no pose to find; give --images 3 to 9 photographs of one object.")
        masks = masks_of(self.masks, names)
        lenses = lenses_of(filenames, names, self.intrinsics, self.fov)
        crops = crops_of(filenames, cameras_of(lenses), masks, network.config.size)
        found = find_cameras(network, crops, self.steps, self.seed)
        manifest = {"written_by": f"hashpose-sparse {__version__}", "frame": FRAME, "images": names}
        try:
            with replaced_folder(self.output_dir, self.overwrite, manifest, inputs, what=what) as folder:
                target = self.output_dir
                notes = write_found(folder, target, found, crops, lenses, filenames, names, masks, note)
        except OSError as error:
            raise HashPoseError(f"{self.output_dir} could not be written ({error.strerror or error}).") from error
        whole = sum(how == "whole picture" for how in crops.found_by)
        if whole:
            notes.append(f"no object was set apart in {whole} photographs, which are used whole; --masks would help")
        lines = [
            f"Wrote {len(names)} cameras: {self.output_dir}",
            f"  frame    {FRAME}",
            *(f"  note     {line}" for line in notes),
            f"  use      ns-train hashpose-object --data {self.output_dir} nerfstudio-data --orientation-method none "
            "--center-method none --auto-scale-poses False --eval-mode all",
        ]
        text = "\n".join(lines).encode(CONSOLE.encoding, "backslashreplace").decode(CONSOLE.encoding)
        CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


Commands = tyro.conf.FlagConversionOff[
    Union[
        Annotated[Poses, tyro.conf.subcommand(name="poses")],
        Annotated[Train, tyro.conf.subcommand(name="train")],
        Annotated[Eval, tyro.conf.subcommand(name="eval")],
    ]
]


def entrypoint() -> None:
    """Entrypoint for use with pyproject scripts."""
    run_command(Commands, "Cameras of a handful of photographs of one object, by a small network. Experimental.")


if __name__ == "__main__":
    entrypoint()
