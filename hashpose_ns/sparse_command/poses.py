"""Lenses of photographs, and files of the cameras that were found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns import __version__
from hashpose_ns.data.source import cameras_of_file
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.colmap import colmap_model_or_note
from hashpose_ns.export.transforms import write_transforms
from hashpose_ns.localize.photographs import Lens, cameras_of, known_lens, lens_from_exif
from hashpose_ns.localize.starts import row_of
from hashpose_ns.sparse.crops import Crops
from hashpose_ns.sparse.start import FRAME


def lenses_of(filenames: list[Path], names: list[str], intrinsics: Optional[Path], fov: Optional[float]) -> list[Lens]:
    """Intrinsics of photographs: from a file, from an angle of view, or from EXIF.

    Args:
        filenames: the photographs.
        names: their names.
        intrinsics: a transforms.json or COLMAP model; its poses are not read.
        fov: angle of view along the longer side, in degrees.

    Raises:
        HashPoseError: an image cannot be read, or nothing says its focal length.
    """
    from hashpose_ns.data.reading import reading

    if fov is not None and not 1.0 <= fov <= 150.0:
        raise HashPoseError(f"--fov is {fov:g}; give the angle of view along the longer side, 1 to 150 degrees.")
    source = None if intrinsics is None else cameras_of_file(intrinsics)
    lenses = []
    for filename, name in zip(filenames, names):
        from PIL import Image

        with reading(f"The image {filename}"):
            with Image.open(filename) as image:
                size = image.size
        row = None if source is None else row_of(source, filename, name)
        if source is not None and row is None:
            raise HashPoseError(f"{intrinsics} has no camera for {name}; give a file that names it, or --fov.")
        lens = None if source is None or row is None else known_lens(source.intrinsics[row], *size)
        if lens is None and fov is not None:
            focal = max(size) / 2 / float(torch.tan(torch.deg2rad(torch.tensor(fov / 2))))
            lens = Lens(focal, focal, size[0] / 2, size[1] / 2, *size, origin="--fov")
        lens = lens if lens is not None else lens_from_exif(filename)
        if lens is None:
            raise HashPoseError(f"The focal length of {name} is unknown; give --intrinsics or --fov.")
        lenses.append(lens)
    return lenses


def write_found(
    folder: Path,
    target: Path,
    camera_to_worlds: Float[Tensor, "views 3 4"],
    crops: Crops,
    lenses: list[Lens],
    filenames: list[Path],
    names: list[str],
    masks: Optional[list[Path]],
    note: dict[str, Any],
) -> list[str]:
    """Writes transforms.json, sparse/0 (a COLMAP model without points), poses.json and crops.png.

    Args:
        folder: an existing folder.
        target: where it will lie in the end.
        camera_to_worlds: of `find_cameras`.
        crops: what the network saw.
        lenses, filenames, names, masks: of the photographs.
        note: of the weights.
    Returns:
        Notes on what a format could not hold.
    """
    cameras = cameras_of(lenses)
    text = f"Camera poses by SparsePose. Frame: {FRAME}. Written by hashpose-sparse {__version__}."
    write_transforms(folder, camera_to_worlds, cameras, filenames, text, relative_to=target, mask_filenames=masks)
    content = {
        "written_by": f"hashpose-sparse {__version__}",
        "frame": FRAME,
        "axes": "camera-to-world, OpenGL axes: right, up, backwards",
        "weights": note,
        "images": [
            {
                "name": name,
                "box": box,
                "box_from": how,
                "intrinsics_from": lens.origin,
                "camera_to_world": pose.tolist(),
            }
            for name, box, how, lens, pose in zip(names, crops.boxes, crops.found_by, lenses, camera_to_worlds)
        ],
    }
    (folder / "poses.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    notes = colmap_model_or_note(folder, camera_to_worlds, cameras, names)
    from torchvision.utils import save_image

    save_image(crops.images, folder / "crops.png", nrow=8)
    return notes
