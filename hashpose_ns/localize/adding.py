"""Photographs that were found join the training images: a new run that continues where the old one, left as it is,
ended."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns import __version__
from hashpose_ns.atomic import staging_folder
from hashpose_ns.data.added import FILE, added_outputs, downscale_factor, joined_cameras
from hashpose_ns.data.fingerprint import image_digest
from hashpose_ns.data.reading import reading
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.transforms import write_transforms
from hashpose_ns.localize.api import LocalizedImage, Search
from hashpose_ns.localize.foreign import NerfstudioRenderer
from hashpose_ns.localize.photographs import Photographs
from hashpose_ns.runs.config import read_config
from hashpose_ns.runs.files import CHECKPOINTS, last_checkpoint, last_step
from nerfstudio.cameras.cameras import Cameras

SHARE = 0.5
"""Default number of further training steps, as a share of those done."""


@dataclass(frozen=True, eq=False)
class AddedRun:
    """A run that has been begun in a folder of its own and is not trained yet."""

    config: Any
    """Its settings, a nerfstudio `TrainerConfig`."""
    folder: Path
    """Where it is."""
    added: int
    """Photographs that join."""
    trained: int
    """Images that the old run was trained on."""
    steps: int
    """Steps that are to be done."""

    def train(self) -> None:
        """Trains it as ns-train does. What comes to nothing leaves no folder."""
        from nerfstudio.scripts.train import main

        begun = last_step(self.folder)
        try:
            main(self.config)
        except BaseException:
            if last_step(self.folder) == begun:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise


def check_addable(search: Search, masks: bool) -> None:
    """Raises HashPoseError if a run cannot continue with photographs.

    Args:
        search: the run.
        masks: whether the photographs have masks.
    """
    scene = search.scene
    if isinstance(scene.renderer, NerfstudioRenderer):
        raise HashPoseError("--add works with runs of the hashpose methods only; leave it out for this run.")
    if (scene.train_outputs.mask_filenames is not None) != masks:
        has, how = ("no masks", "leave --masks out") if masks else ("masks", "give the photographs masks by --masks")
        raise HashPoseError(f"The run's images have {has}, and so must what is added; {how}, or leave --add out.")


def new_photographs(search: Search, results: Sequence[LocalizedImage]) -> List[int]:
    """Which results are of photographs that can join: found, and no image that the run is trained or evaluated on."""
    known = {
        image_digest(Path(path))
        for outputs in (search.scene.train_outputs, search.scene.held_out_outputs)
        for path in outputs.image_filenames
    }
    return [row for row, result in enumerate(results) if result.found and image_digest(result.filename) not in known]


def begin_added_run(
    load_config: Path,
    search: Search,
    photographs: Photographs,
    results: Sequence[LocalizedImage],
    rows: Sequence[int],
    masks: Optional[Sequence[Path]],
    steps: Optional[int],
) -> AddedRun:
    """Makes the folder of a run that continues with photographs: their poses, and the checkpoint to start from.

    Args:
        load_config: the config.yml of the run that they were found in.
        search: what found them.
        photographs: what was looked for.
        results: of each photograph.
        rows: those that join.
        masks: a mask of each of `rows`, where the run's images have masks.
        steps: of the training with them; half as many as are done by default.

    Raises:
        HashPoseError: the run has no checkpoint, or the folder cannot be written.
    """
    run = load_config.resolve().parent
    config = read_config(load_config)
    checkpoint = last_checkpoint(run / config.relative_model_dir)
    if checkpoint is None:
        raise HashPoseError(f"There is no checkpoint of the run in {run / config.relative_model_dir}.")
    done = int(checkpoint.stem.removeprefix("step-")) + 1
    more = math.ceil(SHARE * done) if steps is None else steps
    folder = _free_folder(run)
    earlier = config.pipeline.datamanager.added_images
    try:
        with staging_folder(folder) as staging:
            new = staging / folder.name
            try:
                for part in (new, (new / FILE).parent, new / CHECKPOINTS):
                    part.mkdir()
                _write_added(new, folder, search, photographs, results, rows, masks, earlier)
                shutil.copyfile(checkpoint, new / CHECKPOINTS / checkpoint.name)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise HashPoseError(f"The new run {folder} cannot be written ({error.strerror or error}).") from error
    nested = run.parts[-3:-1] == (config.experiment_name, config.method_name)
    config.output_dir = run.parents[2] if nested else run.parent
    if not nested:  # the run was moved
        config.experiment_name, config.method_name = folder.parts[-3], folder.parts[-2]
        config.output_dir = folder.parents[2]
    config.timestamp = folder.name
    config.load_dir, config.load_checkpoint, config.load_step = folder / CHECKPOINTS, None, None
    config.load_config = None
    config.relative_model_dir = Path(CHECKPOINTS)
    config.max_num_iterations = done + more
    config.viewer.quit_on_train_completion = True
    config.pipeline.changed_images = "carry"
    config.pipeline.datamanager.added_images = folder / FILE
    return AddedRun(config, folder, len(rows), len(search.scene.train_outputs.image_filenames), more)


def _free_folder(run: Path) -> Path:
    """A folder beside a run's that is not there: RUN-added, RUN-added-2, ..."""
    name = re.sub(r"-added(-[0-9]+)?$", "", run.name) + "-added"
    candidates = (run.with_name(name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))
    return next(folder for folder in candidates if not folder.exists())


def _write_added(
    new: Path,
    folder: Path,
    search: Search,
    photographs: Photographs,
    results: Sequence[LocalizedImage],
    rows: Sequence[int],
    masks: Optional[Sequence[Path]],
    earlier: Optional[Path],
) -> None:
    """Writes the file of all photographs that were added so far, and smaller copies where the run takes smaller
    images."""
    factor = downscale_factor(search.scene.dataparser)
    filenames = [results[row].filename for row in rows]
    cameras: Cameras = photographs.full_cameras(rows)
    poses: Float[Tensor, "count 3 4"] = torch.stack([results[row].camera_to_world for row in rows])
    mask_filenames = list(masks) if masks is not None else None
    if earlier is not None:
        outputs, source = added_outputs(Path(earlier), 1)
        filenames = [*outputs.image_filenames, *filenames]
        cameras = joined_cameras(outputs.cameras, cameras)
        poses = torch.cat([source.camera_to_worlds[source.rows(outputs.image_filenames)], poses])
        mask_filenames = None if mask_filenames is None else [*(outputs.mask_filenames or ()), *mask_filenames]
    write_transforms(
        (new / FILE).parent,
        poses,
        cameras,
        filenames,
        f"Photographs that were added to a run by hashpose-localize {__version__}, in the frame of the run's input.",
        relative_to=(folder / FILE).parent,
        mask_filenames=mask_filenames,
    )
    for kind, files in (("images", filenames), ("masks", mask_filenames or [])):
        if factor > 1:
            _write_smaller((new / FILE).parent / f"{kind}_{factor}", files, factor)


def _write_smaller(folder: Path, filenames: Sequence[Path], factor: int) -> None:
    """Copies of images at a fraction of their size, where nerfstudio-data looks for them.

    Raises:
        HashPoseError: two have one name.
    """
    from PIL import Image

    if len({path.name for path in filenames}) < len(filenames):
        raise HashPoseError("Two photographs to add have one name; name them differently.")
    folder.mkdir()
    for path in filenames:
        with reading(f"The image {path}"):
            with Image.open(path) as image:
                size = image.width // factor, image.height // factor
                image.resize(size, Image.Resampling.BOX).save(folder / path.name)
