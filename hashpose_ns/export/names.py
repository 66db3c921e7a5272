"""Names of images, as COLMAP gives them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional, Tuple

from hashpose_ns.errors import HashPoseError


def image_folder_and_names(
    image_filenames: List[Path], data: Path, images_path: Optional[Path] = None
) -> Tuple[Path, List[str]]:
    """Name images as COLMAP does: relative to one folder, sub-folders kept.

    Args:
        image_filenames: the images.
        data: the dataset's folder, or its transforms file.
        images_path: the images' folder inside it, where the dataparser has a setting for that.

    Returns:
        The folder and the names: the given folder; else the folder right inside the dataset that all lie in; else the
        dataset; else, for images elsewhere, the innermost folder that holds all of them.

    Raises:
        HashPoseError: if two images would get one name.
    """
    # .absolute() rather than .resolve(): an image that is a link keeps its own name
    filenames = [Path(os.path.normpath(filename.absolute())) for filename in image_filenames]
    folder = Path(os.path.normpath((data if data.suffix != ".json" else data.parent).absolute()))
    if images_path is not None:
        folder = Path(os.path.normpath(folder / images_path))
    if not all(folder in filename.parents for filename in filenames):
        folder = Path(os.path.commonpath([filename.parent for filename in filenames]))
    elif images_path is None:
        tops = {filename.relative_to(folder).parts[0] for filename in filenames}
        if len(tops) == 1 and all(filename.parent != folder for filename in filenames):
            folder = folder / tops.pop()
    names = [filename.relative_to(folder).as_posix() for filename in filenames]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise HashPoseError(f"The image {repeated[0]} is there more than once; exported names must be unique.")
    return folder, names
