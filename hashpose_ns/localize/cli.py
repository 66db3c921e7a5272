"""hashpose-localize: where photographs were taken, in a trained run.

Only light modules are imported up here, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, List, Optional, Tuple

import tyro

from hashpose_ns import __version__
from hashpose_ns.command import run_command
from hashpose_ns.errors import HashPoseError, exits_on_user_error
from hashpose_ns.photometry.search_config import SearchConfig


@dataclass
class Localize:
    """Find the cameras of photographs in a trained run, with or without a rough pose. Poses are written in the frame of
    the run's input, as JSON, transforms.json, COLMAP model and TUM trajectory, for the photographs that were found."""

    load_config: Path
    """Path to the config.yml of the trained run: of a hashpose method, or of nerfacto."""
    images: Tuple[Path, ...]
    """Photographs, or folders of them."""
    output_dir: Path
    """Output folder, written atomically."""
    start: Optional[Path] = None
    """Rough poses in the frame of the run's input, and intrinsics.
    A transforms.json or a folder with a COLMAP model.
    Photographs it does not name are searched for everywhere, as all are without it."""
    masks: Optional[Path] = None
    """Folder with a mask for each photograph, under its name with any suffix.
    Only white pixels are compared."""
    overwrite: bool = False
    """Replace an earlier result in the output folder. A folder with anything else in it is never replaced."""
    search: tyro.conf.OmitArgPrefixes[SearchConfig] = field(default_factory=SearchConfig)
    """Settings of the search."""
    batch: int = SearchConfig.images
    """Photographs searched for at once. More keep a GPU busy and take memory."""
    overlay_size: int = 256
    """Longest side, in pixels, of the pictures of photograph and render; 0 makes none."""
    add: bool = False
    """Continue training with the photographs that were found, in a new run beside the old one.
    The old run stays as it is."""
    add_steps: Optional[int] = None
    """Steps of that training; by default half as many as the run has taken."""

    def main(self) -> Any:
        """Load the run, look for the photographs, write and print what was found.

        Returns:
            With `add` the `hashpose_ns.localize.adding.AddedRun` that is to be trained, else None.
        """
        from hashpose_ns.export.replace import check_target, clear_abandoned, replaced_folder

        clear_abandoned(self.output_dir)
        check_target(self.output_dir, self.overwrite, self._inputs(), what="hashpose-localize")
        from hashpose_ns.localize.adding import begin_added_run, check_addable, new_photographs
        from hashpose_ns.localize.api import Search
        from hashpose_ns.localize.photographs import masks_of, photograph_files
        from hashpose_ns.localize.starts import KnownStarts
        from hashpose_ns.localize.writing import results_table, write_results
        from nerfstudio.utils.rich_utils import CONSOLE, get_progress

        if self.add_steps is not None and self.add_steps < 1:
            raise HashPoseError("--add-steps must be at least 1.")
        config = replace(self.search, images=self.batch)
        config.validate()
        filenames, names = photograph_files(self.images, [self.masks] if self.masks is not None else [])
        masks = masks_of(self.masks, names)
        search = Search(self.load_config, config)
        if self.add:
            check_addable(search, masks is not None)
        starts = KnownStarts.none(len(names))
        if self.start is not None and str(self.start) != "none":
            starts = KnownStarts.read(self.start, filenames, names, search.given)
        photographs = search.photographs(filenames, starts, masks)
        for origin in sorted({lens.origin for lens in photographs.lenses} - {"the run", "the start file"}):
            count = sum(lens.origin == origin for lens in photographs.lenses)
            CONSOLE.print(f"The intrinsics of {count} photographs are guessed, from {origin}.", soft_wrap=True)
        with get_progress("Looking for photographs", suffix="images") as progress:
            task = progress.add_task("", total=len(names))
            results = search.localize(photographs, names, starts, lambda count: progress.advance(task, count))
        CONSOLE.print(results_table(results))
        found = sum(result.found for result in results)
        if not found:
            what = "The photograph was" if len(results) == 1 else f"None of the {len(results)} photographs was"
            raise HashPoseError(
                f"{what}{' not' if len(results) == 1 else ''} found in the run, and nothing is written; more --rays or "
                "a --start may help if it is of the same scene."
            )
        note = (
            f"Poses of photographs in the run {self.load_config.resolve().parent}. Frame: {search.frame.description}. "
            f"Written by hashpose-localize {__version__}."
        )
        manifest = {
            "written_by": f"hashpose-localize {__version__}",
            "run": str(self.load_config.resolve().parent),
            "frame": search.frame.description,
            "images": [result.name for result in results if result.found],
        }
        try:
            with replaced_folder(
                self.output_dir, self.overwrite, manifest, self._inputs(), what="hashpose-localize"
            ) as folder:
                notes = write_results(folder, self.output_dir, search, photographs, results, note, self.overlay_size)
        except OSError as error:
            raise HashPoseError(f"{self.output_dir} could not be written ({error.strerror or error}).") from error
        lines = [
            f"Found {found} of {len(results)} photographs: {self.output_dir}",
            f"  frame    {search.frame.description}",
            *(f"  note     {line}" for line in notes),
        ]
        text = "\n".join(lines).encode(CONSOLE.encoding, "backslashreplace").decode(CONSOLE.encoding)
        CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
        if not self.add:
            return None
        rows = new_photographs(search, results)
        if len(rows) < found:
            CONSOLE.print(f"{found - len(rows)} of these are images of the run already and are not added.")
        if not rows:
            raise HashPoseError("No photograph is left to add; the run stays as it is.")
        chosen = None if masks is None else [masks[row] for row in rows]
        return begin_added_run(self.load_config, search, photographs, results, rows, chosen, self.add_steps)

    def _inputs(self) -> List[Path]:
        """Files and folders that are read, which the result must not replace."""
        optional = [path for path in (self.start, self.masks) if path is not None]
        return [self.load_config.parent, self.load_config, *self.images, *optional]


def entrypoint() -> None:
    """Entrypoint for use with pyproject scripts."""
    begun = run_command(tyro.conf.FlagConversionOff[Localize])
    if begun is not None:  # training takes care of signals itself
        _train(begun)


@exits_on_user_error
def _train(begun: Any) -> None:
    from nerfstudio.utils.rich_utils import CONSOLE

    CONSOLE.print(
        f"Training continues with {begun.added} photographs beside {begun.trained} images for {begun.steps} steps, in "
        f"a new run: {begun.folder}",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip
    begun.train()
    CONSOLE.print(f"The new run: {begun.folder / 'config.yml'}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    entrypoint()
